/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NBD protocol on the wire: one codec for server and client. Everything is big-endian. From
 * doc/proto.md of the NBD project; contexts "qemu:..." from QEMU's docs/interop/nbd.txt.
 *
 *   handshake      S: "NBDMAGIC" "IHAVEOPT" u16 flags        C: u32 flags
 *   option         C: "IHAVEOPT" u32 option, u32 length, data
 *   option reply   S: u64 magic, u32 option, u32 type, u32 length, data
 *   request        C: u32 magic, u16 flags, u16 type, u64 cookie, u64 offset, u32 length [data]
 *   simple reply   S: u32 magic, u32 error, u64 cookie [data]
 *   chunk          S: u32 magic, u16 flags, u16 type, u64 cookie, u32 length, payload
 *
 * With extended headers (the specification's branch extension-ext-header; QEMU 8.2 and later):
 *
 *   request        C: u32 magic, u16 flags, u16 type, u64 cookie, u64 offset, u64 length [payload]
 *   chunk          S: u32 magic, u16 flags, u16 type, u64 cookie, u64 offset, u64 length, payload
 *
 * None of these functions yields or allocates, except where a strbuf is filled.
 */
#ifndef TIDEMARK_NBD_PROTO_H
#define TIDEMARK_NBD_PROTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/checked.h"
#include "base/strbuf.h"

#define NBD_DEFAULT_PORT "10809"

#define NBD_MAGIC 0x4e42444d41474943ULL        /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC 0x49484156454f5054ULL /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC 0x0003e889045565a9ULL
#define NBD_OLDSTYLE_MAGIC 0x0000420281861253ULL
#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698u
#define NBD_CHUNK_MAGIC 0x668e33efu
#define NBD_EXTENDED_REQUEST_MAGIC 0x21e41c71u
#define NBD_EXTENDED_CHUNK_MAGIC 0x6e8a278cu

/* Bytes. */
#define NBD_SERVER_HELLO_SIZE 18
#define NBD_OPTION_HEADER_SIZE 16
#define NBD_OPTION_REPLY_HEADER_SIZE 20
#define NBD_REQUEST_SIZE 28
#define NBD_SIMPLE_REPLY_SIZE 16
#define NBD_CHUNK_HEADER_SIZE 20
#define NBD_EXTENT_SIZE 8
#define NBD_EXTENDED_REQUEST_SIZE 32
#define NBD_EXTENDED_CHUNK_HEADER_SIZE 32
#define NBD_EXTENDED_EXTENT_SIZE 16
#define NBD_EXPORT_NAME_ZEROES 124 /* padding of the answer to EXPORT_NAME */

/* Limits: the first from the specification, the others ours. */
#define NBD_STRING_MAX 4096u
#define NBD_MAX_BLOCK_SIZE (32 * MiB)
#define NBD_OPTION_DATA_MAX (64 * KiB) /* of an option that is looked at; longer ones are refused */
#define NBD_OPTION_SKIP_MAX (1 * MiB)  /* of one that is read past; longer ones end the session */

/* Handshake flags, of server and client alike. */
#define NBD_FLAG_FIXED_NEWSTYLE 1u
#define NBD_FLAG_NO_ZEROES 2u

/* Transmission flags. */
#define NBD_FLAG_HAS_FLAGS (1u << 0)
#define NBD_FLAG_READ_ONLY (1u << 1)
#define NBD_FLAG_SEND_FLUSH (1u << 2)
#define NBD_FLAG_SEND_FUA (1u << 3)
#define NBD_FLAG_ROTATIONAL (1u << 4)
#define NBD_FLAG_SEND_TRIM (1u << 5)
#define NBD_FLAG_SEND_WRITE_ZEROES (1u << 6)
#define NBD_FLAG_SEND_DF (1u << 7)
#define NBD_FLAG_CAN_MULTI_CONN (1u << 8)
#define NBD_FLAG_SEND_RESIZE (1u << 9)
#define NBD_FLAG_SEND_CACHE (1u << 10)
#define NBD_FLAG_SEND_FAST_ZERO (1u << 11)
#define NBD_FLAG_BLOCK_STATUS_PAYLOAD (1u << 12)

enum nbd_option {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
    NBD_OPT_EXTENDED_HEADERS = 11,
};

#define NBD_REP_ACK 1u
#define NBD_REP_SERVER 2u
#define NBD_REP_INFO 3u
#define NBD_REP_META_CONTEXT 4u
#define NBD_REP_IS_ERROR(type) (((type) >> 31) != 0)
#define NBD_REP_ERR_UNSUP 0x80000001u
#define NBD_REP_ERR_POLICY 0x80000002u
#define NBD_REP_ERR_INVALID 0x80000003u
#define NBD_REP_ERR_PLATFORM 0x80000004u
#define NBD_REP_ERR_TLS_REQD 0x80000005u
#define NBD_REP_ERR_UNKNOWN 0x80000006u
#define NBD_REP_ERR_SHUTDOWN 0x80000007u
#define NBD_REP_ERR_BLOCK_SIZE_REQD 0x80000008u
#define NBD_REP_ERR_TOO_BIG 0x80000009u
#define NBD_REP_ERR_EXT_HEADER_REQD 0x8000000au

#define NBD_INFO_EXPORT 0u
#define NBD_INFO_NAME 1u
#define NBD_INFO_DESCRIPTION 2u
#define NBD_INFO_BLOCK_SIZE 3u

enum nbd_command {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

#define NBD_CMD_FLAG_FUA (1u << 0)
#define NBD_CMD_FLAG_NO_HOLE (1u << 1)
#define NBD_CMD_FLAG_DF (1u << 2)
#define NBD_CMD_FLAG_REQ_ONE (1u << 3)
#define NBD_CMD_FLAG_FAST_ZERO (1u << 4)
#define NBD_CMD_FLAG_PAYLOAD_LEN (1u << 5) /* `length` bytes follow; extended headers only */

#define NBD_CHUNK_FLAG_DONE 1u
#define NBD_CHUNK_NONE 0u
#define NBD_CHUNK_OFFSET_DATA 1u  /* u64 offset, data */
#define NBD_CHUNK_OFFSET_HOLE 2u  /* u64 offset, u32 length */
#define NBD_CHUNK_BLOCK_STATUS 5u /* u32 context id, then u32 length, u32 flags each */
/* u32 context id, u32 count, then u64 length, u64 flags each; with extended headers, instead of the one before */
#define NBD_CHUNK_BLOCK_STATUS_EXT 6u
#define NBD_CHUNK_IS_ERROR(type) (((type) >> 15) != 0)
#define NBD_CHUNK_ERROR 0x8001u        /* u32 error, u16 length, message */
#define NBD_CHUNK_ERROR_OFFSET 0x8002u /* the same, then u64 offset */

/* Flags of extents. */
#define NBD_STATE_HOLE 1u  /* base:allocation */
#define NBD_STATE_ZERO 2u  /* base:allocation */
#define NBD_STATE_DIRTY 1u /* qemu:dirty-bitmap: */

#define NBD_CONTEXT_BASE_ALLOCATION "base:allocation"
#define NBD_CONTEXT_DIRTY_BITMAP "qemu:dirty-bitmap:" /* then the bitmap's name */
#define NBD_CONTEXT_ALLOCATION_DEPTH "qemu:allocation-depth"

/* Error values on the wire. */
#define NBD_EPERM 1u
#define NBD_EIO 5u
#define NBD_ENOMEM 12u
#define NBD_EINVAL 22u
#define NBD_ENOSPC 28u
#define NBD_EOVERFLOW 75u
#define NBD_ENOTSUP 95u
#define NBD_ESHUTDOWN 108u

/* errno (positive) <-> wire. What has no wire value becomes EINVAL, as QEMU's server does. */
uint32_t nbd_error_from_errno(int errnum);
int nbd_error_to_errno(uint32_t wire);

/* For messages: "NBD_OPT_GO", "NBD_REP_ERR_UNSUP", "NBD_CMD_READ"; "unknown" for others. Static strings. */
const char *nbd_option_name(uint32_t option);
const char *nbd_option_word(uint32_t option); /* as "starttls" */
const char *nbd_reply_name(uint32_t type);
const char *nbd_command_name(uint32_t type);

/* --- transmission ---------------------------------------------------------------------------- */

struct nbd_request {
    uint64_t cookie;
    uint64_t offset;
    uint64_t length; /* less than 4 GiB without extended headers */
    uint16_t flags;
    uint16_t type;
};

void nbd_request_encode(uint8_t buf[static NBD_REQUEST_SIZE], const struct nbd_request *r);
/* False if the magic is wrong: the stream is out of step and must be closed. */
bool nbd_request_decode(const uint8_t buf[static NBD_REQUEST_SIZE], struct nbd_request *ret);
bool nbd_extended_request_decode(const uint8_t buf[static NBD_EXTENDED_REQUEST_SIZE],
                                 struct nbd_request *ret);

void nbd_simple_reply_encode(uint8_t buf[static NBD_SIMPLE_REPLY_SIZE], uint32_t error,
                             uint64_t cookie);

struct nbd_chunk {
    uint64_t cookie;
    uint64_t offset; /* of the request; with extended headers only */
    uint32_t length; /* of the payload */
    uint16_t flags;
    uint16_t type;
};

void nbd_chunk_encode(uint8_t buf[static NBD_CHUNK_HEADER_SIZE], const struct nbd_chunk *c);
void nbd_extended_chunk_encode(uint8_t buf[static NBD_EXTENDED_CHUNK_HEADER_SIZE],
                               const struct nbd_chunk *c);

/*
 * The head of a reply, simple or chunk. `size` bytes are there. Returns its length (16 or 20), 0 if
 * more bytes are needed, or -EPROTO. For a simple reply *ret_simple is true, *ret_error the wire error,
 * and only the cookie of *ret is set.
 */
int nbd_reply_decode(const uint8_t *buf, size_t size, struct nbd_chunk *ret, bool *ret_simple,
                     uint32_t *ret_error);

/* --- handshake ------------------------------------------------------------------------------- */

void nbd_option_header_encode(uint8_t buf[static NBD_OPTION_HEADER_SIZE], uint32_t option,
                              uint32_t length);
/* False if the magic is wrong. */
bool nbd_option_header_decode(const uint8_t buf[static NBD_OPTION_HEADER_SIZE],
                              uint32_t *ret_option, uint32_t *ret_length);

void nbd_option_reply_encode(uint8_t buf[static NBD_OPTION_REPLY_HEADER_SIZE], uint32_t option,
                             uint32_t type, uint32_t length);
bool nbd_option_reply_decode(const uint8_t buf[static NBD_OPTION_REPLY_HEADER_SIZE],
                             uint32_t *ret_option, uint32_t *ret_type, uint32_t *ret_length);

/* Append big-endian numbers and length-prefixed strings. */
void nbd_put_u16(struct strbuf *sb, uint16_t v);
void nbd_put_u32(struct strbuf *sb, uint32_t v);
void nbd_put_u64(struct strbuf *sb, uint64_t v);
void nbd_put_string(struct strbuf *sb, const char *s);

/*
 * A cursor over received bytes. A read past the end yields 0 or NULL and turns it `failed`, and it
 * stays so: the caller asks once at the end.
 */
struct nbd_cursor {
    const uint8_t *data;
    size_t left;
    bool failed;
};

uint16_t nbd_get_u16(struct nbd_cursor *c);
uint32_t nbd_get_u32(struct nbd_cursor *c);
uint64_t nbd_get_u64(struct nbd_cursor *c);
const uint8_t *nbd_get_bytes(struct nbd_cursor *c, size_t size);
/*
 * A u32 length and so many bytes, at most NBD_STRING_MAX: the string with a NUL added, malloc'ed; NULL and
 * failed if it is cut short, too long, holds a NUL, or memory ran out.
 */
char *nbd_get_string(struct nbd_cursor *c);
/* As above for a string that is the next `size` bytes. */
char *nbd_get_string_of(struct nbd_cursor *c, size_t size);

#endif

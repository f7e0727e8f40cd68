/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NBD protocol on the wire, for server and client. Everything is big-endian. From doc/proto.md
 * of the NBD project; contexts "qemu:..." from QEMU's docs/interop/nbd.txt.
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
 * No function yields. Those that fill a strbuf allocate, as do the two nbd_get_string functions;
 * the others do not.
 */
#ifndef TIDEMARK_NBD_PROTO_H
#define TIDEMARK_NBD_PROTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/checked.h"
#include "base/strbuf.h"

#define NBD_DEFAULT_PORT "10809"

/* Magic numbers. The first two are the texts "NBDMAGIC" and "IHAVEOPT". */
#define NBD_MAGIC 0x4e42444d41474943ULL
#define NBD_OPTION_MAGIC 0x49484156454f5054ULL
#define NBD_OPTION_REPLY_MAGIC 0x0003e889045565a9ULL
#define NBD_OLDSTYLE_MAGIC 0x0000420281861253ULL
#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698u
#define NBD_CHUNK_MAGIC 0x668e33efu
#define NBD_EXTENDED_REQUEST_MAGIC 0x21e41c71u
#define NBD_EXTENDED_CHUNK_MAGIC 0x6e8a278cu

/* Sizes of headers and of elements. Bytes. */
enum {
    NBD_SERVER_HELLO_SIZE = 18,
    NBD_OPTION_HEADER_SIZE = 16,
    NBD_OPTION_REPLY_HEADER_SIZE = 20,
    NBD_REQUEST_SIZE = 28,
    NBD_SIMPLE_REPLY_SIZE = 16,
    NBD_CHUNK_HEADER_SIZE = 20,
    NBD_EXTENT_SIZE = 8,
    NBD_EXTENDED_REQUEST_SIZE = 32,
    NBD_EXTENDED_CHUNK_HEADER_SIZE = 32,
    NBD_EXTENDED_EXTENT_SIZE = 16,
    /* Padding of the answer to EXPORT_NAME. */
    NBD_EXPORT_NAME_ZEROES = 124,
};

/* Limits. Bytes. */
enum {
    /* Of the specification: names, descriptions, error texts. */
    NBD_STRING_MAX = 4096,
    /* Ours: data of a read or a write. */
    NBD_MAX_BLOCK_SIZE = 32 * 1024 * 1024,
    /* Ours: data of an option that the server looks at; an option with more is refused. */
    NBD_OPTION_DATA_MAX = 64 * 1024,
    /* Ours: data of a refused option that the server skips; more of it ends the session. */
    NBD_OPTION_SKIP_MAX = 1024 * 1024,
};

/* Handshake flags, of server and client alike. */
enum nbd_handshake_flags {
    NBD_FLAG_FIXED_NEWSTYLE = 1 << 0,
    NBD_FLAG_NO_ZEROES = 1 << 1,
};

/* Transmission flags: properties of an export. */
enum nbd_transmission_flags {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_FLAG_SEND_FLUSH = 1 << 2,
    NBD_FLAG_SEND_FUA = 1 << 3,
    NBD_FLAG_ROTATIONAL = 1 << 4,
    NBD_FLAG_SEND_TRIM = 1 << 5,
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_SEND_DF = 1 << 7,
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
    NBD_FLAG_SEND_RESIZE = 1 << 9,
    NBD_FLAG_SEND_CACHE = 1 << 10,
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
    NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12,
};

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

/* Types of replies to an option. */
enum nbd_option_reply {
    NBD_REP_ACK = 1,
    NBD_REP_SERVER = 2,
    NBD_REP_INFO = 3,
    NBD_REP_META_CONTEXT = 4,
    NBD_REP_ERR_UNSUP = 0x80000001u,
    NBD_REP_ERR_POLICY = 0x80000002u,
    NBD_REP_ERR_INVALID = 0x80000003u,
    NBD_REP_ERR_PLATFORM = 0x80000004u,
    NBD_REP_ERR_TLS_REQD = 0x80000005u,
    NBD_REP_ERR_UNKNOWN = 0x80000006u,
    NBD_REP_ERR_SHUTDOWN = 0x80000007u,
    NBD_REP_ERR_BLOCK_SIZE_REQD = 0x80000008u,
    NBD_REP_ERR_TOO_BIG = 0x80000009u,
    NBD_REP_ERR_EXT_HEADER_REQD = 0x8000000au,
};
#define NBD_REP_IS_ERROR(type) (((type) >> 31) != 0)

/* What an NBD_REP_INFO tells. */
enum nbd_info {
    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3,
};

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

enum nbd_command_flags {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
    /* A payload of `length` bytes follows; extended headers only. */
    NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5,
};

enum nbd_chunk_flags {
    /* The last chunk of the reply. */
    NBD_CHUNK_FLAG_DONE = 1 << 0,
};

/* Types of chunks, which the specification calls NBD_REPLY_TYPE_.... */
enum nbd_chunk_type {
    NBD_CHUNK_NONE = 0,
    /* u64 offset, data. */
    NBD_CHUNK_OFFSET_DATA = 1,
    /* u64 offset, u32 length. */
    NBD_CHUNK_OFFSET_HOLE = 2,
    /* u32 context id, then for each extent u32 length, u32 flags. */
    NBD_CHUNK_BLOCK_STATUS = 5,
    /*
     * u32 context id, u32 count, then for each extent u64 length, u64 flags. With extended headers,
     * instead of NBD_CHUNK_BLOCK_STATUS.
     */
    NBD_CHUNK_BLOCK_STATUS_EXT = 6,
    /* u32 error, u16 length, message. */
    NBD_CHUNK_ERROR = 0x8001,
    /* The same, then u64 offset. */
    NBD_CHUNK_ERROR_OFFSET = 0x8002,
};
#define NBD_CHUNK_IS_ERROR(type) (((type) >> 15) != 0)

/* Flags of extents of the context "base:allocation". */
enum nbd_allocation_flags {
    NBD_STATE_HOLE = 1 << 0,
    NBD_STATE_ZERO = 1 << 1,
};

/* Flags of extents of a context "qemu:dirty-bitmap:...". */
enum nbd_bitmap_flags {
    NBD_STATE_DIRTY = 1 << 0,
};

/* Flags of extents of a context "x-tidemark:merged...", which docs/nbd.md specifies. */
enum nbd_merged_flags {
    NBD_MERGED_HOLE = NBD_STATE_HOLE,
    NBD_MERGED_ZERO = NBD_STATE_ZERO,
    /* Which layer the contents are from; neither: no layer has any, they read as zeroes. */
    NBD_MERGED_LOCAL = 1 << 2,
    NBD_MERGED_BACKING = 1 << 3,
    /* Of "x-tidemark:merged:BITMAP" only. */
    NBD_MERGED_DIRTY = 1 << 4,
};

#define NBD_CONTEXT_BASE_ALLOCATION "base:allocation"
/* Followed by the name of the bitmap. */
#define NBD_CONTEXT_DIRTY_BITMAP "qemu:dirty-bitmap:"
#define NBD_CONTEXT_ALLOCATION_DEPTH "qemu:allocation-depth"
#define NBD_CONTEXT_MERGED "x-tidemark:merged"
/* Followed by the name of the bitmap. */
#define NBD_CONTEXT_MERGED_BITMAP "x-tidemark:merged:"

/* Error values on the wire. */
enum nbd_error {
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ENOTSUP = 95,
    NBD_ESHUTDOWN = 108,
};

/*
 * From a positive errno (or 0). One that has no value on the wire becomes EINVAL, as in QEMU's
 * server.
 */
uint32_t nbd_error_from_errno(int errnum);
/* To a positive errno (or 0). An unknown value becomes EINVAL. */
int nbd_error_to_errno(uint32_t wire);

/*
 * Names for messages: "NBD_OPT_GO", "NBD_REP_ERR_UNSUP", "NBD_CMD_READ",
 * "NBD_REPLY_TYPE_OFFSET_DATA"; "unknown" for other values. Static strings.
 */
const char *nbd_option_name(uint32_t option);
const char *nbd_reply_name(uint32_t type);
const char *nbd_command_name(uint32_t type);
const char *nbd_chunk_name(uint32_t type);
/* An option in QEMU's words: "starttls". Static string. */
const char *nbd_option_word(uint32_t option);

/*
 * Make a text of a peer fit for a message: bytes that a terminal or a log could take for a command
 * or the end of a line become '?'.
 */
void nbd_replace_control_bytes(char *text, size_t size);

/* --- transmission --------------------------------------------------------------------------- */

struct nbd_request {
    uint64_t cookie;
    uint64_t offset;
    /* Bytes; less than 4 GiB without extended headers. */
    uint64_t length;
    /* enum nbd_command_flags */
    uint16_t flags;
    /* enum nbd_command */
    uint16_t type;
};

/* Write the header of a request. Its length has to be less than 4 GiB. */
void nbd_request_encode(uint8_t buf[static NBD_REQUEST_SIZE], const struct nbd_request *r);
/* Write an extended header. Of a write it says that the payload has the length of the request. */
void nbd_extended_request_encode(uint8_t buf[static NBD_EXTENDED_REQUEST_SIZE],
                                 const struct nbd_request *r);
/*
 * Read the header of a request, short or extended. False if its magic number is wrong: then the
 * boundaries between requests are lost, and the connection has to be closed.
 */
bool nbd_request_decode(const uint8_t buf[static NBD_REQUEST_SIZE],
                        struct nbd_request *ret_request);
bool nbd_extended_request_decode(const uint8_t buf[static NBD_EXTENDED_REQUEST_SIZE],
                                 struct nbd_request *ret_request);

/* Write the header of a simple reply. `error` is a value on the wire. */
void nbd_simple_reply_encode(uint8_t buf[static NBD_SIMPLE_REPLY_SIZE], uint32_t error,
                             uint64_t cookie);

struct nbd_chunk {
    uint64_t cookie;
    /* Of the request; with extended headers only. */
    uint64_t offset;
    /* Bytes of payload; less than 4 GiB without extended headers. */
    uint64_t length;
    /* enum nbd_chunk_flags */
    uint16_t flags;
    /* enum nbd_chunk_type */
    uint16_t type;
};

/* Write the header of a chunk, short or extended. */
void nbd_chunk_encode(uint8_t buf[static NBD_CHUNK_HEADER_SIZE], const struct nbd_chunk *c);
void nbd_extended_chunk_encode(uint8_t buf[static NBD_EXTENDED_CHUNK_HEADER_SIZE],
                               const struct nbd_chunk *c);

/*
 * Read the header of a reply, of which `size` bytes are there. `extended`: extended headers were
 * negotiated, and it is that of an extended chunk; else it is a simple reply or a chunk. Returns
 * its length (32; 16 or 20), 0 if more bytes are needed, or -EPROTO if the magic number is none of
 * those. For a simple reply *ret_simple is true, *ret_error the error on the wire, and only the
 * cookie of *ret_chunk is set.
 */
int nbd_reply_decode(const uint8_t *buf, size_t size, bool extended, struct nbd_chunk *ret_chunk,
                     bool *ret_simple, uint32_t *ret_error);
/* Fewest bytes of such a header. */
static inline size_t nbd_reply_size_min(bool extended)
{
    return extended ? NBD_EXTENDED_CHUNK_HEADER_SIZE : NBD_SIMPLE_REPLY_SIZE;
}

/* --- handshake ------------------------------------------------------------------------------ */

/* Write the header of an option that has `length` bytes of data. */
void nbd_option_header_encode(uint8_t buf[static NBD_OPTION_HEADER_SIZE], uint32_t option,
                              uint32_t length);
/* Read one. False if its magic number is wrong. */
bool nbd_option_header_decode(const uint8_t buf[static NBD_OPTION_HEADER_SIZE],
                              uint32_t *ret_option, uint32_t *ret_length);

/* Write the header of a reply to an option that has `length` bytes of data. */
void nbd_option_reply_encode(uint8_t buf[static NBD_OPTION_REPLY_HEADER_SIZE], uint32_t option,
                             uint32_t type, uint32_t length);
/* Read one. False if its magic number is wrong. */
bool nbd_option_reply_decode(const uint8_t buf[static NBD_OPTION_REPLY_HEADER_SIZE],
                             uint32_t *ret_option, uint32_t *ret_type, uint32_t *ret_length);

/* Append a big-endian number. */
void nbd_put_u16(struct strbuf *sb, uint16_t v);
void nbd_put_u32(struct strbuf *sb, uint32_t v);
/* Append the length of a string as u32, and the string. */
void nbd_put_string(struct strbuf *sb, const char *s);

/*
 * A cursor over received bytes. A read beyond the end returns 0 or NULL and sets `failed`, which
 * stays: so the caller tests it once, at the end.
 */
struct nbd_cursor {
    const uint8_t *data;
    size_t left;
    bool failed;
};

/* The next number. */
uint16_t nbd_get_u16(struct nbd_cursor *c);
uint32_t nbd_get_u32(struct nbd_cursor *c);
uint64_t nbd_get_u64(struct nbd_cursor *c);
/* The next `size` bytes, borrowed from the cursor's memory. */
const uint8_t *nbd_get_bytes(struct nbd_cursor *c, size_t size);
/*
 * A string of at most NBD_STRING_MAX bytes that follows its length as u32. The caller frees it.
 * NULL, with `failed` set, if it is cut short, too long, contains a NUL, or memory ran out.
 */
char *nbd_get_string(struct nbd_cursor *c);
/* Likewise, the next `size` bytes. */
char *nbd_get_string_of(struct nbd_cursor *c, size_t size);

#endif

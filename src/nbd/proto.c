/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "block/block.h"
#include "nbd/proto.h"

uint32_t nbd_error_from_errno(int errnum)
{
    switch (errnum) {
    case 0:
        return 0;
    case EPERM:
    case EROFS:
        return NBD_EPERM;
    case EACCES: /* also of a point in time that was lost, and of what is outside its bitmap */
        return block_uses_qemu_names() ? NBD_EINVAL : NBD_EPERM;
    case EIO:
        return NBD_EIO;
    case ENOMEM:
        return NBD_ENOMEM;
    case ENOSPC:
    case EFBIG:
    case EDQUOT:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case ENOTSUP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EINVAL;
    }
}

int nbd_error_to_errno(uint32_t wire)
{
    switch (wire) {
    case 0:
        return 0;
    case NBD_EPERM:
        return EPERM;
    case NBD_EIO:
        return EIO;
    case NBD_ENOMEM:
        return ENOMEM;
    case NBD_ENOSPC:
        return ENOSPC;
    case NBD_EOVERFLOW:
        return EOVERFLOW;
    case NBD_ENOTSUP:
        return ENOTSUP;
    case NBD_ESHUTDOWN:
        return ESHUTDOWN;
    default:
        return EINVAL;
    }
}

struct name_of {
    uint32_t value;
    const char *name;
};

#define NAME(constant)                                                                             \
    {                                                                                              \
        constant, #constant                                                                        \
    }

static const char *name_of_value(const struct name_of *names, size_t count, uint32_t value)
{
    for (size_t i = 0; i < count; i++) {
        if (names[i].value == value) {
            return names[i].name;
        }
    }
    return "unknown";
}

const char *nbd_option_name(uint32_t option)
{
    static const struct name_of names[] = {
        NAME(NBD_OPT_EXPORT_NAME),
        NAME(NBD_OPT_ABORT),
        NAME(NBD_OPT_LIST),
        NAME(NBD_OPT_STARTTLS),
        NAME(NBD_OPT_INFO),
        NAME(NBD_OPT_GO),
        NAME(NBD_OPT_STRUCTURED_REPLY),
        NAME(NBD_OPT_LIST_META_CONTEXT),
        NAME(NBD_OPT_SET_META_CONTEXT),
        NAME(NBD_OPT_EXTENDED_HEADERS),
    };

    return name_of_value(names, ARRAY_SIZE(names), option);
}

const char *nbd_option_word(uint32_t option)
{
    static const struct name_of names[] = {
        {NBD_OPT_EXPORT_NAME, "export name"},
        {NBD_OPT_ABORT, "abort"},
        {NBD_OPT_LIST, "list"},
        {NBD_OPT_STARTTLS, "starttls"},
        {NBD_OPT_INFO, "info"},
        {NBD_OPT_GO, "go"},
        {NBD_OPT_STRUCTURED_REPLY, "structured reply"},
        {NBD_OPT_LIST_META_CONTEXT, "list meta context"},
        {NBD_OPT_SET_META_CONTEXT, "set meta context"},
        {NBD_OPT_EXTENDED_HEADERS, "extended headers"},
    };

    return name_of_value(names, ARRAY_SIZE(names), option);
}

const char *nbd_reply_name(uint32_t type)
{
    static const struct name_of names[] = {
        NAME(NBD_REP_ACK),          NAME(NBD_REP_SERVER),
        NAME(NBD_REP_INFO),         NAME(NBD_REP_META_CONTEXT),
        NAME(NBD_REP_ERR_UNSUP),    NAME(NBD_REP_ERR_POLICY),
        NAME(NBD_REP_ERR_INVALID),  NAME(NBD_REP_ERR_PLATFORM),
        NAME(NBD_REP_ERR_TLS_REQD), NAME(NBD_REP_ERR_UNKNOWN),
        NAME(NBD_REP_ERR_SHUTDOWN), NAME(NBD_REP_ERR_BLOCK_SIZE_REQD),
        NAME(NBD_REP_ERR_TOO_BIG),  NAME(NBD_REP_ERR_EXT_HEADER_REQD),
    };

    return name_of_value(names, ARRAY_SIZE(names), type);
}

const char *nbd_command_name(uint32_t type)
{
    static const struct name_of names[] = {
        NAME(NBD_CMD_READ),         NAME(NBD_CMD_WRITE),        NAME(NBD_CMD_DISC),
        NAME(NBD_CMD_FLUSH),        NAME(NBD_CMD_TRIM),         NAME(NBD_CMD_CACHE),
        NAME(NBD_CMD_WRITE_ZEROES), NAME(NBD_CMD_BLOCK_STATUS),
    };

    return name_of_value(names, ARRAY_SIZE(names), type);
}

const char *nbd_chunk_name(uint32_t type)
{
    static const struct name_of names[] = {
        {NBD_CHUNK_NONE, "NBD_REPLY_TYPE_NONE"},
        {NBD_CHUNK_OFFSET_DATA, "NBD_REPLY_TYPE_OFFSET_DATA"},
        {NBD_CHUNK_OFFSET_HOLE, "NBD_REPLY_TYPE_OFFSET_HOLE"},
        {NBD_CHUNK_BLOCK_STATUS, "NBD_REPLY_TYPE_BLOCK_STATUS"},
        {NBD_CHUNK_BLOCK_STATUS_EXT, "NBD_REPLY_TYPE_BLOCK_STATUS_EXT"},
        {NBD_CHUNK_ERROR, "NBD_REPLY_TYPE_ERROR"},
        {NBD_CHUNK_ERROR_OFFSET, "NBD_REPLY_TYPE_ERROR_OFFSET"},
    };

    return name_of_value(names, ARRAY_SIZE(names), type);
}

void nbd_replace_control_bytes(char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char byte = (unsigned char)text[i];

        if (byte < ' ' || byte == 0x7f) {
            text[i] = '?';
        } else if (byte == 0xc2 && i + 1 < size && (unsigned char)text[i + 1] < 0xa0) {
            /* U+0080 to U+009F in UTF-8. */
            text[i] = text[i + 1] = '?';
        }
    }
}

/* The part that both kinds of requests share. */
static void encode_request_fields(uint8_t *buf, const struct nbd_request *r, unsigned flags)
{
    store_be16(buf + 4, (uint16_t)flags);
    store_be16(buf + 6, r->type);
    store_be64(buf + 8, r->cookie);
    store_be64(buf + 16, r->offset);
}

void nbd_request_encode(uint8_t buf[static NBD_REQUEST_SIZE], const struct nbd_request *r)
{
    store_be32(buf, NBD_REQUEST_MAGIC);
    encode_request_fields(buf, r, r->flags);
    store_be32(buf + 24, (uint32_t)r->length);
}

void nbd_extended_request_encode(uint8_t buf[static NBD_EXTENDED_REQUEST_SIZE],
                                 const struct nbd_request *r)
{
    unsigned payload = r->type == NBD_CMD_WRITE ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;

    store_be32(buf, NBD_EXTENDED_REQUEST_MAGIC);
    encode_request_fields(buf, r, r->flags | payload);
    store_be64(buf + 24, r->length);
}

/* Likewise. */
static void decode_request_fields(const uint8_t *buf, struct nbd_request *ret_request)
{
    ret_request->flags = load_be16(buf + 4);
    ret_request->type = load_be16(buf + 6);
    ret_request->cookie = load_be64(buf + 8);
    ret_request->offset = load_be64(buf + 16);
}

bool nbd_request_decode(const uint8_t buf[static NBD_REQUEST_SIZE], struct nbd_request *ret_request)
{
    if (load_be32(buf) != NBD_REQUEST_MAGIC) {
        return false;
    }
    decode_request_fields(buf, ret_request);
    ret_request->length = load_be32(buf + 24);
    return true;
}

bool nbd_extended_request_decode(const uint8_t buf[static NBD_EXTENDED_REQUEST_SIZE],
                                 struct nbd_request *ret_request)
{
    if (load_be32(buf) != NBD_EXTENDED_REQUEST_MAGIC) {
        return false;
    }
    decode_request_fields(buf, ret_request);
    ret_request->length = load_be64(buf + 24);
    return true;
}

void nbd_simple_reply_encode(uint8_t buf[static NBD_SIMPLE_REPLY_SIZE], uint32_t error,
                             uint64_t cookie)
{
    store_be32(buf, NBD_SIMPLE_REPLY_MAGIC);
    store_be32(buf + 4, error);
    store_be64(buf + 8, cookie);
}

void nbd_chunk_encode(uint8_t buf[static NBD_CHUNK_HEADER_SIZE], const struct nbd_chunk *c)
{
    store_be32(buf, NBD_CHUNK_MAGIC);
    store_be16(buf + 4, c->flags);
    store_be16(buf + 6, c->type);
    store_be64(buf + 8, c->cookie);
    store_be32(buf + 16, (uint32_t)c->length);
}

void nbd_extended_chunk_encode(uint8_t buf[static NBD_EXTENDED_CHUNK_HEADER_SIZE],
                               const struct nbd_chunk *c)
{
    store_be32(buf, NBD_EXTENDED_CHUNK_MAGIC);
    store_be16(buf + 4, c->flags);
    store_be16(buf + 6, c->type);
    store_be64(buf + 8, c->cookie);
    store_be64(buf + 16, c->offset);
    store_be64(buf + 24, c->length);
}

/* The members that chunks of both kinds have in the same places. */
static void decode_chunk_fields(const uint8_t *buf, struct nbd_chunk *ret_chunk)
{
    *ret_chunk = (struct nbd_chunk){
        .flags = load_be16(buf + 4),
        .type = load_be16(buf + 6),
        .cookie = load_be64(buf + 8),
    };
}

static int decode_extended_chunk(const uint8_t *buf, size_t size, struct nbd_chunk *ret_chunk)
{
    if (load_be32(buf) != NBD_EXTENDED_CHUNK_MAGIC) {
        return -EPROTO;
    }
    if (size < NBD_EXTENDED_CHUNK_HEADER_SIZE) {
        return 0;
    }
    decode_chunk_fields(buf, ret_chunk);
    ret_chunk->offset = load_be64(buf + 16);
    ret_chunk->length = load_be64(buf + 24);
    return NBD_EXTENDED_CHUNK_HEADER_SIZE;
}

int nbd_reply_decode(const uint8_t *buf, size_t size, bool extended, struct nbd_chunk *ret_chunk,
                     bool *ret_simple, uint32_t *ret_error)
{
    uint32_t magic;

    if (size < 4) {
        return 0;
    }
    *ret_simple = false;
    *ret_error = 0;
    if (extended) {
        return decode_extended_chunk(buf, size, ret_chunk);
    }
    magic = load_be32(buf);
    if (magic == NBD_SIMPLE_REPLY_MAGIC) {
        if (size < NBD_SIMPLE_REPLY_SIZE) {
            return 0;
        }
        *ret_simple = true;
        *ret_error = load_be32(buf + 4);
        *ret_chunk = (struct nbd_chunk){.cookie = load_be64(buf + 8)};
        return NBD_SIMPLE_REPLY_SIZE;
    }
    if (magic != NBD_CHUNK_MAGIC) {
        return -EPROTO;
    }
    if (size < NBD_CHUNK_HEADER_SIZE) {
        return 0;
    }
    decode_chunk_fields(buf, ret_chunk);
    ret_chunk->length = load_be32(buf + 16);
    return NBD_CHUNK_HEADER_SIZE;
}

void nbd_option_header_encode(uint8_t buf[static NBD_OPTION_HEADER_SIZE], uint32_t option,
                              uint32_t length)
{
    store_be64(buf, NBD_OPTION_MAGIC);
    store_be32(buf + 8, option);
    store_be32(buf + 12, length);
}

bool nbd_option_header_decode(const uint8_t buf[static NBD_OPTION_HEADER_SIZE],
                              uint32_t *ret_option, uint32_t *ret_length)
{
    if (load_be64(buf) != NBD_OPTION_MAGIC) {
        return false;
    }
    *ret_option = load_be32(buf + 8);
    *ret_length = load_be32(buf + 12);
    return true;
}

void nbd_option_reply_encode(uint8_t buf[static NBD_OPTION_REPLY_HEADER_SIZE], uint32_t option,
                             uint32_t type, uint32_t length)
{
    store_be64(buf, NBD_OPTION_REPLY_MAGIC);
    store_be32(buf + 8, option);
    store_be32(buf + 12, type);
    store_be32(buf + 16, length);
}

bool nbd_option_reply_decode(const uint8_t buf[static NBD_OPTION_REPLY_HEADER_SIZE],
                             uint32_t *ret_option, uint32_t *ret_type, uint32_t *ret_length)
{
    if (load_be64(buf) != NBD_OPTION_REPLY_MAGIC) {
        return false;
    }
    *ret_option = load_be32(buf + 8);
    *ret_type = load_be32(buf + 12);
    *ret_length = load_be32(buf + 16);
    return true;
}

void nbd_put_u16(struct strbuf *sb, uint16_t v)
{
    uint8_t buf[2];

    store_be16(buf, v);
    strbuf_append(sb, buf, sizeof(buf));
}

void nbd_put_u32(struct strbuf *sb, uint32_t v)
{
    uint8_t buf[4];

    store_be32(buf, v);
    strbuf_append(sb, buf, sizeof(buf));
}

void nbd_put_string(struct strbuf *sb, const char *s)
{
    size_t len = strlen(s);

    nbd_put_u32(sb, (uint32_t)len);
    strbuf_append(sb, s, len);
}

const uint8_t *nbd_get_bytes(struct nbd_cursor *c, size_t size)
{
    const uint8_t *p = c->data;

    if (c->failed || size > c->left) {
        c->failed = true;
        return NULL;
    }
    c->data += size;
    c->left -= size;
    return p;
}

uint16_t nbd_get_u16(struct nbd_cursor *c)
{
    const uint8_t *p = nbd_get_bytes(c, 2);

    return p ? load_be16(p) : 0;
}

uint32_t nbd_get_u32(struct nbd_cursor *c)
{
    const uint8_t *p = nbd_get_bytes(c, 4);

    return p ? load_be32(p) : 0;
}

uint64_t nbd_get_u64(struct nbd_cursor *c)
{
    const uint8_t *p = nbd_get_bytes(c, 8);

    return p ? load_be64(p) : 0;
}

char *nbd_get_string_of(struct nbd_cursor *c, size_t size)
{
    const uint8_t *p;
    char *s;

    if (size > NBD_STRING_MAX) {
        c->failed = true;
        return NULL;
    }
    p = nbd_get_bytes(c, size);
    if (!p || memchr(p, 0, size)) {
        c->failed = true;
        return NULL;
    }
    s = strndup((const char *)p, size);
    if (!s) {
        c->failed = true;
    }
    return s;
}

char *nbd_get_string(struct nbd_cursor *c)
{
    uint32_t size = nbd_get_u32(c);

    return c->failed ? NULL : nbd_get_string_of(c, size);
}

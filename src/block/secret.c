/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The object types "secret", a password from the command line or from a file, and "secret_keyring",
 * one that the kernel keeps. Options of both: format (raw, base64: of the data); keyid and iv: the
 * data are encrypted by AES-256-CBC with the key that another secret has, and this vector (base64).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/aes_cbc.h"
#include "base/base64.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/secret_memory.h"
#include "block/user_object.h"
#include "schema/define.h"

#define SECRET_MAX (64 * KiB)

struct secret {
    char *bytes; /* owned, secret memory; followed by a NUL */
    size_t size;
};

static void secret_destroy(void *data)
{
    struct secret *s = data;

    if (s) {
        secret_free(s->bytes);
    }
    free(s);
}

static int read_secret_file(const char *path, char **ret_text, size_t *ret_size, struct error *err)
{
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    AUTO_SECRET char *bytes = secret_alloc(SECRET_MAX + 1);
    size_t size = 0;
    ssize_t n = 1;

    if (fd < 0) {
        return error_set(err, errno, "Unable to read %s: Failed to open file “%s”: %s", path, path,
                         strerror(errno));
    }
    if (!bytes) {
        return error_out_of_memory(err);
    }
    while (n > 0 && size <= SECRET_MAX) {
        n = read(fd, bytes + size, SECRET_MAX + 1 - size);
        size += n > 0 ? (size_t)n : 0;
    }
    if (n < 0) {
        return error_set_errno(err, errno, "Unable to read %s", path);
    }
    if (size > SECRET_MAX) {
        return error_set(err, EFBIG, "Unable to read %s: longer than %llu bytes", path, SECRET_MAX);
    }
    bytes[size] = '\0';
    *ret_text = TAKE_PTR(bytes);
    *ret_size = size;
    return 0;
}

/* --- protection ------------------------------------------------------------------------------- */

/* How the data are to be read. */
struct protection {
    int format; /* 0: raw; 1: base64 */
    char *keyid, *iv;
};

static void protection_clear(struct protection *p)
{
    free(p->keyid);
    free(p->iv);
}

static int take_protection(struct options *opts, struct protection *p, struct error *err)
{
    static const char *const formats[] = {"raw", "base64", NULL};
    int r = options_take_enum(opts, "format", formats, 0, &p->format, err);

    UNLESS_FAILED(r, options_take_str(opts, "keyid", &p->keyid, err));
    return UNLESS_FAILED(r, options_take_str(opts, "iv", &p->iv, err));
}

/* The last byte of what was encrypted is the number of bytes that fill the last block. */
static int take_padding_off(struct secret *s, struct error *err)
{
    uint8_t padding;

    if (s->size == 0) {
        return 0;
    }
    padding = (uint8_t)s->bytes[s->size - 1];
    if (padding == 0 || padding > AES_BLOCK_SIZE) {
        return error_set(err, EINVAL,
                         "Incorrect number of padding bytes (%u) found on decrypted data", padding);
    }
    s->size -= padding;
    s->bytes[s->size] = '\0';
    return 0;
}

static int decrypt_with(struct secret *s, const char *key, size_t key_size, char *iv,
                        struct error *err)
{
    size_t iv_size = strlen(iv);
    int r = base64_decode(iv, &iv_size, err);

    if (r < 0) {
        return r;
    }
    if (key_size != AES256_KEY_SIZE) {
        return error_set(err, EINVAL, "Key should be %u bytes in length", AES256_KEY_SIZE);
    }
    if (iv_size != AES_BLOCK_SIZE) {
        return error_set(err, EINVAL, "IV should be %u bytes in length not %zu", AES_BLOCK_SIZE,
                         iv_size);
    }
    if (s->size % AES_BLOCK_SIZE != 0) {
        return error_set(err, EINVAL, "Length %zu must be a multiple of block size %u", s->size,
                         AES_BLOCK_SIZE);
    }
    r = aes256_cbc_decrypt((const uint8_t *)key, (const uint8_t *)iv, (uint8_t *)s->bytes, s->size);
    if (r < 0) {
        return error_set(err, EIO, "Could not decrypt the secret: libcrypto refuses");
    }
    return take_padding_off(s, err);
}

static int decrypt_secret(struct secret *s, const struct protection *p, struct error *err)
{
    char *key;
    size_t key_size;
    int r;

    if (!p->iv) {
        return error_set(err, EINVAL, "IV is required to decrypt secret");
    }
    r = secret_get(p->keyid, &key, &key_size, err);
    if (r == 0) {
        r = decrypt_with(s, key, key_size, p->iv, err);
        secret_free(key);
    }
    return r;
}

/* --- making them ------------------------------------------------------------------------------ */

typedef int load_fn(struct options *opts, struct secret *s, struct error *err);

static int secret_new(struct options *opts, load_fn *load, void **ret_data, struct error *err)
{
    struct protection p = {0};
    struct secret *s = calloc(1, sizeof(*s));
    int r = s ? take_protection(opts, &p, err) : error_out_of_memory(err);

    UNLESS_FAILED(r, load(opts, s, err));
    if (r == 0 && p.format == 1) {
        r = base64_decode(s->bytes, &s->size, err);
    }
    if (r == 0 && p.keyid) {
        r = decrypt_secret(s, &p, err);
    } else if (r == 0 && p.iv) {
        r = error_set(err, EINVAL, "'iv' is of no use without 'keyid'");
    }
    protection_clear(&p);
    if (r < 0) {
        secret_destroy(s);
        return r;
    }
    *ret_data = s;
    return 0;
}

static int load_given(struct options *opts, struct secret *s, struct error *err)
{
    AUTO_SECRET char *data = NULL;
    AUTO_FREE char *file = NULL;
    int r = options_take_secret(opts, "data", &data, err);

    UNLESS_FAILED(r, options_take_str(opts, "file", &file, err));
    if (r < 0) {
        return r;
    }
    if (!data == !file) {
        return data ? error_set(err, EINVAL, "'file' and 'data' are mutually exclusive")
                    : error_set(err, EINVAL, "Either 'file' or 'data' must be provided");
    }
    if (file) {
        return read_secret_file(file, &s->bytes, &s->size, err);
    }
    s->size = strlen(data);
    s->bytes = TAKE_PTR(data);
    return 0;
}

static int secret_create(const char *id, struct options *opts, void **ret_data, struct error *err)
{
    return secret_new(opts, load_given, ret_data, err);
}

/* A serial number is 32 bits, with a sign. */
static bool parse_serial(const char *text, int32_t *ret_serial)
{
    char *end;
    long value;

    errno = 0;
    value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < INT32_MIN || value > INT32_MAX) {
        return false;
    }
    *ret_serial = (int32_t)value;
    return true;
}

/* Read a key that the kernel keeps, by its serial number. */
static int load_from_kernel(struct options *opts, struct secret *s, struct error *err)
{
    AUTO_FREE char *text = NULL;
    int32_t serial;
    long n;
    int r = options_take_text(opts, "serial", &text, err);

    if (r < 0) {
        return r;
    }
    if (!text || !parse_serial(text, &serial)) {
        return error_set(err, EINVAL, "%s",
                         text ? "Parameter 'serial' expects the number of a key"
                              : "'serial' parameter must be provided");
    }
    s->bytes = secret_alloc(SECRET_MAX + 1);
    if (!s->bytes) {
        return error_out_of_memory(err);
    }
    n = syscall(SYS_keyctl, KEYCTL_READ, serial, s->bytes, (size_t)SECRET_MAX);
    if (n < 0 || (size_t)n > SECRET_MAX) {
        return error_set(err, n < 0 ? errno : EFBIG, "get key from keyring failed: %s",
                         strerror(n < 0 ? errno : EFBIG));
    }
    s->size = (size_t)n;
    s->bytes[s->size] = '\0';
    return 0;
}

static int secret_keyring_create(const char *id, struct options *opts, void **ret_data,
                                 struct error *err)
{
    return secret_new(opts, load_from_kernel, ret_data, err);
}

ENUM(format_type, "QCryptoSecretFormat", "raw", "base64");
#define COMMON_PROPERTIES                                                                          \
    OPT("format", format_type, .dflt = "raw", .help = "of the data"),                              \
        OPT("keyid", schema_str,                                                                   \
            .help = "id of a secret: the key that the data are encrypted with"),                   \
        OPT("iv", schema_str, .help = "the vector of the encryption, in base64")
OBJECT(secret_properties, "SecretProperties", COMMON_PROPERTIES,
       OPT("data", schema_str, .help = "the secret itself; visible to others on a command line"),
       OPT("file", schema_str, .help = "a file with the secret"));
OBJECT(secret_keyring_properties, "SecretKeyringProperties", COMMON_PROPERTIES,
       REQ("serial", schema_int32, .help = "number of a key that the kernel keeps"));

static const struct user_object_type secret_type = {
    .name = "secret",
    .create = secret_create,
    .reads_files = true,
    .destroy = secret_destroy,
    .parent = "secret_common",
    .properties = &secret_properties,
    .help = "a password or key for other objects and for images",
    .hidden = (const char *const[]){"data", NULL},
};

static const struct user_object_type secret_keyring_type = {
    .name = "secret_keyring",
    .parent = "secret_common",
    .create = secret_keyring_create,
    .destroy = secret_destroy,
    .properties = &secret_keyring_properties,
    .help = "the same, from a keyring of the kernel",
};

void secret_register_type(void)
{
    user_object_register_type(&secret_type);
    user_object_register_type(&secret_keyring_type);
}

int secret_get(const char *id, char **ret_text, size_t *ret_size, struct error *err)
{
    struct user_object *o = user_object_ref(id);
    const struct secret *s;
    char *copy;

    if (!o) {
        return error_set(err, ENOENT, "No secret with id '%s'", id);
    }
    if (user_object_type_of(o) != &secret_type && user_object_type_of(o) != &secret_keyring_type) {
        user_object_unref(o);
        return error_set(err, EINVAL, "Object with id '%s' is not a secret", id);
    }
    s = user_object_data(o);
    copy = secret_alloc(s->size + 1);
    if (copy) {
        memcpy(copy, s->bytes, s->size + 1);
        *ret_text = copy;
        *ret_size = s->size;
    }
    user_object_unref(o);
    return copy ? 0 : error_out_of_memory(err);
}

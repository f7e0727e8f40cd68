/* SPDX-License-Identifier: Apache-2.0 */
/* The object type "secret": a password, from the command line or from a file. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/user_object.h"
#include "schema/define.h"

#define SECRET_MAX (64 * KiB)

struct secret {
    char *bytes; /* owned; followed by a NUL */
    size_t size;
};

static void secret_destroy(void *data)
{
    struct secret *s = data;

    if (s && s->bytes) {
        explicit_bzero(s->bytes, s->size);
        free(s->bytes);
    }
    free(s);
}

static int read_secret_file(const char *path, char **ret_text, size_t *ret_size, struct error *err)
{
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    AUTO_FREE char *bytes = malloc(SECRET_MAX + 1);
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

/* Decode in place, skipping white space. -EINVAL */
static int decode_base64(char *text, size_t *size, struct error *err)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t count = 0, out = 0, padding = 0;
    unsigned bits = 0;

    for (size_t i = 0; i < *size; i++) {
        const char *digit = text[i] ? strchr(digits, text[i]) : NULL;

        if (text[i] && strchr(" \t\r\n", text[i])) {
            continue;
        }
        if (text[i] == '=') {
            padding++;
            continue;
        }
        if (!digit || padding > 0) {
            return error_set(err, EINVAL, "Base64 data contains invalid characters");
        }
        bits = bits << 6 | (unsigned)(digit - digits);
        if (++count % 4 != 1) {
            text[out++] = (char)(bits >> (6 - 2 * ((count - 1) % 4)));
        }
    }
    if ((count + padding) % 4 != 0 || padding > 2) {
        return error_set(err, EINVAL, "Base64 data has a wrong length");
    }
    text[out] = '\0';
    *size = out;
    return 0;
}

static int secret_create(const char *id, struct options *opts, void **ret_data, struct error *err)
{
    static const char *const formats[] = {"raw", "base64", NULL};
    AUTO_FREE char *data = NULL, *file = NULL;
    struct secret *s;
    int format = 0;
    int r = options_take_str(opts, "data", &data, err);

    if (r == 0) {
        r = options_take_str(opts, "file", &file, err);
    }
    if (r == 0) {
        r = options_take_enum(opts, "format", formats, 0, &format, err);
    }
    if (r < 0) {
        return r;
    }
    if (options_has(opts, "keyid") || options_has(opts, "iv")) {
        return error_set(err, ENOTSUP,
                         "Secret '%s' is encrypted (keyid, iv), which is not "
                         "supported",
                         id);
    }
    if (!data == !file) {
        return data ? error_set(err, EINVAL, "'file' and 'data' are mutually exclusive")
                    : error_set(err, EINVAL, "Either 'file' or 'data' must be provided");
    }
    s = calloc(1, sizeof(*s));
    if (!s) {
        return error_out_of_memory(err);
    }
    if (data) {
        s->size = strlen(data);
        s->bytes = TAKE_PTR(data);
    } else {
        r = read_secret_file(file, &s->bytes, &s->size, err);
    }
    if (r == 0 && s->bytes && format == 1) {
        r = decode_base64(s->bytes, &s->size, err);
    }
    if (r < 0) {
        secret_destroy(s);
        return r;
    }
    *ret_data = s;
    return 0;
}

ENUM(format_type, "QCryptoSecretFormat", "raw", "base64");
OBJECT(secret_properties, "SecretProperties",
       OPT("format", format_type, .dflt = "raw", .help = "of the data"),
       OPT("data", schema_str, .help = "the secret itself; visible to others on a command line"),
       OPT("file", schema_str, .help = "a file with the secret"));

static const struct user_object_type secret_type = {
    .name = "secret",
    .create = secret_create,
    .destroy = secret_destroy,
    .parent = "secret_common",
    .properties = &secret_properties,
    .hidden = (const char *const[]){"data", NULL},
};

void secret_register_type(void)
{
    user_object_register_type(&secret_type);
}

int secret_get(const char *id, char **ret_text, size_t *ret_size, struct error *err)
{
    struct user_object *o = user_object_ref(id);
    const struct secret *s;
    char *copy;

    if (!o) {
        return error_set(err, ENOENT, "No secret with id '%s'", id);
    }
    if (user_object_type_of(o) != &secret_type) {
        user_object_unref(o);
        return error_set(err, EINVAL, "Object with id '%s' is not a secret", id);
    }
    s = user_object_data(o);
    copy = malloc(s->size + 1);
    if (copy) {
        memcpy(copy, s->bytes, s->size + 1);
        *ret_text = copy;
        *ret_size = s->size;
    }
    user_object_unref(o);
    return copy ? 0 : error_out_of_memory(err);
}

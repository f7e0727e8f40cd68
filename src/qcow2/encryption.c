/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/encryption.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/secret_memory.h"
#include "block/user_object.h"
#include "qcow2/data/crypt.h"

/* --- options of new images -------------------------------------------------------------------- */

void qcow2_new_encryption_release(struct qcow2_new_encryption *e)
{
    luks_format_release(&e->luks);
}

/* The key is used when the image is opened; it has to exist now. */
static int take_aes(struct options *opts, char **ret_secret_id, struct error *err)
{
    static const char *const luks_only[] = {"encrypt.cipher-alg",
                                            "encrypt.cipher-mode",
                                            "encrypt.hash-alg",
                                            "encrypt.iter-time",
                                            "encrypt.ivgen-alg",
                                            "encrypt.ivgen-hash-alg",
                                            NULL};
    AUTO_FREE char *secret_id = NULL;
    AUTO_SECRET char *password = NULL;
    size_t size;
    int r = options_take_str(opts, "encrypt.key-secret", &secret_id, err);

    for (size_t i = 0; luks_only[i] && r == 0; i++) {
        if (options_has(opts, luks_only[i])) {
            r = error_set(err, EINVAL, "Parameter '%s' is unexpected", luks_only[i]);
        }
    }
    if (r == 0 && !secret_id) {
        r = error_set(err, EINVAL, "Parameter 'encrypt.key-secret' is required for cipher");
    }
    UNLESS_FAILED(r, secret_get(secret_id, &password, &size, err));
    if (r == 0) {
        *ret_secret_id = TAKE_PTR(secret_id);
    }
    return r;
}

static int take_method(struct options *opts, enum crypt_method *ret_method, struct error *err)
{
    AUTO_FREE char *format = NULL;
    bool old_way = options_has(opts, "encryption"), aes;
    int r = options_take_str(opts, "encrypt.format", &format, err);

    UNLESS_FAILED(r, options_take_bool(opts, "encryption", false, &aes, err));
    if (r < 0) {
        return r;
    }
    if (format && old_way) {
        return error_set(err, EINVAL,
                         "'encrypt.format' and its alias 'encryption' can't be used at the same "
                         "time");
    }
    if (format && strcmp(format, "aes") != 0 && strcmp(format, "luks") != 0) {
        return error_set(err, EINVAL, "Parameter 'format' does not accept value '%s'", format);
    }
    *ret_method = CRYPT_NONE;
    if (aes || format) {
        *ret_method = format && strcmp(format, "luks") == 0 ? CRYPT_LUKS : CRYPT_AES;
    }
    return 0;
}

int qcow2_take_new_encryption(struct options *opts, struct qcow2_new_encryption *ret_encryption,
                              struct error *err)
{
    int r = take_method(opts, &ret_encryption->method, err);

    if (r < 0) {
        return r;
    }
    switch (ret_encryption->method) {
    case CRYPT_AES:
        return take_aes(opts, &ret_encryption->luks.secret_id, err);
    case CRYPT_LUKS:
        r = luks_take_format(opts, "encrypt.", &ret_encryption->luks, err);
        return r < 0 ? r : luks_check_passphrase(&ret_encryption->luks, err);
    case CRYPT_NONE:
        break;
    }
    if (options_has(opts, "encrypt.key-secret") || luks_has_format(opts, "encrypt.")) {
        return error_set(err, EINVAL, "Parameter 'encrypt.format' is missing");
    }
    return 0;
}

int qcow2_add_key_options(const struct qcow2_new_encryption *e, struct options *opts,
                          struct error *err)
{
    struct options *group;

    if (e->method == CRYPT_NONE) {
        return 0;
    }
    group = options_new();
    if (!group) {
        return error_out_of_memory(err);
    }
    options_set_str(group, "key-secret", e->luks.secret_id);
    options_set_child(opts, "encrypt", group);
    return 0;
}

/* --- the header of LUKS ----------------------------------------------------------------------- */

uint64_t qcow2_luks_size(const struct qcow2_new_encryption *e)
{
    return e->method == CRYPT_LUKS ? luks_new_header_size(&e->luks.encryption) : 0;
}

/* A place in the file of a new image. */
struct place {
    struct block_edge *file;
    uint64_t offset;
};

static int co_read_place(void *arg, uint64_t offset, void *buf, size_t size)
{
    const struct place *p = arg;

    return block_co_pread(p->file, p->offset + offset, buf, size);
}

static int co_write_place(void *arg, uint64_t offset, const void *buf, size_t size)
{
    const struct place *p = arg;

    return block_co_pwrite(p->file, p->offset + offset, buf, size, 0);
}

static int co_flush_place(void *arg)
{
    const struct place *p = arg;

    return block_co_flush(p->file);
}

int qcow2_co_write_luks(struct block_edge *file, uint64_t offset,
                        const struct qcow2_new_encryption *e, struct error *err)
{
    struct place place = {.file = file, .offset = offset};
    struct luks_io io = {.co_read = co_read_place,
                         .co_write = co_write_place,
                         .co_flush = co_flush_place,
                         .arg = &place};
    struct luks_volume *volume;
    int r = luks_co_format(&io, false, &e->luks, &volume, err);

    if (r == 0) {
        luks_close(volume);
    }
    return r;
}

/* --- changes ---------------------------------------------------------------------------------- */

int qcow2_take_key_change(const struct qcow2 *q, struct options *opts,
                          struct luks_change *ret_change, bool *ret_given, struct error *err)
{
    *ret_given = luks_has_change(opts, "encrypt.");
    if (!*ret_given) {
        return 0;
    }
    if (q->crypt_method == CRYPT_NONE) {
        return error_set(err, EINVAL, "Can't amend encryption options - encryption not present");
    }
    if (q->crypt_method != CRYPT_LUKS) {
        return error_set(err, ENOTSUP, "Only LUKS encryption options can be amended");
    }
    return luks_take_change(opts, "encrypt.", ret_change, err);
}

int qcow2_co_change_keys(struct qcow2 *q, struct options *opts, bool force, struct error *err)
{
    CLEANUP(luks_change_release) struct luks_change change = {0};
    bool given;
    int r = qcow2_take_key_change(q, opts, &change, &given, err);

    UNLESS_FAILED(r, options_check_empty(opts, "Amending of format 'qcow2'", err));
    if (r == 0 && given && q->read_only) {
        r = error_set(err, EACCES, "Block node is read-only");
    }
    return r < 0 || !given ? r : luks_co_change(qcow2_luks_volume(q), &change, force, err);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Reading and writing single key slots, inside this layer: see luks/volume.h. */
#ifndef TIDEMARK_LUKS_SLOTS_H
#define TIDEMARK_LUKS_SLOTS_H

#include "luks/volume.h"

#define LUKS_KEY_MAX 64

/* A copy of a secret's text, in secret memory. */
struct passphrase {
    char *text;
    size_t size;
};

/* -ENOENT: there is no such secret. passphrase_release() erases the copy. Do not yield. */
int passphrase_get(const char *secret_id, struct passphrase *ret_passphrase, struct error *err);
/*
 * As passphrase_get(), for a slot that is about to be written: -EINVAL unless it is text in UTF-8
 * without NUL, since QEMU opens no volume with another one.
 */
int passphrase_get_new(const char *secret_id, struct passphrase *ret_passphrase, struct error *err);
void passphrase_release(struct passphrase *p);

/*
 * Whether a slot, which is active, has a passphrase: 1, and `ret_key` (secret memory of
 * LUKS_KEY_MAX bytes) has the volume's key; or 0; or -errno.
 */
int luks_co_try_slot(struct luks_volume *v, unsigned slot, const struct passphrase *p,
                     uint8_t *ret_key, struct error *err);

/* The first active slot that has a passphrase, and the key as above. -EPERM: none has. */
int luks_co_find_slot(struct luks_volume *v, const struct passphrase *p, uint8_t *ret_key,
                      unsigned *ret_slot, struct error *err);

/* Iterations for a slot, of a volume whose key has that size. -EFBIG: too many. */
int luks_co_choose_iterations(const struct luks_hash *hash, size_t key_size, uint64_t time_ms,
                              uint32_t *ret_iterations, struct error *err);

/* Fill a slot that is inactive, and activate it. Stable on success. */
int luks_co_store_slot(struct luks_volume *v, unsigned slot, const struct passphrase *p,
                       const uint8_t *key, uint32_t iterations, struct error *err);

/* Make a slot inactive, and overwrite its key material. Stable on success. */
int luks_co_erase_slot(struct luks_volume *v, unsigned slot, struct error *err);

/* Write the header, and make it stable. */
int luks_co_write_header(struct luks_volume *v, struct error *err);

#endif

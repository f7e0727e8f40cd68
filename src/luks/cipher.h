/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The encryption of sectors with the key of a volume. Any thread, several at once; nothing here
 * yields.
 */
#ifndef TIDEMARK_LUKS_CIPHER_H
#define TIDEMARK_LUKS_CIPHER_H

#include <stdint.h>

#include "luks/algorithm.h"

enum { LUKS_SECTOR = 512 };

struct luks_cipher;

/*
 * Make one with a key of luks_key_size() bytes, which is copied. -EINVAL: the library does not have
 * the cipher.
 */
int luks_cipher_new(const struct luks_encryption *e, const uint8_t *key,
                    struct luks_cipher **ret_cipher, struct error *err);

/* Erase and free. NULL is fine. */
void luks_cipher_free(struct luks_cipher *c);

/*
 * Encrypt or decrypt `size` bytes, whole sectors, from `src` to `dst`, which may be the same.
 * `sector` is the number of the first one, from which its initialization vector is made. 0, -ENOMEM
 * or -EIO.
 */
int luks_cipher_encrypt(struct luks_cipher *c, uint64_t sector, void *dst, const void *src,
                        size_t size);
int luks_cipher_decrypt(struct luks_cipher *c, uint64_t sector, void *dst, const void *src,
                        size_t size);

/* About how many bytes are encrypted or decrypted in a microsecond; at least 1. */
size_t luks_cipher_speed(const struct luks_cipher *c);

#endif

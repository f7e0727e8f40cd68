/* SPDX-License-Identifier: Apache-2.0 */
/* Twofish with keys of 192 bits, which libgcrypt does not have. Nothing here yields. */
#ifndef TIDEMARK_LUKS_TWOFISH192_H
#define TIDEMARK_LUKS_TWOFISH192_H

#include <stdint.h>

#include "luks/algorithm.h"

struct twofish192;

/* `key` has 24 bytes, in the mode XTS 48. NULL: out of memory. secret_free() frees it. */
struct twofish192 *twofish192_new(enum luks_mode mode, const uint8_t *key);

/* Encrypt or decrypt whole blocks; `iv` (16 bytes) changes. `dst` may be `src`. */
void twofish192_encrypt(const struct twofish192 *t, uint8_t *iv, uint8_t *dst, const uint8_t *src,
                        size_t size);
void twofish192_decrypt(const struct twofish192 *t, uint8_t *iv, uint8_t *dst, const uint8_t *src,
                        size_t size);

#endif

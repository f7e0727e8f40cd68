/* SPDX-License-Identifier: Apache-2.0 */
/* AES-256 in CBC mode, for secrets that were encrypted with a master key. Does not yield. */
#ifndef TIDEMARK_BASE_AES_CBC_H
#define TIDEMARK_BASE_AES_CBC_H

#include <stddef.h>
#include <stdint.h>

#define AES256_KEY_SIZE 32u
#define AES_BLOCK_SIZE 16u

/*
 * Decrypt `size` bytes, a multiple of AES_BLOCK_SIZE, in place; padding is not taken off. -EIO: the
 * library is not there, or refuses.
 */
int aes256_cbc_decrypt(const uint8_t key[static AES256_KEY_SIZE],
                       const uint8_t iv[static AES_BLOCK_SIZE], uint8_t *data, size_t size);

#endif

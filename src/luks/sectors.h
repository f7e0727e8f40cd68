/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Encryption of requests. Large ones are divided, and encrypted by threads of the offload pool;
 * what is large depends on the cipher's speed. Any reactor, coroutine; the functions may yield.
 */
#ifndef TIDEMARK_LUKS_SECTORS_H
#define TIDEMARK_LUKS_SECTORS_H

#include "base/iov.h"
#include "luks/cipher.h"

/* Decrypt whole sectors in place. `sector` is the number of the first one. 0 or -errno. */
int luks_co_decrypt(struct luks_cipher *c, uint64_t sector, struct iov iov);

/* Encrypt whole sectors to `dst`, iov.size bytes. 0 or -errno. */
int luks_co_encrypt(struct luks_cipher *c, uint64_t sector, struct iov iov, uint8_t *dst);

#endif

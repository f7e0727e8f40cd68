/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Key derivation and the anti-forensic splitter (LUKS On-Disk Format Specification, sections 2.3
 * and 2.4). These functions compute for long: on threads of the offload pool. None yields.
 */
#ifndef TIDEMARK_LUKS_KDF_H
#define TIDEMARK_LUKS_KDF_H

#include <stdint.h>

#include "luks/algorithm.h"

/*
 * More are refused: 100 million take a minute or two. What creates volumes takes two seconds by
 * default.
 */
#define LUKS_ITERATIONS_MAX 100000000u

/* PBKDF2 with HMAC. `ret_key` gets `key_size` bytes. 0 or -errno. */
int luks_pbkdf2(const struct luks_hash *hash, const void *password, size_t password_size,
                const uint8_t *salt, size_t salt_size, uint32_t iterations, uint8_t *ret_key,
                size_t key_size);

/*
 * How many iterations PBKDF2 makes in a second of processor time, for a key of that size. 0 or
 * -errno.
 */
int luks_measure_pbkdf2(const struct luks_hash *hash, size_t key_size, uint64_t *ret_per_second);

/*
 * Spread a key over `stripes` times its size, such that all of the result is needed to get the key
 * back; and get it back. `ret_split` and `split` have key_size * stripes bytes. 0 or -errno.
 */
int luks_split(const struct luks_hash *hash, const uint8_t *key, size_t key_size, unsigned stripes,
               uint8_t *ret_split);
int luks_merge(const struct luks_hash *hash, const uint8_t *split, size_t key_size,
               unsigned stripes, uint8_t *ret_key);

/* Random bytes for keys. */
void luks_random(void *buf, size_t size);

#endif

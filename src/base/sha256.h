/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256 (FIPS 180-4). None of these yields. Any thread. */
#ifndef TIDEMARK_BASE_SHA256_H
#define TIDEMARK_BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define SHA256_SIZE 32
#define SHA256_HEX_SIZE 65 /* with the NUL */

/* A digest in the making. */
struct sha256;

/* NULL: no memory, or the library can't be loaded. */
struct sha256 *sha256_new(void);
/* NULL is fine. */
void sha256_free(struct sha256 *sha);
/* Add bytes. 0, or -EIO if the library fails. */
int sha256_add(struct sha256 *sha, const void *data, size_t size);
/* The digest of all that was added; nothing can be added any more. 0 or -EIO. */
int sha256_finish(struct sha256 *sha, uint8_t ret_digest[static SHA256_SIZE]);

/* Digest of a buffer. 0; -EIO if the library fails. */
int sha256_of_buffer(const void *data, size_t size, uint8_t ret_digest[static SHA256_SIZE]);

/*
 * Digests of two buffers of one size: at once, and in 0.6 of the time, where the processor has
 * instructions for SHA-256. 0; -EIO if the library fails.
 */
int sha256_of_pair(const void *a, const void *b, size_t size, uint8_t ret_a[static SHA256_SIZE],
                   uint8_t ret_b[static SHA256_SIZE]);

/*
 * Digests of `count` buffers of one size that follow each other: sixteen at once where the
 * processor has AVX-512, in 0.6 of the time of pairs. 0; -EIO if the library fails.
 */
int sha256_of_each(const void *data, size_t size, size_t count,
                   uint8_t (*ret_digests)[SHA256_SIZE]);

/* A digest in lower-case hexadecimal. */
void sha256_to_hex(const uint8_t digest[static SHA256_SIZE], char ret_hex[static SHA256_HEX_SIZE]);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MD5 (RFC 1321), which the format has for the checksum of its extension. Not for security.
 * Nothing here yields.
 */
#ifndef TIDEMARK_PARALLELS_MD5_H
#define TIDEMARK_PARALLELS_MD5_H

#include <stddef.h>
#include <stdint.h>

enum { MD5_SIZE = 16, MD5_BLOCK = 64 };

struct md5 {
    uint32_t state[4];
    /* Bytes so far. */
    uint64_t length;
    /* The last of them, which do not fill a block. */
    uint8_t rest[MD5_BLOCK];
};

/* Without bytes so far. */
void md5_begin(struct md5 *m);
/* Add `size` bytes. */
void md5_add(struct md5 *m, const void *data, size_t size);
/* The sum of all that was added. After that only md5_begin(). */
void md5_end(struct md5 *m, uint8_t *ret_sum);

#endif

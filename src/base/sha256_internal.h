/* SPDX-License-Identifier: Apache-2.0 */
/* What the functions that make several digests at once share. */
#ifndef TIDEMARK_BASE_SHA256_INTERNAL_H
#define TIDEMARK_BASE_SHA256_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/sha256.h"

#define SHA256_BLOCK 64u
/* Digests that sha256_lanes() makes at once. */
#define SHA256_LANES 16u

/* FIPS 180-4, 4.2.2: fractions of the cube roots of the first 64 primes. */
static const uint32_t sha256_round_constants[SHA256_BLOCK] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* 5.3.3: fractions of the square roots of the first eight primes. */
static const uint32_t sha256_first_value[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                               0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

/* What is left of a message, with its end (5.1.1): one block or two. Returns how many. */
static inline size_t sha256_pad(const uint8_t *data, size_t size,
                                uint8_t ret_blocks[static 2 * SHA256_BLOCK])
{
    size_t rest = size % SHA256_BLOCK, count = rest + 1 + 8 > SHA256_BLOCK ? 2 : 1;

    memset(ret_blocks, 0, 2ul * SHA256_BLOCK);
    memcpy(ret_blocks, data + size - rest, rest);
    ret_blocks[rest] = 0x80;
    store_be64(ret_blocks + count * SHA256_BLOCK - 8, (uint64_t)size * 8);
    return count;
}

/* Whether the processor can do sha256_lanes(). */
bool sha256_has_lanes(void);
/* Digests of SHA256_LANES buffers of `size` bytes that follow each other. */
void sha256_lanes(const uint8_t *data, size_t size, uint8_t (*ret_digests)[SHA256_SIZE]);

#endif

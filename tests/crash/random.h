/* SPDX-License-Identifier: Apache-2.0 */
/* Reproducible random numbers (splitmix64) and a fast hash, for the crash explorer. */
#ifndef TIDEMARK_TESTS_RANDOM_H
#define TIDEMARK_TESTS_RANDOM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t random_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline uint64_t random_next(uint64_t *state)
{
    *state += 0x9e3779b97f4a7c15u;
    return random_mix(*state);
}

/* 0 .. limit - 1 */
static inline uint64_t random_below(uint64_t *state, uint64_t limit)
{
    return random_next(state) % limit;
}

static inline uint64_t hash_bytes(const uint8_t *data, size_t size)
{
    uint64_t lanes[4] = {1, 2, 3, 4}, word;
    size_t at = 0;

    for (; at + 32 <= size; at += 32) {
        for (int i = 0; i < 4; i++) {
            memcpy(&word, data + at + 8 * i, 8);
            lanes[i] = (lanes[i] ^ word) * 0x9fb21c651e98df25u;
            lanes[i] ^= lanes[i] >> 29;
        }
    }
    for (; at < size; at++) {
        lanes[0] = (lanes[0] ^ data[at]) * 0x100000001b3u;
    }
    return random_mix(lanes[0] ^
                      random_mix(lanes[1] ^ random_mix(lanes[2] ^ random_mix(lanes[3] ^ size))));
}

#endif

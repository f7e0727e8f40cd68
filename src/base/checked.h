/* SPDX-License-Identifier: Apache-2.0 */
/* Overflow-safe arithmetic for values that come from images and from the wire. */
#ifndef TIDEMARK_BASE_CHECKED_H
#define TIDEMARK_BASE_CHECKED_H

#include <stdbool.h>
#include <stdint.h>

#define KiB (1024ULL)
#define MiB (1024ULL * KiB)
#define GiB (1024ULL * MiB)
#define TiB (1024ULL * GiB)

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* True and *ret untouched if the result does not fit. */
static inline bool add_overflows(uint64_t a, uint64_t b, uint64_t *ret)
{
    uint64_t sum;

    if (__builtin_add_overflow(a, b, &sum)) {
        return true;
    }
    *ret = sum;
    return false;
}

static inline bool mul_overflows(uint64_t a, uint64_t b, uint64_t *ret)
{
    uint64_t product;

    if (__builtin_mul_overflow(a, b, &product)) {
        return true;
    }
    *ret = product;
    return false;
}

/* Whether [offset, offset + length) lies within [0, size). Never overflows. */
static inline bool range_fits(uint64_t offset, uint64_t length, uint64_t size)
{
    return offset <= size && length <= size - offset;
}

/* Whether two byte ranges share a byte. The ends must not overflow. */
static inline bool ranges_overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
    return a < b + b_len && b < a + a_len;
}

static inline bool is_power_of_2(uint64_t v)
{
    return v != 0 && (v & (v - 1)) == 0;
}

/* `unit` is a power of two. round_up() wraps to 0 if the result does not fit. */
static inline uint64_t round_down(uint64_t v, uint64_t unit)
{
    return v & ~(unit - 1);
}

static inline uint64_t round_up(uint64_t v, uint64_t unit)
{
    return (v + unit - 1) & ~(unit - 1);
}

static inline bool is_aligned(uint64_t v, uint64_t unit)
{
    return (v & (unit - 1)) == 0;
}

static inline uint64_t div_round_up(uint64_t v, uint64_t d)
{
    return v / d + (v % d != 0);
}

#endif

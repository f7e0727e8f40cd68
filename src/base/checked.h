/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arithmetic for values from images and from the network. None of these functions overflows, except
 * where it is said; none yields.
 */
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

/* Set *ret_sum to a + b. True, and *ret_sum is untouched, if the sum does not fit. */
static inline bool add_overflows(uint64_t a, uint64_t b, uint64_t *ret_sum)
{
    uint64_t sum;

    if (__builtin_add_overflow(a, b, &sum)) {
        return true;
    }
    *ret_sum = sum;
    return false;
}

/* Set *ret_product to a * b. True, and *ret_product is untouched, if the product does not fit. */
static inline bool mul_overflows(uint64_t a, uint64_t b, uint64_t *ret_product)
{
    uint64_t product;

    if (__builtin_mul_overflow(a, b, &product)) {
        return true;
    }
    *ret_product = product;
    return false;
}

/* Whether [offset, offset + length) lies within [0, size). */
static inline bool range_fits(uint64_t offset, uint64_t length, uint64_t size)
{
    return offset <= size && length <= size - offset;
}

/* Whether two byte ranges share a byte. Their ends must fit 64 bits (else range_overlaps()). */
static inline bool ranges_overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
    return a < b + b_len && b < a + a_len;
}

/* Whether `v` is 1, 2, 4, ... */
static inline bool is_power_of_2(uint64_t v)
{
    return v != 0 && (v & (v - 1)) == 0;
}

/* The greatest multiple of `unit`, a power of two, that is at most `v`. */
static inline uint64_t round_down(uint64_t v, uint64_t unit)
{
    return v & ~(unit - 1);
}

/*
 * The least multiple of `unit`, a power of two, that is at least `v`. Where that does not fit 64
 * bits: the greatest multiple that does, which is below `v`.
 */
static inline uint64_t round_up(uint64_t v, uint64_t unit)
{
    uint64_t last = UINT64_MAX - (unit - 1);

    return v > last ? last : (v + unit - 1) & ~(unit - 1);
}

/* Whether `v` is a multiple of `unit`, a power of two. */
static inline bool is_aligned(uint64_t v, uint64_t unit)
{
    return (v & (unit - 1)) == 0;
}

/* v / d, rounded up; `d` is not 0. */
static inline uint64_t div_round_up(uint64_t v, uint64_t d)
{
    return v / d + (v % d != 0);
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arrays of words of bits, with the processor's instruction that counts them if it has one. None of
 * the functions yields.
 */
#ifndef TIDEMARK_BITMAP_BIT_WORDS_H
#define TIDEMARK_BITMAP_BIT_WORDS_H

#include <stdint.h>

/* How many bits are set in `count` words. */
uint64_t bit_words_count(const uint64_t *words, unsigned count);

/*
 * Read into `dest` the words of `a`, and with them those of `b` if that is not NULL, while others
 * may change them. Returns how many bits `dest` has.
 */
uint64_t bit_words_load(uint64_t *dest, const _Atomic uint64_t *a, const _Atomic uint64_t *b,
                        unsigned count);

/*
 * Set in `dest` the bits of `count` words. Returns how many were clear. Nobody else changes `dest`
 * meanwhile; others may read it.
 */
uint64_t bit_words_merge(_Atomic uint64_t *dest, const uint64_t *words, unsigned count);

#endif

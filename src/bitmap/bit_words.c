/* SPDX-License-Identifier: Apache-2.0 */
#include "bitmap/bit_words.h"

#include <stdatomic.h>

#include "bitmap/tree_node.h"

/* The bodies, compiled twice: with and without the instruction. */

static inline __attribute__((always_inline)) uint64_t
count_by(unsigned (*count_of)(uint64_t), const uint64_t *words, unsigned count)
{
    uint64_t sum = 0;

    for (unsigned k = 0; k < count; k++) {
        sum += count_of(words[k]);
    }
    return sum;
}

static inline __attribute__((always_inline)) uint64_t
load_by(unsigned (*count_of)(uint64_t), uint64_t *dest, const _Atomic uint64_t *a,
        const _Atomic uint64_t *b, unsigned count)
{
    uint64_t sum = 0;

    for (unsigned k = 0; k < count; k++) {
        dest[k] = atomic_load_explicit(&a[k], memory_order_acquire);
        if (b) {
            dest[k] |= atomic_load_explicit(&b[k], memory_order_acquire);
        }
        sum += count_of(dest[k]);
    }
    return sum;
}

static inline __attribute__((always_inline)) uint64_t merge_by(unsigned (*count_of)(uint64_t),
                                                               _Atomic uint64_t *dest,
                                                               const uint64_t *words,
                                                               unsigned count)
{
    uint64_t added = 0;

    for (unsigned k = 0; k < count; k++) {
        uint64_t old = atomic_load_explicit(&dest[k], memory_order_relaxed);

        added += count_of(words[k] & ~old);
        atomic_store_explicit(&dest[k], old | words[k], memory_order_release);
    }
    return added;
}

#ifdef __x86_64__

static inline __attribute__((always_inline, target("popcnt"))) unsigned count_fast(uint64_t word)
{
    return (unsigned)__builtin_popcountll(word);
}

static __attribute__((target("popcnt"))) uint64_t count_words_fast(const uint64_t *words,
                                                                   unsigned count)
{
    return count_by(count_fast, words, count);
}

static __attribute__((target("popcnt"))) uint64_t load_words_fast(uint64_t *dest,
                                                                  const _Atomic uint64_t *a,
                                                                  const _Atomic uint64_t *b,
                                                                  unsigned count)
{
    return load_by(count_fast, dest, a, b, count);
}

static __attribute__((target("popcnt"))) uint64_t
merge_words_fast(_Atomic uint64_t *dest, const uint64_t *words, unsigned count)
{
    return merge_by(count_fast, dest, words, count);
}

static bool has_instruction(void)
{
    return __builtin_cpu_supports("popcnt");
}

#else

static uint64_t count_words_fast(const uint64_t *words, unsigned count)
{
    return count_by(bit_count, words, count);
}

static uint64_t load_words_fast(uint64_t *dest, const _Atomic uint64_t *a,
                                const _Atomic uint64_t *b, unsigned count)
{
    return load_by(bit_count, dest, a, b, count);
}

static uint64_t merge_words_fast(_Atomic uint64_t *dest, const uint64_t *words, unsigned count)
{
    return merge_by(bit_count, dest, words, count);
}

static bool has_instruction(void)
{
    return false;
}

#endif

uint64_t bit_words_count(const uint64_t *words, unsigned count)
{
    return has_instruction() ? count_words_fast(words, count) : count_by(bit_count, words, count);
}

uint64_t bit_words_load(uint64_t *dest, const _Atomic uint64_t *a, const _Atomic uint64_t *b,
                        unsigned count)
{
    return has_instruction() ? load_words_fast(dest, a, b, count)
                             : load_by(bit_count, dest, a, b, count);
}

uint64_t bit_words_merge(_Atomic uint64_t *dest, const uint64_t *words, unsigned count)
{
    return has_instruction() ? merge_words_fast(dest, words, count)
                             : merge_by(bit_count, dest, words, count);
}

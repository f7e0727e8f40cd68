/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two digests at once, by the SHA extensions of x86-64. Each of their instructions for two rounds
 * needs the result of the one before, so one digest leaves the processor idle half of the time;
 * libcrypto has no function for several. Elsewhere libcrypto makes one digest after the other.
 */
#include "base/checked.h"
#include "base/sha256_internal.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>
#include <pthread.h>

/* Vectors of four words. */
#define BLOCK_VECTORS 4u
#define ROUND_VECTORS 16u
/* The words of the rounds from 16 on are made in these. */
#define SCHEDULE_VECTORS 12u
#define SHA_TARGET __attribute__((target("sha,sse4.1")))

/* The eight words of the hash value as the instructions want them, the last named word lowest. */
struct hash_value {
    __m128i abef, cdgh;
};

static bool has_extensions;
static pthread_once_t extensions_once = PTHREAD_ONCE_INIT;

static void find_extensions(void)
{
    const unsigned sse = bit_SSSE3 | bit_SSE4_1;
    unsigned a, b, c, d;

    has_extensions = __get_cpuid(1, &a, &b, &c, &d) && (c & sse) == sse &&
                     __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
}

SHA_TARGET static inline void load_block(const uint8_t *block, __m128i words[BLOCK_VECTORS])
{
    const __m128i swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);

    for (unsigned i = 0; i < BLOCK_VECTORS; i++) {
        words[i] =
            _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)block + i), swap);
    }
}

/*
 * The rounds 4 * i to 4 * i + 3, for which words[i % 4] is taken; then that is replaced by the
 * words of the four rounds that come 16 rounds later.
 */
SHA_TARGET static inline __attribute__((always_inline)) void
four_rounds(unsigned i, struct hash_value *h, __m128i words[BLOCK_VECTORS])
{
    __m128i *now = &words[i % 4], last = words[(i + 3) % 4];
    const __m128i sum = _mm_add_epi32(
        *now, _mm_loadu_si128((const __m128i *)(const void *)sha256_round_constants + i));

    h->cdgh = _mm_sha256rnds2_epu32(h->cdgh, h->abef, sum);
    h->abef = _mm_sha256rnds2_epu32(h->abef, h->cdgh, _mm_shuffle_epi32(sum, 0x0e));
    if (i < SCHEDULE_VECTORS) {
        __m128i next = _mm_sha256msg1_epu32(*now, words[(i + 1) % 4]);

        next = _mm_add_epi32(next, _mm_alignr_epi8(last, words[(i + 2) % 4], 4));
        *now = _mm_sha256msg2_epu32(next, last);
    }
}

SHA_TARGET static void hash_blocks(struct hash_value *a, struct hash_value *b,
                                   const uint8_t *data_a, const uint8_t *data_b, size_t count)
{
    struct hash_value x = *a, y = *b;

    for (size_t n = 0; n < count; n++) {
        const struct hash_value x_before = x, y_before = y;
        __m128i x_words[BLOCK_VECTORS], y_words[BLOCK_VECTORS];

        load_block(data_a + n * SHA256_BLOCK, x_words);
        load_block(data_b + n * SHA256_BLOCK, y_words);
#pragma GCC unroll 16
        for (unsigned i = 0; i < ROUND_VECTORS; i++) {
            four_rounds(i, &x, x_words);
            four_rounds(i, &y, y_words);
        }
        x.abef = _mm_add_epi32(x.abef, x_before.abef);
        x.cdgh = _mm_add_epi32(x.cdgh, x_before.cdgh);
        y.abef = _mm_add_epi32(y.abef, y_before.abef);
        y.cdgh = _mm_add_epi32(y.cdgh, y_before.cdgh);
    }
    *a = x;
    *b = y;
}

static void take_digest(const struct hash_value *h, uint8_t ret_digest[static SHA256_SIZE])
{
    uint32_t abef[4], cdgh[4];

    memcpy(abef, &h->abef, sizeof(abef));
    memcpy(cdgh, &h->cdgh, sizeof(cdgh));
    for (size_t i = 0; i < 2; i++) {
        store_be32(ret_digest + 4 * i, abef[3 - i]);
        store_be32(ret_digest + 4 * (i + 2), cdgh[3 - i]);
        store_be32(ret_digest + 4 * (i + 4), abef[1 - i]);
        store_be32(ret_digest + 4 * (i + 6), cdgh[1 - i]);
    }
}

static void hash_pair(const uint8_t *a, const uint8_t *b, size_t size, uint8_t *ret_a,
                      uint8_t *ret_b)
{
    const uint32_t *w = sha256_first_value;
    const struct hash_value first = {
        .abef = _mm_set_epi32((int)w[0], (int)w[1], (int)w[4], (int)w[5]),
        .cdgh = _mm_set_epi32((int)w[2], (int)w[3], (int)w[6], (int)w[7]),
    };
    struct hash_value x = first, y = first;
    uint8_t end_a[2 * SHA256_BLOCK], end_b[2 * SHA256_BLOCK];

    hash_blocks(&x, &y, a, b, size / SHA256_BLOCK);
    sha256_pad(b, size, end_b);
    hash_blocks(&x, &y, end_a, end_b, sha256_pad(a, size, end_a));
    take_digest(&x, ret_a);
    take_digest(&y, ret_b);
}

static bool can_hash_pairs(void)
{
    pthread_once(&extensions_once, find_extensions);
    return has_extensions;
}

#else

static bool can_hash_pairs(void)
{
    return false;
}

static void hash_pair(const uint8_t *a, const uint8_t *b, size_t size, uint8_t *ret_a,
                      uint8_t *ret_b)
{
}

#endif

int sha256_of_pair(const void *a, const void *b, size_t size, uint8_t ret_a[static SHA256_SIZE],
                   uint8_t ret_b[static SHA256_SIZE])
{
    int r;

    if (can_hash_pairs()) {
        hash_pair(a, b, size, ret_a, ret_b);
        return 0;
    }
    r = sha256_of_buffer(a, size, ret_a);
    return r < 0 ? r : sha256_of_buffer(b, size, ret_b);
}

int sha256_of_each(const void *data, size_t size, size_t count, uint8_t (*ret_digests)[SHA256_SIZE])
{
    const uint8_t *buf = data;
    int r = 0;

    for (size_t i = 0, n; r == 0 && i < count; i += n) {
        const uint8_t *at = buf + i * size;

        if (count - i >= SHA256_LANES && sha256_has_lanes()) {
            n = SHA256_LANES;
            sha256_lanes(at, size, ret_digests + i);
        } else {
            n = MIN(count - i, 2ul);
            r = n == 2 ? sha256_of_pair(at, at + size, size, ret_digests[i], ret_digests[i + 1])
                       : sha256_of_buffer(at, size, ret_digests[i]);
        }
    }
    return r;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two digests at once, by the SHA extensions of x86-64. Each of their instructions for two rounds
 * needs the result of the one before, so one digest leaves the processor idle half of the time;
 * libcrypto has no function for several. Elsewhere libcrypto makes one digest after the other.
 */
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/sha256.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>
#include <pthread.h>

#define BLOCK 64u
/* Vectors of four words. */
#define BLOCK_VECTORS 4u
#define ROUND_VECTORS 16u
/* The words of the rounds from 16 on are made in these. */
#define SCHEDULE_VECTORS 12u
#define SHA_TARGET __attribute__((target("sha,sse4.1")))

/* FIPS 180-4, 4.2.2: fractions of the cube roots of the first 64 primes. */
static const uint32_t round_constants[BLOCK] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

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
    const __m128i sum =
        _mm_add_epi32(*now, _mm_loadu_si128((const __m128i *)(const void *)round_constants + i));

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

        load_block(data_a + n * BLOCK, x_words);
        load_block(data_b + n * BLOCK, y_words);
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

/* What is left of a message, with its end (5.1.1): one block or two. Returns how many. */
static size_t pad(const uint8_t *data, size_t size, uint8_t ret_blocks[static 2 * BLOCK])
{
    size_t rest = size % BLOCK, count = rest + 1 + 8 > BLOCK ? 2 : 1;

    memset(ret_blocks, 0, 2ul * BLOCK);
    memcpy(ret_blocks, data + size - rest, rest);
    ret_blocks[rest] = 0x80;
    store_be64(ret_blocks + count * BLOCK - 8, (uint64_t)size * 8);
    return count;
}

static void hash_pair(const uint8_t *a, const uint8_t *b, size_t size, uint8_t *ret_a,
                      uint8_t *ret_b)
{
    /* 5.3.3: fractions of the square roots of the first eight primes. */
    const struct hash_value first = {
        .abef = _mm_set_epi32(0x6a09e667, (int)0xbb67ae85, 0x510e527f, (int)0x9b05688c),
        .cdgh = _mm_set_epi32(0x3c6ef372, (int)0xa54ff53a, 0x1f83d9ab, 0x5be0cd19),
    };
    struct hash_value x = first, y = first;
    uint8_t end_a[2 * BLOCK], end_b[2 * BLOCK];

    hash_blocks(&x, &y, a, b, size / BLOCK);
    pad(b, size, end_b);
    hash_blocks(&x, &y, end_a, end_b, pad(a, size, end_a));
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

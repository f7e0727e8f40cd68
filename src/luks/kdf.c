/* SPDX-License-Identifier: Apache-2.0 */
#include "luks/kdf.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/time_units.h"
#include "luks/libgcrypt_lazy.h"

#define KEY_MAX 64
#define DIGEST_MAX 64

/* The speed is measured by a run of at least this. */
#define MEASURE_NS (20 * NS_PER_MS)

static int to_errno(gcry_error_t e)
{
    if (!e) {
        return 0;
    }
    return gcry_err_code(e) == GPG_ERR_ENOMEM ? -ENOMEM : -EINVAL;
}

int luks_pbkdf2(const struct luks_hash *hash, const void *password, size_t password_size,
                const uint8_t *salt, size_t salt_size, uint32_t iterations, uint8_t *ret_key,
                size_t key_size)
{
    return to_errno(gcry_kdf_derive(password, password_size, GCRY_KDF_PBKDF2, hash->gcrypt, salt,
                                    salt_size, iterations, key_size, ret_key));
}

static int64_t thread_time_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * NS_PER_SECOND + t.tv_nsec;
}

int luks_measure_pbkdf2(const struct luks_hash *hash, size_t key_size, uint64_t *ret_per_second)
{
    static const uint8_t salt[32];
    uint8_t key[KEY_MAX];
    uint32_t iterations = 1000;

    assert(key_size <= sizeof(key));
    while (true) {
        int64_t start = thread_time_ns(), taken;
        int r = luks_pbkdf2(hash, "password", 8, salt, sizeof(salt), iterations, key, key_size);

        if (r < 0) {
            return r;
        }
        taken = thread_time_ns() - start;
        if (taken >= MEASURE_NS || iterations > LUKS_ITERATIONS_MAX) {
            *ret_per_second = (uint64_t)iterations * NS_PER_SECOND / (uint64_t)MAX(taken, 1);
            return 0;
        }
        iterations *= taken < MEASURE_NS / 4 ? 4 : 2;
    }
}

/* --- splitter --------------------------------------------------------------------------------- */

/* Each piece of the size of a digest becomes the hash of its number and itself. */
static void diffuse(const struct luks_hash *hash, uint8_t *block, size_t size)
{
    uint8_t digest[DIGEST_MAX], number[4];

    for (size_t at = 0, i = 0; at < size; at += hash->size, i++) {
        size_t n = MIN(size - at, hash->size);
        gcry_buffer_t parts[] = {{.data = number, .len = sizeof(number)},
                                 {.data = block + at, .len = n}};

        store_be32(number, (uint32_t)i);
        gcry_md_hash_buffers(hash->gcrypt, 0, digest, parts, 2);
        memcpy(block + at, digest, n);
    }
    explicit_bzero(digest, sizeof(digest));
}

static void add_xor(uint8_t *to, const uint8_t *from, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        to[i] ^= from[i];
    }
}

int luks_split(const struct luks_hash *hash, const uint8_t *key, size_t key_size, unsigned stripes,
               uint8_t *ret_split)
{
    uint8_t block[KEY_MAX] = {0};
    uint8_t *last = ret_split + (size_t)(stripes - 1) * key_size;

    if (key_size > sizeof(block) || stripes < 1) {
        return -EINVAL;
    }
    luks_random(ret_split, (size_t)(stripes - 1) * key_size);
    for (const uint8_t *stripe = ret_split; stripe < last; stripe += key_size) {
        add_xor(block, stripe, key_size);
        diffuse(hash, block, key_size);
    }
    memcpy(last, key, key_size);
    add_xor(last, block, key_size);
    explicit_bzero(block, sizeof(block));
    return 0;
}

int luks_merge(const struct luks_hash *hash, const uint8_t *split, size_t key_size,
               unsigned stripes, uint8_t *ret_key)
{
    uint8_t block[KEY_MAX] = {0};
    const uint8_t *last = split + (size_t)(stripes - 1) * key_size;

    if (key_size > sizeof(block) || stripes < 1) {
        return -EINVAL;
    }
    for (const uint8_t *stripe = split; stripe < last; stripe += key_size) {
        add_xor(block, stripe, key_size);
        diffuse(hash, block, key_size);
    }
    memcpy(ret_key, last, key_size);
    add_xor(ret_key, block, key_size);
    explicit_bzero(block, sizeof(block));
    return 0;
}

void luks_random(void *buf, size_t size)
{
    gcry_randomize(buf, size, GCRY_STRONG_RANDOM);
}

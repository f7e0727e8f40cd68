/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A state of the library (the expanded key and an initialization vector) serves one thread at a
 * time. There are as many states as threads have used the cipher at once; those not in use are in a
 * list.
 */
#include "luks/cipher.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/secret_memory.h"
#include "base/time_units.h"
#include "loop/loop.h"
#include "luks/libgcrypt_lazy.h"
#include "luks/twofish192.h"

#define BLOCK_MAX 16
#define KEY_MAX 64

/* How much is encrypted to measure the speed. */
#define SAMPLE_SIZE (8 * KiB)

struct cipher_state {
    struct cipher_state *next;
    /* one of both, by the cipher */
    gcry_cipher_hd_t data;
    struct twofish192 *twofish;
    /* encrypts initialization vectors; only for ESSIV */
    gcry_cipher_hd_t essiv;
};

struct luks_cipher {
    struct luks_encryption e;
    const struct luks_cipher_alg *essiv_alg;
    /* of luks_key_size(), and of a digest */
    uint8_t key[KEY_MAX], essiv_key[KEY_MAX];
    size_t speed;
    pthread_mutex_t lock;
    /* guarded by `lock`: states not in use */
    struct cipher_state *idle;
};

/* --- states ----------------------------------------------------------------------------------- */

static int gcrypt_mode(enum luks_mode mode)
{
    static const int modes[] = {
        [LUKS_ECB] = GCRY_CIPHER_MODE_ECB,
        [LUKS_CBC] = GCRY_CIPHER_MODE_CBC,
        [LUKS_XTS] = GCRY_CIPHER_MODE_XTS,
        [LUKS_CTR] = GCRY_CIPHER_MODE_CTR,
    };

    return modes[mode];
}

static void free_state(struct cipher_state *s)
{
    gcry_cipher_close(s->data);
    gcry_cipher_close(s->essiv);
    secret_free(s->twofish);
    free(s);
}

static gcry_error_t open_cipher(gcry_cipher_hd_t *handle, const struct luks_cipher_alg *alg,
                                enum luks_mode mode, const uint8_t *key, size_t key_size)
{
    gcry_error_t e = gcry_cipher_open(handle, alg->gcrypt, gcrypt_mode(mode), GCRY_CIPHER_SECURE);

    return e ? e : gcry_cipher_setkey(*handle, key, key_size);
}

static int new_state(const struct luks_cipher *c, struct cipher_state **ret_state,
                     struct error *err)
{
    struct cipher_state *s = calloc(1, sizeof(*s));
    gcry_error_t e = 0;

    if (!s) {
        return error_out_of_memory(err);
    }
    if (c->e.alg->gcrypt) {
        e = open_cipher(&s->data, c->e.alg, c->e.mode, c->key, luks_key_size(&c->e));
    } else {
        s->twofish = twofish192_new(c->e.mode, c->key);
        e = s->twofish ? 0 : gcry_error(GPG_ERR_ENOMEM);
    }
    if (!e && c->essiv_alg) {
        e = open_cipher(&s->essiv, c->essiv_alg, LUKS_ECB, c->essiv_key, c->essiv_alg->key_size);
    }
    if (e) {
        free_state(s);
        return gcry_err_code(e) == GPG_ERR_ENOMEM
                   ? error_out_of_memory(err)
                   : error_set(err, EINVAL, "Unsupported cipher algorithm %s with %s mode: %s",
                               c->e.alg->name, luks_mode_names[c->e.mode], gcry_strerror(e));
    }
    *ret_state = s;
    return 0;
}

/* NULL: out of memory. */
static struct cipher_state *take_cipher_state(struct luks_cipher *c)
{
    struct cipher_state *s;

    pthread_mutex_lock(&c->lock);
    s = c->idle;
    if (s) {
        c->idle = s->next;
    }
    pthread_mutex_unlock(&c->lock);
    return s || new_state(c, &s, NULL) == 0 ? s : NULL;
}

static void give_state_back(struct luks_cipher *c, struct cipher_state *s)
{
    pthread_mutex_lock(&c->lock);
    s->next = c->idle;
    c->idle = s;
    pthread_mutex_unlock(&c->lock);
}

/* --- sectors ---------------------------------------------------------------------------------- */

static gcry_error_t make_iv(const struct luks_cipher *c, const struct cipher_state *s,
                            uint64_t sector, uint8_t *iv)
{
    memset(iv, 0, BLOCK_MAX);
    if (c->e.ivgen == LUKS_PLAIN) {
        store_le32(iv, (uint32_t)sector);
    } else {
        store_le64(iv, sector);
    }
    return s->essiv ? gcry_cipher_encrypt(s->essiv, iv, c->essiv_alg->block_size, NULL, 0) : 0;
}

static gcry_error_t set_iv(const struct luks_cipher *c, gcry_cipher_hd_t handle, const uint8_t *iv)
{
    switch (c->e.mode) {
    case LUKS_ECB:
        return 0;
    case LUKS_CTR:
        return gcry_cipher_setctr(handle, iv, c->e.alg->block_size);
    default:
        return gcry_cipher_setiv(handle, iv, c->e.alg->block_size);
    }
}

static gcry_error_t transform_sector(const struct luks_cipher *c, const struct cipher_state *s,
                                     bool encrypt, uint64_t sector, uint8_t *dst,
                                     const uint8_t *src)
{
    uint8_t iv[BLOCK_MAX];
    gcry_error_t e = make_iv(c, s, sector, iv);

    if (e) {
        return e;
    }
    if (s->twofish) {
        (encrypt ? twofish192_encrypt : twofish192_decrypt)(s->twofish, iv, dst, src, LUKS_SECTOR);
        return 0;
    }
    e = set_iv(c, s->data, iv);
    if (e) {
        return e;
    }
    /* In place if there is no source. */
    return (encrypt ? gcry_cipher_encrypt : gcry_cipher_decrypt)(
        s->data, dst, LUKS_SECTOR, src == dst ? NULL : src, src == dst ? 0 : LUKS_SECTOR);
}

static int transform_sectors(struct luks_cipher *c, bool encrypt, uint64_t sector, uint8_t *dst,
                             const uint8_t *src, size_t size)
{
    struct cipher_state *s = take_cipher_state(c);
    gcry_error_t e = 0;

    assert(is_aligned(size, LUKS_SECTOR));
    if (!s) {
        return -ENOMEM;
    }
    for (size_t at = 0; at < size && !e; at += LUKS_SECTOR) {
        e = transform_sector(c, s, encrypt, sector++, dst + at, src + at);
    }
    give_state_back(c, s);
    return e ? -EIO : 0;
}

int luks_cipher_encrypt(struct luks_cipher *c, uint64_t sector, void *dst, const void *src,
                        size_t size)
{
    return transform_sectors(c, true, sector, dst, src, size);
}

int luks_cipher_decrypt(struct luks_cipher *c, uint64_t sector, void *dst, const void *src,
                        size_t size)
{
    return transform_sectors(c, false, sector, dst, src, size);
}

/* --- life ------------------------------------------------------------------------------------- */

/* The faster of two runs, since the first one may wait for memory. */
static int measure_speed(struct luks_cipher *c)
{
    uint8_t *sample = calloc(1, SAMPLE_SIZE);
    int64_t least = INT64_MAX;
    int r = sample ? 0 : -ENOMEM;

    for (int i = 0; i < 2 && r == 0; i++) {
        int64_t start = loop_now_ns();

        r = luks_cipher_encrypt(c, 0, sample, sample, SAMPLE_SIZE);
        least = MIN(least, loop_now_ns() - start);
    }
    free(sample);
    c->speed = MAX(1000 * SAMPLE_SIZE / (size_t)MAX(least, 1), (size_t)1);
    return r;
}

int luks_cipher_new(const struct luks_encryption *e, const uint8_t *key,
                    struct luks_cipher **ret_cipher, struct error *err)
{
    struct cipher_state *first;
    struct luks_cipher *c;
    int r = luks_load_library(err);

    UNLESS_FAILED(r, luks_check_encryption(e, err));
    if (r < 0) {
        return r;
    }
    c = secret_alloc(sizeof(*c));
    if (!c) {
        return error_out_of_memory(err);
    }
    c->e = *e;
    memcpy(c->key, key, luks_key_size(e));
    pthread_mutex_init(&c->lock, NULL);
    if (e->ivgen == LUKS_ESSIV && (r = luks_essiv_cipher(e, &c->essiv_alg, err)) == 0) {
        gcry_md_hash_buffer(e->iv_hash->gcrypt, c->essiv_key, key, luks_key_size(e));
    }
    UNLESS_FAILED(r, new_state(c, &first, err));
    if (r == 0) {
        give_state_back(c, first);
        r = measure_speed(c);
        r = r < 0 ? error_set_errno(err, -r, "Could not encrypt with %s", e->alg->name) : 0;
    }
    if (r < 0) {
        luks_cipher_free(c);
        return r;
    }
    *ret_cipher = c;
    return 0;
}

void luks_cipher_free(struct luks_cipher *c)
{
    struct cipher_state *s, *next;

    if (!c) {
        return;
    }
    for (s = c->idle; s; s = next) {
        next = s->next;
        free_state(s);
    }
    pthread_mutex_destroy(&c->lock);
    secret_free(c);
}

size_t luks_cipher_speed(const struct luks_cipher *c)
{
    return c->speed;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "luks/slots.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/json_lex.h"
#include "base/secret_memory.h"
#include "block/user_object.h"
#include "loop/loop.h"
#include "luks/kdf.h"

#define ITERATIONS_MIN 1000

/* --- passphrases ------------------------------------------------------------------------------ */

int passphrase_get(const char *secret_id, struct passphrase *ret_passphrase, struct error *err)
{
    return secret_get(secret_id, &ret_passphrase->text, &ret_passphrase->size, err);
}

int passphrase_get_new(const char *secret_id, struct passphrase *ret_passphrase, struct error *err)
{
    CLEANUP(passphrase_release) struct passphrase p = {0};
    const unsigned char *at, *end;
    int r = passphrase_get(secret_id, &p, err);

    if (r < 0) {
        return r;
    }
    at = (const unsigned char *)p.text;
    end = at + p.size;
    for (size_t n = 1; at < end; at += n) {
        n = *at ? json_utf8_length(at, end) : 0;
        if (n == 0) {
            return error_set(err, EINVAL, "Data from secret %s is not valid UTF-8", secret_id);
        }
    }
    *ret_passphrase = p;
    p = (struct passphrase){0};
    return 0;
}

void passphrase_release(struct passphrase *p)
{
    secret_free(p->text);
    *p = (struct passphrase){0};
}

/* --- on threads of the offload pool ----------------------------------------------------------- */

/* Secret memory. */
struct slot_work {
    const struct luks_header *header;
    const struct luks_slot *slot;
    const struct passphrase *passphrase;
    /* Computed from the passphrase: it encrypts the material. */
    uint8_t slot_key[LUKS_KEY_MAX];
    /* of the volume */
    uint8_t key[LUKS_KEY_MAX];
    uint8_t digest[LUKS_DIGEST_SIZE];
    uint8_t material[];
};

static struct slot_work *new_work(const struct luks_volume *v, const struct luks_slot *slot,
                                  const struct passphrase *p)
{
    struct slot_work *w = secret_alloc(sizeof(*w) + luks_material_size(&v->header));

    if (w) {
        w->header = &v->header;
        w->slot = slot;
        w->passphrase = p;
    }
    return w;
}

static int new_slot_cipher(struct slot_work *w, struct luks_cipher **ret_cipher)
{
    const struct luks_header *h = w->header;
    int r = luks_pbkdf2(h->hash, w->passphrase->text, w->passphrase->size, w->slot->salt,
                        sizeof(w->slot->salt), w->slot->iterations, w->slot_key, h->key_size);

    return r < 0 ? r : luks_cipher_new(&h->encryption, w->slot_key, ret_cipher, NULL);
}

/* 1: the passphrase is the slot's, and w->key is the key. */
static int unlock_slot(void *arg)
{
    struct slot_work *w = arg;
    const struct luks_header *h = w->header;
    struct luks_cipher *cipher = NULL;
    int r = new_slot_cipher(w, &cipher);

    UNLESS_FAILED(r,
                  luks_cipher_decrypt(cipher, 0, w->material, w->material, luks_material_size(h)));
    UNLESS_FAILED(r, luks_merge(h->hash, w->material, h->key_size, LUKS_STRIPES, w->key));
    UNLESS_FAILED(r,
                  luks_pbkdf2(h->hash, w->key, h->key_size, h->digest_salt, sizeof(h->digest_salt),
                              h->digest_iterations, w->digest, sizeof(w->digest)));
    luks_cipher_free(cipher);
    return r < 0 ? r : secret_equal(w->digest, h->digest, sizeof(w->digest));
}

static int fill_material(void *arg)
{
    struct slot_work *w = arg;
    const struct luks_header *h = w->header;
    struct luks_cipher *cipher = NULL;
    int r = new_slot_cipher(w, &cipher);

    UNLESS_FAILED(r, luks_split(h->hash, w->key, h->key_size, LUKS_STRIPES, w->material));
    UNLESS_FAILED(r,
                  luks_cipher_encrypt(cipher, 0, w->material, w->material, luks_material_size(h)));
    luks_cipher_free(cipher);
    return r;
}

struct measure_work {
    const struct luks_hash *hash;
    size_t key_size;
    uint64_t per_second;
};

static int measure_pbkdf2(void *arg)
{
    struct measure_work *w = arg;

    return luks_measure_pbkdf2(w->hash, w->key_size, &w->per_second);
}

/* --- slots ------------------------------------------------------------------------------------ */

int luks_co_try_slot(struct luks_volume *v, unsigned slot, const struct passphrase *p,
                     uint8_t *ret_key, struct error *err)
{
    const struct luks_slot *s = &v->header.slots[slot];
    AUTO_SECRET struct slot_work *w = new_work(v, s, p);
    int r;

    if (!w) {
        return error_out_of_memory(err);
    }
    r = v->io.co_read(v->io.arg, s->offset, w->material, luks_material_size(&v->header));
    if (r < 0) {
        return error_set_errno(err, -r, "Failed to read key material of keyslot %u", slot);
    }
    r = loop_co_offload(unlock_slot, w);
    if (r < 0) {
        return error_set_errno(err, -r, "Failed to compute the key of keyslot %u", slot);
    }
    if (r > 0) {
        memcpy(ret_key, w->key, LUKS_KEY_MAX);
    }
    return r;
}

int luks_co_find_slot(struct luks_volume *v, const struct passphrase *p, uint8_t *ret_key,
                      unsigned *ret_slot, struct error *err)
{
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        int r = v->header.slots[i].active ? luks_co_try_slot(v, i, p, ret_key, err) : 0;

        if (r < 0) {
            return r;
        }
        if (r > 0) {
            *ret_slot = i;
            return 0;
        }
    }
    return error_set(err, EPERM, "Invalid password, cannot unlock any keyslot");
}

int luks_co_choose_iterations(const struct luks_hash *hash, size_t key_size, uint64_t time_ms,
                              uint32_t *ret_iterations, struct error *err)
{
    struct measure_work w = {.hash = hash, .key_size = key_size};
    uint64_t iterations;
    int r = loop_co_offload(measure_pbkdf2, &w);

    if (r < 0) {
        return error_set_errno(err, -r, "Failed to compute keys with the hash '%s'", hash->name);
    }
    if (mul_overflows(w.per_second, time_ms, &iterations) ||
        iterations / 1000 > LUKS_ITERATIONS_MAX) {
        return error_set(err, EFBIG,
                         "An 'iter-time' of %" PRIu64 " ms takes more than %u iterations, which is "
                         "the most that is accepted",
                         time_ms, LUKS_ITERATIONS_MAX);
    }
    *ret_iterations = (uint32_t)MAX(iterations / 1000, (uint64_t)ITERATIONS_MIN);
    return 0;
}

int luks_co_write_header(struct luks_volume *v, struct error *err)
{
    uint8_t bytes[LUKS_HEADER_SIZE];
    int r;

    luks_store_header(&v->header, bytes);
    r = v->io.co_write(v->io.arg, 0, bytes, sizeof(bytes));
    UNLESS_FAILED(r, v->io.co_flush(v->io.arg));
    return r < 0 ? error_set_errno(err, -r, "Failed to write the LUKS header") : 0;
}

static int co_store(struct luks_volume *v, struct luks_slot *s, struct slot_work *w,
                    struct error *err)
{
    int r = loop_co_offload(fill_material, w);

    UNLESS_FAILED(
        r, v->io.co_write(v->io.arg, s->offset, w->material, luks_material_size(&v->header)));
    if (r < 0) {
        return error_set_errno(err, -r, "Failed to write key material");
    }
    r = luks_co_write_header(v, err);
    if (r < 0) {
        return r;
    }
    s->active = true;
    return luks_co_write_header(v, err);
}

/*
 * After an error it is unknown which header is in the file: `old`, or a later one. Reading says.
 */
static void co_find_header(struct luks_volume *v, const struct luks_header *old)
{
    uint8_t bytes[LUKS_HEADER_SIZE];

    v->header = *old;
    if (v->io.co_read(v->io.arg, 0, bytes, sizeof(bytes)) == 0) {
        (void)luks_parse_header(bytes, v->detached, &v->header, NULL);
    }
}

int luks_co_store_slot(struct luks_volume *v, unsigned slot, const struct passphrase *p,
                       const uint8_t *key, uint32_t iterations, struct error *err)
{
    struct luks_header old = v->header;
    struct luks_slot *s = &v->header.slots[slot];
    AUTO_SECRET struct slot_work *w = new_work(v, s, p);
    int r;

    if (!w) {
        return error_out_of_memory(err);
    }
    memcpy(w->key, key, v->header.key_size);
    luks_random(s->salt, sizeof(s->salt));
    s->iterations = iterations;
    s->active = false;
    r = co_store(v, s, w, err);
    if (r < 0) {
        co_find_header(v, &old);
        error_prepend(err, "Failed to write to keyslot %u: ", slot);
    }
    return r;
}

static int co_wipe_material(struct luks_volume *v, const struct luks_slot *s, struct error *err)
{
    size_t size = luks_material_size(&v->header);
    uint8_t *noise = malloc(size);
    int r;

    if (!noise) {
        return error_out_of_memory(err);
    }
    luks_random(noise, size);
    r = v->io.co_write(v->io.arg, s->offset, noise, size);
    UNLESS_FAILED(r, v->io.co_flush(v->io.arg));
    free(noise);
    return r < 0 ? error_set_errno(err, -r, "Failed to overwrite key material") : 0;
}

int luks_co_erase_slot(struct luks_volume *v, unsigned slot, struct error *err)
{
    struct luks_header old = v->header;
    struct luks_slot *s = &v->header.slots[slot];
    int r;

    s->active = false;
    r = luks_co_write_header(v, err);
    UNLESS_FAILED(r, co_wipe_material(v, s, err));
    if (r == 0) {
        s->iterations = 0;
        memset(s->salt, 0, sizeof(s->salt));
        r = luks_co_write_header(v, err);
    }
    if (r < 0) {
        co_find_header(v, &old);
        error_prepend(err, "Failed to erase keyslot %u: ", slot);
    }
    return r;
}

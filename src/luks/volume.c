/* SPDX-License-Identifier: Apache-2.0 */
#include "luks/volume.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/secret_memory.h"
#include "loop/loop.h"
#include "luks/kdf.h"
#include "luks/slots.h"

/* The digest of the key is computed in a part of the time that a slot takes. */
#define DIGEST_SHARE 8

/* --- open ------------------------------------------------------------------------------------- */

static int new_volume(const struct luks_io *io, bool detached, struct luks_volume **ret_volume,
                      struct error *err)
{
    struct luks_volume *v = calloc(1, sizeof(*v));
    int r = v ? luks_load_library(err) : error_out_of_memory(err);

    if (r < 0) {
        free(v);
        return r;
    }
    v->io = *io;
    v->detached = detached;
    co_mutex_init(&v->changes);
    *ret_volume = v;
    return 0;
}

int luks_co_open(const struct luks_io *io, bool detached, struct luks_volume **ret_volume,
                 struct error *err)
{
    uint8_t bytes[LUKS_HEADER_SIZE];
    struct luks_volume *v;
    int r = io->co_read(io->arg, 0, bytes, sizeof(bytes));

    if (r < 0) {
        return error_set_errno(err, -r, "Unable to read LUKS header");
    }
    r = new_volume(io, detached, &v, err);
    if (r < 0) {
        return r;
    }
    r = luks_parse_header(bytes, detached, &v->header, err);
    if (r < 0) {
        luks_close(v);
        return r;
    }
    *ret_volume = v;
    return 0;
}

static int set_key(struct luks_volume *v, const char *secret_id, const uint8_t *key,
                   struct error *err)
{
    struct luks_cipher *cipher;
    int r = luks_cipher_new(&v->header.encryption, key, &cipher, err);

    if (r < 0) {
        return r;
    }
    luks_cipher_free(v->cipher);
    v->cipher = cipher;
    free(v->secret_id);
    v->secret_id = strdup(secret_id);
    return v->secret_id ? 0 : error_out_of_memory(err);
}

int luks_co_unlock(struct luks_volume *v, const char *secret_id, struct error *err)
{
    CLEANUP(passphrase_release) struct passphrase p = {0};
    AUTO_SECRET uint8_t *key = secret_alloc(LUKS_KEY_MAX);
    unsigned slot;
    int r = key ? passphrase_get(secret_id, &p, err) : error_out_of_memory(err);

    UNLESS_FAILED(r, luks_co_find_slot(v, &p, key, &slot, err));
    return r < 0 ? r : set_key(v, secret_id, key, err);
}

void luks_close(struct luks_volume *v)
{
    if (v) {
        luks_cipher_free(v->cipher);
        free(v->secret_id);
        co_mutex_destroy(&v->changes);
        free(v);
    }
}

/* --- format ----------------------------------------------------------------------------------- */

void luks_format_release(struct luks_format *format)
{
    free(format->secret_id);
    format->secret_id = NULL;
}

uint64_t luks_new_header_size(const struct luks_encryption *e)
{
    struct luks_header header = {.encryption = *e, .key_size = luks_key_size(e)};

    luks_lay_out(&header, false);
    return header.payload_offset;
}

/* A random one: version 4 of RFC 9562. */
static void make_uuid(char *ret_text, size_t size)
{
    uint8_t b[16];

    luks_random(b, sizeof(b));
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    snprintf(ret_text, size, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x",
             b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13],
             b[14], b[15]);
}

struct digest_work {
    struct luks_header *header;
    const uint8_t *key;
};

static int compute_digest(void *arg)
{
    struct digest_work *w = arg;
    struct luks_header *h = w->header;

    return luks_pbkdf2(h->hash, w->key, h->key_size, h->digest_salt, sizeof(h->digest_salt),
                       h->digest_iterations, h->digest, sizeof(h->digest));
}

static int co_make_header(struct luks_volume *v, const struct luks_format *format,
                          const uint8_t *key, struct error *err)
{
    struct luks_header *h = &v->header;
    struct digest_work work = {.header = h, .key = key};
    int r;

    h->encryption = format->encryption;
    h->hash = format->hash;
    h->key_size = luks_key_size(&format->encryption);
    luks_lay_out(h, v->detached);
    make_uuid(h->uuid, sizeof(h->uuid));
    luks_random(h->digest_salt, sizeof(h->digest_salt));
    r = luks_co_choose_iterations(h->hash, sizeof(h->digest), format->iter_time_ms / DIGEST_SHARE,
                                  &h->digest_iterations, err);
    if (r < 0) {
        return r;
    }
    r = loop_co_offload(compute_digest, &work);
    return r < 0 ? error_set_errno(err, -r, "Failed to compute the digest of the key") : 0;
}

static int co_fill_volume(struct luks_volume *v, const struct luks_format *format,
                          const struct passphrase *p, uint8_t *key, struct error *err)
{
    uint32_t iterations;
    int r;

    luks_random(key, luks_key_size(&format->encryption));
    r = set_key(v, format->secret_id, key, err);
    UNLESS_FAILED(r, co_make_header(v, format, key, err));
    UNLESS_FAILED(r, luks_co_choose_iterations(format->hash, v->header.key_size,
                                               format->iter_time_ms, &iterations, err));
    return r < 0 ? r : luks_co_store_slot(v, 0, p, key, iterations, err);
}

int luks_check_passphrase(const struct luks_format *format, struct error *err)
{
    CLEANUP(passphrase_release) struct passphrase p = {0};

    return passphrase_get_new(format->secret_id, &p, err);
}

int luks_co_format(const struct luks_io *io, bool detached, const struct luks_format *format,
                   struct luks_volume **ret_volume, struct error *err)
{
    CLEANUP(passphrase_release) struct passphrase p = {0};
    AUTO_SECRET uint8_t *key = secret_alloc(LUKS_KEY_MAX);
    struct luks_volume *v = NULL;
    int r = key ? luks_check_encryption(&format->encryption, err) : error_out_of_memory(err);

    UNLESS_FAILED(r, passphrase_get_new(format->secret_id, &p, err));
    UNLESS_FAILED(r, new_volume(io, detached, &v, err));
    if (r < 0) {
        return r;
    }
    v->header.encryption = format->encryption;
    r = co_fill_volume(v, format, &p, key, err);
    if (r < 0) {
        luks_close(v);
        return r;
    }
    *ret_volume = v;
    return 0;
}

/* --- info ------------------------------------------------------------------------------------- */

static void add_info_text(struct json_object *o, const char *name, const char *value)
{
    json_object_object_add(o, name, json_object_new_string(value));
}

static void add_info_number(struct json_object *o, const char *name, uint64_t value)
{
    json_object_object_add(o, name, json_object_new_uint64(value));
}

static struct json_object *slot_info(const struct luks_slot *slot)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "active", json_object_new_boolean(slot->active));
    if (slot->active) {
        add_info_number(o, "iters", slot->iterations);
    }
    add_info_number(o, "key-offset", slot->offset);
    if (slot->active) {
        add_info_number(o, "stripes", LUKS_STRIPES);
    }
    return o;
}

struct json_object *luks_volume_info(const struct luks_volume *v)
{
    const struct luks_header *h = &v->header;
    const struct luks_encryption *e = &h->encryption;
    struct json_object *o = json_object_new_object(), *slots = json_object_new_array();

    add_info_text(o, "ivgen-alg", luks_ivgen_names[e->ivgen]);
    if (e->ivgen == LUKS_ESSIV) {
        add_info_text(o, "ivgen-hash-alg", e->iv_hash->name);
    }
    json_object_object_add(o, "detached-header", json_object_new_boolean(v->detached));
    add_info_text(o, "hash-alg", h->hash->name);
    add_info_text(o, "cipher-alg", e->alg->name);
    add_info_text(o, "uuid", h->uuid);
    add_info_text(o, "cipher-mode", luks_mode_names[e->mode]);
    for (size_t i = 0; i < LUKS_SLOTS; i++) {
        json_object_array_add(slots, slot_info(&h->slots[i]));
    }
    json_object_object_add(o, "slots", slots);
    add_info_number(o, "payload-offset", h->payload_offset);
    add_info_number(o, "master-key-iters", h->digest_iterations);
    return o;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "luks/header.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "luks/cipher.h"
#include "luks/kdf.h"

enum {
    OFFSET_VERSION = 6,
    OFFSET_CIPHER = 8,
    OFFSET_MODE = 40,
    OFFSET_HASH = 72,
    OFFSET_PAYLOAD = 104,
    OFFSET_KEY_SIZE = 108,
    OFFSET_DIGEST = 112,
    OFFSET_DIGEST_SALT = 132,
    OFFSET_DIGEST_ITERATIONS = 164,
    OFFSET_UUID = 168,
    OFFSET_SLOTS = 208,
    SLOT_SIZE = 48,
    SLOT_ITERATIONS = 4,
    SLOT_SALT = 8,
    SLOT_OFFSET = 40,
    SLOT_STRIPES = 44,
    NAME_SIZE = 32,
    UUID_SIZE = 40,
};

#define SLOT_ACTIVE 0x00ac71f3
#define SLOT_INACTIVE 0x0000dead

static const uint8_t luks_magic[6] = "LUKS\xba\xbe";

bool luks_has_magic(const uint8_t *head, size_t size)
{
    return size >= sizeof(luks_magic) && memcmp(head, luks_magic, sizeof(luks_magic)) == 0;
}

size_t luks_material_size(const struct luks_header *header)
{
    return round_up((uint64_t)header->key_size * LUKS_STRIPES, LUKS_SECTOR);
}

uint64_t luks_header_end(const struct luks_header *header)
{
    uint64_t end = 0;

    for (size_t i = 0; i < LUKS_SLOTS; i++) {
        end = MAX(end, header->slots[i].offset + luks_material_size(header));
    }
    return round_up(end, LUKS_MATERIAL_UNIT);
}

unsigned luks_count_active(const struct luks_header *header)
{
    unsigned count = 0;

    for (size_t i = 0; i < LUKS_SLOTS; i++) {
        count += header->slots[i].active;
    }
    return count;
}

void luks_lay_out(struct luks_header *header, bool detached)
{
    uint64_t offset = LUKS_MATERIAL_UNIT;

    for (size_t i = 0; i < LUKS_SLOTS; i++) {
        header->slots[i].offset = offset;
        offset += round_up(luks_material_size(header), LUKS_MATERIAL_UNIT);
    }
    header->payload_offset = detached ? 0 : offset;
}

/* --- parsing ---------------------------------------------------------------------------------- */

static int take_name(const uint8_t *h, size_t offset, const char *what, char *ret_name,
                     struct error *err)
{
    if (h[offset + NAME_SIZE - 1] != 0) {
        return error_set(err, EINVAL, "LUKS header %s is not NUL terminated", what);
    }
    memcpy(ret_name, h + offset, NAME_SIZE);
    return 0;
}

static int find_name(const char *const *names, const char *name)
{
    for (int i = 0; names[i]; i++) {
        if (strcmp(names[i], name) == 0) {
            return i;
        }
    }
    return -1;
}

static int parse_hash(const char *name, const struct luks_hash **ret_hash, struct error *err)
{
    *ret_hash = luks_find_hash(name);
    return *ret_hash ? 0 : error_set(err, EINVAL, "Hash algorithm '%s' not supported", name);
}

/* "MODE-GENERATOR" or "MODE-GENERATOR:HASH"; the text is taken apart. */
static int parse_mode(char *text, struct luks_encryption *e, struct error *err)
{
    char *generator = strchr(text, '-'), *hash;
    int mode, ivgen, r;

    if (!generator) {
        return error_set(err, EINVAL, "Unexpected cipher mode string format '%s'", text);
    }
    *generator++ = '\0';
    hash = strchr(generator, ':');
    if (hash) {
        *hash++ = '\0';
        r = parse_hash(hash, &e->iv_hash, err);
        if (r < 0) {
            return r;
        }
    }
    mode = find_name(luks_mode_names, text);
    if (mode < 0) {
        return error_set(err, EINVAL, "Cipher mode '%s' not supported", text);
    }
    ivgen = find_name(luks_ivgen_names, generator);
    if (ivgen < 0) {
        return error_set(err, EINVAL, "IV generator '%s' not supported", generator);
    }
    e->mode = (enum luks_mode)mode;
    e->ivgen = (enum luks_ivgen)ivgen;
    return 0;
}

static int parse_encryption(const uint8_t *h, struct luks_header *header, struct error *err)
{
    char cipher[NAME_SIZE], mode[NAME_SIZE], hash[NAME_SIZE];
    size_t key_size = header->key_size;
    int r;

    if ((r = take_name(h, OFFSET_CIPHER, "cipher name", cipher, err)) < 0 ||
        (r = take_name(h, OFFSET_MODE, "cipher mode", mode, err)) < 0 ||
        (r = take_name(h, OFFSET_HASH, "hash spec", hash, err)) < 0 ||
        (r = parse_mode(mode, &header->encryption, err)) < 0 ||
        (r = parse_hash(hash, &header->hash, err)) < 0) {
        return r;
    }
    if (header->encryption.mode == LUKS_XTS) {
        if (key_size % 2 != 0) {
            return error_set(err, EINVAL, "A key of %zu bytes cannot be split into the two of XTS",
                             key_size);
        }
        key_size /= 2;
    }
    header->encryption.alg = luks_find_cipher_of_size(cipher, key_size);
    if (!header->encryption.alg) {
        return error_set(err, EINVAL, "Algorithm '%s' with key size %zu bytes not supported",
                         cipher, key_size);
    }
    return luks_check_encryption(&header->encryption, err);
}

static int parse_slot(const uint8_t *s, size_t i, struct luks_slot *slot, struct error *err)
{
    uint32_t state = load_be32(s), stripes = load_be32(s + SLOT_STRIPES);

    slot->active = state == SLOT_ACTIVE;
    slot->iterations = load_be32(s + SLOT_ITERATIONS);
    slot->offset = (uint64_t)load_be32(s + SLOT_OFFSET) * LUKS_SECTOR;
    memcpy(slot->salt, s + SLOT_SALT, sizeof(slot->salt));
    if (stripes != LUKS_STRIPES) {
        return error_set(err, EINVAL, "Keyslot %zu is corrupted (stripes %" PRId32 " != %d)", i,
                         (int32_t)stripes, LUKS_STRIPES);
    }
    if (state != SLOT_ACTIVE && state != SLOT_INACTIVE) {
        return error_set(err, EINVAL, "Keyslot %zu state (active/disable) is corrupted", i);
    }
    if (slot->active && slot->iterations == 0) {
        return error_set(err, EINVAL, "Keyslot %zu iteration count is zero", i);
    }
    if (slot->offset < LUKS_MATERIAL_UNIT) {
        return error_set(err, EINVAL, "Keyslot %zu is overlapping with the LUKS header", i);
    }
    return 0;
}

static int check_layout(const struct luks_header *header, bool detached, struct error *err)
{
    size_t size = luks_material_size(header);

    for (size_t i = 0; i < LUKS_SLOTS; i++) {
        uint64_t offset = header->slots[i].offset;

        if (!detached && offset + size > header->payload_offset) {
            return error_set(err, EINVAL, "Keyslot %zu is overlapping with the encrypted payload",
                             i);
        }
        for (size_t j = i + 1; j < LUKS_SLOTS; j++) {
            if (ranges_overlap(offset, size, header->slots[j].offset, size)) {
                return error_set(err, EINVAL, "Keyslots %zu and %zu are overlapping in the header",
                                 i, j);
            }
        }
    }
    return 0;
}

/* A UUID is shown to users: what is no printable character becomes '?'. */
static void copy_uuid(const uint8_t *from, char *to)
{
    memcpy(to, from, UUID_SIZE);
    to[UUID_SIZE] = '\0';
    for (char *c = to; *c; c++) {
        *c = isascii((unsigned char)*c) && isprint((unsigned char)*c) ? *c : '?';
    }
}

static int check_version(const uint8_t *h, struct error *err)
{
    if (!luks_has_magic(h, LUKS_HEADER_SIZE)) {
        return error_set(err, EINVAL, "Volume is not in LUKS format");
    }
    if (load_be16(h + OFFSET_VERSION) != 1) {
        return error_set(err, ENOTSUP, "LUKS version %d is not supported",
                         load_be16(h + OFFSET_VERSION));
    }
    return 0;
}

/*
 * A guest's file could ask for hours of computing. Inactive slots are not computed.
 */
static int check_iterations(const struct luks_header *header, struct error *err)
{
    uint32_t most = header->digest_iterations;

    if (most == 0) {
        return error_set(err, EINVAL, "LUKS key iteration count is zero");
    }
    for (size_t i = 0; i < LUKS_SLOTS; i++) {
        const struct luks_slot *slot = &header->slots[i];

        most = slot->active ? MAX(most, slot->iterations) : most;
    }
    return most <= LUKS_ITERATIONS_MAX
               ? 0
               : error_set(err, EFBIG,
                           "LUKS header asks for %" PRIu32 " iterations to compute a key; at "
                           "most %u are accepted",
                           most, LUKS_ITERATIONS_MAX);
}

int luks_parse_header(const uint8_t *h, bool detached, struct luks_header *ret_header,
                      struct error *err)
{
    struct luks_header header = {
        .payload_offset = (uint64_t)load_be32(h + OFFSET_PAYLOAD) * LUKS_SECTOR,
        .key_size = load_be32(h + OFFSET_KEY_SIZE),
        .digest_iterations = load_be32(h + OFFSET_DIGEST_ITERATIONS),
    };
    int r = check_version(h, err);

    memcpy(header.digest, h + OFFSET_DIGEST, sizeof(header.digest));
    memcpy(header.digest_salt, h + OFFSET_DIGEST_SALT, sizeof(header.digest_salt));
    copy_uuid(h + OFFSET_UUID, header.uuid);
    UNLESS_FAILED(r, parse_encryption(h, &header, err));
    if (r == 0 && !detached && header.payload_offset < LUKS_MATERIAL_UNIT) {
        r = error_set(err, EINVAL, "LUKS payload is overlapping with the header");
    }
    for (size_t i = 0; i < LUKS_SLOTS && r == 0; i++) {
        r = parse_slot(h + OFFSET_SLOTS + i * SLOT_SIZE, i, &header.slots[i], err);
    }
    UNLESS_FAILED(r, check_layout(&header, detached, err));
    UNLESS_FAILED(r, check_iterations(&header, err));
    if (r == 0) {
        *ret_header = header;
    }
    return r;
}

/* --- storing ---------------------------------------------------------------------------------- */

static void store_slot(const struct luks_slot *slot, uint8_t *s)
{
    store_be32(s, slot->active ? SLOT_ACTIVE : SLOT_INACTIVE);
    store_be32(s + SLOT_ITERATIONS, slot->iterations);
    memcpy(s + SLOT_SALT, slot->salt, sizeof(slot->salt));
    store_be32(s + SLOT_OFFSET, (uint32_t)(slot->offset / LUKS_SECTOR));
    store_be32(s + SLOT_STRIPES, LUKS_STRIPES);
}

void luks_store_header(const struct luks_header *header, uint8_t *ret_bytes)
{
    const struct luks_encryption *e = &header->encryption;
    char *mode = (char *)ret_bytes + OFFSET_MODE;

    memset(ret_bytes, 0, LUKS_HEADER_SIZE);
    memcpy(ret_bytes, luks_magic, sizeof(luks_magic));
    store_be16(ret_bytes + OFFSET_VERSION, 1);
    snprintf((char *)ret_bytes + OFFSET_CIPHER, NAME_SIZE, "%s", e->alg->family);
    snprintf(mode, NAME_SIZE, "%s-%s%s%s", luks_mode_names[e->mode], luks_ivgen_names[e->ivgen],
             e->iv_hash ? ":" : "", e->iv_hash ? e->iv_hash->name : "");
    snprintf((char *)ret_bytes + OFFSET_HASH, NAME_SIZE, "%s", header->hash->name);
    store_be32(ret_bytes + OFFSET_PAYLOAD, (uint32_t)(header->payload_offset / LUKS_SECTOR));
    store_be32(ret_bytes + OFFSET_KEY_SIZE, (uint32_t)header->key_size);
    memcpy(ret_bytes + OFFSET_DIGEST, header->digest, sizeof(header->digest));
    memcpy(ret_bytes + OFFSET_DIGEST_SALT, header->digest_salt, sizeof(header->digest_salt));
    store_be32(ret_bytes + OFFSET_DIGEST_ITERATIONS, header->digest_iterations);
    memcpy(ret_bytes + OFFSET_UUID, header->uuid, UUID_SIZE);
    for (size_t i = 0; i < LUKS_SLOTS; i++) {
        store_slot(&header->slots[i], ret_bytes + OFFSET_SLOTS + i * SLOT_SIZE);
    }
}

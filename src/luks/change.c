/* SPDX-License-Identifier: Apache-2.0 */
/* Changes of key slots, with QEMU's messages. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/secret_memory.h"
#include "luks/slots.h"

void luks_change_release(struct luks_change *change)
{
    free(change->new_secret);
    free(change->old_secret);
    free(change->secret);
    *change = (struct luks_change){0};
}

static int check_slot_number(const struct luks_change *change, struct error *err)
{
    return change->has_slot && change->slot >= LUKS_SLOTS
               ? error_set(err, EINVAL,
                           "Invalid keyslot %" PRIu64 " specified, must be between 0 and %d",
                           change->slot, LUKS_SLOTS - 1)
               : 0;
}

/* --- activating ------------------------------------------------------------------------------- */

static int check_slot_activation(const struct luks_change *change, struct error *err)
{
    if (!change->new_secret) {
        return error_set(err, EINVAL, "'new-secret' is required to activate a keyslot");
    }
    if (change->old_secret) {
        return error_set(err, EINVAL, "'old-secret' must not be given when activating keyslots");
    }
    return check_slot_number(change, err);
}

/* LUKS_SLOTS: none. */
static unsigned find_free_slot(const struct luks_volume *v)
{
    unsigned i = 0;

    while (i < LUKS_SLOTS && v->header.slots[i].active) {
        i++;
    }
    return i;
}

static int choose_slot(const struct luks_volume *v, const struct luks_change *change, bool force,
                       unsigned *ret_slot, struct error *err)
{
    *ret_slot = change->has_slot ? (unsigned)change->slot : find_free_slot(v);
    if (*ret_slot == LUKS_SLOTS) {
        return error_set(err, EINVAL, "Can't add a keyslot - all keyslots are in use");
    }
    if (v->header.slots[*ret_slot].active && !force) {
        return error_set(err, EINVAL,
                         "Refusing to overwrite active keyslot %u - please erase it first",
                         *ret_slot);
    }
    return 0;
}

/*
 * Replace an active slot. A crash must not leave the volume without the new key and the old one.
 */
static int co_replace_slot(struct luks_volume *v, unsigned slot, const struct passphrase *p,
                           const uint8_t *key, uint32_t iterations, struct error *err)
{
    unsigned spare = find_free_slot(v);
    int r = 0;

    if (spare < LUKS_SLOTS) {
        r = luks_co_store_slot(v, spare, p, key, iterations, err);
    }
    UNLESS_FAILED(r, luks_co_erase_slot(v, slot, err));
    UNLESS_FAILED(r, luks_co_store_slot(v, slot, p, key, iterations, err));
    if (spare < LUKS_SLOTS) {
        UNLESS_FAILED(r, luks_co_erase_slot(v, spare, err));
    }
    return r;
}

static int co_activate(struct luks_volume *v, const struct luks_change *change, bool force,
                       struct error *err)
{
    CLEANUP(passphrase_release) struct passphrase now = {0};
    CLEANUP(passphrase_release) struct passphrase next = {0};
    AUTO_SECRET uint8_t *key = secret_alloc(LUKS_KEY_MAX);
    uint64_t time_ms = change->has_iter_time ? change->iter_time_ms : LUKS_ITER_TIME_MS;
    const char *secret = change->secret ? change->secret : v->secret_id;
    unsigned slot, unlocked;
    uint32_t iterations;
    int r = key ? check_slot_activation(change, err) : error_out_of_memory(err);

    UNLESS_FAILED(r, choose_slot(v, change, force, &slot, err));
    if (r == 0 && !secret) {
        r = error_set(err, EINVAL, "The volume was opened without a secret");
    }
    UNLESS_FAILED(r, passphrase_get(secret, &now, err));
    UNLESS_FAILED(r, luks_co_find_slot(v, &now, key, &unlocked, err));
    UNLESS_FAILED(r, passphrase_get_new(change->new_secret, &next, err));
    UNLESS_FAILED(r, luks_co_choose_iterations(v->header.hash, v->header.key_size, time_ms,
                                               &iterations, err));
    if (r < 0) {
        return r;
    }
    return v->header.slots[slot].active ? co_replace_slot(v, slot, &next, key, iterations, err)
                                        : luks_co_store_slot(v, slot, &next, key, iterations, err);
}

/* --- erasing ---------------------------------------------------------------------------------- */

static int check_erasure(const struct luks_change *change, struct error *err)
{
    if (change->new_secret) {
        return error_set(err, EINVAL, "'new-secret' must not be given when erasing keyslots");
    }
    if (change->has_iter_time) {
        return error_set(err, EINVAL, "'iter-time' must not be given when erasing keyslots");
    }
    if (!change->has_slot && !change->old_secret) {
        return error_set(err, EINVAL,
                         "To erase keyslot(s), either explicit keyslot index or the password "
                         "currently contained in them must be given");
    }
    return check_slot_number(change, err);
}

/* Erase the slot that was named. An inactive one is overwritten again if that is forced. */
static int co_erase_one(struct luks_volume *v, const struct luks_change *change, bool force,
                        const struct passphrase *old, uint8_t *key, struct error *err)
{
    unsigned slot = (unsigned)change->slot;
    bool active = v->header.slots[slot].active;
    int r;

    if (change->old_secret) {
        r = active ? luks_co_try_slot(v, slot, old, key, err) : 0;
        if (r <= 0) {
            return r < 0 ? r
                         : error_set(err, EINVAL,
                                     "Given keyslot %u doesn't contain the given (old) password, "
                                     "erase operation refused",
                                     slot);
        }
    }
    if (!active && !force) {
        return error_set(err, EINVAL, "Given keyslot %u is already erased (inactive) ", slot);
    }
    if (active && !force && luks_count_active(&v->header) == 1) {
        return error_set(err, EINVAL,
                         "Attempt to erase the only active keyslot %u which will erase all the "
                         "data in the image irreversibly - refusing operation",
                         slot);
    }
    return luks_co_erase_slot(v, slot, err);
}

/* Erase all slots that have the old passphrase. */
static int co_erase_matching(struct luks_volume *v, bool force, const struct passphrase *old,
                             uint8_t *key, struct error *err)
{
    bool matches[LUKS_SLOTS] = {false};
    unsigned count = 0;
    int r = 0;

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        r = v->header.slots[i].active ? luks_co_try_slot(v, i, old, key, err) : 0;
        if (r < 0) {
            return r;
        }
        matches[i] = r > 0;
        count += matches[i];
    }
    if (count == 0) {
        return error_set(err, EINVAL, "No keyslots match given (old) password for erase operation");
    }
    if (count == luks_count_active(&v->header) && !force) {
        return error_set(err, EINVAL,
                         "All the active keyslots match the (old) password that was given and "
                         "erasing them will erase all the data in the image irreversibly - "
                         "refusing operation");
    }
    r = 0;
    for (unsigned i = 0; i < LUKS_SLOTS && r == 0; i++) {
        r = matches[i] ? luks_co_erase_slot(v, i, err) : 0;
    }
    return r;
}

static int co_erase(struct luks_volume *v, const struct luks_change *change, bool force,
                    struct error *err)
{
    CLEANUP(passphrase_release) struct passphrase old = {0};
    AUTO_SECRET uint8_t *key = secret_alloc(LUKS_KEY_MAX);
    int r = key ? check_erasure(change, err) : error_out_of_memory(err);

    if (r == 0 && change->old_secret) {
        r = passphrase_get(change->old_secret, &old, err);
    }
    if (r < 0) {
        return r;
    }
    return change->has_slot ? co_erase_one(v, change, force, &old, key, err)
                            : co_erase_matching(v, force, &old, key, err);
}

/* Another program may have changed slots since the volume was opened. */
static int co_read_header_again(struct luks_volume *v, struct error *err)
{
    uint8_t bytes[LUKS_HEADER_SIZE];
    struct luks_header header;
    int r = v->io.co_read(v->io.arg, 0, bytes, sizeof(bytes));

    if (r < 0) {
        return error_set_errno(err, -r, "Unable to read LUKS header");
    }
    r = luks_parse_header(bytes, v->detached, &header, err);
    if (r == 0 && memcmp(header.digest, v->header.digest, sizeof(header.digest)) != 0) {
        r = error_set(err, EINVAL, "The header was replaced by one with another key");
    }
    if (r == 0) {
        v->header = header;
    }
    return r;
}

int luks_co_change(struct luks_volume *v, const struct luks_change *change, bool force,
                   struct error *err)
{
    int r;

    co_mutex_lock(&v->changes);
    r = co_read_header_again(v, err);
    if (r == 0) {
        r = change->activate ? co_activate(v, change, force, err) : co_erase(v, change, force, err);
    }
    co_mutex_unlock(&v->changes);
    return r;
}

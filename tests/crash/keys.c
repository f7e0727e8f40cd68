/* SPDX-License-Identifier: Apache-2.0 */
#include "keys.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/checked.h"
#include "block/user_object.h"
#include "luks/volume.h"
#include "random.h"

/* The number of the passphrase in each slot; KEYS: none. */
static unsigned slots[LUKS_SLOTS];

/* --- passphrases ------------------------------------------------------------------------------ */

/* "k3" */
struct key_name {
    char text[8];
};

static struct key_name name_of_key(unsigned key)
{
    struct key_name name;

    snprintf(name.text, sizeof(name.text), "k%u", key);
    return name;
}

int keys_init(struct error *err)
{
    int r = 0;

    secret_register_type();
    for (unsigned i = 0; i < KEYS && r == 0; i++) {
        struct options *opts = options_new();

        if (!opts) {
            abort();
        }
        options_set_str(opts, "qom-type", "secret");
        options_set_str(opts, "id", name_of_key(i).text);
        options_set_str(opts, "data", name_of_key(i).text);
        r = user_object_add(opts, err);
    }
    return r;
}

void keys_reset(void)
{
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        slots[i] = KEYS;
    }
    slots[0] = 0;
}

static unsigned valid_mask(void)
{
    unsigned mask = 0;

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        mask |= slots[i] < KEYS ? 1u << slots[i] : 0;
    }
    return mask;
}

unsigned keys_valid(void)
{
    return (unsigned)__builtin_ctz(valid_mask());
}

static unsigned count_slots(unsigned key, bool all)
{
    unsigned count = 0;

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        count += slots[i] < KEYS && (all || slots[i] == key);
    }
    return count;
}

/* Any that is filled, or any that is not; LUKS_SLOTS: there is none. */
static unsigned pick_slot(uint64_t *random, bool filled)
{
    unsigned found[LUKS_SLOTS], count = 0;

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        if ((slots[i] < KEYS) == filled) {
            found[count++] = i;
        }
    }
    return count ? found[random_below(random, count)] : LUKS_SLOTS;
}

/* --- changes ---------------------------------------------------------------------------------- */

struct key_change {
    bool activate;
    unsigned slot; /* LUKS_SLOTS: those with the passphrase `key` */
    unsigned key;
};

static void set_key_option(struct options *opts, const struct crash_config *c, const char *name,
                           const char *value)
{
    char full[32];

    snprintf(full, sizeof(full), "%s%s", c->format ? "" : "encrypt.", name);
    options_set_str(opts, full, value);
}

static struct options *change_options(const struct crash_config *c, const struct key_change *k)
{
    struct options *opts = options_new();
    char slot[8];

    if (!opts) {
        abort();
    }
    set_key_option(opts, c, "state", k->activate ? "active" : "inactive");
    if (k->slot < LUKS_SLOTS) {
        snprintf(slot, sizeof(slot), "%u", k->slot);
        set_key_option(opts, c, "keyslot", slot);
    }
    if (k->activate) {
        set_key_option(opts, c, "new-secret", name_of_key(k->key).text);
        set_key_option(opts, c, "secret", name_of_key(keys_valid()).text);
        set_key_option(opts, c, "iter-time", "1");
    } else if (k->slot == LUKS_SLOTS) {
        set_key_option(opts, c, "old-secret", name_of_key(k->key).text);
    }
    return opts;
}

static void set_slots(const struct key_change *k)
{
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        if (i == k->slot || (k->slot == LUKS_SLOTS && slots[i] == k->key)) {
            slots[i] = k->activate ? k->key : KEYS;
        }
    }
}

static int co_apply_change(struct guest *g, struct block_node *node, const struct key_change *k)
{
    struct model *m = &g->w->model;
    struct model_keys *change = &m->keys[m->keys_count];
    struct options *opts;
    int r;

    if (m->keys_count == MODEL_MAX_KEYS) {
        return 0;
    }
    m->keys_count++;
    *change = (struct model_keys){.before = valid_mask(), .end = MODEL_PENDING};
    opts = change_options(&g->w->config, k);
    model_note_moment(m, change->begin = record_tick(&g->w->log));
    r = node->driver->co_amend_begin ? node->driver->co_amend_begin(node, g->err) : 0;
    if (r == 0) {
        r = node->driver->co_change_keys(node, opts, true, g->err);
        if (node->driver->co_amend_end) {
            node->driver->co_amend_end(node);
        }
    }
    options_free(opts);
    set_slots(k);
    change->after = valid_mask();
    model_note_moment(m, change->end = record_tick(&g->w->log));
    return r;
}

int keys_co_change(struct guest *g, struct block_node *node)
{
    unsigned what = (unsigned)random_below(&g->random, 8);
    struct key_change k = {.activate = what < 5, .key = (unsigned)random_below(&g->random, KEYS)};

    if (what < 7) {
        k.slot = pick_slot(&g->random, what >= 3);
        if (k.slot == LUKS_SLOTS || (!k.activate && count_slots(0, true) == 1)) {
            return 0;
        }
    } else {
        unsigned matching = count_slots(k.key, false);

        k.slot = LUKS_SLOTS;
        if (matching == 0 || matching == count_slots(0, true)) {
            return 0;
        }
    }
    return co_apply_change(g, node, &k);
}

/* --- after a crash ---------------------------------------------------------------------------- */

/* What must open the disk, and what may. */
static void expect_keys(const struct verifier *v, unsigned *ret_must, unsigned *ret_may)
{
    const struct model *m = &v->w->model;

    *ret_must = *ret_may = 1; /* as it was made */
    for (unsigned i = 0; i < m->keys_count && m->keys[i].begin <= v->state->time; i++) {
        const struct model_keys *k = &m->keys[i];
        bool going_on = k->end > v->state->time;

        *ret_must = going_on ? k->before & k->after : k->after;
        *ret_may = going_on ? k->before | k->after : k->after;
    }
}

static int co_try_keys(struct verifier *v, struct image_disks *disks, unsigned *ret_found,
                       struct error *err)
{
    unsigned found = 0, good = disks->key;

    for (unsigned i = 0; i < KEYS; i++) {
        struct block_node *node;
        int r;

        disks->key = i;
        r = image_co_open(disks, &v->w->config, 0, &node, err);
        if (r == 0) {
            block_co_unref(node);
            found |= 1u << i;
            good = i;
        } else if (r == -EPERM) {
            error_clear(err);
        } else {
            return r;
        }
    }
    disks->key = good;
    *ret_found = found;
    return 0;
}

int keys_co_verify(struct verifier *v, struct image_disks *disks, struct error *err)
{
    unsigned must, may, found = 0;
    int r = co_try_keys(v, disks, &found, err);

    if (r < 0) {
        error_prepend(err, "trying passphrases: ");
        return r;
    }
    expect_keys(v, &must, &may);
    if ((found & must) != must || (found & ~may) != 0 || found == 0) {
        return error_set(err, EILSEQ, "passphrases %x open the disk; %x must and %x may", found,
                         must, may);
    }
    return 0;
}

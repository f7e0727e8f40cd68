/* SPDX-License-Identifier: Apache-2.0 */
/* Actions of transactions, and commands of the same names, on dirty bitmaps. */
#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "block/bitmaps.h"
#include "block/control.h"
#include "qmp/commands.h"
#include "qmp/lookup.h"
#include "qmp/transaction.h"

/* --- block-dirty-bitmap-add ------------------------------------------------------------------- */

/* The node of each action here is its member `node`. */
static void node_concerns(void *state, struct json_object *data, struct qmp_concern *concern)
{
    qmp_concern_add(concern, block_node_find(qmp_get_str(data, "node")));
}

struct add_state {
    struct block_bitmap *bitmap; /* borrowed from its node */
};

static int co_bitmap_add_prepare(void *state, struct json_object *data, struct error *err)
{
    struct add_state *s = state;
    const char *name = qmp_get_str(data, "node");
    uint32_t granularity = (uint32_t)qmp_get_uint(data, "granularity", 0);
    struct block_node *node = block_node_lookup(name, err);

    if (!node) {
        return -ENOENT;
    }
    if (qmp_get(data, "granularity") && granularity == 0) {
        return error_set(err, EINVAL, "Granularity must be power of 2 and at least %u",
                         BITMAP_GRANULARITY_MIN);
    }
    return block_co_bitmap_add(node, qmp_get_str(data, "name"), granularity,
                               qmp_get_bool(data, "persistent", false),
                               qmp_get_bool(data, "disabled", false), &s->bitmap, err);
}

static void co_bitmap_add_abort(void *state)
{
    struct add_state *s = state;

    block_co_bitmap_undo_add(s->bitmap);
}

const struct qmp_action qmp_action_bitmap_add = {
    .name = "block-dirty-bitmap-add",
    .state_size = sizeof(struct add_state),
    .keeps_graph = true,
    .concerns = node_concerns,
    .co_prepare = co_bitmap_add_prepare,
    .co_abort = co_bitmap_add_abort,
};

/* --- block-dirty-bitmap-remove ---------------------------------------------------------------- */

/*
 * Prepare detaches the bitmap from the node, finish removes it from the image, commit frees it.
 * Until commit abort can attach it again: a bitmap that is attached again after finish is stored
 * when the node is closed. The node is drained all the time, so that the bitmap misses no write.
 */
struct remove_state {
    struct block_bitmap *bitmap; /* detached; its node is referenced by the concern */
};

static int co_remove_prepare(void *state, struct json_object *data, struct error *err)
{
    struct remove_state *s = state;
    struct block_bitmap *b = qmp_find_bitmap(data, "name", err);
    int r = b ? block_bitmap_check(b, BLOCK_BITMAP_REFUSE_BUSY | BLOCK_BITMAP_REFUSE_READ_ONLY, err)
              : -ENOENT;

    if (r < 0) {
        return r;
    }
    s->bitmap = b;
    block_co_bitmap_detach(b);
    return 0;
}

static int co_remove_finish(void *state, struct error *err)
{
    struct remove_state *s = state;

    return block_co_bitmap_remove_detached(s->bitmap, err);
}

static void co_remove_commit(void *state)
{
    struct remove_state *s = state;

    block_bitmap_free_detached(s->bitmap);
}

static void co_remove_abort(void *state)
{
    struct remove_state *s = state;

    block_co_bitmap_reattach(s->bitmap);
}

const struct qmp_action qmp_action_bitmap_remove = {
    .name = "block-dirty-bitmap-remove",
    .state_size = sizeof(struct remove_state),
    .keeps_graph = true,
    .concerns = node_concerns,
    .co_prepare = co_remove_prepare,
    .co_finish = co_remove_finish,
    .co_commit = co_remove_commit,
    .co_abort = co_remove_abort,
};

/* --- clear, merge: a backup of the bits ------------------------------------------------------- */

struct bits_state {
    struct block_bitmap *bitmap;
    struct block_bitmap_backup backup;
};

static int co_clear_prepare(void *state, struct json_object *data, struct error *err)
{
    struct bits_state *s = state;

    s->bitmap = qmp_find_bitmap(data, "name", err);
    return s->bitmap ? block_co_bitmap_clear(s->bitmap, &s->backup, err) : -ENOENT;
}

static void co_bits_abort(void *state)
{
    struct bits_state *s = state;

    block_co_bitmap_restore(s->bitmap, &s->backup);
}

static void co_bits_clean(void *state)
{
    struct bits_state *s = state;

    dirty_bitmap_free(s->backup.bits);
}

const struct qmp_action qmp_action_bitmap_clear = {
    .name = "block-dirty-bitmap-clear",
    .state_size = sizeof(struct bits_state),
    .keeps_graph = true,
    .concerns = node_concerns,
    .co_prepare = co_clear_prepare,
    .co_abort = co_bits_abort,
    .co_clean = co_bits_clean,
};

/* A source of a merge: a plain name is a bitmap of the target's own node. */
static struct block_bitmap *lookup_source(const char *node_name, struct json_object *source,
                                          struct error *err)
{
    struct block_node *node;

    if (json_object_is_type(source, json_type_string)) {
        return block_bitmap_lookup(node_name, json_object_get_string(source), &node, err);
    }
    return qmp_find_bitmap(source, "name", err);
}

static void merge_concerns(void *state, struct json_object *data, struct qmp_concern *concern)
{
    struct json_object *list = qmp_get(data, "bitmaps");

    node_concerns(state, data, concern);
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        struct json_object *source = json_object_array_get_idx(list, i);

        if (json_object_is_type(source, json_type_object)) {
            node_concerns(state, source, concern);
        }
    }
}

static int co_merge_prepare(void *state, struct json_object *data, struct error *err)
{
    struct bits_state *s = state;
    struct json_object *list = qmp_get(data, "bitmaps");
    size_t count = json_object_array_length(list);
    struct block_bitmap **sources;
    int r = 0;

    s->bitmap = qmp_find_bitmap(data, "target", err);
    if (!s->bitmap) {
        return -ENOENT;
    }
    sources = calloc(count ? count : 1, sizeof(struct block_bitmap *));
    if (!sources) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i < count && r == 0; i++) {
        sources[i] =
            lookup_source(qmp_get_str(data, "node"), json_object_array_get_idx(list, i), err);
        r = sources[i] ? 0 : -ENOENT;
    }
    if (r == 0) {
        r = block_co_bitmap_merge(s->bitmap, sources, count, &s->backup, err);
    }
    free(sources);
    return r;
}

const struct qmp_action qmp_action_bitmap_merge = {
    .name = "block-dirty-bitmap-merge",
    .state_size = sizeof(struct bits_state),
    .keeps_graph = true,
    .concerns = merge_concerns,
    .co_prepare = co_merge_prepare,
    .co_abort = co_bits_abort,
    .co_clean = co_bits_clean,
};

/* --- enable, disable -------------------------------------------------------------------------- */

struct enable_state {
    struct block_bitmap *bitmap;
    bool was_enabled;
};

static int co_switch_prepare(struct enable_state *s, struct json_object *data, bool enabled,
                             struct error *err)
{
    s->bitmap = qmp_find_bitmap(data, "name", err);
    if (!s->bitmap) {
        return -ENOENT;
    }
    s->was_enabled = block_bitmap_enabled(s->bitmap);
    return block_co_bitmap_set_enabled(s->bitmap, enabled, err);
}

static int co_enable_prepare(void *state, struct json_object *data, struct error *err)
{
    return co_switch_prepare(state, data, true, err);
}

static int co_disable_prepare(void *state, struct json_object *data, struct error *err)
{
    return co_switch_prepare(state, data, false, err);
}

static void co_switch_abort(void *state)
{
    struct enable_state *s = state;
    ERROR_AUTO(err);

    if (block_co_bitmap_set_enabled(s->bitmap, s->was_enabled, &err) < 0) {
        log_error("transaction: bitmap '%s' cannot be switched back: %s",
                  block_bitmap_name(s->bitmap), error_message(&err));
    }
}

const struct qmp_action qmp_action_bitmap_enable = {
    .name = "block-dirty-bitmap-enable",
    .state_size = sizeof(struct enable_state),
    .keeps_graph = true,
    .concerns = node_concerns,
    .co_prepare = co_enable_prepare,
    .co_abort = co_switch_abort,
};

const struct qmp_action qmp_action_bitmap_disable = {
    .name = "block-dirty-bitmap-disable",
    .state_size = sizeof(struct enable_state),
    .keeps_graph = true,
    .concerns = node_concerns,
    .co_prepare = co_disable_prepare,
    .co_abort = co_switch_abort,
};

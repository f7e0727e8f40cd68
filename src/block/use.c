/* SPDX-License-Identifier: Apache-2.0 */
/* How a node is used: the generic options, and what children inherit of them. */
#include <errno.h>

#include "base/cleanup.h"
#include "block/internal.h"

/* Messages name the option in full: "cache.NAME". */
static int take_cache_flag(struct options *cache, const char *name, bool *ret_flag,
                           struct error *err)
{
    bool has_path = options_are_arguments(cache);
    int r = options_take_bool(cache, name, false, ret_flag, has_path ? err : NULL);

    if (r < 0 && !has_path) {
        error_set(err, -r, "Parameter 'cache.%s' expects 'on' or 'off'", name);
    }
    return r;
}

static int take_cache_options(struct options *opts, struct block_use *use, struct error *err)
{
    AUTO_OPTIONS struct options *cache = NULL;
    AUTO_FREE char *wrong = NULL;
    int r = options_take_child(opts, "cache", &cache, &wrong, err);

    if (r < 0) {
        return r;
    }
    if (wrong) {
        return error_set(err, EINVAL,
                         "cache expects the options cache.direct and cache.no-flush; "
                         "found '%s'",
                         wrong);
    }
    if (!cache) {
        return 0;
    }
    if ((r = take_cache_flag(cache, "direct", &use->cache_direct, err)) < 0 ||
        (r = take_cache_flag(cache, "no-flush", &use->cache_no_flush, err)) < 0) {
        return r;
    }
    if (!options_is_empty(cache)) {
        /* Refused with the options that the driver does not know. */
        options_set_child(opts, "cache", TAKE_PTR(cache));
    }
    return 0;
}

int block_take_use(struct options *opts, unsigned flags, struct block_use *ret_use,
                   struct error *err)
{
    static const char *const discard_names[] = {"ignore", "unmap", "off", "on", NULL};
    static const char *const detect_names[] = {"off", "on", "unmap", NULL};
    struct block_use use = {0};
    int discard, r;

    if ((r = options_take_bool(opts, "read-only", !(flags & BLOCK_OPEN_RDWR), &use.read_only,
                               err)) < 0 ||
        (r = options_take_bool(opts, "auto-read-only", false, &use.auto_read_only, err)) < 0 ||
        (r = options_take_bool(opts, "force-share", flags & BLOCK_OPEN_FORCE_SHARE,
                               &use.force_share, err)) < 0 ||
        (r = options_take_enum(opts, "discard", discard_names, 0, &discard, err)) < 0 ||
        (r = options_take_enum(opts, "detect-zeroes", detect_names, 0, &use.detect_zeroes, err)) <
            0 ||
        (r = take_cache_options(opts, &use, err)) < 0) {
        return r;
    }
    use.discard_unmap = discard & 1;
    if (use.detect_zeroes == BLOCK_DETECT_ZEROES_UNMAP && !use.discard_unmap) {
        return error_set(err, EINVAL,
                         "setting detect-zeroes to unmap is not allowed without setting discard "
                         "operation to unmap");
    }
    if (use.force_share && !use.read_only) {
        return error_set(err, EINVAL, "force-share=on can only be used with read-only images");
    }
    *ret_use = use;
    return 0;
}

struct block_use block_get_use(const struct block_node *node)
{
    return (struct block_use){.read_only = node->read_only,
                              .auto_read_only = node->auto_read_only,
                              .force_share = node->force_share,
                              .cache_direct = node->cache_direct,
                              .cache_no_flush = node->cache_no_flush,
                              .discard_unmap = node->discard_unmap,
                              .detect_zeroes = node->detect_zeroes};
}

void block_set_use(struct block_node *node, const struct block_use *use)
{
    node->read_only = use->read_only;
    node->auto_read_only = use->auto_read_only;
    node->force_share = use->force_share;
    node->cache_direct = use->cache_direct;
    node->cache_no_flush = use->cache_no_flush;
    node->discard_unmap = use->discard_unmap;
    node->detect_zeroes = use->detect_zeroes;
    block_update_detour(node);
}

/* --- inheritance ------------------------------------------------------------------------------ */

/* The options below `cache` of `opts`, which stay. The caller owns the copy; NULL: none. */
static struct options *copy_cache_options(const struct options *opts)
{
    AUTO_OPTIONS struct options *copy = options_has(opts, "cache") ? options_clone(opts) : NULL;
    AUTO_FREE char *wrong = NULL;
    struct options *cache = NULL;

    if (copy) {
        (void)options_take_child(copy, "cache", &cache, &wrong, NULL);
    }
    return cache;
}

unsigned block_explicit_use(const struct options *opts)
{
    AUTO_OPTIONS struct options *cache = copy_cache_options(opts);

    return (options_has(opts, "read-only") ? BLOCK_USE_READ_ONLY : 0) |
           (options_has(opts, "auto-read-only") ? BLOCK_USE_AUTO_READ_ONLY : 0) |
           (options_has(opts, "force-share") ? BLOCK_USE_FORCE_SHARE : 0) |
           (options_has(opts, "discard") ? BLOCK_USE_DISCARD : 0) |
           (cache && options_has(cache, "direct") ? BLOCK_USE_CACHE_DIRECT : 0) |
           (cache && options_has(cache, "no-flush") ? BLOCK_USE_CACHE_NO_FLUSH : 0);
}

void block_inherit_use(const struct block_node *parent, const struct block_use *use,
                       struct options *child, unsigned role)
{
    static const char *const discard_names[] = {"ignore", "unmap"};
    bool writable = !use->read_only && !(role & BLOCK_ROLE_BACKING);
    struct options *cache;

    options_default_bool(child, "read-only", !writable);
    if (parent->handed_over) {
        options_default_bool(child, "active", false);
    }
    if (use->auto_read_only) {
        options_default_bool(child, "auto-read-only", true);
    }
    if (use->force_share && !writable) {
        options_default_bool(child, "force-share", true);
    }
    /* A format decides which discards it passes on to its file. */
    options_default_str(child, "discard",
                        discard_names[parent->driver->is_format || use->discard_unmap]);
    if (use->cache_direct || use->cache_no_flush) {
        cache = options_has(child, "cache") ? copy_cache_options(child) : options_new();
        if (cache) { /* else it is wrong, and refused later */
            options_default_bool(cache, "direct", use->cache_direct);
            options_default_bool(cache, "no-flush", use->cache_no_flush);
            options_set_child(child, "cache", cache);
        }
    }
}

void block_note_heir(struct block_node *parent, struct block_node *child, unsigned role,
                     unsigned explicit_use)
{
    list_remove(&child->heir);
    list_append(&parent->heirs, &child->heir);
    child->inherits_from = parent;
    child->inherit_role = role;
    child->explicit_use = explicit_use;
}

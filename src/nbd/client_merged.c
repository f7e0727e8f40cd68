/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Allocation, depth and dirty bits of an export as one list of extents, from one context of a
 * server that has that (docs/nbd.md), or merged from the separate contexts of another.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/strbuf.h"
#include "nbd/client_internal.h"

/* --- merging ---------------------------------------------------------------------------------- */

/* A place in the extents of a context. */
struct extent_cursor {
    const struct nbd_extents *extents; /* NULL: the context is not there */
    size_t i;
    uint64_t used; /* bytes of extent i */
};

/* The extent at the cursor, from there on. False at the end. */
static bool extent_at(const struct extent_cursor *c, uint64_t *ret_left, uint64_t *ret_flags)
{
    if (c->i == c->extents->count) {
        return false;
    }
    *ret_left = c->extents->list[c->i].length - c->used;
    *ret_flags = c->extents->list[c->i].flags;
    return true;
}

static void advance(struct extent_cursor *c, uint64_t length)
{
    c->used += length;
    if (c->used == c->extents->list[c->i].length) {
        c->i++;
        c->used = 0;
    }
}

/* Of a depth as the server reports it. */
static uint64_t depth_flags(uint64_t reported)
{
    unsigned depth = (unsigned)MIN(reported, UINT32_MAX);

    return nbd_merged_of_depth(depth) | (depth == 1  ? NBD_MERGED_LOCAL
                                         : depth > 1 ? NBD_MERGED_BACKING
                                                     : 0);
}

/* Add an extent to a list that has room for it; one with the flags of the last joins that. */
static void put_extent(struct nbd_extents *e, uint64_t length, uint64_t flags)
{
    if (e->count > 0 && e->list[e->count - 1].flags == flags) {
        e->list[e->count - 1].length += length;
    } else {
        e->list[e->count++] = (struct nbd_extent){.length = length, .flags = flags};
    }
}

enum { ALLOCATION, DEPTH, BITS, SEPARATE };

/* The extent where all cursors are, at most `length` long. 0 bytes: one of them is at the end. */
static uint64_t extent_of_all(const struct extent_cursor cursors[SEPARATE], uint64_t length,
                              uint64_t *ret_flags)
{
    uint64_t flags[SEPARATE] = {[DEPTH] = 1};

    for (int i = 0; i < SEPARATE; i++) {
        uint64_t left;

        if (!cursors[i].extents) {
            continue;
        }
        if (!extent_at(&cursors[i], &left, &flags[i])) {
            return 0;
        }
        length = MIN(length, left);
    }
    *ret_flags = (flags[ALLOCATION] & (NBD_STATE_HOLE | NBD_STATE_ZERO)) |
                 depth_flags(flags[DEPTH]) | (flags[BITS] & NBD_STATE_DIRTY ? NBD_MERGED_DIRTY : 0);
    return length;
}

int nbd_extents_merge(const struct nbd_extents *base, const struct nbd_extents *depth,
                      const struct nbd_extents *dirty, uint64_t length,
                      struct nbd_extents *ret_extents)
{
    struct extent_cursor cursors[SEPARATE] = {
        [ALLOCATION] = {.extents = base},
        [DEPTH] = {.extents = depth},
        [BITS] = {.extents = dirty},
    };
    uint64_t run, flags = 0;
    size_t most = 1;

    /* Each extent of the result ends where one of the others does, or at the end. */
    for (int i = 0; i < SEPARATE; i++) {
        most += cursors[i].extents ? cursors[i].extents->count : 0;
    }
    *ret_extents = (struct nbd_extents){.list = calloc(most, sizeof(struct nbd_extent))};
    if (!ret_extents->list) {
        return -ENOMEM;
    }
    while (length > 0 && (run = extent_of_all(cursors, length, &flags)) > 0) {
        put_extent(ret_extents, run, flags);
        for (int i = 0; i < SEPARATE; i++) {
            if (cursors[i].extents) {
                advance(&cursors[i], run);
            }
        }
        length -= run;
    }
    return 0;
}

/* --- asking ----------------------------------------------------------------------------------- */

/* The granted context whose name begins with `prefix`, as an index; -1: there is none. */
static int find_granted(const struct nbd_client *c, const char *prefix)
{
    for (size_t i = 0; i < c->context_count; i++) {
        if (c->agreed.granted[i] && strncmp(c->target.contexts[i], prefix, strlen(prefix)) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static const struct nbd_extents *granted_extents(const struct nbd_client *c,
                                                 const struct nbd_extents *per_context,
                                                 const char *prefix)
{
    int i = find_granted(c, prefix);

    return i < 0 ? NULL : &per_context[i];
}

/* What the merged context reports, with the depths that its flags stand for. */
static void take_merged(struct nbd_extents *from, struct nbd_extents *ret_extents)
{
    const uint64_t known = NBD_MERGED_HOLE | NBD_MERGED_ZERO | NBD_MERGED_DIRTY;
    struct nbd_extents all = *from;
    size_t count = all.count;

    *from = (struct nbd_extents){0};
    all.count = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t flags = all.list[i].flags;
        unsigned depth = flags & NBD_MERGED_LOCAL ? 1 : flags & NBD_MERGED_BACKING ? 2 : 0;

        put_extent(&all, all.list[i].length, (flags & known) | depth_flags(depth));
    }
    *ret_extents = all;
}

int nbd_client_co_merged_status(struct nbd_client *c, uint64_t offset, uint64_t length,
                                struct nbd_extents *ret_extents)
{
    struct nbd_extents per_context[NBD_CLIENT_CONTEXT_MAX] = {0};
    int merged = find_granted(c, NBD_CONTEXT_MERGED);
    int r = nbd_client_co_block_status(c, offset, length, false, per_context);

    *ret_extents = (struct nbd_extents){0};
    if (r < 0 && r != -ENOTSUP) {
        return r;
    }
    if (merged >= 0) {
        take_merged(&per_context[merged], ret_extents);
        return 0;
    }
    r = nbd_extents_merge(granted_extents(c, per_context, NBD_CONTEXT_BASE_ALLOCATION),
                          granted_extents(c, per_context, NBD_CONTEXT_ALLOCATION_DEPTH),
                          granted_extents(c, per_context, NBD_CONTEXT_DIRTY_BITMAP), length,
                          ret_extents);
    for (size_t i = 0; i < c->context_count; i++) {
        nbd_extents_clear(&per_context[i]);
    }
    return r;
}

/* --- connecting ------------------------------------------------------------------------------- */

/* Whether what was granted is enough, so that the other way need not be tried. */
static bool suffices(const struct nbd_client *c, bool separate, const char *bitmap)
{
    if (!separate) {
        return find_granted(c, NBD_CONTEXT_MERGED) >= 0;
    }
    return find_granted(c, NBD_CONTEXT_ALLOCATION_DEPTH) >= 0 &&
           (!bitmap || find_granted(c, NBD_CONTEXT_DIRTY_BITMAP) >= 0);
}

int nbd_client_co_connect_merged(const struct socket_address *address,
                                 const struct nbd_client_tls *tls, const char *export_name,
                                 const char *bitmap, bool exact_depth, int64_t timeout_ns,
                                 struct nbd_client **ret_client, struct error *err)
{
    STRBUF_AUTO(merged);
    STRBUF_AUTO(dirty);
    struct nbd_client *c = NULL;
    bool separate = exact_depth;

    strbuf_printf(&merged, "%s%s%s", NBD_CONTEXT_MERGED, bitmap ? ":" : "", bitmap ?: "");
    strbuf_printf(&dirty, "%s%s", NBD_CONTEXT_DIRTY_BITMAP, bitmap ?: "");
    if (merged.failed || dirty.failed) {
        return error_out_of_memory(err);
    }
    /* The better way, then the other, and the first again if the other has nothing more. */
    for (int attempt = 0; attempt < 3; attempt++, separate = !separate) {
        const char *const names[] = {NBD_CONTEXT_BASE_ALLOCATION, NBD_CONTEXT_ALLOCATION_DEPTH,
                                     strbuf_str(&dirty)};
        const char *const one[] = {strbuf_str(&merged)};
        int r;

        nbd_client_co_close(c);
        r = nbd_client_co_connect(address, tls, export_name, separate ? names : one,
                                  separate ? 2 + !!bitmap : 1, timeout_ns, &c, err);
        if (r < 0) {
            return r;
        }
        if (suffices(c, separate, bitmap) || (separate && attempt > 0)) {
            break;
        }
    }
    if (bitmap && find_granted(c, NBD_CONTEXT_MERGED) < 0 &&
        find_granted(c, NBD_CONTEXT_DIRTY_BITMAP) < 0) {
        nbd_client_co_close(c);
        return error_set(err, ENOENT, "Export '%s' does not offer the bitmap '%s'", export_name,
                         bitmap);
    }
    *ret_client = c;
    return 0;
}

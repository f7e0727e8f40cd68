/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver "copy-before-write". Its parents are the guest, which writes through it, and
 * snapshot-access nodes, which read the frozen contents. copy_before_write_state.c has the work
 * before a guest write.
 */
#include "filter/copy_before_write.h"

#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/time_units.h"
#include "block/options.h"
#include "filter/filter.h"
#include "loop/loop.h"
#include "schema/define.h"

#define MIN_CLUSTER_SIZE (64 * KiB)
#define MAX_CLUSTER_SIZE (1 * GiB)
/* The least that a guest write copies, and the most units that a disk is divided into. */
#define MIN_UNIT 4096u
#define MAX_UNITS (1u << 28)

ENUM(cbw_error_type, "OnCbwError", "break-guest-write", "break-snapshot");
OBJECT(cbw_options, "BlockdevOptionsCbw", REQ("file", block_ref_type),
       REQ("target", block_ref_type, .help = "where old data are copied before they are changed"),
       OPT("bitmap", block_bitmap_ref_type,
           .help = "what the snapshot may read; default: all of the disk"),
       OPT("on-cbw-error", cbw_error_type, .dflt = "break-guest-write",
           .help = "what fails if a copy fails: the write of the guest, or reads of the snapshot"),
       OPT("cbw-timeout", schema_uint32, .dflt = "0", .unit = "seconds",
           .help = "a copy that takes longer has failed; 0: no limit"),
       OPT("min-cluster-size", schema_size, .dflt = "0", .unit = "bytes", .max = MAX_CLUSTER_SIZE,
           .help = "a power of two; clusters have 64 KiB and those of the target at least"));

static uint32_t node_cluster_size(struct block_node *node)
{
    node = block_node_skip_filters(node);
    return node->limits.cluster_size;
}

/*
 * What guest writes copy is multiples of this. Parts of clusters, if the user leaves that to us,
 * and if the target does not complete them by reading what is below it.
 */
static uint32_t choose_unit(const struct cbw_state *s, uint32_t least)
{
    struct block_node *target = block_edge_node(s->target);
    uint32_t unit = MAX(MAX(MIN_UNIT, least), target->limits.request_alignment);

    if (block_node_backing(block_node_skip_filters(target))) {
        return s->cluster_size;
    }
    while (s->size / unit > MAX_UNITS) {
        unit *= 2;
    }
    return MIN(unit, s->cluster_size);
}

static int take_cluster_size(struct cbw_state *s, struct options *opts, struct error *err)
{
    uint64_t minimum;
    int r = options_take_size(opts, "min-cluster-size", 0, &minimum, err);

    if (r < 0) {
        return r;
    }
    if (minimum != 0 && (!is_power_of_2(minimum) || minimum > MAX_CLUSTER_SIZE)) {
        return error_set(err, EINVAL, "min-cluster-size needs to be a power of 2 up to 1 GiB");
    }
    s->cluster_size = (uint32_t)MAX(MAX(minimum, MIN_CLUSTER_SIZE),
                                    node_cluster_size(block_edge_node(s->target)));
    s->unit = minimum < MIN_CLUSTER_SIZE ? choose_unit(s, (uint32_t)minimum) : s->cluster_size;
    return 0;
}

/* The filter: its state, and options that only opening needs. */
struct cbw_node {
    struct cbw_state state; /* the first member: requests use only this */
    char *bitmap_node,
        *bitmap_name; /* the option `bitmap`: what the snapshot may read; NULL: all of the disk */
    struct block_node *scratch; /* the target, below filters; nobody else uses it */
};

static int take_bitmap(struct cbw_node *n, struct options *opts, struct error *err)
{
    struct options *child AUTO_OPTIONS = NULL;
    char *reference AUTO_FREE = NULL;
    int r = options_take_child(opts, "bitmap", &child, &reference, err);

    if (r < 0) {
        return r;
    }
    if (reference) {
        return error_set(err, EINVAL, "Option 'bitmap' needs 'bitmap.node' and 'bitmap.name'");
    }
    if (!child) {
        return 0;
    }
    r = options_take_str(child, "node", &n->bitmap_node, err);
    UNLESS_FAILED(r, options_take_str(child, "name", &n->bitmap_name, err));
    UNLESS_FAILED(r, options_check_empty(child, "Option 'bitmap'", err));
    if (r == 0 && (!n->bitmap_node || !n->bitmap_name)) {
        r = error_set(err, EINVAL, "Parameter 'bitmap.%s' is missing",
                      n->bitmap_node ? "name" : "node");
    }
    return r;
}

static int take_scalars(struct cbw_state *s, struct options *opts, struct error *err)
{
    static const char *const on_error_names[] = {"break-guest-write", "break-snapshot", NULL};
    uint64_t timeout;
    int on_error, r;

    r = options_take_enum(opts, "on-cbw-error", on_error_names, CBW_BREAK_GUEST_WRITE, &on_error,
                          err);
    if (r < 0) {
        return r;
    }
    r = options_take_uint(opts, "cbw-timeout", 0, UINT32_MAX, &timeout, err);
    if (r < 0) {
        return r;
    }
    s->on_error = (enum cbw_on_error)on_error;
    s->timeout_ns = (int64_t)timeout * NS_PER_SECOND;
    return 0;
}

static void free_names(struct cbw_node *n)
{
    free(n->bitmap_node);
    free(n->bitmap_name);
}

static int co_open_state(struct block_node *node, struct options *opts, struct error *err)
{
    struct cbw_state *s = node->opaque;
    int r = take_scalars(s, opts, err);

    if (r < 0) {
        return r;
    }
    r = block_co_open_filtered(node, opts, "file", err);
    if (r < 0) {
        return r;
    }
    s->file = node->filtered;
    r = block_co_open_child(node, opts, "target", BLOCK_ROLE_TARGET, false, &s->target, err);
    if (r < 0) {
        return r;
    }
    s->size = block_edge_size(s->file);
    if (block_edge_size(s->target) < s->size) {
        return error_set(err, EINVAL, "Target '%s' has %llu bytes, but '%s' needs at least %llu",
                         block_node_display_name(block_edge_node(s->target)),
                         (unsigned long long)block_edge_size(s->target),
                         block_node_display_name(block_edge_node(s->file)),
                         (unsigned long long)s->size);
    }
    r = take_cluster_size(s, opts, err);
    if (r < 0) {
        return r;
    }
    return cbw_state_init(s, err);
}

static int cbw_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct cbw_node *n = node->opaque;
    struct cbw_state *s = &n->state;
    int r = take_bitmap(n, opts, err);

    s->name = node->name;
    UNLESS_FAILED(r, co_open_state(node, opts, err));
    if (r < 0) {
        free_names(n);
        return r;
    }
    node->discard_unmap = block_edge_node(s->file)->discard_unmap;
    n->scratch = block_node_skip_filters(block_edge_node(s->target));
    n->scratch->frees_at_once = true;
    return 0;
}

/* The disk is the backing file of the temporary image, or below that. */
static bool target_shows_disk(const struct cbw_state *s, const struct block_edge *target)
{
    return s->file && block_node_reaches(block_edge_node(target), block_edge_node(s->file));
}

/* The point in time: access follows the bitmap as it is at this step of the transaction. */
static int cbw_co_begin(struct block_node *node, struct error *err)
{
    struct cbw_node *n = node->opaque;
    struct cbw_state *s = &n->state;
    struct block_bitmap *bitmap;
    int r;

    if (block_edge_size(s->file) != s->size) {
        return error_set(err, EINVAL, "Node '%s' has been resized while '%s' was being opened",
                         block_node_name(block_edge_node(s->file)), s->name);
    }
    /*
     * If the disk is its backing file, or becomes that, its readers read from the disk what is not
     * copied: for as long as the image exists.
     */
    block_node_set_serialising(block_edge_node(s->target), block_edge_node(s->file));
    if (!n->bitmap_name) {
        return 0;
    }
    bitmap = block_bitmap_lookup(n->bitmap_node, n->bitmap_name, NULL, err);
    r = bitmap ? block_bitmap_check(bitmap, BLOCK_BITMAP_REFUSE_INCONSISTENT, err) : -ENOENT;
    UNLESS_FAILED(r, block_co_bitmap_fetch(bitmap, err));
    if (r < 0) {
        return r;
    }
    if (dirty_bitmap_size(block_bitmap_bits(bitmap)) != s->size) {
        return error_set(
            err, EINVAL, "Bitmap '%s' covers %llu bytes, node '%s' has %llu: they must agree",
            n->bitmap_name, (unsigned long long)dirty_bitmap_size(block_bitmap_bits(bitmap)),
            s->name, (unsigned long long)s->size);
    }
    return cbw_restrict(s, block_bitmap_bits(bitmap), err);
}

/*
 * A copy that only has to be written concerns the target: a target that hangs holds up no change of
 * the disk, during which the guest would wait.
 */
static bool cbw_drain_busy(struct block_node *node, const struct block_node *drained)
{
    struct cbw_node *n = node->opaque;
    struct cbw_state *s = &n->state;

    return cbw_is_busy(s, block_node_reaches(block_edge_node(s->target), drained));
}

static bool cbw_drain_only_reads(struct block_node *node, const struct block_node *drained)
{
    struct cbw_node *n = node->opaque;
    struct cbw_state *s = &n->state;

    return !s->job.discard_source && !block_node_reaches(block_edge_node(s->target), drained);
}

static void cbw_co_close(struct block_node *node)
{
    struct cbw_node *n = node->opaque;

    cbw_co_state_destroy(&n->state);
    n->scratch->frees_at_once = false;
    free_names(n);
}

static bool has_snapshot(struct block_node *node)
{
    struct block_edge *edge;

    LIST_FOREACH (edge, &node->parents, in_node) {
        if (edge->parent && block_node_is(edge->parent, &snapshot_access_driver)) {
            return true;
        }
    }
    return false;
}

/*
 * Nobody else may use the temporary image, unless it is a job's target, or shows the disk: then
 * writers of the disk, and readers of the image, use it by other ways. While somebody uses the
 * filter of a job, or can read the frozen contents, the disk must change through the filter only.
 * Before and after that, others may write to the disk: so its users can be moved to the filter one
 * by one before the snapshot is opened, and back after it is closed.
 */
static void cbw_child_perm(struct block_node *node, struct block_edge *edge, unsigned parents_perm,
                           unsigned parents_shared, unsigned *ret_perm, unsigned *ret_shared)
{
    struct cbw_node *n = node->opaque;

    if (edge->role & BLOCK_ROLE_TARGET) {
        *ret_perm = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE;
        *ret_shared = n->state.has_job || target_shows_disk(&n->state, edge)
                          ? BLOCK_PERM_ALL & ~BLOCK_PERM_RESIZE
                          : 0;
        return;
    }
    *ret_perm = parents_perm & ~BLOCK_PERM_RESIZE;
    if (n->state.job.discard_source && !list_is_empty(&node->parents)) {
        *ret_perm |= BLOCK_PERM_WRITE; /* until the job and its users have left */
    }
    *ret_shared = BLOCK_PERM_ALL;
    if (parents_perm != 0) {
        *ret_perm |= BLOCK_PERM_CONSISTENT_READ;
    }
    if (has_snapshot(node) || (n->state.has_job && !list_is_empty(&node->parents))) {
        *ret_shared = parents_shared & ~(BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE);
    }
}

/* --- the guest --- */

static int cbw_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    struct cbw_state *s = node->opaque;
    int64_t begun;
    int r;

    if (!(flags & BLOCK_REQ_UNCHANGED)) {
        r = cbw_co_before_write(s, offset, iov.size);
        if (r < 0) {
            return r;
        }
    }
    if (s->timeout_ns == 0) {
        return block_co_pwritev(s->file, offset, iov, flags);
    }
    begun = loop_now_ns();
    r = block_co_pwritev(s->file, offset, iov, flags);
    cbw_note_write(s, loop_now_ns() - begun);
    return r;
}

static int cbw_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                               unsigned flags)
{
    struct cbw_state *s = node->opaque;

    if (!(flags & BLOCK_REQ_UNCHANGED)) {
        int r = cbw_co_before_write(s, offset, length);
        if (r < 0) {
            return r;
        }
    }
    return block_co_write_zeroes(s->file, offset, length, flags);
}

static int cbw_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct cbw_state *s = node->opaque;
    int r = cbw_co_before_write(s, offset, length);

    if (r < 0) {
        return r;
    }
    return block_co_discard(s->file, offset, length);
}

/* The tables of clusters have the size that the disk had when the filter was opened. */
static int cbw_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                           struct error *err)
{
    return error_set(err, ENOTSUP, "Image format driver '%s' does not support resize",
                     node->driver->name);
}

/*
 * A guest's flush concerns its disk. The temporary image is of no use after a crash, and needs no
 * flush.
 */
static int cbw_co_flush(struct block_node *node)
{
    struct cbw_state *s = node->opaque;

    return block_co_flush(s->file);
}

/* --- the snapshot --- */

static int cbw_co_preadv_snapshot(struct block_node *node, uint64_t offset, struct iov iov)
{
    return cbw_co_snapshot_read(node->opaque, offset, iov);
}

static int cbw_co_status_snapshot(struct block_node *node, uint64_t offset, uint64_t length,
                                  struct block_status *ret_status)
{
    return cbw_co_snapshot_status(node->opaque, offset, length, ret_status);
}

static int cbw_co_discard_snapshot(struct block_node *node, uint64_t offset, uint64_t length)
{
    return cbw_co_snapshot_discard(node->opaque, offset, length);
}

struct cbw_state *cbw_of_node(struct block_node *node)
{
    struct cbw_node *n = node->opaque;

    return block_node_is(node, &copy_before_write_driver) ? &n->state : NULL;
}

static void cbw_read_node_stats(struct block_node *node, uint64_t *ret_values)
{
    cbw_read_stats(&((struct cbw_node *)node->opaque)->state, ret_values);
}

const struct block_driver copy_before_write_driver = {
    .name = "copy-before-write",
    .help = "filter: old data are copied to a target before they are overwritten",
    .options = &cbw_options,
    .instance_size = sizeof(struct cbw_node),
    .is_filter = true,
    .co_open = cbw_co_open,
    .co_begin = cbw_co_begin,
    .co_close = cbw_co_close,
    .child_perm = cbw_child_perm,
    .drain_busy = cbw_drain_busy,
    .drain_only_reads = cbw_drain_only_reads,
    .co_pwritev = cbw_co_pwritev,
    .co_write_zeroes = cbw_co_write_zeroes,
    .co_discard = cbw_co_discard,
    .co_truncate = cbw_co_truncate,
    .co_flush = cbw_co_flush,
    .co_preadv_snapshot = cbw_co_preadv_snapshot,
    .co_snapshot_status = cbw_co_status_snapshot,
    .co_discard_snapshot = cbw_co_discard_snapshot,
    .stats = cbw_stats,
    .read_stats = cbw_read_node_stats,
};

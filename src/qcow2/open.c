/* SPDX-License-Identifier: Apache-2.0 */
/* Opening an image, and releasing what an open image has in memory. */
#include "qcow2/open.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/byteorder.h"
#include "base/log.h"
#include "block/bitmaps.h"
#include "block/hand_over.h"
#include "loop/loop.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/bitmap/joint.h"
#include "qcow2/check/check.h"
#include "qcow2/data/crypt.h"
#include "qcow2/header/header.h"
#include "qcow2/header/mark_corrupt.h"
#include "qcow2/image.h"
#include "qcow2/options.h"
#include "qcow2/snapshot/snapshot.h"
#include "qcow2/stats.h"
#include "qcow2/table/map.h"

/* Bytes of a slice of refcounts. */
#define REF_SLICE 4096

/* --- tables ---------------------------------------------------------------------------------- */

static int co_read_table(struct qcow2 *q, const char *what, uint64_t offset, void *buf, size_t size,
                         struct error *err)
{
    int r = block_co_pread(q->node->file, offset, buf, size);

    if (r < 0) {
        error_set_errno(err, -r, "Could not read %s of '%s'", what,
                        block_node_display_name(q->node));
    }
    return r;
}

static int co_load_tables(struct qcow2 *q, struct error *err)
{
    size_t l1_bytes = (size_t)q->l1.size * 8, reftable_bytes = (size_t)q->reftable.size * 8;
    int r;

    q->l1.entries = calloc(MAX(q->l1.size, 1u), 8);
    q->l1.dirty = calloc(div_round_up(l1_bytes, SECTOR_SIZE) + 1, 1);
    q->reftable.entries = calloc(MAX(q->reftable.size, 1u), 8);
    q->reftable.dirty = calloc(div_round_up(reftable_bytes, SECTOR_SIZE) + 1, 1);
    if (!q->l1.entries || !q->l1.dirty || !q->reftable.entries || !q->reftable.dirty) {
        return error_out_of_memory(err);
    }
    r = co_read_table(q, "the L1 table", q->l1.offset, (void *)q->l1.entries, l1_bytes, err);
    if (r < 0) {
        return r;
    }
    block_co_event(q->node->file, BLOCK_EVENT_REFTABLE_LOAD);
    if ((r = co_read_table(q, "the refcount table", q->reftable.offset, q->reftable.entries,
                           reftable_bytes, err)) < 0) {
        return r;
    }
    for (uint32_t i = 0; i < q->l1.size; i++) {
        atomic_store_explicit(
            &q->l1.entries[i],
            be64toh(atomic_load_explicit(&q->l1.entries[i], memory_order_relaxed)),
            memory_order_relaxed);
    }
    for (uint32_t i = 0; i < q->reftable.size; i++) {
        q->reftable.entries[i] = be64toh(q->reftable.entries[i]);
    }
    return 0;
}

static void init_locks(struct qcow2 *q)
{
    counters_init(&q->counters, QCOW2_STATS * sizeof(struct counter));
    co_mutex_init(&q->lock);
    co_mutex_init(&q->commit.mutex);
    co_mutex_init(&q->bitmaps.mutex);
    co_mutex_init(&q->bitmaps.bits_mutex);
    co_mutex_init(&q->header.mark_mutex);
    co_mutex_init(&q->verdicts.mutex);
    range_lock_init(&q->guest);
    list_init(&q->header.extensions);
    list_init(&q->bitmaps.stored);
    list_init(&q->bitmaps.reserve);
    list_init(&q->joint.other);
    list_init(&q->joint.link);
    list_init(&q->snapshots.list);
}

/* --- cleaning of caches ------------------------------------------------------------------ */

static int64_t clean_interval_ns(const struct qcow2 *q)
{
    return (int64_t)q->caches.clean_seconds * 1000000000;
}

static void clean_caches(struct loop_timer *timer)
{
    struct qcow2 *q = container_of(timer, struct qcow2, caches.cleaner);

    cache_clean(&q->caches.l2);
    cache_clean(&q->caches.refcounts);
    loop_timer_arm(timer, loop_now_ns() + clean_interval_ns(q));
}

void qcow2_cache_cleaner_start(struct qcow2 *q)
{
    loop_timer_init(&q->caches.cleaner, clean_caches);
    if (q->caches.clean_seconds > 0) {
        loop_timer_arm(&q->caches.cleaner, loop_now_ns() + clean_interval_ns(q));
    }
}

void qcow2_cache_cleaner_stop(struct qcow2 *q)
{
    if (q->caches.cleaner.fn) {
        loop_timer_disarm(&q->caches.cleaner);
    }
}

void qcow2_release_image(struct qcow2 *q)
{
    qcow2_cache_cleaner_stop(q);
    qcow2_activity_close(q);
    qcow2_overlap_destroy(q);
    qcow2_free_stored_bitmaps(q);
    qcow2_free_bitmap_reserve(q);
    qcow2_joint_free(q);
    qcow2_free_snapshots(q);
    qcow2_free_header(q);
    qcow2_crypt_close(q);
    cache_destroy(&q->caches.l2);
    cache_destroy(&q->caches.refcounts);
    if (q->caches.decompressed.max > 0) {
        cluster_cache_destroy(&q->caches.decompressed);
    }
    counters_release(&q->counters);
    free((void *)q->l1.entries);
    free(q->l1.dirty);
    free(q->reftable.entries);
    free(q->reftable.dirty);
    cluster_runs_clear(&q->alloc.frees);
    co_mutex_destroy(&q->lock);
    co_mutex_destroy(&q->commit.mutex);
    co_mutex_destroy(&q->bitmaps.mutex);
    co_mutex_destroy(&q->bitmaps.bits_mutex);
    co_mutex_destroy(&q->header.mark_mutex);
    co_mutex_destroy(&q->verdicts.mutex);
    range_lock_destroy(&q->guest);
}

static int init_caches(struct qcow2 *q, const struct qcow2_cache_options *o, struct error *err)
{
    int r = cache_init(&q->caches.l2, q->node->file, o->slice, 0);

    UNLESS_FAILED(r, qcow2_fit_l2_cache(q, block_node_size(q->node)));
    UNLESS_FAILED(r, cache_init(&q->caches.refcounts, q->node->file,
                                MIN(REF_SLICE, q->cluster_size), o->ref_bytes));
    q->caches.l2.load_event = BLOCK_EVENT_L2_LOAD;
    q->caches.l2.update_event = BLOCK_EVENT_L2_UPDATE;
    q->caches.refcounts.update_event = BLOCK_EVENT_REFBLOCK_UPDATE_PART;
    return r < 0 ? error_out_of_memory(err) : 0;
}

static int co_repair_dirty(struct qcow2 *q, struct error *err)
{
    struct block_check_result result;
    int r;

    log_notice("image '%s' was not closed cleanly: repairing it", block_node_display_name(q->node));
    r = qcow2_co_check(q->node, BLOCK_CHECK_FIX_LEAKS | BLOCK_CHECK_FIX_ERRORS, &result, err);
    if (r == 0 && (q->header.incompatible & INCOMPAT_DIRTY)) {
        r = error_set(err, EIO,
                      "Image '%s' was not closed cleanly and could not be repaired: %llu "
                      "corruptions, %llu errors are left",
                      block_node_display_name(q->node), (unsigned long long)result.corruptions,
                      (unsigned long long)result.check_errors);
    }
    return r;
}

int qcow2_co_prepare_writable(struct qcow2 *q, struct error *err)
{
    uint64_t known = AUTOCLEAR_BITMAPS | (q->has_data_file ? AUTOCLEAR_DATA_FILE_RAW : 0) |
                     (q->activity.offset > 0 ? AUTOCLEAR_ACTIVITY : 0) |
                     (q->joint.state != JOINT_NONE ? AUTOCLEAR_JOINT : 0) | AUTOCLEAR_EXCESS;
    bool check = q->node->open_flags & BLOCK_OPEN_CHECK;
    bool write = (q->header.autoclear & ~known) || q->activity.is_stale || q->joint.is_stale;
    struct qcow2_excess excess[EXCESS_MAX];
    int r;

    if ((q->header.incompatible & INCOMPAT_DIRTY) && !check && (r = co_repair_dirty(q, err)) < 0) {
        return r;
    }
    /* What the hot regions of a crash add has to be there before they become cold. */
    write |= !check && q->activity.offset > 0 && qcow2_list_excess(q, excess) > 0;
    if (write) {
        q->header.autoclear &= known;
        q->activity.is_stale = q->joint.is_stale = false;
        r = qcow2_co_write_header(q, err);
        if (r < 0) {
            return r;
        }
    }
    r = check ? 0 : qcow2_co_activity_open(q, err);
    return check ? 0 : UNLESS_FAILED(r, qcow2_co_joint_settle_found(q, err));
}

static void set_limits(struct qcow2 *q)
{
    struct block_node *node = q->node;

    node->limits.zeroes_alignment = qcow2_subcluster_size(q);
    node->limits.discard_alignment = q->cluster_size;
    node->limits.cluster_size = (uint32_t)q->cluster_size;
    if (q->crypt_method != CRYPT_NONE) {
        node->limits.request_alignment = SECTOR_SIZE;
    }
    node->supported_zero_flags = BLOCK_REQ_MAY_UNMAP;
    /* Beyond the end of a regular file nothing was ever written; devices may have any contents. */
    q->alloc.zero_from = UINT64_MAX;
    if (node->file->node->driver->keeps_zero_beyond_eof) {
        q->alloc.zero_from = round_up(block_edge_size(node->file), q->cluster_size);
    }
}

static bool co_is_block_device(const char *path)
{
    struct stat st;

    return loop_co_stat(path, &st) == 0 && S_ISBLK(st.st_mode);
}

/*
 * Open the data file that the option gives, or else the image. The name in the image may only be a
 * plain path, since the image may come from anybody. A relative one is resolved in the working
 * directory, as by QEMU, not in the image's folder as names of backing files are.
 */
static int co_open_data_file(struct qcow2 *q, struct options *opts, struct error *err)
{
    struct options *child;
    int r;

    q->data = q->node->file;
    if (!q->has_data_file && !options_has(opts, "data-file")) {
        return 0;
    }
    if (!options_has(opts, "data-file") &&
        (q->node->open_flags & (BLOCK_OPEN_NO_IO | BLOCK_OPEN_CHECK))) {
        return 0; /* only metadata is read, so no other file is opened */
    }
    if (!options_has(opts, "data-file") && q->header.data_filename) {
        if (strncmp(q->header.data_filename, "json:", 5) == 0 ||
            block_driver_of_filename(q->header.data_filename)) {
            return error_set(
                err, EINVAL,
                "Image '%s' names '%s' as its data file, but only a plain file name is "
                "followed; give the option data-file",
                block_node_display_name(q->node), q->header.data_filename);
        }
        child = options_new();
        if (!child) {
            return error_out_of_memory(err);
        }
        options_set_str(child, "driver",
                        co_is_block_device(q->header.data_filename) ? "host_device" : "file");
        options_set_str(child, "filename", q->header.data_filename);
        options_set_child(opts, "data-file", child);
    }
    r = block_co_open_child(q->node, opts, "data-file", BLOCK_ROLE_DATA | BLOCK_ROLE_METADATA, true,
                            &q->data, err);
    if (r == 0 && !q->has_data_file) {
        q->data = q->node->file;
        return error_set(err, EINVAL,
                         "'data-file' can only be set for images with an external data file");
    }
    if (r == 0 && !q->data) {
        q->data = q->node->file;
        return error_set(err, EINVAL, "'data-file' is required for this image");
    }
    return r;
}

/* An image that is read again keeps its key: the secret may be gone. */
static int keep_key(struct qcow2 *q, const struct qcow2 *was, struct error *err)
{
    if (q->crypt_method != was->crypt_method) {
        return error_set(err, EINVAL, "The encryption of image '%s' was changed",
                         block_node_display_name(q->node));
    }
    q->crypt = was->crypt;
    return 0;
}

/* Likewise its data file. */
static int keep_data_file(struct qcow2 *q, const struct qcow2 *was, struct error *err)
{
    if (q->has_data_file != was->has_data_file) {
        return error_set(err, EINVAL, "The data file of image '%s' was changed",
                         block_node_display_name(q->node));
    }
    q->data = was->data;
    return 0;
}

/*
 * `was`: NULL, or what is in memory of the image, which is read again; children are not opened
 * then.
 */
static int co_open_image(struct qcow2 *q, struct options *opts, const struct qcow2 *was,
                         struct error *err)
{
    struct qcow2_cache_options cache;
    bool check = q->node->open_flags & BLOCK_OPEN_CHECK;
    int r;

    if ((r = qcow2_co_read_header(q, err)) < 0 ||
        (r = qcow2_take_options(q, opts, &cache, err)) < 0 ||
        (r = was ? keep_key(q, was, err) : qcow2_co_crypt_open(q, opts, err)) < 0 ||
        (r = was ? keep_data_file(q, was, err) : co_open_data_file(q, opts, err)) < 0 ||
        (r = co_load_tables(q, err)) < 0 || (r = init_caches(q, &cache, err)) < 0) {
        return r;
    }
    cluster_cache_init(&q->caches.decompressed, q->cluster_size);
    set_limits(q);
    if ((!was && (r = block_co_open_backing(q->node, opts, q->header.backing_filename,
                                            q->header.backing_format, err)) < 0) ||
        /* A check reads snapshots itself, and reports what is wrong with them. */
        (!check && (r = qcow2_co_read_snapshots(q, err)) < 0) ||
        (r = qcow2_co_load_bitmaps(q, err)) < 0) {
        return r;
    }
    if (qcow2_co_overlap_init(q) < 0) {
        return error_out_of_memory(err);
    }
    qcow2_cache_cleaner_start(q);
    return q->read_only ? 0 : qcow2_co_prepare_writable(q, err);
}

int qcow2_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    int r;

    q->node = node;
    q->read_only = node->read_only || block_node_is_handed_over(node);
    init_locks(q);
    r = block_co_open_child(node, opts, "file", BLOCK_ROLE_DATA | BLOCK_ROLE_METADATA, false, NULL,
                            err);
    UNLESS_FAILED(r, co_open_image(q, opts, NULL, err));
    if (qcow2_co_conclude(q, r) < 0) {
        block_bitmaps_release(node);
        qcow2_release_image(q);
    } else {
        qcow2_joint_tell_waiting(q);
    }
    return r;
}

/* --- in turns with another process ------------------------------------------------------------ */

void qcow2_handed_over(struct block_node *node)
{
    qcow2_state(node)->read_only = true;
}

static void free_bitmaps(struct list *list)
{
    struct block_bitmap *b, *next;

    LIST_FOREACH_SAFE (b, next, list, link) {
        list_remove(&b->link);
        block_bitmap_free_detached(b);
    }
}

/* Read the image into `q`, which becomes the state of the node. */
static int co_read_again(struct qcow2 *q, struct qcow2 *was, struct error *err)
{
    struct block_node *node = was->node;
    struct options *opts = NULL;
    int r = options_from_json(block_node_options(node), &opts, err);

    q->node = node;
    q->read_only = node->read_only;
    init_locks(q);
    node->opaque = q;
    UNLESS_FAILED(r, co_open_image(q, opts, was, err));
    options_free(opts);
    return qcow2_co_conclude(q, r);
}

/* On failure the node goes on with what it had. */
int qcow2_co_reload(struct block_node *node, struct error *err)
{
    struct qcow2 *was = qcow2_state(node), *q = calloc(1, sizeof(*q));
    struct list bitmaps = LIST_INIT(bitmaps);
    uint64_t size = block_node_size(node);
    int r;

    if (!q) {
        return error_out_of_memory(err);
    }
    block_bitmaps_exchange_persistent(node, &bitmaps);
    r = co_read_again(q, was, err);
    if (r < 0) {
        q->crypt = NULL;
        block_bitmaps_exchange_persistent(node, &bitmaps);
        node->opaque = was;
        block_node_set_size(node, size);
        node->log = was->activity.log;
        was = q;
    } else {
        was->crypt = NULL;
        q->counters = was->counters;
        counters_init(&was->counters, QCOW2_STATS * sizeof(struct counter));
    }
    free_bitmaps(&bitmaps);
    qcow2_release_image(was);
    free(was);
    block_activity_update(node);
    return r;
}

/* The key and the data file are those of the former image, and stay open. */
int qcow2_co_exchange_image(struct block_node *node, struct error *err)
{
    const struct qcow2 *q = qcow2_state(node);

    if (q->crypt_method != CRYPT_NONE || q->has_data_file) {
        return error_set(err, ENOTSUP, "Its own %s",
                         q->has_data_file ? "has a data file" : "is encrypted");
    }
    return qcow2_co_reload(node, err);
}

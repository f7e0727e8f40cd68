/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From version 3 to version 2, which has no zero flag. Zero clusters become data, or unallocated
 * where that reads the same:
 *
 *   the disk        in its tables; a table that a snapshot shares is copied, as by any write
 *   its snapshots   in their tables, in place: clusters and their refcounts -> sync -> table
 *                   -> sync -> old clusters are freed
 *   header          version
 *
 * After each step the image is a version 3 image that reads as before.
 */
#include "qcow2/downgrade.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/data/crypt.h"
#include "qcow2/header/header.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/l1.h"
#include "qcow2/table/map.h"
#include "qcow2/table/overlap.h"
#include "qcow2/table/refcount.h"
#include "qcow2/table/verdict.h"

struct downgrade {
    struct qcow2 *q;
    block_progress_fn *progress;
    void *progress_arg;
    uint64_t done, total; /* entries of L1 tables */
};

static void report_step(struct downgrade *d)
{
    d->progress(d->progress_arg, ++d->done, d->total);
}

/* Amending may have recorded a backing file that is not open. */
static bool has_backing(const struct qcow2 *q)
{
    return q->node->backing || q->header.backing_filename;
}

/* Write zeroes, encrypted if the image is, to the host cluster of guest offset `guest`. */
static int co_zero_host_locked(struct qcow2 *q, uint64_t guest, uint64_t host)
{
    AUTO_FREE uint8_t *zeroes = NULL;
    struct iovec vec;
    int r = qcow2_co_overlap_check_locked(q, host, q->cluster_size, 0);

    if (r < 0 || q->crypt_method == CRYPT_NONE) {
        return r < 0 ? r : block_co_write_zeroes(q->node->file, host, q->cluster_size, 0);
    }
    zeroes = calloc(1, q->cluster_size);
    return zeroes ? qcow2_co_write_encrypted(q, guest, host,
                                             iov_from_buf(&vec, zeroes, q->cluster_size))
                  : -ENOMEM;
}

static int check_downgrade(struct qcow2 *q, struct error *err)
{
    uint64_t features = q->header.incompatible & ~(INCOMPAT_DIRTY | INCOMPAT_CORRUPT);
    const struct qcow2_snapshot *s;

    if (q->has_data_file) {
        return error_set(err, ENOTSUP, "Cannot downgrade an image with a data file");
    }
    if (features) {
        return error_set(err, ENOTSUP,
                         "Cannot downgrade an image with incompatible features %#llx set",
                         (unsigned long long)features);
    }
    if (!list_is_empty(&q->bitmaps.stored)) {
        return error_set(err, ENOTSUP,
                         "Cannot downgrade an image with persistent bitmaps; remove them first");
    }
    if (q->joint.state != JOINT_NONE) {
        return error_set(
            err, ENOTSUP,
            "Cannot downgrade an image that others have to ask about a change of their "
            "bitmaps; open those for writing first");
    }
    LIST_FOREACH (s, &q->snapshots.list, link) {
        if (s->vm_state_size > UINT32_MAX || s->disk_size != block_node_size(q->node)) {
            /* Version 2 would not know their sizes. */
            return error_set(err, ENOTSUP, "Internal snapshots prevent downgrade of image");
        }
    }
    return 0;
}

/*
 * Change one zero cluster: to data if it has a host cluster, or if a backing file would be exposed;
 * else to unallocated.
 */
static int co_expand_entry_locked(struct qcow2 *q, uint64_t guest, struct cache_entry *slice,
                                  unsigned index)
{
    uint64_t entry = qcow2_load_entry(q, slice, index), host, old, got;
    enum cluster_type type;
    bool fresh, made = false;
    int r = qcow2_decode_entry(q, entry, 0, 0, &type, &host);

    if (r < 0) {
        return qcow2_corrupt_entry(q, slice, index, 0, false);
    }
    if (type != CLUSTER_ZERO && type != CLUSTER_ZERO_ALLOC) {
        return 0;
    }
    if (type == CLUSTER_ZERO && !has_backing(q)) {
        qcow2_store_entry(q, slice, index, 0, 0);
        cache_mark_dirty(&q->caches.l2, slice);
        return 0;
    }
    old = host;
    if (type == CLUSTER_ZERO || !(entry & ENTRY_COPIED)) {
        r = qcow2_co_alloc_locked(q, 1, true, &host, &got, &fresh);
        made = r == 0;
    }
    UNLESS_FAILED(r, co_zero_host_locked(q, guest, host));
    if (r < 0) {
        if (made) {
            qcow2_co_unalloc_locked(q, host, 1);
        }
        return r;
    }
    qcow2_store_entry(q, slice, index, host | ENTRY_COPIED, 0);
    cache_mark_dirty(&q->caches.l2, slice);
    return made && old != 0
               ? qcow2_free_later_locked(q, old, q->cluster_size, false, QCOW2_FREED_BY_OTHER)
               : 0;
}

/* Change all clusters that one L2 table maps. */
static int co_expand_span(struct qcow2 *q, uint64_t at, uint64_t end)
{
    int r = 0;

    while (at < end && r == 0) {
        struct qcow2_run run;
        struct cache_entry *slice;
        unsigned index;

        r = qcow2_co_map(q, at, end - at, &run);
        if (r == 0 && (run.type == CLUSTER_ZERO || run.type == CLUSTER_ZERO_ALLOC)) {
            run.length = MIN(run.length, q->cluster_size);
            co_mutex_lock(&q->lock);
            r = qcow2_co_l2_slice_locked(q, at, &slice, &index);
            if (r == 0) {
                r = co_expand_entry_locked(q, at, slice, index);
                cache_put(slice);
            }
            co_mutex_unlock(&q->lock);
            if (qcow2_co_make_room(q, r)) {
                r = 0;
                continue;
            }
            UNLESS_FAILED(r, qcow2_co_commit_if_much_dirty(q));
        }
        at += run.length;
    }
    return r;
}

/* Includes what is beyond the end of the disk, such as a VM state. */
static int co_expand_disk(struct downgrade *d)
{
    struct qcow2 *q = d->q;
    uint64_t span = qcow2_l2_span(q);
    int r = 0;

    for (uint32_t i = 0; i < q->l1.size && r == 0; i++) {
        r = co_expand_span(q, i * span, (i + 1) * span);
        report_step(d);
    }
    return r < 0 ? r : qcow2_co_commit(q);
}

/* --- snapshots ------------------------------------------------------------------------------- */

/* An L2 table of snapshots while it is changed. */
struct table {
    uint64_t guest;    /* offset of the first cluster that it maps */
    uint64_t *entries; /* big-endian, as on disk */
    /* By index: clusters that lose their references, and clusters that replace them; 0: none. */
    uint64_t *old, *new;
    uint64_t refcount; /* of the table: each of its clusters has this many references through it */
    bool changed;
};

/* Make a cluster of zeroes for entry `i`, with as many references as the table. */
static int co_place_zeroes_locked(struct qcow2 *q, struct table *t, uint64_t i, uint64_t *host)
{
    uint64_t refcount = 0, got;
    bool fresh;
    int r = 0;

    if (*host != 0) {
        r = qcow2_co_refcount_get_locked(q, qcow2_cluster_index(q, *host), &refcount);
    }
    if (r == 0 && refcount != t->refcount) { /* no host cluster, or one that is shared */
        t->old[i] = *host;
        r = qcow2_co_alloc_locked(q, 1, true, host, &got, &fresh);
        t->new[i] = r == 0 ? *host : 0;
        if (r == 0 && t->refcount > 1) {
            r = qcow2_co_refcount_add_locked(q, qcow2_cluster_index(q, *host), 1,
                                             (int64_t)t->refcount - 1);
            if (r < 0) {
                qcow2_co_unalloc_locked(q, *host, 1);
                t->new[i] = 0;
            }
        }
    }
    return r < 0 ? r : co_zero_host_locked(q, t->guest + (i << q->cluster_bits), *host);
}

static int co_expand_table_locked(struct qcow2 *q, struct table *t)
{
    for (uint64_t i = 0; i < qcow2_table_entries(q); i++) {
        uint64_t entry = be64toh(t->entries[i]), host;
        enum cluster_type type;

        if ((entry & L2_COMPRESSED) || !(entry & L2_ZERO)) {
            continue;
        }
        if (qcow2_decode_entry(q, entry, 0, 0, &type, &host) < 0) {
            return qcow2_corrupt(q, "Cluster allocation offset %#llx unaligned",
                                 (unsigned long long)(entry & ENTRY_OFFSET_MASK));
        }
        if (type == CLUSTER_ZERO_ALLOC || has_backing(q)) {
            int r = co_place_zeroes_locked(q, t, i, &host);

            if (r < 0) {
                return r;
            }
        }
        t->entries[i] = htobe64(host);
        t->changed = true;
    }
    return 0;
}

/* Drop the references to clusters that the table on disk does not reference, or no longer. */
static int co_drop_clusters(struct qcow2 *q, const struct table *t, const uint64_t *clusters)
{
    int r = 0;

    co_mutex_lock(&q->lock);
    for (uint64_t i = 0; i < qcow2_table_entries(q) && r == 0; i++) {
        if (clusters[i] != 0) {
            r = qcow2_co_refcount_add_locked(q, qcow2_cluster_index(q, clusters[i]), 1,
                                             -(int64_t)t->refcount);
        }
    }
    co_mutex_unlock(&q->lock);
    return r;
}

/* Write the table directly, and drop its cached slices. */
static int co_write_table(struct qcow2 *q, uint64_t offset, const struct table *t)
{
    int r = qcow2_co_commit(q);

    UNLESS_FAILED(r, block_co_flush(q->node->file)); /* clusters may have been zeroed in place */
    UNLESS_FAILED(r, qcow2_co_overlap_check(q, offset, q->cluster_size,
                                            OVERLAP_BIT(OVERLAP_INACTIVE_L2) |
                                                OVERLAP_BIT(OVERLAP_ACTIVE_L2)));
    UNLESS_FAILED(r, block_co_pwrite(q->node->file, offset, t->entries, q->cluster_size, 0));
    co_mutex_lock(&q->lock);
    for (uint64_t at = 0; at < q->cluster_size; at += q->caches.l2.entry_size) {
        cache_forget(&q->caches.l2, offset + at);
    }
    co_mutex_unlock(&q->lock);
    return r < 0 ? r : block_co_flush(q->node->file);
}

static int co_expand_table(struct qcow2 *q, uint64_t offset, struct table *t)
{
    int r = block_co_pread(q->node->file, offset, t->entries, q->cluster_size);

    memset(t->old, 0, q->cluster_size);
    memset(t->new, 0, q->cluster_size);
    t->changed = false;
    co_mutex_lock(&q->lock);
    UNLESS_FAILED(r, qcow2_co_refcount_get_locked(q, qcow2_cluster_index(q, offset), &t->refcount));
    UNLESS_FAILED(r, co_expand_table_locked(q, t));
    co_mutex_unlock(&q->lock);
    if (r < 0) {
        (void)co_drop_clusters(q, t, t->new);
        return r;
    }
    if (!t->changed) {
        return 0;
    }
    /* Once the table may be on disk, the clusters that it references have to stay. */
    r = co_write_table(q, offset, t);
    return r < 0 ? r : co_drop_clusters(q, t, t->old);
}

static int co_expand_snapshot(struct downgrade *d, const struct qcow2_snapshot *s, struct table *t)
{
    struct qcow2 *q = d->q;
    AUTO_FREE uint64_t *l1 = NULL;
    ERROR_AUTO(why);
    int r = qcow2_check_snapshot_l1(q, s, &why);

    if (r < 0) {
        log_error("%s", error_message(&why));
        return r;
    }
    r = qcow2_co_read_l1(q, s->l1_offset, s->l1_size, &l1);
    for (uint32_t i = 0; i < s->l1_size && r == 0; i++) {
        uint64_t offset = l1[i] & ENTRY_OFFSET_MASK;

        if (!is_aligned(offset, q->cluster_size)) {
            r = qcow2_corrupt(q, "L2 table offset %#llx unaligned (L1 index: %#x)",
                              (unsigned long long)offset, i);
        } else if (offset != 0) {
            t->guest = i * qcow2_l2_span(q);
            r = co_expand_table(q, offset, t);
        }
        report_step(d);
    }
    return r;
}

static int co_expand_snapshots(struct downgrade *d)
{
    struct qcow2 *q = d->q;
    AUTO_FREE uint64_t *buffer = calloc(3, q->cluster_size);
    const struct qcow2_snapshot *s;
    int r = buffer ? 0 : -ENOMEM;

    LIST_FOREACH (s, &q->snapshots.list, link) {
        uint64_t n = q->cluster_size / 8;
        struct table t = {.entries = buffer, .old = buffer + n, .new = buffer + 2 * n};

        UNLESS_FAILED(r, co_expand_snapshot(d, s, &t));
    }
    return r < 0 ? r : qcow2_co_commit(q);
}

/* --- downgrade ------------------------------------------------------------------------------- */

int qcow2_co_downgrade(struct qcow2 *q, block_progress_fn *progress, void *progress_arg,
                       struct error *err)
{
    struct downgrade d = {
        .q = q, .progress = progress, .progress_arg = progress_arg, .total = q->l1.size};
    uint64_t incompatible, compatible, autoclear;
    const struct qcow2_snapshot *s;
    int r = check_downgrade(q, err);

    if (r < 0) {
        return r;
    }
    q->commit.lazy_refcounts = false; /* version 2 has no dirty bit */
    LIST_FOREACH (s, &q->snapshots.list, link) {
        d.total += s->l1_size;
    }
    r = co_expand_disk(&d);
    UNLESS_FAILED(r, co_expand_snapshots(&d));
    if (r < 0) {
        return error_set_errno(err, -r, "Failed to turn zero into data clusters");
    }
    incompatible = q->header.incompatible;
    compatible = q->header.compatible;
    autoclear = q->header.autoclear;
    q->version = 2;
    q->header.incompatible = q->header.compatible = q->header.autoclear = 0;
    r = qcow2_co_write_header(q, err);
    if (r < 0) {
        q->version = 3;
        q->header.incompatible = incompatible;
        q->header.compatible = compatible;
        q->header.autoclear = autoclear;
    }
    return r;
}

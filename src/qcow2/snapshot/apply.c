/* SPDX-License-Identifier: Apache-2.0 */
/* Internal snapshots: applying one. The steps are drawn in operation.h. */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/header/header.h"
#include "qcow2/options.h"
#include "qcow2/snapshot/changed.h"
#include "qcow2/snapshot/operation.h"
#include "qcow2/snapshot/references.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/l1.h"
#include "qcow2/table/new_table.h"
#include "qcow2/table/verdict.h"

/*
 * Switches to an L1 table that is on disk, in memory and in the header. On failure the old one
 * stays.
 */
static int co_switch_active_l1(struct qcow2 *q, const uint64_t *l1, uint32_t entries,
                               uint64_t offset, uint64_t disk_size, struct error *err)
{
    AUTO_FREE uint64_t *old = qcow2_copy_active_l1(q);
    uint64_t old_offset = q->l1.offset, old_disk_size = block_node_size(q->node);
    uint32_t old_entries = q->l1.size;
    int r;

    if (!old || qcow2_co_set_active_l1(q, l1, entries) < 0) {
        return error_out_of_memory(err);
    }
    q->l1.offset = offset;
    block_node_set_size(q->node, disk_size);
    r = qcow2_co_bitmaps_switch_size(q, old_disk_size, err);
    if (r < 0) {
        qcow2_co_set_active_l1(q, old, old_entries);
        q->l1.offset = old_offset;
        block_node_set_size(q->node, old_disk_size);
        return r;
    }
    (void)qcow2_fit_l2_cache(q, block_node_size(q->node)); /* the disk may be larger now */
    return 0;
}

/* The L1 table of a snapshot, which is to become the active one, and the active one as it was. */
struct apply {
    const struct qcow2_snapshot *snapshot;
    uint64_t *l1, *old; /* host byte order, owned */
    uint32_t entries, old_entries;
    uint64_t offset, old_offset; /* in the file */
};

static void apply_release(struct apply *a)
{
    free(a->l1);
    free(a->old);
}

static int raise_failed(struct qcow2 *q, int r, struct error *err)
{
    return r == -ERANGE
               ? error_set(err, ERANGE,
                           "Image '%s': refcounts of %u bits can't count one more reference to the "
                           "clusters of the snapshot",
                           block_node_display_name(q->node), 1u << q->refcounts.order)
               : qcow2_snapshot_failed(q, "apply a snapshot", r, err);
}

/* Applies a snapshot whose clusters have one more reference already. */
static int co_apply_referenced(struct qcow2 *q, struct apply *a, struct error *err)
{
    int r = qcow2_co_write_l1_copy(q, a->l1, a->entries, false, &a->offset);

    UNLESS_FAILED(r, qcow2_co_commit(q));
    if (r < 0) {
        (void)qcow2_co_release_l1(q, a->l1, a->entries, a->offset);
        return qcow2_snapshot_failed(q, "apply a snapshot", r, err);
    }
    r = co_switch_active_l1(q, a->l1, a->entries, a->offset, a->snapshot->disk_size, err);
    if (r < 0) {
        if (!atomic_load(&q->broken)) { /* else it is unknown which table the header names */
            (void)qcow2_co_release_l1(q, a->l1, a->entries, a->offset);
        }
        return r;
    }
    r = qcow2_co_release_l1(q, a->old, a->old_entries, a->old_offset);
    return r < 0 ? qcow2_snapshot_failed(q, "free the clusters", r, err) : 0;
}

/*
 * Replaces the references of the L1 table `old` by those of `new`. Undone on failure; if that fails
 * the image takes no more writes.
 */
static int co_exchange_references(struct qcow2 *q, const uint64_t *old, uint32_t old_entries,
                                  const uint64_t *new, uint32_t new_entries)
{
    int r = qcow2_co_unreference_all(q, old, old_entries);

    if (r == 0 && (r = qcow2_co_reference_all(q, new, new_entries)) < 0 &&
        qcow2_co_reference_all(q, old, old_entries) < 0) {
        atomic_store(&q->broken, true); /* the dirty bit makes the next open repair it */
    }
    return r;
}

/* Exchanges references and L1 tables. The dirty bit is stable, and the new table is on disk. */
static int co_exchange_tables(struct qcow2 *q, struct apply *a, struct error *err)
{
    int r = co_exchange_references(q, a->old, a->old_entries, a->l1, a->entries);

    if (r < 0) {
        return raise_failed(q, r, err);
    }
    r = qcow2_co_commit(q);
    if (r < 0) {
        qcow2_snapshot_failed(q, "write the refcounts", r, err);
    }
    UNLESS_FAILED(
        r, co_switch_active_l1(q, a->l1, a->entries, a->offset, a->snapshot->disk_size, err));
    if (r < 0 && !atomic_load(&q->broken) &&
        co_exchange_references(q, a->l1, a->entries, a->old, a->old_entries) < 0) {
        atomic_store(&q->broken, true);
    }
    return r;
}

/*
 * Applies a snapshot that shares clusters with the disk whose refcounts can't be raised: the
 * references of the disk are removed first. Meanwhile nothing is allocated, so no cluster that
 * counts as free is overwritten before the switch.
 */
static int co_apply_exchanging(struct qcow2 *q, struct apply *a, struct error *err)
{
    int r = qcow2_co_write_l1_copy(q, a->l1, a->entries, false, &a->offset);

    UNLESS_FAILED(r, qcow2_co_commit(q));
    if (r < 0) {
        return qcow2_snapshot_failed(q, "apply a snapshot", r, err);
    }
    r = qcow2_co_write_dirty_bit(q, true, err);
    UNLESS_FAILED(r, co_exchange_tables(q, a, err));
    if (r < 0) {
        if (!atomic_load(&q->broken)) {
            qcow2_co_free_new_clusters(q, a->offset, MAX((uint64_t)a->entries * 8, 8));
            qcow2_co_recover_from_failure(q);
        }
        return r;
    }
    r = qcow2_co_free_l1(q, a->old_offset, a->old_entries);
    UNLESS_FAILED(r, qcow2_co_commit(q));
    return r < 0 ? qcow2_snapshot_failed(q, "free the clusters", r, err) : 0;
}

static int co_apply_snapshot(struct qcow2 *q, struct apply *a, struct error *err)
{
    int r = qcow2_co_reference_all(q, a->l1, a->entries);

    if (r == 0) {
        r = co_apply_referenced(q, a, err);
    } else if (r == -ERANGE && q->version >= 3) {
        r = co_apply_exchanging(q, a, err);
    } else {
        r = raise_failed(q, r, err);
    }
    if (r == 0 && (r = qcow2_co_update_copied(q)) == 0) {
        r = qcow2_co_commit(q);
    }
    if (r < 0 || !(q->header.incompatible & INCOMPAT_DIRTY)) {
        return r;
    }
    return qcow2_co_write_dirty_bit(q, false, err);
}

/* As above, and bitmaps know what has changed. */
static int co_apply_with_bitmaps(struct qcow2 *q, struct apply *a, struct error *err)
{
    uint64_t old_size = block_node_size(q->node), size = a->snapshot->disk_size;
    uint64_t greatest = q->header.greatest_size;
    struct l1_view now = {a->old, a->old_entries}, then = {a->l1, a->entries};
    int r = qcow2_co_bitmaps_before_apply(q, now, then, size, err);

    if (r < 0) {
        q->header.greatest_size = greatest;
        return r;
    }
    r = co_apply_snapshot(q, a, err);
    return qcow2_co_bitmaps_after_apply(q, old_size, r, err);
}

int qcow2_co_snapshot_apply(struct block_node *node, const char *id_or_name, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    CLEANUP(apply_release)
    struct apply a = {.snapshot = qcow2_find_snapshot_by_id_or_name(q, id_or_name, err)};
    ERROR_AUTO(why);
    int r = a.snapshot ? qcow2_refuse_broken(q, err) : -ENOENT;

    if (r < 0) {
        return r;
    }
    if ((r = qcow2_check_snapshot_l1(q, a.snapshot, &why)) < 0) {
        log_error("%s", error_message(&why));
        return error_set_errno(err, -r, "Failed to load snapshot");
    }
    r = qcow2_co_read_snapshot_l1(q, a.snapshot, &a.l1, &a.entries, err);
    UNLESS_FAILED(r, qcow2_co_write_lazy_refcounts(q, err));
    if (r < 0) {
        return r;
    }
    a.old = qcow2_copy_active_l1(q);
    a.old_entries = q->l1.size;
    a.old_offset = q->l1.offset;
    return a.old ? co_apply_with_bitmaps(q, &a, err) : error_out_of_memory(err);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Internal snapshots. All of it on a drained node.
 *
 * Raising and lowering refcounts makes COPIED flags untrue for a while, which a check takes for corruption. So
 * the dirty bit is set, stably, around it (version 3); after a crash the next writable open then repairs.
 *
 *   create   dirty -> refcounts +1 -> COPIED off -> L1 copy, table -> header: table, not dirty
 *   apply    refcounts of the snapshot +1 -> new L1 -> header: L1, size -> old references released
 *            where they can't count one more: new L1 -> dirty -> refcounts of the disk -1, of the snapshot +1 -> header: L1,
 *            size -> not dirty
 *   delete   header: table, dirty -> references released -> COPIED on where alone -> not dirty
 */
#include "qcow2/snapshot/snapshot.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/header/header.h"
#include "qcow2/options.h"
#include "qcow2/snapshot/references.h"
#include "qcow2/snapshot/table.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/l1.h"
#include "qcow2/table/verdict.h"

static int co_set_dirty(struct qcow2 *q, bool dirty, struct error *err)
{
    if (q->version < 3) {
        return 0;
    }
    q->header.incompatible =
        dirty ? q->header.incompatible | INCOMPAT_DIRTY : q->header.incompatible & ~INCOMPAT_DIRTY;
    return qcow2_co_write_header(q, err);
}

static int failed(struct qcow2 *q, const char *what, int r, struct error *err)
{
    return error_set_errno(err, -r, "Could not %s of '%s'", what, block_node_display_name(q->node));
}

static struct qcow2_snapshot *find(struct qcow2 *q, const char *id, const char *name)
{
    struct qcow2_snapshot *s;

    LIST_FOREACH (s, &q->snapshots.list, link) {
        if ((!id || strcmp(s->id, id) == 0) && (!name || strcmp(s->name, name) == 0)) {
            return s;
        }
    }
    return NULL;
}

static struct qcow2_snapshot *find_any(struct qcow2 *q, const char *id_or_name, struct error *err)
{
    struct qcow2_snapshot *s = find(q, id_or_name, NULL);

    s = s ? s : find(q, NULL, id_or_name);
    if (!s) {
        error_set(err, ENOENT, "snapshot not found");
    }
    return s;
}

/* A copy of the active L1 table as an array. */
static uint64_t *copy_active_l1(const struct qcow2 *q)
{
    uint64_t *l1 = calloc(q->l1.size + 1u, 8);

    for (uint32_t i = 0; l1 && i < q->l1.size; i++) {
        l1[i] = atomic_load_explicit(&q->l1.entries[i], memory_order_relaxed);
    }
    return l1;
}

/* An L1 table without entries has no clusters. */
static int co_free_l1(struct qcow2 *q, uint64_t offset, uint32_t entries)
{
    int r = 0;

    if (entries > 0) {
        co_mutex_lock(&q->lock);
        r = qcow2_free_later_locked(q, offset, round_up((uint64_t)entries * 8, q->cluster_size),
                                    false, QCOW2_FREED_BY_SNAPSHOT);
        co_mutex_unlock(&q->lock);
    }
    return r;
}

/* Give back the references of an L1 table, also the one to itself; all of it is stable when it returns 0. */
static int co_release(struct qcow2 *q, const uint64_t *l1, uint32_t entries, uint64_t l1_offset)
{
    int r = qcow2_co_release_all(q, l1, entries);

    r = r < 0 || l1_offset == 0 ? r : co_free_l1(q, l1_offset, entries);
    /* The first commit lowers refcounts in memory, the second writes them. */
    r = r < 0 ? r : qcow2_co_commit(q);
    return r < 0 ? r : qcow2_co_commit(q);
}

/* --- create ---------------------------------------------------------------------------------- */

static struct qcow2_snapshot *new_snapshot(struct qcow2 *q, const char *name)
{
    struct qcow2_snapshot *s = calloc(1, sizeof(*s)), *other;
    unsigned long highest = 0;
    struct timespec now;

    if (!s) {
        return NULL;
    }
    list_init(&s->link);
    LIST_FOREACH (other, &q->snapshots.list, link) {
        highest = MAX(highest, strtoul(other->id, NULL, 10));
    }
    clock_gettime(CLOCK_REALTIME, &now);
    s->date_sec = (uint32_t)now.tv_sec;
    s->date_nsec = (uint32_t)now.tv_nsec;
    s->disk_size = block_node_size(q->node);
    s->icount = 0;                   /* what qemu-img stores; UINT64_MAX would be none */
    s->l1_size = MAX(q->l1.size, 1); /* a table without entries has no place */
    s->name = strdup(name);
    if (asprintf(&s->id, "%lu", highest + 1) < 0) {
        s->id = NULL;
    }
    if (!s->id || !s->name) {
        qcow2_snapshot_free(s);
        return NULL;
    }
    return s;
}

/* Everything is referenced twice when it returns 0. */
static int co_share_active(struct qcow2 *q, const uint64_t *l1, struct error *err)
{
    int r = qcow2_co_reference_all(q, l1, q->l1.size);

    if (r == -EFBIG || r == -EAGAIN) {
        return error_set(err, -r, "%s", strerror(-r));
    }
    if (r < 0) {
        return r == -ERANGE ? error_set(err, ERANGE,
                                        "Image '%s': refcounts of %u bits can't count one more "
                                        "snapshot",
                                        block_node_display_name(q->node), 1u << q->refcounts.order)
                            : failed(q, "raise the refcounts", r, err);
    }
    r = qcow2_co_update_copied(q);
    r = r < 0 ? r : qcow2_co_commit(q);
    if (r < 0) {
        qcow2_co_release_all(q, l1, q->l1.size);
        return failed(q, "update the L2 tables", r, err);
    }
    return 0;
}

static int co_create(struct qcow2 *q, struct qcow2_snapshot *s, const uint64_t *l1,
                     struct error *err)
{
    int r = co_share_active(q, l1, err);

    if (r < 0) {
        return r;
    }
    r = qcow2_co_write_l1_copy(q, l1, s->l1_size, false, &s->l1_offset);
    if (r < 0) {
        qcow2_co_release_all(q, l1, q->l1.size);
        return failed(q, "write the L1 table of a snapshot", r, err);
    }
    list_append(&q->snapshots.list, &s->link);
    q->header.incompatible &= ~INCOMPAT_DIRTY; /* by the same write as the switch */
    r = qcow2_co_switch_snapshots(q, err);
    if (r < 0) {
        list_remove(&s->link);
        q->header.incompatible |= q->version >= 3 ? INCOMPAT_DIRTY : 0;
        if (!atomic_load(&q->broken)) { /* else nobody knows what the header names */
            qcow2_co_release_all(q, l1, q->l1.size);
            co_free_l1(q, s->l1_offset, s->l1_size);
        }
    } else {
        qcow2_overlap_note_tables_locked(q, OVERLAP_INACTIVE_L2, l1, q->l1.size);
    }
    return r;
}

/* After a failure: refcounts and COPIED flags as they were. The mark goes only if that worked. */
static void co_settle_failure(struct qcow2 *q)
{
    int r = atomic_load(&q->broken) ? -EIO : 0;

    for (int i = 0; i < 2 && r == 0; i++) {
        r = qcow2_co_commit(q);
    }
    r = r < 0 ? r : qcow2_co_update_copied(q);
    r = r < 0 ? r : qcow2_co_commit(q);
    if (r == 0) {
        (void)co_set_dirty(q, false, NULL);
    }
}

int qcow2_co_snapshot_create(struct block_node *node, const char *name, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    AUTO_FREE uint64_t *l1 = copy_active_l1(q);
    struct qcow2_snapshot *s;
    int r = qcow2_refuse_broken(q, err);

    if (r < 0) {
        return r;
    }
    if (q->has_data_file) {
        return error_set(err, ENOTSUP,
                         "Image '%s' has an external data file, which can't hold snapshots",
                         block_node_display_name(node));
    }
    if (strlen(name) > SNAPSHOT_NAME_MAX) {
        return error_set(err, EINVAL,
                         "The name of the snapshot has %zu bytes; at most %d are allowed",
                         strlen(name), SNAPSHOT_NAME_MAX);
    }
    if (q->snapshots.count >= SNAPSHOTS_MAX) {
        return error_set(err, EFBIG, "%s", strerror(EFBIG));
    }
    s = new_snapshot(q, name);
    if (!l1 || !s) {
        qcow2_snapshot_free(s);
        return error_set(err, ENOMEM, "Out of memory");
    }
    r = qcow2_co_write_lazy_refcounts(q, err);
    r = r < 0 ? r : co_set_dirty(q, true, err);
    if (r == 0) {
        r = co_create(q, s, l1, err);
        if (r < 0) {
            co_settle_failure(q);
        }
    }
    if (r < 0) {
        qcow2_snapshot_free(s);
        return r;
    }
    r = qcow2_co_commit(q);
    return r < 0 ? failed(q, "write the metadata", r, err) : 0;
}

/* --- apply ----------------------------------------------------------------------------------- */

/* The snapshot's L1 table, long enough for its disk. */
static int co_read_snapshot_l1(struct qcow2 *q, const struct qcow2_snapshot *s, uint64_t **ret,
                               uint32_t *ret_entries, struct error *err)
{
    uint64_t needed = div_round_up(s->disk_size, qcow2_l2_span(q));
    AUTO_FREE uint64_t *l1 = NULL;
    uint64_t *longer;
    int r = qcow2_check_snapshot_l1(q, s, err);

    if (r < 0) {
        return r;
    }
    r = qcow2_co_read_l1(q, s->l1_offset, s->l1_size, &l1);
    if (r < 0) {
        return error_set_errno(err, -r, "Image '%s': the L1 table of snapshot '%s' can't be read",
                               block_node_display_name(q->node), s->id);
    }
    if (s->disk_size > INT64_MAX || needed * 8 > L1_BYTES_MAX) {
        return error_set(err, EINVAL, "Image '%s': snapshot '%s' has an invalid disk size",
                         block_node_display_name(q->node), s->id);
    }
    *ret_entries = (uint32_t)MAX(MAX(needed, s->l1_size), 1);
    longer = calloc(*ret_entries + 1u, 8);
    if (!longer) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    for (uint32_t i = 0; i < s->l1_size; i++) {
        longer[i] = l1[i] & ~ENTRY_COPIED;
    }
    *ret = longer;
    return 0;
}

/* Switch to a new L1 table that is on disk already; on failure the old one stays. */
static int co_switch_header(struct qcow2 *q, const uint64_t *l1, uint32_t entries, uint64_t offset,
                            uint64_t disk_size, struct error *err)
{
    AUTO_FREE uint64_t *old = copy_active_l1(q);
    uint64_t old_offset = q->l1.offset, old_disk_size = block_node_size(q->node);
    uint32_t old_entries = q->l1.size;
    int r;

    if (!old || qcow2_set_active_l1(q, l1, entries) < 0) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    q->l1.offset = offset;
    block_node_set_size(q->node, disk_size);
    r = qcow2_co_write_header(q, err);
    if (r < 0) {
        qcow2_set_active_l1(q, old, old_entries);
        q->l1.offset = old_offset;
        block_node_set_size(q->node, old_disk_size);
        return r;
    }
    (void)qcow2_fit_l2_cache(q); /* the disk may be larger now */
    return 0;
}

/* What an L1 table is to become, and what it is. */
struct apply {
    const struct qcow2_snapshot *snapshot;
    uint64_t *l1, *old;
    uint32_t entries, old_entries;
    uint64_t offset, old_offset; /* in the file */
};

static void apply_release(struct apply *a)
{
    free(a->l1);
    free(a->old);
}

static int count_failed(struct qcow2 *q, int r, struct error *err)
{
    return r == -ERANGE
               ? error_set(err, ERANGE,
                           "Image '%s': refcounts of %u bits can't count one more reference to the "
                           "clusters of the snapshot",
                           block_node_display_name(q->node), 1u << q->refcounts.order)
               : failed(q, "apply a snapshot", r, err);
}

/* The snapshot's clusters are counted once more already. */
static int co_apply_counted(struct qcow2 *q, struct apply *a, struct error *err)
{
    int r = qcow2_co_write_l1_copy(q, a->l1, a->entries, false, &a->offset);

    r = r < 0 ? r : qcow2_co_commit(q);
    if (r < 0) {
        (void)co_release(q, a->l1, a->entries, a->offset);
        return failed(q, "apply a snapshot", r, err);
    }
    r = co_switch_header(q, a->l1, a->entries, a->offset, a->snapshot->disk_size, err);
    if (r < 0) {
        if (!atomic_load(&q->broken)) { /* else nobody knows what the header names */
            (void)co_release(q, a->l1, a->entries, a->offset);
        }
        return r;
    }
    r = co_release(q, a->old, a->old_entries, a->old_offset);
    return r < 0 ? failed(q, "free the clusters", r, err) : 0;
}

/* Count the references of one table instead of those of another. They are as they were if it fails. */
static int co_count_instead(struct qcow2 *q, const uint64_t *gone, uint32_t gone_entries,
                            const uint64_t *come, uint32_t come_entries)
{
    int r = qcow2_co_unreference_all(q, gone, gone_entries);

    if (r == 0 && (r = qcow2_co_reference_all(q, come, come_entries)) < 0 &&
        qcow2_co_reference_all(q, gone, gone_entries) < 0) {
        atomic_store(&q->broken, true); /* the next open repairs: it is dirty */
    }
    return r;
}

/* The dirty bit is stable, and there is the new table. */
static int co_exchange(struct qcow2 *q, struct apply *a, struct error *err)
{
    int r = co_count_instead(q, a->old, a->old_entries, a->l1, a->entries);

    if (r < 0) {
        return count_failed(q, r, err);
    }
    r = qcow2_co_commit(q);
    r = r < 0 ? failed(q, "write the refcounts", r, err)
              : co_switch_header(q, a->l1, a->entries, a->offset, a->snapshot->disk_size, err);
    if (r < 0 && !atomic_load(&q->broken) &&
        co_count_instead(q, a->l1, a->entries, a->old, a->old_entries) < 0) {
        atomic_store(&q->broken, true);
    }
    return r;
}

/*
 * The refcounts of clusters that the snapshot and the disk share are full: they can be counted once more when the disk has given up
 * its references. Nothing is allocated meanwhile, and nothing that is free then is written to before the switch.
 */
static int co_apply_full(struct qcow2 *q, struct apply *a, struct error *err)
{
    int r = qcow2_co_write_l1_copy(q, a->l1, a->entries, false, &a->offset);

    r = r < 0 ? r : qcow2_co_commit(q);
    if (r < 0) {
        return failed(q, "apply a snapshot", r, err);
    }
    r = co_set_dirty(q, true, err);
    r = r < 0 ? r : co_exchange(q, a, err);
    if (r < 0) {
        if (!atomic_load(&q->broken)) {
            qcow2_co_free_new_clusters(q, a->offset, MAX((uint64_t)a->entries * 8, 8));
            co_settle_failure(q);
        }
        return r;
    }
    r = co_free_l1(q, a->old_offset, a->old_entries);
    r = r < 0 ? r : qcow2_co_commit(q);
    return r < 0 ? failed(q, "free the clusters", r, err) : 0;
}

static int co_apply(struct qcow2 *q, struct apply *a, struct error *err)
{
    int r = qcow2_co_reference_all(q, a->l1, a->entries);

    if (r == 0) {
        r = co_apply_counted(q, a, err);
    } else if (r == -ERANGE && q->version >= 3) {
        r = co_apply_full(q, a, err);
    } else {
        r = count_failed(q, r, err);
    }
    if (r == 0 && (r = qcow2_co_update_copied(q)) == 0) {
        r = qcow2_co_commit(q);
    }
    return r < 0 || !(q->header.incompatible & INCOMPAT_DIRTY) ? r : co_set_dirty(q, false, err);
}

int qcow2_co_snapshot_apply(struct block_node *node, const char *id_or_name, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    CLEANUP(apply_release) struct apply a = {.snapshot = find_any(q, id_or_name, err)};
    ERROR_AUTO(why);
    int r = a.snapshot ? qcow2_refuse_broken(q, err) : -ENOENT;

    if (r < 0) {
        return r;
    }
    if ((r = qcow2_check_snapshot_l1(q, a.snapshot, &why)) < 0) {
        log_error("%s", error_message(&why));
        return error_set_errno(err, -r, "Failed to load snapshot");
    }
    if (!list_is_empty(&node->bitmaps) || !list_is_empty(&q->bitmaps.stored)) {
        return error_set(err, ENOTSUP,
                         "Image '%s' has dirty bitmaps, which would not know what a snapshot "
                         "changes; remove them first",
                         block_node_display_name(node));
    }
    r = co_read_snapshot_l1(q, a.snapshot, &a.l1, &a.entries, err);
    r = r < 0 ? r : qcow2_co_write_lazy_refcounts(q, err);
    if (r < 0) {
        return r;
    }
    a.old = copy_active_l1(q);
    a.old_entries = q->l1.size;
    a.old_offset = q->l1.offset;
    return a.old ? co_apply(q, &a, err) : error_set(err, ENOMEM, "Out of memory");
}

/* --- delete ---------------------------------------------------------------------------------- */

int qcow2_co_snapshot_delete(struct block_node *node, const char *id_or_name, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    struct qcow2_snapshot *s = find_any(q, id_or_name, err);
    AUTO_FREE uint64_t *l1 = NULL;
    struct list *after;
    int r = s ? qcow2_refuse_broken(q, err) : -ENOENT;

    if (r < 0) {
        return r;
    }
    if ((r = qcow2_check_snapshot_l1(q, s, err)) < 0) {
        return r;
    }
    r = qcow2_co_read_l1(q, s->l1_offset, s->l1_size, &l1);
    if (r < 0) {
        return failed(q, "read the L1 table of a snapshot", r, err);
    }
    if ((r = qcow2_co_write_lazy_refcounts(q, err)) < 0) {
        return r;
    }
    after = s->link.prev;
    list_remove(&s->link);
    q->header.incompatible |=
        q->version >= 3 ? INCOMPAT_DIRTY : 0; /* by the same write as the switch */
    r = qcow2_co_switch_snapshots(q, err);
    if (r < 0) {
        list_insert_between_(&s->link, after, after->next);
        q->header.incompatible &= ~INCOMPAT_DIRTY;
        return r;
    }
    r = co_release(q, l1, s->l1_size, s->l1_offset);
    qcow2_snapshot_free(s);
    r = r < 0 ? r : qcow2_co_update_copied(q);
    r = r < 0 ? r : qcow2_co_commit(q);
    r = r == 0 && atomic_load(&q->broken) ? -EIO
                                          : r; /* found when the references were given back */
    if (r < 0) {
        /* The snapshot is gone, what it had is leaked until the next open repairs. To say so again when it is closed is of no use. */
        q->close_failure_reported = node->close_reported = true;
        fprintf(stderr, "qcow2_free_clusters failed: %s\n", strerror(-r));
        return error_set_errno(err, -r, "Failed to free the cluster and L1 table");
    }
    return co_set_dirty(q, false, err);
}

/* --- list, show ------------------------------------------------------------------------------ */

int qcow2_co_snapshot_list(struct block_node *node, struct block_snapshot_info **ret,
                           size_t *ret_count, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    struct block_snapshot_info *infos = calloc(q->snapshots.count + 1u, sizeof(*infos));
    const struct qcow2_snapshot *s;
    size_t n = 0;

    if (!infos) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    LIST_FOREACH (s, &q->snapshots.list, link) {
        struct block_snapshot_info *i = &infos[n++];

        snprintf(i->id, sizeof(i->id), "%s", s->id);
        snprintf(i->name, sizeof(i->name), "%s", s->name);
        i->vm_state_size = s->vm_state_size;
        i->date_sec = s->date_sec;
        i->date_nsec = s->date_nsec;
        i->vm_clock_nsec = s->vm_clock_nsec;
        i->disk_size = s->disk_size;
        i->icount = s->icount;
    }
    *ret = infos;
    *ret_count = n;
    return 0;
}

int qcow2_co_snapshot_show(struct block_node *node, const char *id, const char *name,
                           struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    const struct qcow2_snapshot *s = find(q, id, name);
    AUTO_FREE uint64_t *l1 = NULL;
    uint32_t entries = 0;
    int r;

    if (!q->read_only) {
        return error_set(err, EINVAL, "A snapshot can only be shown by a read-only node");
    }
    if (!s) {
        return error_set(err, ENOENT, "Can't find snapshot '%s' in '%s'", id ? id : name,
                         block_node_display_name(node));
    }
    r = co_read_snapshot_l1(q, s, &l1, &entries, err);
    if (r < 0) {
        return r;
    }
    if (qcow2_set_active_l1(q, l1, entries) < 0) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    block_node_set_size(node, s->disk_size);
    return 0;
}

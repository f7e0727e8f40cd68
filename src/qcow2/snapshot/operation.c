/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/snapshot/operation.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "qcow2/header/header.h"
#include "qcow2/snapshot/references.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/l1.h"

int qcow2_co_write_dirty_bit(struct qcow2 *q, bool dirty, struct error *err)
{
    if (q->version < 3) {
        return 0;
    }
    q->header.incompatible =
        dirty ? q->header.incompatible | INCOMPAT_DIRTY : q->header.incompatible & ~INCOMPAT_DIRTY;
    return qcow2_co_write_header(q, err);
}

int qcow2_snapshot_failed(struct qcow2 *q, const char *what, int r, struct error *err)
{
    return error_set_errno(err, -r, "Could not %s of '%s'", what, block_node_display_name(q->node));
}

struct qcow2_snapshot *qcow2_find_snapshot(struct qcow2 *q, const char *id, const char *name)
{
    struct qcow2_snapshot *s;

    LIST_FOREACH (s, &q->snapshots.list, link) {
        if ((!id || strcmp(s->id, id) == 0) && (!name || strcmp(s->name, name) == 0)) {
            return s;
        }
    }
    return NULL;
}

struct qcow2_snapshot *qcow2_find_snapshot_by_id_or_name(struct qcow2 *q, const char *id_or_name,
                                                         struct error *err)
{
    struct qcow2_snapshot *s = qcow2_find_snapshot(q, id_or_name, NULL);

    s = s ? s : qcow2_find_snapshot(q, NULL, id_or_name);
    if (!s) {
        error_set(err, ENOENT, "snapshot not found");
    }
    return s;
}

uint64_t *qcow2_copy_active_l1(const struct qcow2 *q)
{
    uint64_t *l1 = calloc(q->l1.size + 1u, 8);

    for (uint32_t i = 0; l1 && i < q->l1.size; i++) {
        l1[i] = atomic_load_explicit(&q->l1.entries[i], memory_order_relaxed);
    }
    return l1;
}

int qcow2_co_free_l1(struct qcow2 *q, uint64_t offset, uint32_t entries)
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

int qcow2_co_release_l1(struct qcow2 *q, const uint64_t *l1, uint32_t entries, uint64_t l1_offset)
{
    int r = qcow2_co_release_all(q, l1, entries);

    if (r == 0 && l1_offset != 0) {
        r = qcow2_co_free_l1(q, l1_offset, entries);
    }
    /* The first commit lowers refcounts in memory, the second writes them. */
    UNLESS_FAILED(r, qcow2_co_commit(q));
    return UNLESS_FAILED(r, qcow2_co_commit(q));
}

void qcow2_co_recover_from_failure(struct qcow2 *q)
{
    int r = atomic_load(&q->broken) ? -EIO : 0;

    for (int i = 0; i < 2 && r == 0; i++) {
        r = qcow2_co_commit(q);
    }
    UNLESS_FAILED(r, qcow2_co_update_copied(q));
    UNLESS_FAILED(r, qcow2_co_commit(q));
    if (r == 0) {
        (void)qcow2_co_write_dirty_bit(q, false, NULL);
    }
}

int qcow2_co_read_snapshot_l1(struct qcow2 *q, const struct qcow2_snapshot *s, uint64_t **ret_l1,
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
        return error_out_of_memory(err);
    }
    for (uint32_t i = 0; i < s->l1_size; i++) {
        longer[i] = l1[i] & ~ENTRY_COPIED;
    }
    *ret_l1 = longer;
    return 0;
}

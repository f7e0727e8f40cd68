/* SPDX-License-Identifier: Apache-2.0 */
/* Internal snapshots: deleting one. The steps are drawn in operation.h. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/snapshot/operation.h"
#include "qcow2/snapshot/references.h"
#include "qcow2/snapshot/table.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/l1.h"
#include "qcow2/table/verdict.h"

/*
 * Releases the references of a snapshot that the header does not name any more. After a failure its
 * clusters are leaked until the next open repairs the image.
 */
static int co_release_deleted(struct qcow2 *q, const struct qcow2_snapshot *s, const uint64_t *l1,
                              struct error *err)
{
    int r = qcow2_co_release_l1(q, l1, s->l1_size, s->l1_offset);

    UNLESS_FAILED(r, qcow2_co_update_copied(q));
    UNLESS_FAILED(r, qcow2_co_commit(q));
    if (r == 0 && atomic_load(&q->broken)) {
        r = -EIO; /* corruption was found while the references were released */
    }
    if (r == 0) {
        return 0;
    }
    /* Closing the image would fail for the same reason: report it once. */
    q->close_failure_reported = q->node->close_reported = true;
    log_report(LOG_LEVEL_ERROR, "qcow2_free_clusters failed: %s", strerror(-r));
    return error_set_errno(err, -r, "Failed to free the cluster and L1 table");
}

int qcow2_co_snapshot_delete(struct block_node *node, const char *id_or_name, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    struct qcow2_snapshot *s = qcow2_find_snapshot_by_id_or_name(q, id_or_name, err);
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
        return qcow2_snapshot_failed(q, "read the L1 table of a snapshot", r, err);
    }
    if ((r = qcow2_co_write_lazy_refcounts(q, err)) < 0) {
        return r;
    }
    after = s->link.prev;
    list_remove(&s->link);
    q->header.incompatible |= q->version >= 3 ? INCOMPAT_DIRTY : 0; /* in the write that switches */
    r = qcow2_co_switch_snapshots(q, err);
    if (r < 0) {
        list_insert_between_(&s->link, after, after->next);
        q->header.incompatible &= ~INCOMPAT_DIRTY;
        return r;
    }
    r = co_release_deleted(q, s, l1, err);
    qcow2_snapshot_free(s);
    return UNLESS_FAILED(r, qcow2_co_write_dirty_bit(q, false, err));
}

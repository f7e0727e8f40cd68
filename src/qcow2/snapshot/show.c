/* SPDX-License-Identifier: Apache-2.0 */
/* Internal snapshots: listing them, and showing one instead of the disk. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "qcow2/snapshot/operation.h"
#include "qcow2/table/new_table.h"

int qcow2_co_snapshot_list(struct block_node *node, struct block_snapshot_info **ret_infos,
                           size_t *ret_count, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    struct block_snapshot_info *infos = calloc(q->snapshots.count + 1u, sizeof(*infos));
    const struct qcow2_snapshot *s;
    size_t n = 0;

    if (!infos) {
        return error_out_of_memory(err);
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
    *ret_infos = infos;
    *ret_count = n;
    return 0;
}

int qcow2_co_snapshot_show(struct block_node *node, const char *id, const char *name,
                           struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    const struct qcow2_snapshot *s = qcow2_find_snapshot(q, id, name);
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
    r = qcow2_co_read_snapshot_l1(q, s, &l1, &entries, err);
    if (r < 0) {
        return r;
    }
    if (qcow2_co_set_active_l1(q, l1, entries) < 0) {
        return error_out_of_memory(err);
    }
    block_node_set_size(node, s->disk_size);
    return 0;
}

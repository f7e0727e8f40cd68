/* SPDX-License-Identifier: Apache-2.0 */
/* Internal snapshots: creating one. The steps are drawn in operation.h. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "block/control.h"
#include "qcow2/data/data.h"
#include "qcow2/snapshot/operation.h"
#include "qcow2/snapshot/references.h"
#include "qcow2/snapshot/table.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/new_table.h"
#include "qcow2/table/verdict.h"

static struct qcow2_snapshot *new_snapshot(struct qcow2 *q, const char *name,
                                           const struct block_snapshot_vm *vm)
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
    s->icount = vm ? UINT64_MAX : 0; /* none; without a machine 0, as stored by qemu-img */
    s->vm_state_size = vm ? vm->state_size : 0;
    s->vm_clock_nsec = vm ? vm->clock_nsec : 0;
    s->l1_size = MAX(q->l1.size, 1); /* a table without entries would have no cluster */
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

/* Adds the references of the snapshot to those of the disk. */
static int co_reference_active_twice(struct qcow2 *q, const uint64_t *l1, struct error *err)
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
                            : qcow2_snapshot_failed(q, "raise the refcounts", r, err);
    }
    r = qcow2_co_update_copied(q);
    UNLESS_FAILED(r, qcow2_co_commit(q));
    if (r < 0) {
        qcow2_co_release_all(q, l1, q->l1.size);
        return qcow2_snapshot_failed(q, "update the L2 tables", r, err);
    }
    return 0;
}

static int co_create_snapshot(struct qcow2 *q, struct qcow2_snapshot *s, const uint64_t *l1,
                              struct error *err)
{
    int r = co_reference_active_twice(q, l1, err);

    if (r < 0) {
        return r;
    }
    r = qcow2_co_write_l1_copy(q, l1, s->l1_size, false, &s->l1_offset);
    if (r < 0) {
        qcow2_co_release_all(q, l1, q->l1.size);
        return qcow2_snapshot_failed(q, "write the L1 table of a snapshot", r, err);
    }
    list_append(&q->snapshots.list, &s->link);
    q->header.incompatible &= ~INCOMPAT_DIRTY; /* in the write that switches */
    r = qcow2_co_switch_snapshots(q, err);
    if (r < 0) {
        list_remove(&s->link);
        q->header.incompatible |= q->version >= 3 ? INCOMPAT_DIRTY : 0;
        if (!atomic_load(&q->broken)) { /* else it is unknown which table the header names */
            qcow2_co_release_all(q, l1, q->l1.size);
            qcow2_co_free_l1(q, s->l1_offset, s->l1_size);
        }
    } else {
        co_mutex_lock(&q->lock);
        qcow2_overlap_note_tables_locked(q, OVERLAP_INACTIVE_L2, l1, q->l1.size);
        co_mutex_unlock(&q->lock);
    }
    return r;
}

/* The disk does not need the VM state any more, which the snapshot has. */
static int co_drop_vm_state(struct qcow2 *q, const struct block_snapshot_vm *vm)
{
    return vm && vm->state_size > 0
               ? qcow2_co_drop_clusters(q, qcow2_vmstate_offset(q, block_node_size(q->node)),
                                        round_up(vm->state_size, q->cluster_size))
               : 0;
}

int qcow2_co_snapshot_create(struct block_node *node, const char *name,
                             const struct block_snapshot_vm *vm, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    AUTO_FREE uint64_t *l1 = qcow2_copy_active_l1(q);
    struct qcow2_snapshot *s;
    int r = qcow2_refuse_broken(q, err);

    if (r < 0) {
        return r;
    }
    if (q->has_data_file) {
        return error_set(err, ENOTSUP, "%s", strerror(ENOTSUP)); /* QEMU's words */
    }
    if (strlen(name) > SNAPSHOT_NAME_MAX) {
        return error_set(err, EINVAL,
                         "The name of the snapshot has %zu bytes; at most %d are allowed",
                         strlen(name), SNAPSHOT_NAME_MAX);
    }
    if (q->snapshots.count >= SNAPSHOTS_MAX) {
        return error_set(err, EFBIG, "%s", strerror(EFBIG));
    }
    s = new_snapshot(q, name, vm);
    if (!l1 || !s) {
        qcow2_snapshot_free(s);
        return error_out_of_memory(err);
    }
    r = qcow2_co_write_lazy_refcounts(q, err);
    UNLESS_FAILED(r, qcow2_co_write_dirty_bit(q, true, err));
    if (r == 0) {
        r = co_create_snapshot(q, s, l1, err);
        if (r < 0) {
            qcow2_co_recover_from_failure(q);
        }
    }
    if (r < 0) {
        qcow2_snapshot_free(s);
        return r;
    }
    r = co_drop_vm_state(q, vm);
    UNLESS_FAILED(r, qcow2_co_commit(q));
    return r < 0 ? qcow2_snapshot_failed(q, "write the metadata", r, err) : 0;
}

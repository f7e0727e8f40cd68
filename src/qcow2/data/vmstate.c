/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VM state is mapped like the disk, from the first guest offset after the disk that an L2 table
 * begins with. So snapshots contain it.
 */
#include <errno.h>

#include "qcow2/data/data.h"
#include "qcow2/resize.h"

/* Guest offset of byte `offset` of the VM state. -EFBIG if no L1 table can map it. */
static int vmstate_guest_offset(const struct qcow2 *q, uint64_t offset, uint64_t length,
                                uint64_t *ret_value)
{
    uint64_t base = qcow2_vmstate_offset(q, block_node_size(q->node));
    uint64_t limit = (L1_BYTES_MAX / 8) * qcow2_l2_span(q);

    if (base > limit || offset > limit - base || length > limit - base - offset) {
        return -EFBIG;
    }
    *ret_value = base + offset;
    return 0;
}

int qcow2_co_preadv_vmstate(struct block_node *node, uint64_t offset, struct iov iov)
{
    struct qcow2 *q = qcow2_state(node);
    uint64_t at;
    int r = vmstate_guest_offset(q, offset, iov.size, &at);

    block_co_event(node->file, BLOCK_EVENT_VMSTATE_LOAD);
    return r < 0 ? r : qcow2_co_preadv(node, at, iov, 0);
}

int qcow2_co_pwritev_vmstate(struct block_node *node, uint64_t offset, struct iov iov)
{
    struct qcow2 *q = qcow2_state(node);
    uint64_t at;
    int r = vmstate_guest_offset(q, offset, iov.size, &at);

    block_co_event(node->file, BLOCK_EVENT_VMSTATE_SAVE);
    if (r < 0 || iov.size == 0) {
        return r;
    }
    r = qcow2_co_grow_l1(q, (uint32_t)div_round_up(at + iov.size, qcow2_l2_span(q)), NULL);
    return r < 0 ? r : qcow2_co_pwritev(node, at, iov, 0);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading: map a run, read it from where it is, continue with the next run.
 *
 * Reading takes no lock of the image, except for clusters that a write to other bytes of the same
 * cluster moves, that is compressed and shared ones: their old place could be freed and reused
 * before it is read. They are mapped again and read with the guest range held. A read that is
 * concurrent with a discard of the same bytes may return anything that the disk holds.
 */
#include <errno.h>
#include <string.h>

#include "co/co.h"
#include "qcow2/data/compress.h"
#include "qcow2/data/crypt.h"
#include "qcow2/data/data.h"
#include "qcow2/header/mark_corrupt.h"
#include "qcow2/table/map.h"

struct backing_read {
    struct block_edge *edge;
    uint64_t offset;
    struct iov iov;
    unsigned flags;
    int result;
};

static void co_read_backing_deep(void *arg)
{
    struct backing_read *b = arg;

    b->result = block_co_preadv(b->edge, b->offset, b->iov, b->flags);
}

/* The reads of a chain of images are nested, so a long chain needs more stack. */
static int co_read_below(struct block_edge *backing, uint64_t offset, struct iov iov,
                         unsigned flags)
{
    struct backing_read b;
    int r;

    if (!co_stack_is_low()) {
        return block_co_preadv(backing, offset, iov, flags);
    }
    b = (struct backing_read){.edge = backing, .offset = offset, .iov = iov, .flags = flags};
    r = co_call_deep(co_read_backing_deep, &b);
    return r < 0 ? r : b.result;
}

/* Read from the backing file. Beyond its end are zeroes. */
static int co_read_backing(struct qcow2 *q, uint64_t offset, struct iov iov, unsigned flags)
{
    struct block_edge *backing = q->node->backing;
    uint64_t size = block_edge_size(backing);
    size_t inside = offset < size ? MIN(iov.size, size - offset) : 0;
    IOV_PART_AUTO(part);
    int r;

    block_co_event(q->node->file, BLOCK_EVENT_READ_BACKING_AIO);
    if (inside == iov.size) {
        return co_read_below(backing, offset, iov, flags);
    }
    iov_fill(iov, inside, 0, iov.size - inside);
    if (inside == 0) {
        return 0;
    }
    r = iov_part_set(&part, iov, 0, inside);
    return r < 0 ? r : co_read_below(backing, offset, part.iov, flags);
}

static int co_read_run(struct qcow2 *q, const struct qcow2_run *run, uint64_t offset,
                       struct iov iov, unsigned flags)
{
    switch (run->type) {
    case CLUSTER_NORMAL:
        block_co_event(q->node->file, BLOCK_EVENT_READ_AIO);
        return q->crypt_method != CRYPT_NONE && !(flags & BLOCK_REQ_PREFETCH)
                   ? qcow2_co_read_encrypted(q, offset, run->host, iov)
                   : block_co_preadv(q->data, run->host, iov, flags);
    case CLUSTER_COMPRESSED: /* not read by this function */
        return -EIO;
    case CLUSTER_UNALLOCATED:
    case CLUSTER_UNALLOCATED_HAS_HOST:
        if (q->node->backing) {
            return co_read_backing(q, offset, iov, flags);
        }
        break;
    case CLUSTER_ZERO:
    case CLUSTER_ZERO_ALLOC:
        break;
    }
    iov_fill(iov, 0, 0, iov.size);
    return 0;
}

/*
 * Read the compressed clusters that the request begins with; *ret_done is 0 if it no longer begins
 * with one. `held`: the caller holds the guest range.
 */
static int co_read_compressed(struct qcow2 *q, uint64_t offset, struct iov iov, bool held,
                              size_t *ret_done)
{
    size_t most = (size_t)qcow2_batch_clusters(q) << q->cluster_bits;
    struct range_entry range;
    int r;

    if (held) {
        return qcow2_co_read_compressed(q, offset, iov, ret_done);
    }
    co_range_lock(&q->guest, &range, offset, MIN(iov.size, most), false);
    r = qcow2_co_read_compressed(q, offset, iov, ret_done);
    range_unlock(&q->guest, &range);
    return r;
}

/*
 * Read the part of the request that is in the first run. It is empty if the run has just changed.
 */
static int co_read_first(struct qcow2 *q, uint64_t offset, struct iov iov, unsigned flags,
                         bool held, size_t *ret_done)
{
    IOV_PART_AUTO(part);
    struct range_entry range;
    struct qcow2_run run;
    bool lock;
    int r = qcow2_co_map(q, offset, iov.size, &run);

    if (r < 0) {
        return r;
    }
    if (run.type == CLUSTER_COMPRESSED) {
        return co_read_compressed(q, offset, iov, held, ret_done);
    }
    /* A write to other bytes of a shared cluster moves it. */
    lock = !held && run.type == CLUSTER_NORMAL && !run.copied;
    if (lock) {
        co_range_lock(&q->guest, &range, offset, run.length, false);
        r = qcow2_co_map(q, offset, run.length, &run);
        if (r == 0 && run.type == CLUSTER_COMPRESSED) {
            range_unlock(&q->guest, &range);
            *ret_done = 0;
            return 0;
        }
    }
    if (r == 0) {
        *ret_done = run.length;
        if (run.length < iov.size) {
            r = iov_part_set(&part, iov, 0, run.length);
            iov = part.iov;
        }
    }
    UNLESS_FAILED(r, co_read_run(q, &run, offset, iov, flags));
    if (lock) {
        range_unlock(&q->guest, &range);
    }
    return r;
}

static int co_read_range(struct qcow2 *q, uint64_t offset, struct iov iov, unsigned flags,
                         bool held)
{
    IOV_PART_AUTO(part);
    size_t done = 0, n = 0;
    int r = co_read_first(q, offset, iov, flags, held, &done);

    for (; r == 0; done += n) {
        if (done >= iov.size) {
            return 0;
        }
        n = 0;
        r = iov_part_set(&part, iov, done, iov.size - done);
        UNLESS_FAILED(r, co_read_first(q, offset + done, part.iov, flags, held, &n));
    }
    return qcow2_co_conclude(q, r);
}

int qcow2_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    return co_read_range(qcow2_state(node), offset, iov, flags & BLOCK_REQ_PREFETCH, false);
}

int qcow2_co_read_guest_range_held(struct qcow2 *q, uint64_t offset, void *buf, size_t size)
{
    /* The VM state after the disk has contents as well; nothing is between them. */
    uint64_t disk_end = block_node_size(q->node);
    uint64_t end = offset < qcow2_vmstate_offset(q, disk_end) ? disk_end : UINT64_MAX;
    size_t inside = offset < end ? MIN(size, end - offset) : 0;
    struct iovec vec;
    int r = 0;

    if (inside > 0) {
        r = co_read_range(q, offset, iov_from_buf(&vec, buf, inside), 0, true);
    }
    memset((char *)buf + inside, 0, size - inside);
    return r;
}

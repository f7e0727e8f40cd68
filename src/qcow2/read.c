/* SPDX-License-Identifier: Apache-2.0 */
/* Reading: map a run, pass it on, go on with the next. Takes no lock of the image. */
#include <errno.h>
#include <string.h>

#include "qcow2/state.h"

/* Read from the backing file; what lies behind its end is zero. */
static int co_read_backing(struct qcow2 *q, uint64_t offset, struct iov iov)
{
    struct block_edge *backing = q->node->backing;
    uint64_t size = block_edge_size(backing);
    size_t inside = offset < size ? MIN(iov.size, size - offset) : 0;
    IOV_PART_AUTO(part);
    int r;

    if (inside == iov.size) {
        return block_co_preadv(backing, offset, iov, 0);
    }
    iov_fill(iov, inside, 0, iov.size - inside);
    if (inside == 0) {
        return 0;
    }
    r = iov_part_set(&part, iov, 0, inside);
    return r < 0 ? r : block_co_preadv(backing, offset, part.iov, 0);
}

static int co_read_run(struct qcow2 *q, const struct qcow2_run *run, uint64_t offset,
                       struct iov iov)
{
    switch (run->type) {
    case CLUSTER_NORMAL:
        return block_co_preadv(q->node->file, run->host, iov, 0);
    case CLUSTER_COMPRESSED:
        return qcow2_co_read_compressed(q, run->host, offset & (q->cluster_size - 1), iov);
    case CLUSTER_UNALLOCATED:
        if (q->node->backing) {
            return co_read_backing(q, offset, iov);
        }
        break;
    case CLUSTER_ZERO:
    case CLUSTER_ZERO_ALLOC:
        break;
    }
    iov_fill(iov, 0, 0, iov.size);
    return 0;
}

/* A request over several runs. */
static int co_read_pieces(struct qcow2 *q, uint64_t offset, struct iov iov)
{
    IOV_PART_AUTO(part);
    size_t done = 0;

    while (done < iov.size) {
        struct qcow2_run run;
        int r = qcow2_co_map(q, offset + done, iov.size - done, &run);

        if (r < 0) {
            return r;
        }
        r = iov_part_set(&part, iov, done, run.length);
        r = r < 0 ? r : co_read_run(q, &run, offset + done, part.iov);
        if (r < 0) {
            return r;
        }
        done += run.length;
    }
    return 0;
}

int qcow2_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    struct qcow2 *q = qcow2_state(node);
    struct qcow2_run run;
    int r = qcow2_co_map(q, offset, iov.size, &run);

    if (r < 0) {
        return r;
    }
    if (run.length == iov.size) {
        return co_read_run(q, &run, offset, iov);
    }
    return co_read_pieces(q, offset, iov);
}

int qcow2_co_read_old(struct qcow2 *q, uint64_t offset, void *buf, size_t size)
{
    uint64_t end = block_node_size(q->node);
    size_t inside = offset < end ? MIN(size, end - offset) : 0;
    struct iovec vec;
    int r = 0;

    if (inside > 0) {
        r = qcow2_co_preadv(q->node, offset, iov_from_buf(&vec, buf, inside), 0);
    }
    memset((char *)buf + inside, 0, size - inside);
    return r;
}

int qcow2_co_is_zero(struct qcow2 *q, uint64_t offset, uint64_t length, bool *ret)
{
    *ret = false;
    while (length > 0) {
        struct qcow2_run run;
        int r = qcow2_co_map(q, offset, length, &run);

        if (r < 0) {
            return r;
        }
        if (run.type == CLUSTER_NORMAL || run.type == CLUSTER_COMPRESSED) {
            return 0;
        }
        if (run.type == CLUSTER_UNALLOCATED && q->node->backing &&
            offset < block_edge_size(q->node->backing)) {
            return 0;
        }
        offset += run.length;
        length -= run.length;
    }
    *ret = true;
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading and writing guest data and the VM state. Offsets and lengths are guest bytes.
 *
 * All functions yield. The block_driver ones run on any reactor, several at a time.
 */
#ifndef TIDEMARK_QCOW2_DATA_DATA_H
#define TIDEMARK_QCOW2_DATA_DATA_H

#include "qcow2/bitmap/bitmap.h"
#include "qcow2/header/mark_corrupt.h"
#include "qcow2/image.h"

/*
 * Every change of guest data begins here: 0 if the image takes writes and its persistent bitmaps
 * are marked in use (R5). Else what qcow2_check_writable() or marking them returns.
 */
static inline int qcow2_co_begin_change(struct qcow2 *q)
{
    int r = qcow2_check_writable(q);

    if (r < 0 || atomic_load_explicit(&q->bitmaps.marked, memory_order_acquire)) {
        return r;
    }
    return qcow2_co_conclude(q, qcow2_co_mark_before_change(q));
}

/* block_driver.co_preadv. Of the flags BLOCK_REQ_PREFETCH is passed down. */
int qcow2_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);

/* block_driver.co_read_pages. */
int qcow2_co_read_pages(struct block_node *node, uint64_t offset, uint64_t length,
                        struct block_page_sink *sink);

/* block_driver.co_pwritev for data that are stored plain. None of the flags is passed down. */
int qcow2_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);

/*
 * block_driver.co_write_zeroes. -ENOTSUP where zeroes have to be written: in version 2, and for a
 * part of a subcluster whose rest is not zero.
 */
int qcow2_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                          unsigned flags);

/* block_driver.co_discard. -ENOTSUP in version 2 if it would expose the backing file. */
int qcow2_co_discard(struct block_node *node, uint64_t offset, uint64_t length);

/*
 * Make whole clusters read as zeroes, also beyond the end of the disk; those that are allocated
 * keep their host clusters.
 */
int qcow2_co_zero_clusters(struct qcow2 *q, uint64_t offset, uint64_t length);

/* Remove the mappings of whole clusters, also beyond the end of the disk. */
int qcow2_co_drop_clusters(struct qcow2 *q, uint64_t offset, uint64_t length);

/*
 * Read into a flat buffer while the caller holds the guest range. What is beyond the end of the
 * disk reads as zeroes, except the VM state.
 */
int qcow2_co_read_guest_range_held(struct qcow2 *q, uint64_t offset, void *buf, size_t size);

/*
 * Guest offset of the VM state of a disk of `size` bytes: the first one behind the disk that an L2
 * table begins with. Does not yield.
 */
static inline uint64_t qcow2_vmstate_offset(const struct qcow2 *q, uint64_t size)
{
    return round_up(size, qcow2_l2_span(q));
}

/* block_driver.co_preadv_vmstate and co_pwritev_vmstate. The node is drained. -EFBIG. */
int qcow2_co_preadv_vmstate(struct block_node *node, uint64_t offset, struct iov iov);
int qcow2_co_pwritev_vmstate(struct block_node *node, uint64_t offset, struct iov iov);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A quorum: several children have the same contents. A write goes to all of them. A read returns
 * the data that at least `vote-threshold` of them agree on. A child that fails or disagrees is
 * reported (block/vote.h), and corrected with `rewrite-corrupted`.
 *
 *   read   from all at once -> all equal: done
 *                           -> else: once more, excluding writes to the range, one of which may
 *                              have reached only some children
 *                              -> vote -> the largest group, if it is large enough; others are bad
 *
 * Writes that overlap are made one after the other: all children get the data of the same one.
 *
 * With read-pattern=fifo a read returns the data of the first child that does not fail. Discards
 * have no effect: children could read different bytes afterwards.
 */
#ifndef TIDEMARK_FILTER_QUORUM_H
#define TIDEMARK_FILTER_QUORUM_H

#include "block/driver.h"

#define QUORUM_CHILDREN_MAX 32

enum quorum_pattern { QUORUM_READ_VOTE, QUORUM_READ_FIFO };

struct quorum {
    struct block_edge *children[QUORUM_CHILDREN_MAX];
    int count, threshold;
    int next_index; /* in the name of the next child that is added */
    bool verify, rewrite;
    int pattern; /* enum quorum_pattern */
    /* Writes in flight, and reads that vote: all children get overlapping writes in one order. */
    struct range_lock writes;
};

/* Requests, as struct block_driver has them. */
int quorum_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);
int quorum_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);
int quorum_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                           unsigned flags);
int quorum_co_flush(struct block_node *node);
int quorum_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                     struct block_status *ret_status);

#endif

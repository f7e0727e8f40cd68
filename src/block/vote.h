/* SPDX-License-Identifier: Apache-2.0 */
/* Reports of nodes whose children disagree (quorum). */
#ifndef TIDEMARK_BLOCK_VOTE_H
#define TIDEMARK_BLOCK_VOTE_H

#include <stdbool.h>
#include <stdint.h>

enum block_vote_op { BLOCK_VOTE_READ, BLOCK_VOTE_WRITE, BLOCK_VOTE_FLUSH };

struct block_vote {
    bool failed;           /* too few children agree; false: one child disagrees with the others */
    const char *node_name; /* the node, or that child */
    enum block_vote_op op;
    int error;               /* -errno of the child; 0: its data differ */
    uint64_t offset, length; /* of the request, bytes */
};

/*
 * Set the function that gets the reports; NULL: none. Once, at start. It is called on the reactor
 * of the request, borrows its argument, and must not yield.
 */
void block_set_vote_fn(void (*fn)(const struct block_vote *v));

/* Report; for drivers. Does not yield. */
void block_report_vote(const struct block_vote *v);

#endif

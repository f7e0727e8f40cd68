/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes with several children that have to agree: whom to tell when they do not. */
#ifndef TIDEMARK_BLOCK_VOTE_H
#define TIDEMARK_BLOCK_VOTE_H

#include <stdbool.h>
#include <stdint.h>

enum block_vote_op { BLOCK_VOTE_READ, BLOCK_VOTE_WRITE, BLOCK_VOTE_FLUSH };

struct block_vote {
    bool failed;           /* not enough children agree; else one does not agree with the others */
    const char *node_name; /* the node, or that child */
    enum block_vote_op op;
    int error;               /* -errno of the child; 0: it has other data */
    uint64_t offset, length; /* of the request, bytes */
};

/*
 * Who hears of it, on the reactor where it happens; borrows what it is given and must not yield.
 * NULL: nobody. At start.
 */
void block_set_vote_fn(void (*fn)(const struct block_vote *v));

/* Called by drivers. Does not yield. */
void block_report_vote(const struct block_vote *v);

#endif

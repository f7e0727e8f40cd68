/* SPDX-License-Identifier: Apache-2.0 */
/* What a plan to reopen nodes consists of. Included by reopen*.c only. */
#ifndef TIDEMARK_BLOCK_REOPEN_PLAN_H
#define TIDEMARK_BLOCK_REOPEN_PLAN_H

#include "block/internal.h"
#include "block/reopen.h"

/* Another node, or none, for a child. */
struct reopen_link {
    bool changes;
    struct block_node *was, *next; /* referenced; NULL: none */
};

/* A node of the plan. */
struct reopen_entry {
    struct list link;        /* in block_reopen.entries: in the order in which they were added */
    struct block_node *node; /* referenced */
    /* The user gave its options; otherwise it follows the node that it was opened for. */
    bool is_explicit;
    /* Its children that follow it are in the plan. */
    bool is_expanded;
    /* Options for the driver, which takes them; NULL: they stay. */
    struct options *driver_options;
    /* All that were given, for block_node.options; NULL: they stay. */
    struct json_object *options;
    struct block_use was, next;
    uint64_t old_size;
    unsigned explicit_use;
    struct reopen_link file, backing;

    /* Of the steps. */
    bool drained, applied, linked, prepared;
};

struct block_reopen {
    struct list entries;
    struct list sorted; /* of them, those whose place is known; empty but while they are sorted */
};

#endif

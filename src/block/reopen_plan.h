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
    /* The node gets the image of another file (block/reopen_image.c), and has begun to read it. */
    bool reads_image, has_read;
};

struct block_reopen {
    struct list entries;
    struct list sorted; /* of them, those whose place is known; empty but while they are sorted */
};

/* --- the image of another file (block/reopen_image.c) ----------------------------------------- */

/* Whether the new file is another one, not only reached in another way. */
bool reopen_has_other_storage(const struct reopen_entry *e);
/*
 * After the steps of a node that shows its file: an image above it that stays in memory has to have
 * the same file as before. -EINVAL.
 */
int reopen_check_images_above(const struct block_reopen *plan, const struct reopen_entry *e,
                              struct error *err);
/* Before any edge changes: sets `reads_image`, and completes those nodes. */
int reopen_co_leave_images(struct block_reopen *plan, struct error *err);
/* A node of these, which has its new file and the permissions for it, reads the image. */
int reopen_co_read_image(struct reopen_entry *e, struct error *err);
/* Likewise the end: bitmaps that no image stores are dirty, as they have not seen the change. */
void reopen_keep_image(struct reopen_entry *e);
/* All nodes have their former files again: read the image, if that has begun for the new one. */
void reopen_co_read_former_image(struct reopen_entry *e);

#endif

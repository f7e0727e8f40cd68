/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What jobs that change backing chains (commit, stream) share: putting a filter on a node that is
 * in use, and taking it out again; the names by which images record other images.
 *
 * Main reactor. `co_` functions run in a coroutine and yield.
 */
#ifndef TIDEMARK_JOB_CHAIN_H
#define TIDEMARK_JOB_CHAIN_H

#include <stdbool.h>

#include "base/error.h"

struct block_node;
struct options;

/*
 * Open a filter from `opts` (consumed; with the driver), whose child "file" is to be `below`, and
 * give it all users of `below`. `name`: its node name; NULL: generated. Within a graph change;
 * `below` is drained. The permissions are not settled yet. The caller gets a reference.
 */
int chain_co_insert_filter(struct options *opts, const char *name, struct block_node *below,
                           struct block_node **ret_filter, struct error *err);
/*
 * Undo that: its users go to the node below it, and the reference is given back. The filter must
 * need no permissions without users. Within a graph change or not.
 */
void chain_co_remove_filter(struct block_node *filter);

/* The node above `node` in the chain from `top` down; NULL: it is not in there, or is `top`. */
struct block_node *chain_above(struct block_node *top, const struct block_node *node);

/*
 * The image below `top` that `name` means: as it was opened, or as the image above it would record
 * it. Filters are passed. NULL: none.
 */
struct block_node *chain_find(struct block_node *top, const char *name);

/*
 * The name by which `overlay` should record `base` (a node that is no filter) in its header: it
 * leads to the image from the directory of the overlay. The caller frees it. NULL: no memory.
 */
char *chain_backing_name(const struct block_node *overlay, const struct block_node *base);
/*
 * The format to record with it. `mask_protocol`: "raw" where the node has no format of its own, but
 * is a file or a server's export.
 */
const char *chain_backing_format(const struct block_node *base, bool mask_protocol);

#endif

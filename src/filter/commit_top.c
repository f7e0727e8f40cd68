/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver "commit_top", which a job puts on the top of the images that it commits into one
 * below. It passes everything on. It lets the job write into the chain below, since what the job
 * writes there is what the chain shows already, and it is what the users of the top are moved away
 * from when the job ends.
 */
#include <errno.h>

#include "filter/filter.h"

static int commit_top_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    return block_co_open_filtered(node, opts, "file", err);
}

static void commit_top_child_perm(struct block_node *node, struct block_edge *edge,
                                  unsigned parents_perm, unsigned parents_shared,
                                  unsigned *ret_perm, unsigned *ret_shared)
{
    /* Others than this filter would see images below that are partly committed. */
    *ret_perm = parents_perm & ~BLOCK_PERM_CONSISTENT_READ;
    *ret_shared = BLOCK_PERM_ALL | BLOCK_SHARE_CHAIN;
}

const struct block_driver commit_top_driver = {
    .name = "commit_top",
    .is_internal = true,
    .instance_size = 0,
    .is_filter = true,
    .co_open = commit_top_co_open,
    .child_perm = commit_top_child_perm,
};

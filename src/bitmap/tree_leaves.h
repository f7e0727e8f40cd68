/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory for the leaves of a bit tree: pages in blocks of up to 2 MiB, so that a large bitmap takes
 * no more than its pages, and is not made by thousands of page faults when it is read. None of the
 * functions yields.
 */
#ifndef TIDEMARK_BITMAP_TREE_LEAVES_H
#define TIDEMARK_BITMAP_TREE_LEAVES_H

#include "bitmap/tree_node.h"

/*
 * An empty leaf. `soon`: the caller will write all of it, and most likely ask for more: the kernel
 * makes several pages present at once. Valid until it is given back, or all are freed. NULL if out
 * of memory. Any thread.
 */
struct bit_tree_node *bit_tree_leaf_new(struct bit_tree_leaves *l, bool soon);

/* Give back a leaf that nobody else has seen. Any thread. */
void bit_tree_leaf_give(struct bit_tree_leaves *l, struct bit_tree_node *leaf);

/* Free all leaves; no other call on them runs. */
void bit_tree_leaves_free(struct bit_tree_leaves *l);

/* Exchange the leaves of two trees; no other call on them runs. */
void bit_tree_leaves_swap(struct bit_tree_leaves *a, struct bit_tree_leaves *b);

#endif

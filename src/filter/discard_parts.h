/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parts of clusters that a reader has discarded: a cluster is released when all of its bytes are,
 * in whatever pieces. Exact to the byte. At most 1024 clusters with parts are remembered; the one
 * whose latest part is oldest is forgotten first, and is then not released.
 *
 * The owner guards it. None of these functions yields.
 */
#ifndef TIDEMARK_FILTER_DISCARD_PARTS_H
#define TIDEMARK_FILTER_DISCARD_PARTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"

#define DISCARD_PARTS_BUCKETS 64u

struct discard_parts {
    struct list buckets[DISCARD_PARTS_BUCKETS]; /* of struct part_cluster, by number */
    struct list by_age;                         /* the oldest first */
    size_t count;
};

/* Without parts. */
void discard_parts_init(struct discard_parts *p);
/* Forget all. */
void discard_parts_clear(struct discard_parts *p);

/*
 * [from, to), in bytes from the beginning of cluster `number`, which has `size` bytes, is
 * discarded. True if the whole cluster is now; it is forgotten then.
 */
bool discard_parts_add(struct discard_parts *p, uint64_t number, uint32_t size, uint32_t from,
                       uint32_t to);

#endif

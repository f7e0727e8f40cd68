/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A copy of all figures at one moment, which any thread can then work with. Taking it is short work
 * of the main reactor, a microsecond for an object; what takes longer, as writing a text, is done
 * elsewhere. Nothing here yields.
 */
#ifndef TIDEMARK_STATS_SNAPSHOT_H
#define TIDEMARK_STATS_SNAPSHOT_H

#include "base/list.h"
#include "stats/stats.h"

struct snapshot_object {
    struct list link;
    struct stats_object object; /* its strings and values are in the same piece of memory */
};

/* The objects that are described by one table. */
struct snapshot_group {
    struct list link;
    const struct stat_desc *table;
    struct list objects; /* of struct snapshot_object */
};

struct snapshot {
    struct list groups; /* of struct snapshot_group */
    bool failed;        /* out of memory: objects are missing */
};

/* All nodes, exports and reactors, without clients. NULL: out of memory. Main reactor. */
struct snapshot *snapshot_take(void);
/* NULL is fine. Any thread. */
void snapshot_free(struct snapshot *s);

#endif

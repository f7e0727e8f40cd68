/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The last clusters that were decompressed for requests that wanted a part of one. So sequential 4k reads decompress a
 * cluster once, also when many of them are in flight. Keyed by L2 entry, which names place and length in the file.
 *
 * Memory: CLUSTER_CACHE_BYTES or two clusters, whichever is more, for each image; and while requests are in flight, a
 * cluster for each.
 */
#ifndef TIDEMARK_QCOW2_DATA_CLUSTER_CACHE_H
#define TIDEMARK_QCOW2_DATA_CLUSTER_CACHE_H

#include <pthread.h>

#include "base/checked.h"
#include "co/sync.h"

#define CLUSTER_CACHE_BYTES (2 * MiB)

struct cluster_cache {
    size_t cluster_size;
    unsigned max;
    pthread_mutex_t lock; /* guards all below, and the cached clusters except their data */
    struct list clusters; /* of struct cached_cluster, the one used last first */
    unsigned count;
};

struct cached_cluster {
    struct list link; /* in clusters, if listed */
    uint64_t entry;
    unsigned users; /* who got it and did not put it yet */
    bool listed;
    bool loading;            /* data is being filled by who found it missing */
    int result;              /* of that */
    struct co_queue waiters; /* for the end of loading */
    uint8_t data[];
};

void cluster_cache_init(struct cluster_cache *c, size_t cluster_size);
/* No cluster may be in use. */
void cluster_cache_destroy(struct cluster_cache *c);

/*
 * The cluster of `entry`; give it back with cluster_cache_put(). With *ret_load the caller has to fill its data, and say
 * so with cluster_cache_loaded(), before it does. 0, -ENOMEM, or what loading by another failed with. Yields.
 */
int cluster_cache_co_get(struct cluster_cache *c, uint64_t entry, struct cached_cluster **ret,
                         bool *ret_load);
void cluster_cache_loaded(struct cluster_cache *c, struct cached_cluster *cluster, int result);
void cluster_cache_put(struct cluster_cache *c, struct cached_cluster *cluster);

/* What lies at the entry's place is about to be something else. */
void cluster_cache_drop(struct cluster_cache *c, uint64_t entry);

#endif

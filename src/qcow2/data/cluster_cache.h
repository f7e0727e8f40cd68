/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clusters that were decompressed last for requests for a part of a cluster. So sequential 4k
 * reads decompress a cluster once, even with many of them in flight. The key is the L2 entry, which
 * describes offset and length in the file.
 *
 * Memory: CLUSTER_CACHE_BYTES or two clusters, whichever is more, for each image; while requests
 * are in flight, one more cluster for each of them.
 *
 * Only cluster_cache_co_get() yields. All functions may be called on any reactor.
 */
#ifndef TIDEMARK_QCOW2_DATA_CLUSTER_CACHE_H
#define TIDEMARK_QCOW2_DATA_CLUSTER_CACHE_H

#include <pthread.h>

#include "base/checked.h"
#include "co/sync.h"

#define CLUSTER_CACHE_BYTES (2 * MiB)

struct cluster_cache {
    size_t cluster_size;
    unsigned max;         /* clusters in the list */
    pthread_mutex_t lock; /* guards all below, and the cached clusters except their data */
    struct list clusters; /* of struct cached_cluster, the last used one first */
    unsigned count;
};

struct cached_cluster {
    struct list link; /* in cluster_cache.clusters, if listed */
    uint64_t entry;
    unsigned users; /* callers that got it and did not put it yet */
    bool listed;
    bool loading;            /* the caller that found it missing fills `data` */
    int result;              /* of loading */
    struct co_queue waiters; /* for the end of loading */
    uint8_t data[];
};

/* Prepare a cache for clusters of this size. */
void cluster_cache_init(struct cluster_cache *c, size_t cluster_size);

/* Free everything. No cluster is in use. */
void cluster_cache_destroy(struct cluster_cache *c);

/*
 * The cluster of `entry`; cluster_cache_put() gives it back. If *ret_load is set, the caller has
 * to fill its data and call cluster_cache_loaded() before cluster_cache_put(). 0, -ENOMEM, or the
 * error with which another caller's loading failed; then nothing has to be given back.
 */
int cluster_cache_co_get(struct cluster_cache *c, uint64_t entry,
                         struct cached_cluster **ret_cluster, bool *ret_load);

/* Loading has ended: wake those that wait for it. After an error the cluster is not listed. */
void cluster_cache_loaded(struct cluster_cache *c, struct cached_cluster *cluster, int result);

/* Give a cluster back. */
void cluster_cache_put(struct cluster_cache *c, struct cached_cluster *cluster);

/*
 * Unlist the cluster of `entry`: the bytes in the file that the entry describes are about to
 * change.
 */
void cluster_cache_drop(struct cluster_cache *c, uint64_t entry);

#endif

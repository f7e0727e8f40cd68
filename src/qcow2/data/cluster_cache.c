/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/data/cluster_cache.h"

#include <errno.h>
#include <stdlib.h>

#include "base/debug.h"

void cluster_cache_init(struct cluster_cache *c, size_t cluster_size)
{
    c->cluster_size = cluster_size;
    c->max = (unsigned)MIN(MAX(CLUSTER_CACHE_BYTES / cluster_size, 2), 64);
    c->count = 0;
    pthread_mutex_init(&c->lock, NULL);
    list_init(&c->clusters);
}

static void unlist_locked(struct cluster_cache *c, struct cached_cluster *cluster)
{
    MUTEX_ASSERT_HELD(&c->lock);
    list_remove(&cluster->link);
    cluster->listed = false;
    c->count--;
    if (cluster->users == 0) {
        free(cluster);
    }
}

void cluster_cache_destroy(struct cluster_cache *c)
{
    pthread_mutex_lock(&c->lock);
    while (!list_is_empty(&c->clusters)) {
        unlist_locked(c, LIST_FIRST(&c->clusters, struct cached_cluster, link));
    }
    pthread_mutex_unlock(&c->lock);
    pthread_mutex_destroy(&c->lock);
}

static struct cached_cluster *find_cluster_locked(struct cluster_cache *c, uint64_t entry)
{
    struct cached_cluster *cluster;

    MUTEX_ASSERT_HELD(&c->lock);
    LIST_FOREACH (cluster, &c->clusters, link) {
        if (cluster->entry == entry) {
            return cluster;
        }
    }
    return NULL;
}

/* A new cluster, which the caller is going to load. NULL: no memory. */
static struct cached_cluster *add_cluster_locked(struct cluster_cache *c, uint64_t entry)
{
    struct cached_cluster *cluster = malloc(sizeof(*cluster) + c->cluster_size);

    MUTEX_ASSERT_HELD(&c->lock);
    if (!cluster) {
        return NULL;
    }
    if (c->count == c->max) {
        unlist_locked(c, container_of(c->clusters.prev, struct cached_cluster, link));
    }
    *cluster = (struct cached_cluster){.entry = entry, .users = 1, .listed = true, .loading = true};
    co_queue_init(&cluster->waiters);
    list_prepend(&c->clusters, &cluster->link);
    c->count++;
    return cluster;
}

static void put_cluster_locked(struct cluster_cache *c, struct cached_cluster *cluster)
{
    MUTEX_ASSERT_HELD(&c->lock);
    if (--cluster->users == 0 && !cluster->listed) {
        free(cluster);
    }
}

int cluster_cache_co_get(struct cluster_cache *c, uint64_t entry,
                         struct cached_cluster **ret_cluster, bool *ret_load)
{
    struct cached_cluster *cluster;
    int r;

    pthread_mutex_lock(&c->lock);
    cluster = find_cluster_locked(c, entry);
    *ret_load = !cluster;
    if (!cluster) {
        *ret_cluster = add_cluster_locked(c, entry);
        pthread_mutex_unlock(&c->lock);
        return *ret_cluster ? 0 : -ENOMEM;
    }
    list_remove(&cluster->link);
    list_prepend(&c->clusters, &cluster->link);
    cluster->users++;
    if (cluster->loading) {
        co_queue_wait_for_release(&cluster->waiters, &c->lock,
                                  "another request that decompresses the cluster", NULL, -1);
        pthread_mutex_lock(&c->lock);
    }
    r = cluster->result;
    if (r < 0) {
        put_cluster_locked(c, cluster);
    }
    pthread_mutex_unlock(&c->lock);
    *ret_cluster = cluster;
    return r;
}

void cluster_cache_loaded(struct cluster_cache *c, struct cached_cluster *cluster, int result)
{
    pthread_mutex_lock(&c->lock);
    cluster->loading = false;
    cluster->result = result;
    co_queue_wake_all(&cluster->waiters);
    if (result < 0 && cluster->listed) {
        unlist_locked(c, cluster);
    }
    pthread_mutex_unlock(&c->lock);
}

void cluster_cache_put(struct cluster_cache *c, struct cached_cluster *cluster)
{
    pthread_mutex_lock(&c->lock);
    put_cluster_locked(c, cluster);
    pthread_mutex_unlock(&c->lock);
}

void cluster_cache_drop(struct cluster_cache *c, uint64_t entry)
{
    struct cached_cluster *cluster;

    pthread_mutex_lock(&c->lock);
    cluster = find_cluster_locked(c, entry);
    if (cluster) {
        unlist_locked(c, cluster);
    }
    pthread_mutex_unlock(&c->lock);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A cache of slices of metadata tables (L2 tables or refcount blocks), by file offset.
 *
 * Looking up takes one short thread lock of one of the shards. An entry stays in memory while it is pinned
 * or dirty. Entries are arrays of 64-bit words that are read and stored whole, with relaxed atomics, so readers
 * need no lock once they have a pin. Only the holder of the image's lock changes data or dirty state.
 *
 *   FREE --(miss: claimed)--> LOADING --(read)--> VALID --(no pin, not dirty, not used lately)--> FREE
 *                                |  \--(error)--> FREE
 *                                `-- others wait in `loaders`
 *
 * The number of entries is limited to what the options allow; if all of a shard's are pinned or dirty it
 * takes an extra one for as long as that lasts. Memory is allocated on first use.
 */
#ifndef TIDEMARK_QCOW2_TABLE_CACHE_H
#define TIDEMARK_QCOW2_TABLE_CACHE_H

#include <pthread.h>
#include <stdatomic.h>

#include "block/driver.h"
#include "co/sync.h"

#define CACHE_SHARDS 16

enum cache_state { CACHE_FREE, CACHE_LOADING, CACHE_VALID };

/* Looked up since the clock's hand passed; since the last cache_clean(). */
#define CACHE_USED_CLOCK 1u
#define CACHE_USED_LATELY 2u
#define CACHE_USED 3u

struct cache_entry {
    struct list in_shard; /* clock order */
    struct cache_entry *hash_next;
    struct list in_dirty;   /* in table_cache.dirty if dirty */
    uint64_t offset;        /* in the file */
    enum cache_state state; /* guarded by the shard's lock */
    uint8_t used;           /* likewise: CACHE_USED_..., all set by a look-up */
    bool dirty;       /* guarded by the image's lock, and the shard's lock where set or cleared */
    atomic_uint pins; /* raised under the shard's lock only */
    _Atomic uint64_t *data; /* entry_size bytes, big-endian as on disk */
    atomic_uint
        changing; /* odd while a pair of words is being stored: see cache_load_pair_be64() */
};

struct cache_shard {
    _Alignas(64) pthread_mutex_t lock; /* guards all below */
    struct cache_entry **buckets;
    unsigned bucket_count; /* a power of two */
    struct list entries;   /* of struct cache_entry, the clock's hand at the front */
    unsigned count, limit;
    struct co_queue loaders;
};

struct table_cache {
    struct block_edge *file;
    size_t entry_size; /* bytes; a power of two */
    unsigned entry_bits;
    enum block_event load_event,
        update_event; /* announced before a slice is read (NONE: not), or written */
    struct cache_shard shards[CACHE_SHARDS];
    struct list dirty;  /* [image lock] */
    size_t dirty_count; /* [image lock] */
    size_t dirty_limit; /* commit when there are more */
};

/* `bytes` is the limit. 0 or -ENOMEM. The events are the caller's to set. */
int cache_init(struct table_cache *c, struct block_edge *file, size_t entry_size, uint64_t bytes);
/* Another limit, for what is looked up from now on: as if it had been given to cache_init(). Any reactor. 0 or -ENOMEM. */
int cache_set_limit(struct table_cache *c, uint64_t bytes);
/* Give back the memory of clean slices that nobody has looked up since the last call. Any thread; does not yield. */
void cache_clean(struct table_cache *c);
/* All pins are gone; dirty contents are lost. */
void cache_destroy(struct table_cache *c);

/* The slice at `offset` (aligned to entry_size), pinned; read from the file on a miss. Any reactor; may yield. */
int cache_co_get(struct table_cache *c, uint64_t offset, struct cache_entry **ret);
/* As above for a slice whose contents are known to be all zero: never reads. */
int cache_co_get_zeroed(struct table_cache *c, uint64_t offset, struct cache_entry **ret);
void cache_put(struct cache_entry *e);

static inline uint64_t cache_load_be64(const struct cache_entry *e, unsigned index)
{
    return be64toh(atomic_load_explicit(&e->data[index], memory_order_relaxed));
}

static inline void cache_store_be64(struct cache_entry *e, unsigned index, uint64_t value)
{
    atomic_store_explicit(&e->data[index], htobe64(value), memory_order_relaxed);
}

/*
 * Two words that belong together, for readers without a lock: what is returned was there at one time. The one who stores
 * them holds the image's lock.
 */
static inline void cache_load_pair_be64(struct cache_entry *e, unsigned index, uint64_t ret[2])
{
    unsigned before;

    do {
        before = atomic_load_explicit(&e->changing, memory_order_acquire);
        ret[0] = be64toh(atomic_load_explicit(&e->data[index], memory_order_acquire));
        ret[1] = be64toh(atomic_load_explicit(&e->data[index + 1], memory_order_acquire));
    } while (before % 2 || atomic_load_explicit(&e->changing, memory_order_relaxed) != before);
}

static inline void cache_store_pair_be64(struct cache_entry *e, unsigned index, uint64_t first,
                                         uint64_t second)
{
    atomic_fetch_add_explicit(&e->changing, 1, memory_order_relaxed);
    atomic_store_explicit(&e->data[index], htobe64(first), memory_order_release);
    atomic_store_explicit(&e->data[index + 1], htobe64(second), memory_order_release);
    atomic_fetch_add_explicit(&e->changing, 1, memory_order_release);
}

/* Image lock held, entry pinned. */
void cache_mark_dirty(struct table_cache *c, struct cache_entry *e);

/*
 * A copy of all dirty slices, which are clean and pinned from then on until cache_snapshot_end(). Adjacent ones are
 * written together. Image lock held for begin and end; not for write.
 */
struct cache_snapshot {
    struct table_cache *cache;
    struct cache_entry **entries; /* by offset */
    uint8_t *data;                /* entry_size bytes for each */
    size_t count;
};
int cache_snapshot_begin(struct table_cache *c, struct cache_snapshot *ret);
int cache_co_snapshot_write(struct cache_snapshot *s);
/* `ok`: it was written. Else the slices are dirty again. */
void cache_snapshot_end(struct cache_snapshot *s, bool ok);

/* Forget a slice (its table was freed and the cluster may be something else later). Image lock held; not pinned by others. */
void cache_forget(struct table_cache *c, uint64_t offset);
/* Forget all of them. Image lock held; none is pinned. */
void cache_forget_all(struct table_cache *c);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A cache of slices of metadata tables (L2 tables or refcount blocks), by file offset.
 *
 * A look-up takes the thread lock of one shard for a short time. An entry stays in memory while it
 * is pinned or dirty. Entries are arrays of 64-bit words which are loaded and stored as a whole,
 * with relaxed atomics, so readers that have a pin need no lock. Data and dirty state are changed
 * only by the holder of the image's lock.
 *
 *   FREE --(miss: claimed)--> LOADING --(read)--> VALID --(no pin, clean, not used)--> FREE
 *                                |  \--(error)--> FREE
 *                                `-- other coroutines wait in `loaders`
 *
 * The options limit the number of entries. If all entries of a shard are pinned or dirty, it takes
 * extra ones for as long as that lasts. Memory is allocated on first use.
 *
 * The `co_` functions yield, the others do not.
 */
#ifndef TIDEMARK_QCOW2_TABLE_CACHE_H
#define TIDEMARK_QCOW2_TABLE_CACHE_H

#include <pthread.h>
#include <stdatomic.h>

#include "block/driver.h"
#include "co/sync.h"

#define CACHE_SHARDS 16

enum cache_state { CACHE_FREE, CACHE_LOADING, CACHE_VALID };

enum cache_used {
    CACHE_USED_CLOCK = 1 << 0,  /* looked up since the hand of the clock passed */
    CACHE_USED_LATELY = 1 << 1, /* looked up since the last cache_clean() */
    CACHE_USED = CACHE_USED_CLOCK | CACHE_USED_LATELY,
};

struct cache_entry {
    struct list in_shard; /* clock order */
    struct cache_entry *hash_next;
    struct list in_dirty;   /* in table_cache.dirty if dirty */
    uint64_t offset;        /* in the file */
    enum cache_state state; /* guarded by the shard's lock */
    uint8_t used;           /* guarded by the shard's lock; bits of enum cache_used */
    bool dirty;       /* guarded by the image's lock, and by the shard's lock where it changes */
    atomic_uint pins; /* raised under the shard's lock only */
    _Atomic uint64_t *data; /* entry_size bytes, big-endian as on disk */
    /* Odd while a pair of words is being stored: see cache_load_pair_be64(). */
    atomic_uint changing;
};

struct cache_shard {
    _Alignas(64) pthread_mutex_t lock; /* guards all below */
    struct cache_entry **buckets;
    unsigned bucket_count; /* a power of two */
    struct list entries;   /* of struct cache_entry, the clock's hand at the front */
    unsigned count, limit;
    uint64_t hits, misses; /* look-ups */
    struct co_queue loaders;
};

struct table_cache {
    struct block_edge *file;
    size_t entry_size; /* bytes; a power of two */
    unsigned entry_bits;
    enum block_event load_event;   /* announced before a slice is read; NONE: not announced */
    enum block_event update_event; /* announced before slices are written */
    struct cache_shard shards[CACHE_SHARDS];
    struct list dirty;  /* [image lock] */
    size_t dirty_count; /* [image lock] */
    size_t dirty_limit; /* commit when more are dirty */
};

/*
 * `entry_size`: bytes of a slice, a power of two; `bytes`: limit of all. The caller sets the
 * events. 0 or -ENOMEM; after a failure nothing has to be destroyed.
 */
int cache_init(struct table_cache *c, struct block_edge *file, size_t entry_size, uint64_t bytes);

/* Change the limit for later look-ups. Any reactor. 0 or -ENOMEM. */
int cache_set_limit(struct table_cache *c, uint64_t bytes);

/*
 * Change the size of slices, bytes, a power of two. All are dropped, so no request is in flight. 0;
 * -EBUSY: one is pinned or dirty, and nothing has changed. cache_set_limit() is due afterwards.
 */
int cache_set_entry_size(struct table_cache *c, size_t entry_size);

/* Look-ups so far that found the slice in memory, and that read it. Any thread. */
void cache_read_stats(struct table_cache *c, uint64_t *ret_hits, uint64_t *ret_misses);

/* Free the memory of clean slices that were not looked up since the last call. Any thread. */
void cache_clean(struct table_cache *c);

/* Free everything. No entry is pinned; dirty contents are lost. */
void cache_destroy(struct table_cache *c);

/*
 * The slice at file offset `offset` (aligned to entry_size), pinned; cache_put() removes the pin.
 * On a miss it is read from the file. Any reactor. -ENOMEM, or what reading returns.
 */
int cache_co_get(struct table_cache *c, uint64_t offset, struct cache_entry **ret_slice);

/* As cache_co_get() for a slice whose contents are known to be zero: does not read. */
int cache_co_get_zeroed(struct table_cache *c, uint64_t offset, struct cache_entry **ret_slice);

/* Remove a pin. */
void cache_put(struct cache_entry *e);

/* Word `index` of a pinned slice, in host byte order. Storing one wants the image's lock. */
static inline uint64_t cache_load_be64(const struct cache_entry *e, unsigned index)
{
    return be64toh(atomic_load_explicit(&e->data[index], memory_order_relaxed));
}

/* Store word `index`; the caller marks the slice dirty. */
static inline void cache_store_be64(struct cache_entry *e, unsigned index, uint64_t value)
{
    atomic_store_explicit(&e->data[index], htobe64(value), memory_order_relaxed);
}

/*
 * Two adjacent words that belong together, as both were at one moment; for readers that do not hold
 * the image's lock.
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

/* Store such a pair, under the image's lock; the caller marks the slice dirty. */
static inline void cache_store_pair_be64(struct cache_entry *e, unsigned index, uint64_t first,
                                         uint64_t second)
{
    atomic_fetch_add_explicit(&e->changing, 1, memory_order_relaxed);
    atomic_store_explicit(&e->data[index], htobe64(first), memory_order_release);
    atomic_store_explicit(&e->data[index + 1], htobe64(second), memory_order_release);
    atomic_fetch_add_explicit(&e->changing, 1, memory_order_release);
}

/* Mark a pinned slice dirty. The image's lock is held. */
void cache_mark_dirty(struct table_cache *c, struct cache_entry *e);

/* A copy of all dirty slices, which are clean and pinned while the snapshot exists. */
struct cache_snapshot {
    struct table_cache *cache;
    struct cache_entry **entries; /* by offset */
    uint8_t *data;                /* entry_size bytes for each */
    size_t count;
};

/* Copy the dirty slices. The image's lock is held. 0 or -ENOMEM. */
int cache_snapshot_begin(struct table_cache *c, struct cache_snapshot *ret_snapshot);

/* Write the copies, adjacent ones together. The image's lock is not held. */
int cache_co_snapshot_write(struct cache_snapshot *s);

/* End the snapshot. Unless it was written (`ok`), the slices are dirty again. The lock is held. */
void cache_snapshot_end(struct cache_snapshot *s, bool ok);

/*
 * Drop the slice at `offset`, dirty or not: its table was freed, and the cluster may become
 * something else. The image's lock is held; the slice is not pinned.
 */
void cache_forget(struct table_cache *c, uint64_t offset);

/* Drop all slices. The image's lock is held; none is pinned. */
void cache_forget_all(struct table_cache *c);

#endif

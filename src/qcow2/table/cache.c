/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/table/cache.h"

#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/debug.h"

#define ENTRY_ALIGNMENT 4096
#define SHARD_ENTRIES_MIN 2
/* Call malloc_trim() only after freeing at least this much. */
#define TRIM_BYTES_MIN (1u << 20)

static uint64_t entries_for(size_t entry_size, uint64_t bytes)
{
    return MAX(bytes / entry_size, (uint64_t)CACHE_SHARDS * SHARD_ENTRIES_MIN);
}

static unsigned shard_limit(uint64_t entries)
{
    return (unsigned)MIN(entries / CACHE_SHARDS, 1u << 24);
}

static unsigned buckets_for(unsigned limit)
{
    unsigned n = 16;

    while (n < limit) {
        n *= 2;
    }
    return n;
}

int cache_init(struct table_cache *c, struct block_edge *file, size_t entry_size, uint64_t bytes)
{
    uint64_t entries = entries_for(entry_size, bytes);

    memset(c, 0, sizeof(*c));
    c->file = file;
    c->entry_size = entry_size;
    c->entry_bits = (unsigned)__builtin_ctzll(entry_size);
    c->dirty_limit = entries / 2;
    list_init(&c->dirty);
    for (int i = 0; i < CACHE_SHARDS; i++) {
        struct cache_shard *s = &c->shards[i];

        pthread_mutex_init(&s->lock, NULL);
        list_init(&s->entries);
        co_queue_init(&s->loaders);
        s->limit = shard_limit(entries);
        s->bucket_count = buckets_for(s->limit);
        s->buckets = calloc(s->bucket_count, sizeof(struct cache_entry *));
        if (!s->buckets) {
            cache_destroy(c);
            return -ENOMEM;
        }
    }
    return 0;
}

static void entry_free(struct cache_entry *e)
{
    free((void *)e->data);
    free(e);
}

void cache_destroy(struct table_cache *c)
{
    if (c->entry_size == 0) {
        return;
    }
    for (int i = 0; i < CACHE_SHARDS; i++) {
        struct cache_shard *s = &c->shards[i];
        struct cache_entry *e, *next;

        if (s->entries.next == NULL) {
            continue; /* cache_init() failed before this one */
        }
        LIST_FOREACH_SAFE (e, next, &s->entries, in_shard) {
            list_remove(&e->in_shard);
            entry_free(e);
        }
        free(s->buckets);
        pthread_mutex_destroy(&s->lock);
    }
    c->entry_size = 0;
}

/* --- finding ---------------------------------------------------------------------------------- */

static uint64_t hash_of(const struct table_cache *c, uint64_t offset)
{
    uint64_t h = (offset >> c->entry_bits) * 0x9e3779b97f4a7c15ULL;

    return h ^ (h >> 29);
}

static struct cache_shard *shard_of(struct table_cache *c, uint64_t hash)
{
    return &c->shards[hash % CACHE_SHARDS];
}

static struct cache_entry **bucket_of(struct cache_shard *s, uint64_t hash)
{
    return &s->buckets[(hash / CACHE_SHARDS) & (s->bucket_count - 1)];
}

static struct cache_entry *find_slice_locked(struct cache_shard *s, uint64_t hash, uint64_t offset)
{
    struct cache_entry *e = *bucket_of(s, hash);

    MUTEX_ASSERT_HELD(&s->lock);
    while (e && e->offset != offset) {
        e = e->hash_next;
    }
    return e;
}

static void unhash_locked(struct table_cache *c, struct cache_shard *s, struct cache_entry *e)
{
    struct cache_entry **p = bucket_of(s, hash_of(c, e->offset));

    MUTEX_ASSERT_HELD(&s->lock);
    while (*p && *p != e) {
        p = &(*p)->hash_next;
    }
    if (*p) {
        *p = e->hash_next;
    }
    e->state = CACHE_FREE;
}

/* Whether the entry's memory can be given to another slice now. */
static bool is_reusable(const struct cache_entry *e)
{
    return e->state != CACHE_LOADING && !e->dirty && atomic_load(&e->pins) == 0;
}

/* The second-chance clock. NULL if every entry is in use. */
static struct cache_entry *evict_locked(struct table_cache *c, struct cache_shard *s)
{
    MUTEX_ASSERT_HELD(&s->lock);
    for (unsigned steps = 2 * s->count; steps > 0; steps--) {
        struct cache_entry *e = LIST_FIRST(&s->entries, struct cache_entry, in_shard);

        list_remove(&e->in_shard);
        list_append(&s->entries, &e->in_shard);
        if (!is_reusable(e)) {
            continue;
        }
        if (e->state == CACHE_VALID && (e->used & CACHE_USED_CLOCK)) {
            e->used &= (uint8_t)~CACHE_USED_CLOCK;
            continue;
        }
        if (e->state == CACHE_VALID) {
            unhash_locked(c, s, e);
        }
        return e;
    }
    return NULL;
}

/* An entry for a new slice. Frees entries above the limit. NULL: no memory. */
static struct cache_entry *claim_locked(struct table_cache *c, struct cache_shard *s)
{
    struct cache_entry *e = NULL;

    MUTEX_ASSERT_HELD(&s->lock);
    while (s->count >= s->limit) {
        e = evict_locked(c, s);
        if (!e || s->count == s->limit) {
            break;
        }
        list_remove(&e->in_shard);
        entry_free(e);
        s->count--;
        e = NULL;
    }
    if (!e) {
        e = calloc(1, sizeof(*e));
        if (!e || posix_memalign((void **)&e->data, ENTRY_ALIGNMENT, c->entry_size) != 0) {
            free(e);
            return NULL;
        }
        list_init(&e->in_dirty);
        list_append(&s->entries, &e->in_shard);
        s->count++;
    }
    return e;
}

/* --- size ------------------------------------------------------------------------------------- */

/* Move all entries that have an offset to new buckets. */
static void rehash_locked(struct table_cache *c, struct cache_shard *s,
                          struct cache_entry **buckets, unsigned count)
{
    struct cache_entry *e;

    MUTEX_ASSERT_HELD(&s->lock);
    free(s->buckets);
    s->buckets = buckets;
    s->bucket_count = count;
    LIST_FOREACH (e, &s->entries, in_shard) {
        if (e->state != CACHE_FREE) {
            struct cache_entry **bucket = bucket_of(s, hash_of(c, e->offset));

            e->hash_next = *bucket;
            *bucket = e;
        }
    }
}

int cache_set_limit(struct table_cache *c, uint64_t bytes)
{
    uint64_t entries = entries_for(c->entry_size, bytes);
    unsigned limit = shard_limit(entries), count = buckets_for(limit);

    for (int i = 0; i < CACHE_SHARDS; i++) {
        struct cache_shard *s = &c->shards[i];
        struct cache_entry **buckets = calloc(count, sizeof(struct cache_entry *));

        if (!buckets) {
            return -ENOMEM;
        }
        pthread_mutex_lock(&s->lock);
        rehash_locked(c, s, buckets, count);
        s->limit = limit;
        pthread_mutex_unlock(&s->lock);
    }
    c->dirty_limit = entries / 2;
    return 0;
}

/* Whether no slice of the shard is in use, or has contents that are not in the file. */
static bool is_idle_locked(struct cache_shard *s)
{
    struct cache_entry *e;

    MUTEX_ASSERT_HELD(&s->lock);
    LIST_FOREACH (e, &s->entries, in_shard) {
        if (!is_reusable(e)) {
            return false;
        }
    }
    return true;
}

static void drop_entries_locked(struct cache_shard *s)
{
    struct cache_entry *e, *next;

    MUTEX_ASSERT_HELD(&s->lock);
    memset(s->buckets, 0, s->bucket_count * sizeof(struct cache_entry *));
    LIST_FOREACH_SAFE (e, next, &s->entries, in_shard) {
        list_remove(&e->in_shard);
        entry_free(e);
    }
    s->count = 0;
}

int cache_set_entry_size(struct table_cache *c, size_t entry_size)
{
    bool idle = true;

    for (int i = 0; i < CACHE_SHARDS; i++) {
        pthread_mutex_lock(&c->shards[i].lock);
        idle = idle && is_idle_locked(&c->shards[i]);
    }
    for (int i = 0; i < CACHE_SHARDS && idle; i++) {
        drop_entries_locked(&c->shards[i]);
    }
    if (idle) {
        c->entry_size = entry_size;
        c->entry_bits = (unsigned)__builtin_ctzll(entry_size);
    }
    for (int i = 0; i < CACHE_SHARDS; i++) {
        pthread_mutex_unlock(&c->shards[i].lock);
    }
    return idle ? 0 : -EBUSY;
}

void cache_read_stats(struct table_cache *c, uint64_t *ret_hits, uint64_t *ret_misses)
{
    *ret_hits = *ret_misses = 0;
    for (int i = 0; i < CACHE_SHARDS; i++) {
        struct cache_shard *s = &c->shards[i];

        pthread_mutex_lock(&s->lock);
        *ret_hits += s->hits;
        *ret_misses += s->misses;
        pthread_mutex_unlock(&s->lock);
    }
}

static size_t clean_shard_locked(struct table_cache *c, struct cache_shard *s)
{
    struct cache_entry *e, *next;
    size_t freed = 0;

    MUTEX_ASSERT_HELD(&s->lock);
    LIST_FOREACH_SAFE (e, next, &s->entries, in_shard) {
        bool idle = e->state == CACHE_FREE || !(e->used & CACHE_USED_LATELY);

        e->used &= (uint8_t)~CACHE_USED_LATELY;
        if (!idle || !is_reusable(e)) {
            continue;
        }
        if (e->state == CACHE_VALID) {
            unhash_locked(c, s, e);
        }
        list_remove(&e->in_shard);
        entry_free(e);
        s->count--;
        freed += c->entry_size;
    }
    return freed;
}

void cache_clean(struct table_cache *c)
{
    size_t freed = 0;

    for (int i = 0; i < CACHE_SHARDS; i++) {
        struct cache_shard *s = &c->shards[i];

        pthread_mutex_lock(&s->lock);
        freed += clean_shard_locked(c, s);
        pthread_mutex_unlock(&s->lock);
    }
    if (freed >= TRIM_BYTES_MIN) {
        malloc_trim(0); /* free() alone keeps the memory in the process */
    }
}

/* --- getting ---------------------------------------------------------------------------------- */

/* Fill a claimed entry. */
static int co_load_slice(struct table_cache *c, struct cache_shard *s, struct cache_entry *e,
                         bool zeroed)
{
    int r = 0;

    if (zeroed) {
        memset((void *)e->data, 0, c->entry_size);
    } else {
        if (c->load_event != BLOCK_EVENT_NONE) {
            block_co_event(c->file, c->load_event);
        }
        r = block_co_pread(c->file, e->offset, (void *)e->data, c->entry_size);
    }
    pthread_mutex_lock(&s->lock);
    if (r < 0) {
        unhash_locked(c, s, e);
        atomic_fetch_sub(&e->pins, 1);
    } else {
        e->state = CACHE_VALID;
    }
    co_queue_wake_all(&s->loaders);
    pthread_mutex_unlock(&s->lock);
    return r;
}

static int co_get_slice(struct table_cache *c, uint64_t offset, bool zeroed,
                        struct cache_entry **ret_slice)
{
    uint64_t hash = hash_of(c, offset);
    struct cache_shard *s = shard_of(c, hash);
    struct cache_entry *e;
    int r;

    for (;;) {
        pthread_mutex_lock(&s->lock);
        e = find_slice_locked(s, hash, offset);
        if (!e) {
            break;
        }
        if (e->state == CACHE_VALID) {
            e->used = CACHE_USED;
            s->hits++;
            atomic_fetch_add_explicit(&e->pins, 1, memory_order_acquire);
            pthread_mutex_unlock(&s->lock);
            *ret_slice = e;
            return 0;
        }
        co_queue_wait_for_release(&s->loaders, &s->lock, "another request that loads the table",
                                  NULL, -1);
    }
    e = claim_locked(c, s);
    if (!e) {
        pthread_mutex_unlock(&s->lock);
        return -ENOMEM;
    }
    s->misses += !zeroed;
    e->offset = offset;
    e->state = CACHE_LOADING;
    e->used = CACHE_USED;
    atomic_store(&e->pins, 1);
    e->hash_next = *bucket_of(s, hash);
    *bucket_of(s, hash) = e;
    pthread_mutex_unlock(&s->lock);
    r = co_load_slice(c, s, e, zeroed);
    if (r == 0) {
        *ret_slice = e;
    }
    return r;
}

int cache_co_get(struct table_cache *c, uint64_t offset, struct cache_entry **ret_slice)
{
    return co_get_slice(c, offset, false, ret_slice);
}

int cache_co_get_zeroed(struct table_cache *c, uint64_t offset, struct cache_entry **ret_slice)
{
    return co_get_slice(c, offset, true, ret_slice);
}

void cache_put(struct cache_entry *e)
{
    atomic_fetch_sub_explicit(&e->pins, 1, memory_order_release);
}

static void forget_locked(struct table_cache *c, struct cache_shard *s, struct cache_entry *e)
{
    MUTEX_ASSERT_HELD(&s->lock);
    if (e->dirty) {
        e->dirty = false;
        list_remove(&e->in_dirty);
        c->dirty_count--;
    }
    unhash_locked(c, s, e);
}

void cache_forget(struct table_cache *c, uint64_t offset)
{
    uint64_t hash = hash_of(c, offset);
    struct cache_shard *s = shard_of(c, hash);
    struct cache_entry *e;

    pthread_mutex_lock(&s->lock);
    e = find_slice_locked(s, hash, offset);
    if (e && e->state == CACHE_VALID) {
        forget_locked(c, s, e);
    }
    pthread_mutex_unlock(&s->lock);
}

void cache_forget_all(struct table_cache *c)
{
    for (unsigned i = 0; i < CACHE_SHARDS; i++) {
        struct cache_shard *s = &c->shards[i];
        struct cache_entry *e;

        pthread_mutex_lock(&s->lock);
        LIST_FOREACH (e, &s->entries, in_shard) {
            if (e->state == CACHE_VALID) {
                forget_locked(c, s, e);
            }
        }
        pthread_mutex_unlock(&s->lock);
    }
}

/* --- dirty slices ----------------------------------------------------------------------------- */

static void set_dirty(struct table_cache *c, struct cache_entry *e, bool dirty)
{
    struct cache_shard *s = shard_of(c, hash_of(c, e->offset));

    pthread_mutex_lock(&s->lock);
    e->dirty = dirty;
    pthread_mutex_unlock(&s->lock);
}

void cache_mark_dirty(struct table_cache *c, struct cache_entry *e)
{
    if (!e->dirty) {
        set_dirty(c, e, true);
        list_append(&c->dirty, &e->in_dirty);
        c->dirty_count++;
    }
}

static int by_offset(const void *a, const void *b)
{
    const struct cache_entry *x = *(struct cache_entry *const *)a;
    const struct cache_entry *y = *(struct cache_entry *const *)b;

    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

int cache_snapshot_begin(struct table_cache *c, struct cache_snapshot *ret_snapshot)
{
    struct cache_snapshot s = {.cache = c};
    size_t words = c->entry_size / sizeof(uint64_t);

    if (c->dirty_count == 0) {
        *ret_snapshot = s;
        return 0;
    }
    s.entries = malloc(c->dirty_count * sizeof(struct cache_entry *));
    if (!s.entries ||
        posix_memalign((void **)&s.data, ENTRY_ALIGNMENT, c->dirty_count * c->entry_size) != 0) {
        free(s.entries);
        return -ENOMEM;
    }
    while (!list_is_empty(&c->dirty)) {
        struct cache_entry *e = LIST_FIRST(&c->dirty, struct cache_entry, in_dirty);

        list_remove(&e->in_dirty);
        atomic_fetch_add(&e->pins, 1);
        set_dirty(c, e, false);
        s.entries[s.count++] = e;
    }
    c->dirty_count = 0;
    qsort(s.entries, s.count, sizeof(struct cache_entry *), by_offset);
    for (size_t i = 0; i < s.count; i++) {
        uint64_t *to = (uint64_t *)(void *)(s.data + i * c->entry_size);

        for (size_t w = 0; w < words; w++) {
            to[w] = atomic_load_explicit(&s.entries[i]->data[w], memory_order_relaxed);
        }
    }
    *ret_snapshot = s;
    return 0;
}

int cache_co_snapshot_write(struct cache_snapshot *s)
{
    size_t size = s->cache->entry_size;
    int r = 0;

    for (size_t i = 0, n; i < s->count && r == 0; i += n) {
        n = 1;
        while (i + n < s->count && s->entries[i + n]->offset == s->entries[i]->offset + n * size) {
            n++;
        }
        block_co_event(s->cache->file, s->cache->update_event);
        r = block_co_pwrite(s->cache->file, s->entries[i]->offset, s->data + i * size, n * size, 0);
    }
    return r;
}

void cache_snapshot_end(struct cache_snapshot *s, bool ok)
{
    for (size_t i = 0; i < s->count; i++) {
        if (!ok) {
            cache_mark_dirty(s->cache, s->entries[i]);
        }
        cache_put(s->entries[i]);
    }
    free(s->entries);
    free(s->data);
    s->entries = NULL;
    s->data = NULL;
    s->count = 0;
}

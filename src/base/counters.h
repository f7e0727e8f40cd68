/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counters that many threads add to, and tables that describe figures of any origin.
 *
 * A set of counters has a shard for each reactor, on cache lines of its own. A shard is written by
 * the thread that runs its reactor and by no other, so that an addition is a plain load, an add
 * and a store. Readers sum the shards; they may miss additions of the last moment, and may see one
 * figure before another that was added to earlier.
 *
 * A reactor can be moved to another thread while a coroutine of it is suspended. Code that adds
 * looks the shard up with counters_shard() after the last yield, or keeps the pointer for as long
 * as the coroutine belongs to the same reactor: the shard is the reactor's, not the thread's.
 *
 * None of these yields.
 */
#ifndef TIDEMARK_BASE_COUNTERS_H
#define TIDEMARK_BASE_COUNTERS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- one figure */

struct counter {
    _Atomic uint64_t value;
};

/*
 * For the one thread that writes `c`. A gauge subtracts by adding a negative amount; it may be
 * below zero in one shard, as long as the sum is not.
 */
static inline void counter_add(struct counter *c, uint64_t amount)
{
    atomic_store_explicit(&c->value, atomic_load_explicit(&c->value, memory_order_relaxed) + amount,
                          memory_order_relaxed);
}

/* For the one thread that writes `c`: raise a peak. */
static inline void counter_raise(struct counter *c, uint64_t value)
{
    if (value > atomic_load_explicit(&c->value, memory_order_relaxed)) {
        atomic_store_explicit(&c->value, value, memory_order_relaxed);
    }
}

/* For the one thread that writes `c`: a level. */
static inline void counter_set(struct counter *c, uint64_t value)
{
    atomic_store_explicit(&c->value, value, memory_order_relaxed);
}

/* Any thread. */
static inline uint64_t counter_read(const struct counter *c)
{
    return atomic_load_explicit(&c->value, memory_order_relaxed);
}

/* --- histograms of durations */

/*
 * Bucket i counts durations of 2^i to 2^(i+1) - 1 nanoseconds. The first one also counts shorter
 * ones, and the last one longer ones: 2^39 ns are nine minutes.
 */
#define HISTOGRAM_BUCKETS 40

struct histogram {
    struct counter buckets[HISTOGRAM_BUCKETS];
    struct counter sum_ns;
};

/* For the one thread that writes `h`. A negative duration counts as 0. */
static inline void histogram_add(struct histogram *h, int64_t ns)
{
    unsigned i = ns > 1 ? 63 - (unsigned)__builtin_clzll((unsigned long long)ns) : 0;

    counter_add(&h->buckets[i < HISTOGRAM_BUCKETS ? i : HISTOGRAM_BUCKETS - 1], 1);
    counter_add(&h->sum_ns, ns > 0 ? (uint64_t)ns : 0);
}

/* --- descriptions */

enum stat_kind {
    /* Grows from zero for as long as its owner lives. */
    STAT_COUNTER,
    /* A level that rises and falls. */
    STAT_GAUGE,
    /* The highest value so far: shards are not added, the largest counts. */
    STAT_PEAK,
    /* A struct histogram: HISTOGRAM_VALUES values, its buckets and then the sum. */
    STAT_HISTOGRAM,
};

#define HISTOGRAM_VALUES (HISTOGRAM_BUCKETS + 1)

enum stat_unit {
    STAT_COUNT,
    STAT_BYTES,
    STAT_NANOSECONDS,
    /* A moment: nanoseconds of CLOCK_MONOTONIC; 0: never. */
    STAT_MOMENT,
};

/*
 * A row of a table; the table ends with a NULL name. Its values lie in an array of uint64_t in the
 * order of the rows, STAT_HISTOGRAM taking HISTOGRAM_VALUES places and others one.
 */
struct stat_desc {
    /* Of lower-case words with '_' between them, without unit: "read_bytes", "flush_time". */
    const char *name;
    /* A sentence for people, without the full stop. */
    const char *help;
    enum stat_kind kind;
    enum stat_unit unit;
};

/* How many values a row takes. */
static inline size_t stat_width(const struct stat_desc *desc)
{
    return desc->kind == STAT_HISTOGRAM ? HISTOGRAM_VALUES : 1;
}

/* How many values all rows of a table take. */
size_t stat_table_width(const struct stat_desc *table);

/* --- sets */

#define COUNTERS_SHARDS 64
/* Largest shard, bytes. */
#define COUNTERS_SIZE_MAX 1024

struct counters {
    size_t size;
    void *_Atomic shards[COUNTERS_SHARDS];
};

/*
 * Shards of `size` bytes (at most COUNTERS_SIZE_MAX), which begin with an array of counters; they
 * are allocated, zeroed, when a reactor first adds to them.
 */
void counters_init(struct counters *c, size_t size);

/* Free the shards. No thread uses the set any more. */
void counters_release(struct counters *c);

/*
 * For the loop layer: the calling thread runs the reactor of this index from now on
 * (COUNTERS_SHARDS: none).
 */
void counters_set_index(unsigned index);

/*
 * The index that the calling thread was given. Not inline, since a compiler could keep the address
 * of a thread-local variable across a yield.
 */
unsigned counters_index(void);

/* The part of counters_shard() that allocates. */
void *counters_shard_new(struct counters *c, unsigned index);

/*
 * The shard of the calling thread's reactor, whose index is known; never NULL. On a thread that
 * runs no reactor, and without memory, it is one whose contents are never read.
 */
static inline void *counters_shard_at(struct counters *c, unsigned index)
{
    void *shard = index < COUNTERS_SHARDS
                      ? atomic_load_explicit(&c->shards[index], memory_order_relaxed)
                      : NULL;

    return __builtin_expect(shard != NULL, 1) ? shard : counters_shard_new(c, index);
}

/* The same where the index is not known. */
static inline void *counters_shard(struct counters *c)
{
    return counters_shard_at(c, counters_index());
}

/* Add 1 to figure `i` of the calling thread's shard. */
static inline void counters_count(struct counters *c, size_t i)
{
    counter_add((struct counter *)counters_shard(c) + i, 1);
}

/*
 * Sum the shards into ret_values, by the kinds of `table`, which describes the counters that the
 * shards begin with. Any thread, as long as the set exists.
 */
void counters_read(struct counters *c, const struct stat_desc *table, uint64_t *ret_values);

#endif

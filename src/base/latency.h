/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Histograms of latencies with boundaries that a user chose while requests run. (Those of
 * base/counters.h have fixed ones, and are always there.) None of these yields.
 */
#ifndef TIDEMARK_BASE_LATENCY_H
#define TIDEMARK_BASE_LATENCY_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum latency_kind {
    LATENCY_READ,
    LATENCY_WRITE,
    LATENCY_ZONE_APPEND, /* no request is of this kind */
    LATENCY_FLUSH,
    LATENCY_KINDS
};

/* Most boundaries of a histogram. */
#define LATENCY_BOUNDARIES_MAX 1024

/*
 * Bin 0 counts latencies below boundaries[0], bin i those from boundaries[i - 1] to below
 * boundaries[i], the last one, `count`, all longer ones. Nanoseconds.
 */
struct latency_histogram {
    size_t count;
    uint64_t *boundaries; /* `count`; owned */
    uint64_t *bins;       /* `count` + 1; owned */
};

/* The histograms of a user of a node, which may be read and written on any thread. */
struct latency_set {
    atomic_bool is_used;
    /* Guards `of`. */
    pthread_mutex_t guard;
    struct latency_histogram of[LATENCY_KINDS]; /* boundaries NULL: none */
};

/* A set without histograms, and its end. */
void latency_set_init(struct latency_set *set);
void latency_set_destroy(struct latency_set *set);

/*
 * Make an empty histogram of a kind, in place of one that there is. The boundaries rise from above
 * 0. -EINVAL: they do not, or there are more than LATENCY_BOUNDARIES_MAX; -ENOMEM: the old one
 * stays.
 */
int latency_set_make(struct latency_set *set, enum latency_kind kind, const uint64_t *boundaries,
                     size_t count);
/* 0 or -EINVAL: whether boundaries can be used. */
int latency_check_boundaries(const uint64_t *boundaries, size_t count);
/* Remove all histograms. */
void latency_set_clear(struct latency_set *set);

/* The part of latency_set_add() for sets with histograms. */
void latency_set_add_slow(struct latency_set *set, enum latency_kind kind, int64_t ns);

/* Count a request; `set` may be NULL. A negative latency counts as 0. */
static inline void latency_set_add(struct latency_set *set, enum latency_kind kind, int64_t ns)
{
    if (set && __builtin_expect(atomic_load_explicit(&set->is_used, memory_order_relaxed), 0)) {
        latency_set_add_slow(set, kind, ns);
    }
}

/* Call `fn` for the histogram of a kind, if there is one, while nobody counts. */
void latency_set_read(struct latency_set *set, enum latency_kind kind,
                      void (*fn)(const struct latency_histogram *h, void *arg), void *arg);

#endif

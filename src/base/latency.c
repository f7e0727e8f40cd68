/* SPDX-License-Identifier: Apache-2.0 */
#include "base/latency.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void free_histogram(struct latency_histogram *h)
{
    free(h->boundaries);
    free(h->bins);
    *h = (struct latency_histogram){0};
}

void latency_set_init(struct latency_set *set)
{
    *set = (struct latency_set){0};
    pthread_mutex_init(&set->guard, NULL);
}

void latency_set_destroy(struct latency_set *set)
{
    latency_set_clear(set);
    pthread_mutex_destroy(&set->guard);
}

void latency_set_clear(struct latency_set *set)
{
    pthread_mutex_lock(&set->guard);
    atomic_store(&set->is_used, false);
    for (int kind = 0; kind < LATENCY_KINDS; kind++) {
        free_histogram(&set->of[kind]);
    }
    pthread_mutex_unlock(&set->guard);
}

int latency_check_boundaries(const uint64_t *boundaries, size_t count)
{
    uint64_t previous = 0;

    if (count > LATENCY_BOUNDARIES_MAX) {
        return -EINVAL;
    }
    for (size_t i = 0; i < count; i++) {
        if (boundaries[i] <= previous) {
            return -EINVAL;
        }
        previous = boundaries[i];
    }
    return 0;
}

int latency_set_make(struct latency_set *set, enum latency_kind kind, const uint64_t *boundaries,
                     size_t count)
{
    struct latency_histogram h = {.count = count};

    if (latency_check_boundaries(boundaries, count) < 0) {
        return -EINVAL;
    }
    h.boundaries = calloc(count + 1, sizeof(uint64_t));
    h.bins = calloc(count + 1, sizeof(uint64_t));
    if (!h.boundaries || !h.bins) {
        free_histogram(&h);
        return -ENOMEM;
    }
    memcpy(h.boundaries, boundaries, count * sizeof(uint64_t));
    pthread_mutex_lock(&set->guard);
    free_histogram(&set->of[kind]);
    set->of[kind] = h;
    atomic_store(&set->is_used, true);
    pthread_mutex_unlock(&set->guard);
    return 0;
}

/* The bin of a latency: as many boundaries are not above it. */
static size_t find_bin(const struct latency_histogram *h, uint64_t ns)
{
    size_t low = 0, high = h->count;

    while (low < high) {
        size_t middle = (low + high) / 2;

        if (h->boundaries[middle] <= ns) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

void latency_set_add_slow(struct latency_set *set, enum latency_kind kind, int64_t ns)
{
    struct latency_histogram *h = &set->of[kind];

    pthread_mutex_lock(&set->guard);
    if (h->boundaries) {
        h->bins[find_bin(h, ns > 0 ? (uint64_t)ns : 0)]++;
    }
    pthread_mutex_unlock(&set->guard);
}

void latency_set_read(struct latency_set *set, enum latency_kind kind,
                      void (*fn)(const struct latency_histogram *h, void *arg), void *arg)
{
    pthread_mutex_lock(&set->guard);
    if (set->of[kind].boundaries) {
        fn(&set->of[kind], arg);
    }
    pthread_mutex_unlock(&set->guard);
}

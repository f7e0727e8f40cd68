/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/chain_map.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

/* In place of a layer's number, while maps are merged: the layers below decide. */
#define BELOW UINT32_MAX
/* Maps that wait for another of their size: enough for 2^64 layers. */
#define WAITING_MAX 64

size_t chain_map_find(const struct chain_map *map, uint64_t cluster)
{
    size_t low = 0, high = map->count;

    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;

        if (map->list[middle].first <= cluster) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

static struct chain_map *new_map(size_t room)
{
    struct chain_map *m = malloc(sizeof(*m) + (room + 1) * sizeof(m->list[0]));

    if (m) {
        m->count = 0;
    }
    return m;
}

/* Whether `b` goes on where `a`, which ends there, has been. */
static bool continues_piece(const struct chain_map_piece *a, const struct chain_map_piece *b)
{
    if (a->layer != b->layer || a->kind != b->kind) {
        return false;
    }
    return a->layer == 0 || a->layer == BELOW || a->digest == CHAIN_NO_DIGEST
               ? a->digest == b->digest
               : b->digest == a->digest + (b->first - a->first);
}

static void add_map_piece(struct chain_map *m, struct chain_map_piece p)
{
    if (m->count == 0 || !continues_piece(&m->list[m->count - 1], &p)) {
        m->list[m->count++] = p;
    }
}

/* The end of the disk; what is too much of the memory goes. */
static struct chain_map *finish_map(struct chain_map *m, uint64_t clusters)
{
    struct chain_map *less;

    m->list[m->count] = (struct chain_map_piece){.first = clusters};
    less = realloc(m, sizeof(*m) + (m->count + 1) * sizeof(m->list[0]));
    return less ?: m;
}

/* The map of a layer alone; its runs up to the end of the disk of the chain. */
static struct chain_map *map_of_layer(const struct chain *c, size_t index)
{
    const struct chain_layer *layer = &c->layers[index];
    const struct sums_runs *runs = &layer->file->runs;
    const uint32_t number = (uint32_t)index + 1;
    struct chain_map *m = new_map(2 * runs->count + 3);
    uint64_t at = 0, end = MIN(layer->clusters, c->clusters);

    for (size_t i = 0; m && i < runs->count && runs->list[i].first < end; i++) {
        const struct sums_run *run = &runs->list[i];

        if (run->first > at) {
            add_map_piece(m, (struct chain_map_piece){.first = at, .layer = BELOW});
        }
        add_map_piece(
            m, (struct chain_map_piece){
                   .first = run->first, .digest = run->digest, .layer = number, .kind = run->kind});
        at = run->first + run->count;
    }
    if (m && at < end) {
        add_map_piece(m, (struct chain_map_piece){.first = at, .layer = BELOW});
    }
    if (m && layer->clusters < MIN(c->below, c->clusters)) {
        add_map_piece(m, (struct chain_map_piece){.first = layer->clusters,
                                                  .digest = CHAIN_NO_DIGEST,
                                                  .layer = number,
                                                  .kind = SUMS_ZERO});
    }
    if (m && MAX(layer->clusters, c->below) < c->clusters) {
        add_map_piece(m, (struct chain_map_piece){.first = MAX(layer->clusters, c->below)});
    }
    return m ? finish_map(m, c->clusters) : NULL;
}

/* What a piece says from a later cluster on. */
static struct chain_map_piece piece_from(const struct chain_map_piece *p, uint64_t first)
{
    struct chain_map_piece from = *p;

    from.first = first;
    if (p->layer && p->layer != BELOW && p->digest != CHAIN_NO_DIGEST) {
        from.digest += first - p->first;
    }
    return from;
}

/* What `upper` does not decide is as in `lower`. Both are released. NULL: no memory. */
static struct chain_map *merge_maps(struct chain_map *lower, struct chain_map *upper,
                                    uint64_t clusters)
{
    struct chain_map *m = lower && upper ? new_map(lower->count + upper->count) : NULL;
    size_t l = 0, u = 0;

    for (uint64_t at = 0, next; m && at < clusters; at = next) {
        const struct chain_map_piece *p = &upper->list[u];

        next = upper->list[u + 1].first;
        if (p->layer == BELOW) {
            p = &lower->list[l];
            next = MIN(next, lower->list[l + 1].first);
        }
        add_map_piece(m, piece_from(p, at));
        u += next == upper->list[u + 1].first;
        while (l < lower->count && lower->list[l + 1].first <= next) {
            l++;
        }
    }
    free(lower);
    free(upper);
    return m ? finish_map(m, clusters) : NULL;
}

/* Where no layer decides there are zeroes. */
static struct chain_map *settle(struct chain_map *m)
{
    for (size_t i = 0; m && i < m->count; i++) {
        if (m->list[i].layer == BELOW) {
            m->list[i].layer = 0;
        }
    }
    return m;
}

struct chain_map *chain_map_new(const struct chain *c)
{
    struct chain_map *waiting[WAITING_MAX] = {NULL}, *all = NULL;
    bool failed = false;

    /* As a counter in binary: a map at place N is that of 2^N layers, older than those at lower. */
    for (size_t i = 0; i < c->count && !failed; i++) {
        struct chain_map *m = map_of_layer(c, i);
        size_t n = 0;

        for (; m && waiting[n]; n++) {
            m = merge_maps(TAKE_PTR(waiting[n]), m, c->clusters);
        }
        failed = !m;
        if (m) {
            waiting[n] = m;
        }
    }
    for (size_t n = 0; n < WAITING_MAX; n++) {
        if (failed) {
            free(waiting[n]);
        } else if (waiting[n]) {
            all = all ? merge_maps(waiting[n], all, c->clusters) : waiting[n];
            failed = !all;
        }
    }
    return settle(all);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Comparing ahead of fetching: a daemon computes the digests of what it has, and what is the same
 * in the parent does not leave it. What differs is fetched afterwards, and hashed here, as without
 * this.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/pull_internal.h"
#include "base/checked.h"
#include "base/cleanup.h"

/* Clusters whose digests are asked for at once, at most; and how many times per second, if paced */
#define WINDOW_CLUSTERS 1024u
#define PACED_WINDOWS 8u
/* Fewer that may hold data are fetched: several at a time, while questions wait for each other. */
#define WORTHWHILE_CLUSTERS 8u

struct ahead {
    struct pull *pull;
    struct pull_cursor cursor;     /* of the next chunk to compare */
    uint64_t most;                 /* clusters of a window */
    uint64_t first, end;           /* the window; of clusters from `end` on nothing is known */
    uint64_t data_clusters;        /* in it */
    uint64_t release, release_end; /* clusters that are the same, and not released yet */
    uint8_t zero_digest[SUMS_DIGEST_SIZE];
    uint8_t *digests; /* of the window */
};

/* From the first chunk of data on, with the holes between chunks. False: there is none. */
static bool find_window(struct ahead *a)
{
    const struct pull_plan *plan = &a->pull->plan;
    struct pull_cursor cursor = a->cursor;
    struct pull_chunk chunk;

    a->first = a->end = a->data_clusters = 0;
    while (pull_plan_next(plan, 1, &cursor, &chunk)) {
        if (a->end > 0 && chunk.first + chunk.count > a->first + a->most) {
            break;
        }
        if (chunk.kind == PULL_DATA) {
            a->first = a->end > 0 ? a->first : chunk.first;
            a->end = chunk.first + chunk.count;
            a->data_clusters += chunk.count;
        }
    }
    return a->end > 0;
}

static void co_release_same(struct ahead *a)
{
    struct pull_input *input = a->pull->config->input;
    uint64_t count = a->release_end - a->release;

    if (count > 0) {
        input->ops->co_release(input, a->release * BACKUP_CLUSTER_SIZE,
                               pull_bytes(a->pull->config->disk_size, a->release, count));
    }
    a->release = a->release_end = 0;
}

static int co_note_same(struct ahead *a, const struct pull_chunk *chunk, uint64_t i, uint64_t count)
{
    struct pull *p = a->pull;
    uint64_t first = chunk->first + i, size = pull_bytes(p->config->disk_size, first, count);

    if (first != a->release_end) {
        co_release_same(a);
        a->release = first;
    }
    a->release_end = first + count;
    p->moved += size;
    progress_add(&p->progress, size);
    return kind_map_set(&p->plan.kinds, chunk->kind_index + i, count, PULL_SAME);
}

static int co_compare_chunk(struct ahead *a, struct pull_chunk *chunk)
{
    const uint8_t *digests = a->digests + (chunk->first - a->first) * SUMS_DIGEST_SIZE;
    uint8_t kinds[PULL_CHUNK_CLUSTERS];
    int r = pull_compare_look_up(a->pull->config->parent, chunk);

    for (uint64_t i = 0; i < chunk->count; i++) {
        bool zero = memcmp(digests + i * SUMS_DIGEST_SIZE, a->zero_digest, SUMS_DIGEST_SIZE) == 0;

        kinds[i] = zero ? PULL_ZERO : PULL_DATA;
    }
    pull_compare_kinds(chunk, digests, kinds);
    for (uint64_t i = 0, end; r == 0 && i < chunk->count; i = end) {
        for (end = i + 1; end < chunk->count && kinds[end] == kinds[i]; end++) {
        }
        r = kinds[i] == PULL_SAME ? co_note_same(a, chunk, i, end - i) : 0;
    }
    return r;
}

/* The next chunk that ends before a->end. False: there is none. */
static bool next_in_window(struct ahead *a, struct pull_chunk *ret_chunk)
{
    struct pull_cursor before = a->cursor;

    if (!pull_plan_next(&a->pull->plan, 1, &a->cursor, ret_chunk)) {
        return false;
    }
    if (ret_chunk->first + ret_chunk->count > a->end) {
        a->cursor = before;
        return false;
    }
    return true;
}

static int co_compare_window(struct ahead *a)
{
    struct pull_chunk chunk;
    int r = 0;

    while (r == 0 && next_in_window(a, &chunk)) {
        r = chunk.kind == PULL_DATA ? co_compare_chunk(a, &chunk) : 0;
    }
    co_release_same(a);
    return r;
}

static void skip_window(struct ahead *a)
{
    struct pull_chunk chunk;

    while (next_in_window(a, &chunk)) {
    }
}

/* The digests of a window, or of its first part. */
static int co_ask_digests(struct ahead *a)
{
    struct pull *p = a->pull;
    struct pull_input *input = p->config->input;
    uint64_t size = pull_bytes(p->config->disk_size, a->first, a->end - a->first), count = 0;
    int r;

    pull_co_await_turn(p, size);
    r = input->ops->co_digests(input, a->first * BACKUP_CLUSTER_SIZE, size, a->digests, &count);
    a->end = a->first + count;
    return r;
}

static void co_compare_all(struct ahead *a)
{
    struct pull *p = a->pull;

    while (pull_may_continue(p) && find_window(a)) {
        int r = 0;

        if (a->data_clusters < WORTHWHILE_CLUSTERS) {
            skip_window(a);
            continue;
        }
        if (co_ask_digests(a) < 0) {
            break;
        }
        r = co_compare_window(a);
        if (r < 0 && p->status == 0) {
            p->status = error_set_errno(p->err, -r, "Could not compare with the last backup");
        }
    }
}

void pull_co_compare_ahead(struct pull *p)
{
    const struct pull_config *config = p->config;
    uint8_t *zeroes AUTO_FREE = NULL, *digests AUTO_FREE = NULL;
    struct ahead a = {.pull = p, .most = WINDOW_CLUSTERS};

    if (!config->parent || config->input->has_bitmap || !config->input->ops->co_digests) {
        return;
    }
    if (config->rate > 0) {
        uint64_t most = config->rate / PACED_WINDOWS / BACKUP_CLUSTER_SIZE;

        a.most = MAX(MIN(most, a.most), (uint64_t)PULL_CHUNK_CLUSTERS);
    }
    zeroes = calloc(1, BACKUP_CLUSTER_SIZE);
    digests = a.digests = malloc(a.most * SUMS_DIGEST_SIZE);
    if (!zeroes || !digests || sums_digest_clusters(zeroes, BACKUP_CLUSTER_SIZE, a.zero_digest)) {
        return;
    }
    co_compare_all(&a);
}

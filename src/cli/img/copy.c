/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workers take requests one after the other from a shared cursor, which walks the sources by their block status, and
 * read and write on their own, so that up to `workers` requests are in flight. What lies in the page cache is copied on the
 * spot, by the thread that asks for it; so once it is plain that there is much to copy, the second half of the workers starts in
 * a thread of its own. Unless the order of writes does not matter (out_of_order and no file in the page cache, or compressed
 * data, which finds its place late), what was read is written in order, by one worker at a time: it goes on with what others have read, for as long as the
 * next one is there. So one thread writes while the other reads and looks for zeroes, and the target is laid out in order. What
 * needs no write waits for nobody.
 */
#include "cli/img/copy_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/time_units.h"
#include "block/control.h"
#include "cli/cli.h"
#include "cli/img/img.h"
#include "loop/loop.h"

#define BUFFER_SIZE ((size_t)(2 * MiB))
#define SPARSE_MIN 4096u
#define MUCH (8 * MiB)          /* to copy: worth a thread */
#define ZERO_CHUNK (1ULL << 30) /* zeroes and skipped areas in one step */
#define PAUSE_NS                                                                                   \
    (100 * NS_PER_MS) /* of a pause for the rate limit, before a look at how others fare */

/* --- what is where -------------------------------------------------------------------------------- */

/* Status of a source at `offset` within it. With --salvage an unknown status counts as data for a sector. */
static int co_source_status(struct convert *c, struct convert_source *s, uint64_t offset,
                            uint64_t length, struct block_status *ret)
{
    struct block_node *base = NULL;
    int rc;

    if (convert_is_backed(c, offset)) {
        base = block_node_backing(s->disk.node);
        length = MIN(length, c->target_backing_size - offset);
    }
    rc = block_co_status_above(s->disk.edge, base, offset, length, ret, NULL);
    if (rc < 0 && c->salvage) {
        length = MIN(length, SALVAGE_STEP);
        rc = block_co_status_above(s->disk.edge, base, offset, length, ret, NULL);
        if (rc < 0) {
            if (!c->quiet) {
                cli_warn("error while reading block status at offset %" PRIu64 ": %s", offset,
                         strerror(-rc));
            }
            *ret = (struct block_status){.flags = BLOCK_STATUS_DATA, .length = length};
            return 0;
        }
    }
    if (rc < 0) {
        cli_fail("error while reading block status at offset %" PRIu64 " of '%s': %s", offset,
                 s->disk.name, strerror(-rc));
        return rc;
    }
    return ret->length ? 0 : -EIO;
}

static enum convert_kind kind_of(const struct convert *c, uint64_t offset, unsigned flags)
{
    bool unallocated = !(flags & BLOCK_STATUS_ALLOCATED);

    if (unallocated && convert_is_backed(c, offset)) {
        return CONVERT_BACKING;
    }
    if ((flags & BLOCK_STATUS_ZERO) || (unallocated && !(flags & BLOCK_STATUS_DATA))) {
        return CONVERT_ZERO;
    }
    return CONVERT_DATA;
}

/* The kind of [offset, offset + *length), with *length shortened to where it holds. */
static int co_look(struct convert *c, uint64_t offset, uint64_t *length, enum convert_kind *kind)
{
    struct convert_source *s = convert_source_at(c, offset);
    struct block_status status;
    int rc;

    *length = MIN(*length, s->start + s->size - offset);
    rc = co_source_status(c, s, offset - s->start, *length, &status);
    if (rc < 0) {
        return rc;
    }
    *length = MIN(*length, status.length);
    *kind = kind_of(c, offset, status.flags);
    return 0;
}

/* Bytes to be read, for progress. Errors are left to the copy, except that --salvage warns twice as qemu-img does. */
static uint64_t co_count_data(struct convert *c)
{
    uint64_t bytes = 0;
    uint64_t at = 0;

    while (at < c->total) {
        uint64_t length = c->total - at;
        enum convert_kind kind;

        if (co_look(c, at, &length, &kind) < 0) {
            return c->total;
        }
        if (kind == CONVERT_DATA || (kind == CONVERT_ZERO && c->min_sparse == 0)) {
            bytes += length;
        }
        at += length;
    }
    return bytes;
}

/* Lengths for compressed targets: whole units, except at the end of the disk. */
static void fit_to_units(struct convert *c, struct chunk *chunk)
{
    uint64_t end = chunk->offset + chunk->length;

    if (c->unit == 1 || end == c->total) {
        return;
    }
    if (chunk->kind != CONVERT_DATA && round_down(end, c->unit) > chunk->offset) {
        end = round_down(end, c->unit);
    } else {
        /* Data and something else share a unit: it is read and written whole. */
        chunk->kind = CONVERT_DATA;
        end = MIN(round_up(end, c->unit), c->total);
    }
    chunk->length = end - chunk->offset;
}

/* Have an extent for the next request, unless the end is reached. The lock is held, but not meanwhile. */
static int co_find_extent_locked(struct convert *c)
{
    uint64_t length;
    int rc;

    while (c->looking) {
        co_queue_wait_release(&c->lookers, &c->lock);
        pthread_mutex_lock(&c->lock);
    }
    if (c->failed) {
        return -ECANCELED; /* who looked has told */
    }
    if (c->next < c->extent_end || c->next >= c->total) {
        return 0;
    }
    c->looking = true;
    pthread_mutex_unlock(&c->lock);
    length = c->total - c->next;
    rc = co_look(c, c->next, &length, &c->extent_kind);
    pthread_mutex_lock(&c->lock);
    c->looking = false;
    c->failed |= rc < 0;
    co_queue_wake_all(&c->lookers);
    if (rc < 0) {
        return rc;
    }
    if (c->min_sparse == 0 && c->extent_kind == CONVERT_ZERO) {
        c->extent_kind = CONVERT_DATA;
    }
    c->extent_end = c->next + length;
    return 0;
}

/* The next request; length 0 at the end. The lock is held, but maybe not all the time. */
static int co_next_chunk_locked(struct convert *c, struct chunk *ret)
{
    struct chunk chunk;
    uint64_t most;
    int rc = co_find_extent_locked(c);

    ret->length = 0;
    if (rc < 0 || c->next >= c->total) {
        return rc;
    }
    chunk.offset = c->next;
    chunk.kind = c->extent_kind;
    most = chunk.kind == CONVERT_DATA ? c->request : ZERO_CHUNK;
    chunk.length = MIN(c->extent_end - c->next, most);
    if (chunk.kind == CONVERT_DATA && chunk.length == c->request &&
        !is_aligned(chunk.offset, c->granule) && c->granule < c->request) {
        /* End on a granule, so that the requests after this one are aligned. */
        chunk.length -= (chunk.offset + chunk.length) & (c->granule - 1);
    }
    fit_to_units(c, &chunk);
    c->next = chunk.offset + chunk.length;
    chunk.number = c->chunks++;
    *ret = chunk;
    return 0;
}

/* Sleep for so long, or until a worker has failed. */
static void co_pause(struct convert *c, int64_t ns)
{
    int64_t left = ns, end = loop_now_ns() + ns;
    bool failed = false;

    while (left > 0 && !failed) {
        loop_co_sleep(MIN(left, PAUSE_NS));
        pthread_mutex_lock(&c->lock);
        failed = c->failed;
        pthread_mutex_unlock(&c->lock);
        left = end - loop_now_ns();
    }
}

/* --- order ------------------------------------------------------------------------------------------- */

/* A file in the page cache takes one write at a time: several threads that write it only get in each other's way. */
static bool is_cached_file(const struct block_node *node)
{
    const struct block_node *below;

    while (node && (below = block_node_child(node, "file"))) {
        node = below;
    }
    return node && strcmp(block_node_format(node), "file") == 0 &&
           !block_node_settings(node).cache_direct;
}

static bool is_ordered(const struct convert *c)
{
    return !c->compressed && (!c->out_of_order || c->takes_one_write);
}

/* The worker that has fetched what is to be written next, or NULL. */
static struct worker *find_next_locked(struct convert *c)
{
    struct worker *first = NULL;

    for (unsigned i = 0; i < c->started && !c->failed; i++) {
        struct worker *w = &c->worker[i];

        if (w->stage != IDLE && (!first || w->chunk.number < first->chunk.number)) {
            first = w;
        }
    }
    return first && first->stage == FETCHED ? first : NULL;
}

/* Those that wait find out that it is for nothing. */
static void fail_locked(struct convert *c)
{
    c->failed = true;
    for (unsigned i = 0; i < c->started; i++) {
        co_queue_wake_all(&c->worker[i].put);
    }
}

/* Write what is there, of whichever worker, in order. One at a time. */
static void co_put_fetched_locked(struct convert *c)
{
    struct worker *next;

    if (c->writing) {
        return;
    }
    c->writing = true;
    while ((next = find_next_locked(c)) != NULL) {
        pthread_mutex_unlock(&c->lock);
        next->result = convert_co_put(next);
        pthread_mutex_lock(&c->lock);
        next->stage = IDLE;
        c->failed |= next->result < 0;
        co_queue_wake_all(&next->put);
    }
    c->writing = false;
    if (c->failed) {
        fail_locked(c);
    }
}

static int co_put_in_turn(struct worker *w)
{
    struct convert *c = w->c;

    pthread_mutex_lock(&c->lock);
    w->result = convert_needs_no_put(w) ? 0 : -ECANCELED;
    w->stage = w->result == 0 ? IDLE : FETCHED;
    co_put_fetched_locked(c);
    while (w->stage == FETCHED && !(c->failed && !c->writing)) {
        co_queue_wait_release(&w->put, &c->lock);
        pthread_mutex_lock(&c->lock);
    }
    w->stage = IDLE;
    pthread_mutex_unlock(&c->lock);
    return w->result;
}

static int co_copy_chunk(struct worker *w)
{
    int rc = convert_co_fetch(w);

    if (rc < 0) {
        return rc;
    }
    return is_ordered(w->c) ? co_put_in_turn(w) : convert_co_put(w);
}

static void co_work(void *arg);

/* Start the workers up to number `end`, as far as there is memory. The lock is held. */
static void start_workers_locked(struct convert *c, struct reactor *r, unsigned end)
{
    for (; c->started < end; c->started++) {
        struct worker *w = &c->worker[c->started];

        w->c = c;
        co_queue_init(&w->put);
        w->buffer = aligned_alloc(4096, BUFFER_SIZE);
        co_group_add(&c->group);
        if (!w->buffer || reactor_spawn(r, co_work, w) < 0) {
            co_group_done(&c->group);
            return;
        }
    }
}

/* Count what is about to be copied; when it gets much, start the other half of the workers. The lock is held. */
static void co_count_locked(struct convert *c, uint64_t bytes)
{
    ERROR_AUTO(err);

    c->copied += bytes;
    if (c->helper || c->copied < MUCH || c->started == c->workers ||
        reactor_current() != reactor_main()) {
        return;
    }
    if (reactor_create("convert", &c->helper, &err) < 0) {
        c->helper = NULL; /* slower, that is all */
    }
    start_workers_locked(c, c->helper ? c->helper : reactor_main(), c->workers);
}

/* The next request of a worker, done. Length 0: there is none. */
static int co_step(struct worker *w, uint64_t *ret_length)
{
    struct convert *c = w->c;
    struct chunk *chunk = &w->chunk;
    int64_t wait_ns = 0;
    int rc;

    pthread_mutex_lock(&c->lock);
    chunk->length = 0;
    rc = c->failed ? -ECANCELED : co_next_chunk_locked(c, chunk);
    if (rc == 0 && chunk->length > 0) {
        wait_ns =
            pacer_take(&c->pacer, convert_is_left_out(c, chunk) ? 0 : chunk->length, loop_now_ns());
        w->stage = FETCHING;
        co_count_locked(c, chunk->kind == CONVERT_DATA ? chunk->length : 0);
    }
    pthread_mutex_unlock(&c->lock);
    co_pause(c, wait_ns);
    if (rc == 0 && chunk->length > 0) {
        rc = co_copy_chunk(w);
    }
    pthread_mutex_lock(&c->lock);
    if (rc < 0) {
        fail_locked(c);
    } else if (chunk->kind == CONVERT_DATA || !c->show_progress) {
        progress_add(&c->progress, chunk->length);
    }
    pthread_mutex_unlock(&c->lock);
    *ret_length = chunk->length;
    return rc;
}

static void co_work(void *arg)
{
    struct worker *w = arg;
    uint64_t length;

    while (co_step(w, &length) == 0 && length > 0) {
    }
    co_group_done(&w->c->group);
}

/*
 * Zero the whole target at once if that is cheap, so that zeroes need no requests of their own. A file that has much is
 * overwritten as it is: to free its space and take it anew would cost more.
 */
static void co_try_zero_target(struct convert *c)
{
    uint64_t allocated;

    if (c->zero_from == 0 || block_node_backing(c->target.node) ||
        (c->takes_one_write && block_co_allocated_size(c->target.node, &allocated) == 0 &&
         allocated > c->total / 8)) {
        return;
    }
    if (block_co_write_zeroes(c->target.edge, 0, c->total,
                              BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK) == 0) {
        c->zero_from = 0;
    }
}

static void choose_sizes(struct convert *c)
{
    const struct block_limits *limits = block_node_limits(c->target.node);
    uint64_t sparse = c->min_sparse ? 1ULL << (63 - __builtin_clzll(c->min_sparse)) : 0;
    uint32_t cluster =
        MAX(limits->cluster_size, (uint32_t)MIN(limits->zeroes_alignment, BUFFER_SIZE));

    c->granule = (uint32_t)MIN(MAX(sparse, SPARSE_MIN), BUFFER_SIZE);
    if (is_power_of_2(cluster)) {
        c->granule = MIN(MAX(c->granule, cluster), BUFFER_SIZE);
    }
    c->unit = 1;
    if (c->compressed && is_power_of_2(limits->cluster_size)) {
        c->unit = limits->cluster_size;
        c->granule = MAX(limits->cluster_size, GRANULE_MIN);
    }
    c->request = MAX(REQUEST_SIZE, MAX(c->unit, c->granule));
}

static void free_workers(struct convert *c)
{
    for (unsigned i = 0; c->worker && i < c->workers; i++) {
        free(c->worker[i].buffer);
    }
    free(c->worker);
}

int convert_co_run(struct convert *c)
{
    uint64_t counted;

    choose_sizes(c);
    c->takes_one_write = is_cached_file(c->target.node);
    pthread_mutex_init(&c->lock, NULL);
    co_queue_init(&c->lookers);
    co_group_init(&c->group);
    c->worker = calloc(c->workers, sizeof(*c->worker));
    counted = c->show_progress || c->salvage ? co_count_data(c) : 0;
    img_progress_begin(&c->progress, c->show_progress, c->show_progress ? counted : c->total);
    if (c->min_sparse) {
        co_try_zero_target(c);
    }
    if (c->worker) {
        pthread_mutex_lock(&c->lock);
        start_workers_locked(c, reactor_main(), (c->workers + 1) / 2);
        pthread_mutex_unlock(&c->lock);
    }
    if (c->started == 0) {
        c->failed = true;
        cli_fail("Out of memory");
    }
    co_group_wait(&c->group);
    if (c->helper) {
        reactor_destroy(c->helper);
    }
    free_workers(c);
    progress_end(&c->progress, !c->failed);
    co_group_destroy(&c->group);
    pthread_mutex_destroy(&c->lock);
    return c->failed ? 1 : 0;
}

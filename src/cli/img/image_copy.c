/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workers take chunks from a shared cursor, which walks the sources by their block status, and read
 * and write on their own, so that up to `workers` requests are in flight. Data in the page cache is
 * copied by the thread that asks for it. So when it is clear that there is much to copy, the second
 * half of the workers starts in a thread of its own.
 *
 * The order of writes does not matter if out_of_order is set and the target is no file in the page
 * cache, or if data is compressed, because compressed data gets its place late. Otherwise chunks
 * that were read are written in order, by one worker at a time, which goes on with the chunks of
 * other workers as long as the next one has been read. So one thread writes while the other reads
 * and looks for zeroes, and the target is laid out in order. A chunk that needs no write waits for
 * nobody.
 */
#include "cli/img/image_copy_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/time_units.h"
#include "block/control.h"
#include "cli/cli.h"
#include "cli/img/command_line.h"
#include "loop/loop.h"

#define SPARSE_MIN 4096u
/* Bytes of data for which a second thread is worth its start. */
#define SECOND_THREAD_MIN_BYTES (8 * MiB)
/* Longest chunk of zeroes or skipped areas. */
#define ZERO_CHUNK (1ULL << 30)
/* While sleeping for the rate limit, check this often whether another worker failed. */
#define PAUSE_NS (100 * NS_PER_MS)

/* --- block status ----------------------------------------------------------------------------- */

/*
 * Query the status of a source at `offset` in it. With --salvage an area of unknown status counts
 * as data, one sector at a time.
 */
static int co_source_status(struct image_copy *c, struct image_copy_source *s, uint64_t offset,
                            uint64_t length, struct block_status *ret_status, struct error *err)
{
    struct block_node *base = NULL;
    int r;

    if (image_copy_is_backed(c, offset)) {
        base = block_node_backing(s->disk.node);
        length = MIN(length, c->target->backing_size - offset);
    }
    r = block_co_status_above(s->disk.edge, base, offset, length, ret_status, NULL);
    if (r < 0 && c->options->salvage) {
        length = MIN(length, SALVAGE_STEP);
        r = block_co_status_above(s->disk.edge, base, offset, length, ret_status, NULL);
        if (r < 0) {
            if (!c->options->quiet) {
                cli_warn("error while reading block status at offset %" PRIu64 ": %s", offset,
                         strerror(-r));
            }
            *ret_status = (struct block_status){.flags = BLOCK_STATUS_DATA, .length = length};
            return 0;
        }
    }
    if (r == 0 && ret_status->length == 0) {
        r = -EIO;
    }
    return r < 0 ? error_set_errno(err, -r,
                                   "error while reading block status at offset %" PRIu64 " of '%s'",
                                   offset, s->disk.name)
                 : 0;
}

static enum image_copy_kind kind_of_status(const struct image_copy *c, uint64_t offset,
                                           unsigned flags)
{
    bool unallocated = !(flags & BLOCK_STATUS_ALLOCATED);

    if (unallocated && image_copy_is_backed(c, offset)) {
        return IMAGE_COPY_BACKING;
    }
    if ((flags & BLOCK_STATUS_ZERO) || (unallocated && !(flags & BLOCK_STATUS_DATA))) {
        return IMAGE_COPY_ZERO;
    }
    return IMAGE_COPY_DATA;
}

/*
 * Find out the kind of [offset, offset + *length), and shorten *length to where all has one kind.
 */
static int co_find_kind(struct image_copy *c, uint64_t offset, uint64_t *length,
                        enum image_copy_kind *ret_kind, struct error *err)
{
    struct image_copy_source *s = image_copy_source_at(c, offset);
    struct block_status status;
    int r;

    *length = MIN(*length, s->start + s->size - offset);
    r = co_source_status(c, s, offset - s->start, *length, &status, err);
    if (r < 0) {
        return r;
    }
    *length = MIN(*length, status.length);
    *ret_kind = kind_of_status(c, offset, status.flags);
    return 0;
}

/*
 * Count the bytes to read, for progress. An error is left to the copy, which meets it again; so
 * --salvage warns twice, as qemu-img does.
 */
static uint64_t co_count_data(struct image_copy *c)
{
    uint64_t bytes = 0;
    uint64_t at = 0;

    while (at < c->total) {
        uint64_t length = c->total - at;
        enum image_copy_kind kind;

        if (co_find_kind(c, at, &length, &kind, NULL) < 0) {
            return c->total;
        }
        if (kind == IMAGE_COPY_DATA || (kind == IMAGE_COPY_ZERO && c->options->min_sparse == 0)) {
            bytes += length;
        }
        at += length;
    }
    return bytes;
}

/* Make the chunk whole units, for compressed targets; at the end of the disk it may be less. */
static void fit_to_units(struct image_copy *c, struct chunk *chunk)
{
    uint64_t end = chunk->offset + chunk->length;

    if (c->unit == 1 || end == c->total) {
        return;
    }
    if (chunk->kind != IMAGE_COPY_DATA && round_down(end, c->unit) > chunk->offset) {
        end = round_down(end, c->unit);
    } else {
        /* Data and something else share a unit, which is read and written whole. */
        chunk->kind = IMAGE_COPY_DATA;
        end = MIN(round_up(end, c->unit), c->total);
    }
    chunk->length = end - chunk->offset;
}

/*
 * Make sure that the extent of the next chunk is known, unless the end is reached. Releases the
 * lock during the query. -ECANCELED: another worker failed.
 */
static int co_find_extent_locked(struct image_copy *c, struct error *err)
{
    uint64_t length;
    int r;

    while (c->looking) {
        co_queue_wait_release(&c->lookers, &c->lock);
        pthread_mutex_lock(&c->lock);
    }
    if (c->failed) {
        return -ECANCELED;
    }
    if (c->next < c->extent_end || c->next >= c->total) {
        return 0;
    }
    c->looking = true;
    pthread_mutex_unlock(&c->lock);
    length = c->total - c->next;
    r = co_find_kind(c, c->next, &length, &c->extent_kind, err);
    pthread_mutex_lock(&c->lock);
    c->looking = false;
    c->failed |= r < 0;
    co_queue_wake_all(&c->lookers);
    if (r < 0) {
        return r;
    }
    if (c->options->min_sparse == 0 && c->extent_kind == IMAGE_COPY_ZERO) {
        c->extent_kind = IMAGE_COPY_DATA;
    }
    c->extent_end = c->next + length;
    return 0;
}

/* Take the next chunk, of length 0 at the end. May release the lock for a while. */
static int co_next_chunk_locked(struct image_copy *c, struct chunk *ret_chunk, struct error *err)
{
    struct chunk chunk;
    uint64_t most;
    int r = co_find_extent_locked(c, err);

    ret_chunk->length = 0;
    if (r < 0 || c->next >= c->total) {
        return r;
    }
    chunk.offset = c->next;
    chunk.kind = c->extent_kind;
    most = chunk.kind == IMAGE_COPY_DATA ? c->request : ZERO_CHUNK;
    chunk.length = MIN(c->extent_end - c->next, most);
    if (chunk.kind == IMAGE_COPY_DATA && chunk.length == c->request &&
        !is_aligned(chunk.offset, c->granule) && c->granule < c->request) {
        /* End on a granule, so that the chunks after this one are aligned. */
        chunk.length -= (chunk.offset + chunk.length) & (c->granule - 1);
    }
    fit_to_units(c, &chunk);
    c->next = chunk.offset + chunk.length;
    chunk.number = c->chunks++;
    *ret_chunk = chunk;
    return 0;
}

/* Sleep for `ns`, or until a worker has failed. */
static void co_sleep_unless_failed(struct image_copy *c, int64_t ns)
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

/* --- order ------------------------------------------------------------------------------------ */

/*
 * Whether the node is a file in the page cache, which takes one write at a time: several threads
 * that write to one only get in each other's way.
 */
static bool is_cached_file(struct block_node *node)
{
    struct block_node *below = node;

    while (below) {
        node = block_node_skip_filters(below);
        below = block_node_child(node, "file");
    }
    return strcmp(block_node_format(node), "file") == 0 && !block_node_settings(node).cache_direct;
}

static bool is_ordered(const struct image_copy *c)
{
    return !c->options->compressed && (!c->options->out_of_order || c->takes_one_write);
}

/* The worker that has fetched the chunk to be written next; NULL if it is not fetched yet. */
static struct worker *next_to_write_locked(struct image_copy *c)
{
    struct worker *first = NULL;

    for (unsigned i = 0; i < c->started && !c->failed; i++) {
        struct worker *w = &c->worker[i];

        if (w->stage != WORKER_IDLE && (!first || w->chunk.number < first->chunk.number)) {
            first = w;
        }
    }
    return first && first->stage == WORKER_FETCHED ? first : NULL;
}

/* Stop the copy, and wake workers that wait for their turn, which will not come. */
static void stop_locked(struct image_copy *c)
{
    c->failed = true;
    for (unsigned i = 0; i < c->started; i++) {
        co_queue_wake_all(&c->worker[i].put);
    }
}

/*
 * Write fetched chunks, of any worker, in order. One worker does so at a time. Releases the lock
 * during writes.
 */
static void co_put_fetched_locked(struct image_copy *c)
{
    struct worker *next;

    if (c->writing) {
        return;
    }
    c->writing = true;
    while ((next = next_to_write_locked(c)) != NULL) {
        pthread_mutex_unlock(&c->lock);
        next->result = image_copy_co_put(next);
        pthread_mutex_lock(&c->lock);
        next->stage = WORKER_IDLE;
        c->failed |= next->result < 0;
        co_queue_wake_all(&next->put);
    }
    c->writing = false;
    if (c->failed) {
        stop_locked(c);
    }
}

static int co_put_in_turn(struct worker *w)
{
    struct image_copy *c = w->c;

    pthread_mutex_lock(&c->lock);
    w->result = image_copy_needs_no_put(w) ? 0 : -ECANCELED;
    w->stage = w->result == 0 ? WORKER_IDLE : WORKER_FETCHED;
    co_put_fetched_locked(c);
    while (w->stage == WORKER_FETCHED && !(c->failed && !c->writing)) {
        co_queue_wait_release(&w->put, &c->lock);
        pthread_mutex_lock(&c->lock);
    }
    w->stage = WORKER_IDLE;
    pthread_mutex_unlock(&c->lock);
    return w->result;
}

static int co_copy_chunk(struct worker *w)
{
    int r = image_copy_co_fetch(w);

    if (r < 0) {
        return r;
    }
    return is_ordered(w->c) ? co_put_in_turn(w) : image_copy_co_put(w);
}

static void co_copy_work(void *arg);

/* Start the workers up to number `end`, as far as there is memory. */
static void start_workers_locked(struct image_copy *c, struct reactor *r, unsigned end)
{
    for (; c->started < end; c->started++) {
        struct worker *w = &c->worker[c->started];

        w->c = c;
        co_queue_init(&w->put);
        w->buffer = aligned_alloc(CLI_BUFFER_ALIGNMENT, CLI_BUFFER_SIZE);
        co_group_add(&c->group);
        if (!w->buffer || reactor_spawn(r, co_copy_work, w) < 0) {
            co_group_done(&c->group);
            return;
        }
    }
}

/* Count what is about to be copied; when it becomes much, start the other half of the workers. */
static void count_copied_locked(struct image_copy *c, uint64_t bytes)
{
    ERROR_AUTO(err);

    c->copied += bytes;
    if (c->helper || c->copied < SECOND_THREAD_MIN_BYTES || c->started == c->options->workers ||
        reactor_current() != reactor_main()) {
        return;
    }
    if (reactor_create("convert", &c->helper, &err) < 0) {
        c->helper = NULL; /* without it the copy is slower */
    }
    start_workers_locked(c, c->helper ? c->helper : reactor_main(), c->options->workers);
}

/* Keep the first error, and stop the copy. */
static void fail_locked(struct worker *w, int result)
{
    struct image_copy *c = w->c;

    if (c->result == 0 && result != -ECANCELED) {
        c->result = result;
        error_move(c->err, &w->err);
    }
    error_clear(&w->err);
    stop_locked(c);
}

/* Take and copy one chunk. *ret_length is 0 at the end. */
static int co_copy_next(struct worker *w, uint64_t *ret_length)
{
    struct image_copy *c = w->c;
    struct chunk *chunk = &w->chunk;
    int64_t wait_ns = 0;
    int r;

    pthread_mutex_lock(&c->lock);
    chunk->length = 0;
    r = c->failed ? -ECANCELED : co_next_chunk_locked(c, chunk, &w->err);
    if (r == 0 && chunk->length > 0) {
        wait_ns = pacer_take(&c->pacer, image_copy_is_left_out(c, chunk) ? 0 : chunk->length,
                             loop_now_ns());
        w->stage = WORKER_FETCHING;
        count_copied_locked(c, chunk->kind == IMAGE_COPY_DATA ? chunk->length : 0);
    }
    pthread_mutex_unlock(&c->lock);
    co_sleep_unless_failed(c, wait_ns);
    if (r == 0 && chunk->length > 0) {
        r = co_copy_chunk(w);
    }
    pthread_mutex_lock(&c->lock);
    if (r < 0) {
        fail_locked(w, r);
    } else if (chunk->kind == IMAGE_COPY_DATA || !c->options->show_progress) {
        progress_add(&c->progress, chunk->length);
    }
    pthread_mutex_unlock(&c->lock);
    *ret_length = chunk->length;
    return r;
}

static void co_copy_work(void *arg)
{
    struct worker *w = arg;
    uint64_t length;

    while (co_copy_next(w, &length) == 0 && length > 0) {
    }
    co_group_done(&w->c->group);
}

/*
 * Zero the whole target at once if that is cheap, so that zeroes need no requests of their own. A
 * file with much allocated space is overwritten as it is: freeing the space and allocating it again
 * would cost more.
 */
static void co_try_zero_target(struct image_copy *c)
{
    uint64_t allocated;

    if (c->target->zero_from == 0 || block_node_backing(c->target->disk.node) ||
        (c->takes_one_write && block_co_allocated_size(c->target->disk.node, &allocated) == 0 &&
         allocated > c->total / 8)) {
        return;
    }
    if (block_co_write_zeroes(c->target->disk.edge, 0, c->total,
                              BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK) == 0) {
        c->target->zero_from = 0;
    }
}

/* The longest read of data. */
static uint32_t longest_request(const struct image_copy *c)
{
    uint32_t longest = REQUEST_SIZE;

    for (size_t i = 0; i < c->source_count; i++) {
        uint32_t cached = block_node_limits(c->source[i].disk.node)->cached_transfer;

        if (cached > 0) {
            longest = MIN(longest, cached);
        }
    }
    return longest;
}

static void choose_sizes(struct image_copy *c)
{
    const struct block_limits *limits = block_node_limits(c->target->disk.node);
    uint64_t sparse =
        c->options->min_sparse ? 1ULL << (63 - __builtin_clzll(c->options->min_sparse)) : 0;
    uint32_t cluster =
        MAX(limits->cluster_size, (uint32_t)MIN(limits->zeroes_alignment, CLI_BUFFER_SIZE));

    c->granule = (uint32_t)MIN(MAX(sparse, SPARSE_MIN), CLI_BUFFER_SIZE);
    if (is_power_of_2(cluster)) {
        c->granule = MIN(MAX(c->granule, cluster), CLI_BUFFER_SIZE);
    }
    c->unit = 1;
    if ((c->options->compressed || c->target->whole_clusters) &&
        is_power_of_2(limits->cluster_size)) {
        c->unit = limits->cluster_size;
        c->granule = MAX(limits->cluster_size, GRANULE_MIN);
    }
    c->request = MAX(longest_request(c), MAX(c->unit, c->granule));
}

static void free_workers(struct image_copy *c)
{
    for (unsigned i = 0; c->worker && i < c->options->workers; i++) {
        free(c->worker[i].buffer);
    }
    free(c->worker);
}

/* Start half of the workers, and wait for all of them. */
static void co_run_copy_workers(struct image_copy *c)
{
    c->worker = calloc(c->options->workers, sizeof(*c->worker));
    if (c->worker) {
        pthread_mutex_lock(&c->lock);
        start_workers_locked(c, reactor_main(), (c->options->workers + 1) / 2);
        pthread_mutex_unlock(&c->lock);
    }
    if (c->started == 0) {
        c->failed = true;
        c->result = error_out_of_memory(c->err);
    }
    co_group_wait(&c->group);
    if (c->helper) {
        reactor_destroy(c->helper);
    }
    free_workers(c);
}

int image_copy_co_run(const struct image_copy_options *options, struct image_copy_source *sources,
                      size_t count, struct image_copy_target *target, struct error *err)
{
    const struct image_copy_source *last = &sources[count - 1];
    struct image_copy c = {
        .options = options,
        .source = sources,
        .source_count = count,
        .total = last->start + last->size,
        .target = target,
        .takes_one_write = is_cached_file(target->disk.node),
        .pacer = {.rate = options->rate},
        .err = err,
    };
    uint64_t counted;

    choose_sizes(&c);
    pthread_mutex_init(&c.lock, NULL);
    co_queue_init(&c.lookers);
    co_group_init(&c.group);
    counted = options->show_progress || options->salvage ? co_count_data(&c) : 0;
    img_progress_begin(&c.progress, options->show_progress,
                       options->show_progress ? counted : c.total);
    if (options->min_sparse) {
        co_try_zero_target(&c);
    }
    co_run_copy_workers(&c);
    progress_end(&c.progress, !c.failed);
    co_group_destroy(&c.group);
    pthread_mutex_destroy(&c.lock);
    return c.result;
}

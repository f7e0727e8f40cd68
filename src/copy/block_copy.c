/* SPDX-License-Identifier: Apache-2.0 */
#include "copy/block_copy.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/time_units.h"
#include "base/list.h"
#include "base/pacer.h"
#include "block/control.h"
#include "co/co.h"
#include "co/sync.h"
#include "loop/loop.h"

#define CHUNK_SIZE (256u * 1024)
/* No format has larger clusters: longer pieces would do nobody any good. */
#define UNIT_MAX (2u * 1024 * 1024)
/* How long a rate limit sleeps before it looks whether it still holds. */
#define RATE_SLICE_NS (20 * NS_PER_MS)
#define DEFAULT_MEMORY (32 * MiB)
#define DEFAULT_WORKERS 16u
#define MIN_BUFFER_ALIGNMENT 4096u

/* Lies in the first bytes of a buffer that is not in use. */
struct free_buffer {
    struct list link;
};

struct block_copy {
    struct block_edge *source;
    struct block_edge *target;
    struct block_copy_params params;
    uint32_t chunk_size;
    uint32_t unit; /* pieces begin and end at multiples of it */
    size_t buffer_alignment;
    _Atomic uint64_t rate; /* bytes per second; 0: no limit */
    atomic_bool cancelled;
    atomic_uint in_flight;      /* pieces */
    pthread_mutex_t rate_guard; /* guards pacer, paused, waiters */
    struct pacer pacer;
    bool paused;
    struct co_queue waiters; /* for the resume, or a cancel */

    struct co_semaphore buffers_left; /* one unit per buffer that may be in use */
    pthread_mutex_t pool_guard;       /* guards free_buffers */
    struct list free_buffers;
};

/* One block_co_copy(). Its workers all live on the caller's reactor, so plain fields will do. */
struct copy_call {
    struct block_copy *copy;
    struct co_mutex claim_lock; /* held over the status query, so that pieces go out in order */
    uint64_t pos;               /* first byte not claimed; a multiple of the cluster size */
    uint64_t end;
    uint64_t status_end; /* pos .. here has the status below */
    bool status_zero;
    int ret; /* first error */
    struct block_copy_failure failure;
    struct co_group workers;
};

struct copy_piece {
    uint64_t offset;
    uint64_t length;
    bool zero;
};

static size_t edge_memory_alignment(struct block_edge *edge)
{
    return MAX(MIN_BUFFER_ALIGNMENT, block_node_limits(block_edge_node(edge))->memory_alignment);
}

int block_copy_new(struct block_edge *source, struct block_edge *target,
                   const struct block_copy_params *params, struct block_copy **ret,
                   struct error *err)
{
    struct block_copy *copy;
    uint64_t buffers;

    if (!is_power_of_2(params->cluster_size)) {
        return error_set(err, EINVAL, "Cluster size %u of a copy is not a power of two",
                         params->cluster_size);
    }
    copy = calloc(1, sizeof(*copy));
    if (!copy) {
        return error_set(err, ENOMEM, "Out of memory for a block copy");
    }
    copy->source = source;
    copy->target = target;
    copy->params = *params;
    if (copy->params.max_memory == 0) {
        copy->params.max_memory = DEFAULT_MEMORY;
    }
    if (copy->params.max_workers == 0) {
        copy->params.max_workers = DEFAULT_WORKERS;
    }
    copy->unit = MIN(params->cluster_size, UNIT_MAX);
    copy->chunk_size = MAX(CHUNK_SIZE, copy->unit);
    copy->buffer_alignment = MAX(edge_memory_alignment(source), edge_memory_alignment(target));
    buffers = MAX(1, copy->params.max_memory / copy->chunk_size);
    co_semaphore_init(&copy->buffers_left, (int64_t)buffers);
    pthread_mutex_init(&copy->pool_guard, NULL);
    pthread_mutex_init(&copy->rate_guard, NULL);
    co_queue_init(&copy->waiters);
    list_init(&copy->free_buffers);
    *ret = copy;
    return 0;
}

void block_copy_free(struct block_copy *copy)
{
    struct free_buffer *buffer, *next;

    if (!copy) {
        return;
    }
    LIST_FOREACH_SAFE (buffer, next, &copy->free_buffers, link) {
        free(buffer);
    }
    pthread_mutex_destroy(&copy->rate_guard);
    pthread_mutex_destroy(&copy->pool_guard);
    co_semaphore_destroy(&copy->buffers_left);
    free(copy);
}

uint32_t block_copy_chunk_size(const struct block_copy *copy)
{
    return copy->chunk_size;
}

/* Waits until one of the allowed buffers is free. NULL if there is no memory. */
static void *co_buffer_get(struct block_copy *copy)
{
    struct free_buffer *buffer = NULL;
    void *memory = NULL;

    co_semaphore_take(&copy->buffers_left, 1);
    pthread_mutex_lock(&copy->pool_guard);
    if (!list_is_empty(&copy->free_buffers)) {
        buffer = LIST_FIRST(&copy->free_buffers, struct free_buffer, link);
        list_remove(&buffer->link);
    }
    pthread_mutex_unlock(&copy->pool_guard);
    if (buffer) {
        return buffer;
    }
    if (posix_memalign(&memory, copy->buffer_alignment, copy->chunk_size)) {
        co_semaphore_give(&copy->buffers_left, 1);
        return NULL;
    }
    return memory;
}

static void buffer_put(struct block_copy *copy, void *memory)
{
    struct free_buffer *buffer = memory;

    pthread_mutex_lock(&copy->pool_guard);
    /* The one used last comes first: its pages are there and in the cache. */
    list_prepend(&copy->free_buffers, &buffer->link);
    pthread_mutex_unlock(&copy->pool_guard);
    co_semaphore_give(&copy->buffers_left, 1);
}

static void call_fail(struct copy_call *call, int ret, bool reading, uint64_t offset)
{
    if (call->ret == 0) {
        call->ret = ret;
        call->failure = (struct block_copy_failure){.reading = reading, .offset = offset};
    }
}

static void co_query_status(struct copy_call *call)
{
    struct block_status status;

    call->status_zero = false;
    call->status_end = call->end;
    if (block_co_status_above(call->copy->source, NULL, call->pos, call->end - call->pos, &status,
                              NULL) < 0 ||
        status.length == 0) {
        return; /* status is a help only: what is unknown is copied as data */
    }
    call->status_zero = status.flags & BLOCK_STATUS_ZERO;
    call->status_end = call->pos + MIN(status.length, call->end - call->pos);
}

/*
 * Take the next piece. Only whole units are written as zeroes, so that the target need not split a cluster.
 * False at the end or after an error.
 */
static bool co_claim(struct copy_call *call, struct copy_piece *ret)
{
    uint32_t unit = call->copy->unit;
    uint64_t piece_end = 0;
    bool zero = false, got = false;

    co_mutex_lock(&call->claim_lock);
    if (call->ret == 0 && call->pos < call->end) {
        if (call->pos >= call->status_end) {
            co_query_status(call);
        }
        if (call->status_zero) {
            piece_end =
                call->status_end == call->end ? call->end : round_down(call->status_end, unit);
            zero = piece_end > call->pos;
        }
        if (!zero) {
            piece_end = round_up(MAX(call->status_end, call->pos + 1), unit);
            piece_end = MIN(piece_end, call->pos + call->copy->chunk_size);
            if (call->status_zero) {
                piece_end = call->pos + unit;
            }
            piece_end = MIN(piece_end, call->end);
        }
        *ret =
            (struct copy_piece){.offset = call->pos, .length = piece_end - call->pos, .zero = zero};
        call->pos = piece_end;
        got = true;
    }
    co_mutex_unlock(&call->claim_lock);
    return got;
}

/* --- rate, pause, cancel --------------------------------------------------------------------- */

void block_copy_set_rate(struct block_copy *copy, uint64_t bytes_per_second)
{
    pthread_mutex_lock(&copy->rate_guard);
    atomic_store(&copy->rate, bytes_per_second);
    copy->pacer = (struct pacer){.rate = bytes_per_second}; /* forgets the delay of a lower rate */
    pthread_mutex_unlock(&copy->rate_guard);
}

void block_copy_pause(struct block_copy *copy)
{
    pthread_mutex_lock(&copy->rate_guard);
    copy->paused = true;
    pthread_mutex_unlock(&copy->rate_guard);
}

void block_copy_resume(struct block_copy *copy)
{
    pthread_mutex_lock(&copy->rate_guard);
    copy->paused = false;
    co_queue_wake_all(&copy->waiters);
    pthread_mutex_unlock(&copy->rate_guard);
}

void block_copy_cancel(struct block_copy *copy)
{
    atomic_store(&copy->cancelled, true);
    pthread_mutex_lock(&copy->rate_guard);
    co_queue_wake_all(&copy->waiters);
    pthread_mutex_unlock(&copy->rate_guard);
}

bool block_copy_is_busy(const struct block_copy *copy)
{
    return atomic_load(&copy->in_flight) > 0;
}

/* Waits while paused. False when the copy was cancelled; else the piece is in flight. */
static bool co_begin_piece(struct copy_call *call)
{
    struct block_copy *copy = call->copy;
    bool cancelled;

    pthread_mutex_lock(&copy->rate_guard);
    while (copy->paused && !atomic_load(&copy->cancelled)) {
        co_queue_wait_release(&copy->waiters, &copy->rate_guard);
        pthread_mutex_lock(&copy->rate_guard);
    }
    cancelled = atomic_load(&copy->cancelled);
    copy->in_flight += !cancelled;
    pthread_mutex_unlock(&copy->rate_guard);
    if (cancelled) {
        call_fail(call, -ECANCELED, false, call->pos);
    }
    return !cancelled;
}

/* Waits for the time of this piece. A cancel, or another rate, is noticed within RATE_SLICE_NS. */
static void co_keep_rate(struct block_copy *copy, const struct copy_piece *piece)
{
    uint64_t rate = atomic_load(&copy->rate);
    int64_t now, begin;

    if (rate == 0 || piece->zero) {
        return;
    }
    pthread_mutex_lock(&copy->rate_guard);
    now = loop_now_ns();
    begin = now + pacer_take(&copy->pacer, piece->length, now);
    pthread_mutex_unlock(&copy->rate_guard);
    while ((now = loop_now_ns()) < begin && !atomic_load(&copy->cancelled) &&
           atomic_load(&copy->rate) == rate) {
        loop_co_sleep(MIN(begin - now, RATE_SLICE_NS));
    }
}

/* --- pieces ---------------------------------------------------------------------------------- */

static void co_copy_data(struct copy_call *call, const struct copy_piece *piece)
{
    struct block_copy *copy = call->copy;
    struct iovec vec;
    void *buffer;
    int ret;

    buffer = co_buffer_get(copy);
    if (!buffer) {
        call_fail(call, -ENOMEM, true, piece->offset);
        return;
    }
    ret = block_co_pread(copy->source, piece->offset, buffer, piece->length);
    if (reactor_turn_expired()) {
        loop_co_give_way();
    }
    if (ret < 0) {
        call_fail(call, ret, true, piece->offset);
    } else {
        ret = block_co_pwritev(copy->target, piece->offset,
                               iov_from_buf(&vec, buffer, piece->length), copy->params.write_flags);
        if (ret < 0) {
            call_fail(call, ret, false, piece->offset);
        }
    }
    buffer_put(copy, buffer);
}

static void co_copy_piece(struct copy_call *call, const struct copy_piece *piece)
{
    int ret;

    if (!piece->zero) {
        co_copy_data(call, piece);
        return;
    }
    ret = block_co_write_zeroes(call->copy->target, piece->offset, piece->length,
                                call->copy->params.zero_flags);
    if (ret < 0) {
        call_fail(call, ret, false, piece->offset);
    }
}

static void co_work(struct copy_call *call)
{
    struct block_copy *copy = call->copy;
    struct copy_piece piece;

    while (co_claim(call, &piece)) {
        co_keep_rate(copy, &piece);
        if (!co_begin_piece(call)) {
            break;
        }
        co_copy_piece(call, &piece);
        atomic_fetch_sub(&copy->in_flight, 1);
        if (reactor_turn_expired()) {
            loop_co_give_way();
        }
    }
}

static void co_worker(void *arg)
{
    struct copy_call *call = arg;

    co_work(call);
    co_group_done(&call->workers);
}

int block_co_copy(struct block_copy *copy, uint64_t offset, uint64_t length,
                  struct block_copy_failure *failure)
{
    struct copy_call call = {.copy = copy, .pos = offset, .end = offset + length};
    uint64_t chunks = div_round_up(length, copy->chunk_size);

    co_mutex_init(&call.claim_lock);
    co_group_init(&call.workers);
    for (unsigned i = 1; i < copy->params.max_workers && i < chunks; i++) {
        co_group_add(&call.workers);
        if (co_spawn(co_get_home(co_self()), co_worker, &call) < 0) {
            co_group_done(&call.workers); /* fewer workers do it too */
            break;
        }
    }
    co_work(&call);
    co_group_wait(&call.workers);
    co_group_destroy(&call.workers);
    co_mutex_destroy(&call.claim_lock);
    if (call.ret < 0 && failure) {
        *failure = call.failure;
    }
    return call.ret;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "copy/block_copy.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/list.h"
#include "co/co.h"
#include "co/sync.h"
#include "loop/loop.h"

#define CHUNK_SIZE ((uint32_t)(256 * KiB))
/* The largest clusters of any format; longer pieces have no advantage. */
#define UNIT_MAX (2u * 1024 * 1024)
#define DEFAULT_MEMORY (32 * MiB)
#define DEFAULT_WORKERS 16u
#define MIN_BUFFER_ALIGNMENT 4096u

/* In the first bytes of a buffer that is not in use. */
struct free_buffer {
    struct list link;
};

struct block_copy {
    struct block_edge *source;
    struct block_edge *target;
    struct block_copy_params params;
    uint32_t chunk_size;
    /* pieces begin and end at multiples of this, or where the range does */
    uint32_t unit;
    size_t buffer_alignment;
    /* calls that will not read any more */
    atomic_uint writing_only;

    /* one unit per buffer that may be in use */
    struct co_semaphore buffers_left;
    /* guards free_buffers */
    pthread_mutex_t pool_guard;
    struct list free_buffers;
};

/*
 * One block_co_copy(). All its workers are coroutines of the caller's reactor, so it needs no
 * atomics.
 */
struct copy_call {
    struct block_copy *copy;
    /*
     * zeroes are found in what is read: a query could take longer than reading, and does not know
     * what `fill` has
     */
    bool reads_all;
    /* block_co_copy_filled(); NULL: a plain copy */
    void (*fill)(void *arg, uint64_t offset, void *buf, uint64_t length);
    void *fill_arg;
    /* held during the status query, so that pieces are claimed in order */
    struct co_mutex claim_lock;
    /* the first byte that is not claimed */
    uint64_t pos;
    uint64_t end;
    /* [pos, status_end) reads as zeroes, or has data */
    uint64_t status_end;
    bool status_zero;
    /* pieces between claim and the end of their read */
    unsigned reading;
    /* counted in copy->writing_only */
    bool writes_only;
    /* 0, or the first error */
    int r;
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
                   const struct block_copy_params *params, struct block_copy **ret_copy,
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
    list_init(&copy->free_buffers);
    *ret_copy = copy;
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
    pthread_mutex_destroy(&copy->pool_guard);
    co_semaphore_destroy(&copy->buffers_left);
    free(copy);
}

/* Wait for one of the buffers that may be in use. NULL if there is no memory. */
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
    /* The buffer used last is reused first: its memory is mapped and cached. */
    list_prepend(&copy->free_buffers, &buffer->link);
    pthread_mutex_unlock(&copy->pool_guard);
    co_semaphore_give(&copy->buffers_left, 1);
}

static void copy_call_fail(struct copy_call *call, int r, bool reading, uint64_t offset)
{
    if (call->r == 0) {
        call->r = r;
        call->failure = (struct block_copy_failure){.reading = reading, .offset = offset};
    }
}

/* A piece has been read, or will not be: everything may be read now. */
static void piece_was_read(struct copy_call *call)
{
    call->reading--;
    if (call->reading == 0 && !call->writes_only && (call->pos == call->end || call->r < 0)) {
        call->writes_only = true;
        atomic_fetch_add(&call->copy->writing_only, 1);
    }
}

/* Query the status at call->pos. */
static void co_query_copy_status(struct copy_call *call)
{
    struct block_status status;

    call->status_zero = false;
    call->status_end = call->end;
    if (call->reads_all) {
        return;
    }
    if (block_co_status_above(call->copy->source, NULL, call->pos, call->end - call->pos, &status,
                              NULL) < 0 ||
        status.length == 0) {
        return; /* copy as data: the status only saves work */
    }
    call->status_zero = status.flags & BLOCK_STATUS_ZERO;
    call->status_end = call->pos + MIN(status.length, call->end - call->pos);
}

/*
 * Claim the next piece; false at the end or after an error. Only whole units are written as zeroes,
 * so that the target need not split a cluster.
 */
static bool co_claim_piece(struct copy_call *call, struct copy_piece *ret_piece)
{
    uint32_t unit = call->copy->unit;
    uint64_t piece_end = 0;
    bool zero = false, got = false;

    co_mutex_lock(&call->claim_lock);
    if (call->r == 0 && call->pos < call->end) {
        if (call->pos >= call->status_end) {
            co_query_copy_status(call);
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
                piece_end = round_down(call->pos, unit) + unit;
            }
            piece_end = MIN(piece_end, call->end);
        }
        *ret_piece =
            (struct copy_piece){.offset = call->pos, .length = piece_end - call->pos, .zero = zero};
        call->pos = piece_end;
        call->reading++;
        got = true;
    }
    co_mutex_unlock(&call->claim_lock);
    return got;
}

unsigned block_copy_writing_only(const struct block_copy *copy)
{
    return atomic_load(&copy->writing_only);
}

/* --- pieces */

/* Let the system copy the piece; false: it can't, or not all, and the piece is copied by hand. */
static bool co_copy_by_system(const struct copy_call *call, const struct copy_piece *piece)
{
    const struct block_copy *copy = call->copy;
    bool may = copy->params.use_copy_range && copy->params.write_flags == 0 && !call->fill;
    uint64_t done = 0;

    while (may && done < piece->length) {
        uint64_t length = piece->length - done, offset = piece->offset + done;

        if (block_co_copy_range(copy->source, offset, copy->target, offset, &length, 0) < 0 ||
            length == 0) {
            return false;
        }
        done += length;
    }
    return done > 0;
}

/* The length of the run of units from `at` on, in the piece, that are zeroes, or are not. */
static size_t run_of_zeroes(const struct block_copy *copy, const struct copy_piece *piece,
                            const uint8_t *buffer, size_t at, bool *ret_zero)
{
    size_t end = at;
    struct iovec vec;

    do {
        uint64_t from = piece->offset + end;
        size_t part = MIN(round_down(from, copy->unit) + copy->unit - from, piece->length - end);
        bool zero = iov_is_zero(iov_from_buf(&vec, (void *)(uintptr_t)(buffer + end), part));

        if (end > at && zero != *ret_zero) {
            break;
        }
        *ret_zero = zero;
        end += part;
    } while (end < piece->length);
    return end - at;
}

/* Write what was read. */
static int co_write_copied_piece(struct copy_call *call, const struct copy_piece *piece,
                                 uint8_t *buffer)
{
    struct block_copy *copy = call->copy;
    size_t at = 0, run = piece->length;
    bool zero = false;
    struct iovec vec;
    int r = 0;

    while (at < piece->length && r == 0) {
        if (call->reads_all) {
            run = run_of_zeroes(copy, piece, buffer, at, &zero);
        }
        r = zero ? block_co_write_zeroes(copy->target, piece->offset + at, run,
                                         copy->params.zero_flags)
                 : block_co_pwritev(copy->target, piece->offset + at,
                                    iov_from_buf(&vec, buffer + at, run), copy->params.write_flags);
        at += run;
    }
    return r;
}

static void co_copy_piece_data(struct copy_call *call, const struct copy_piece *piece)
{
    struct block_copy *copy = call->copy;
    void *buffer;
    int r;

    if (co_copy_by_system(call, piece)) {
        piece_was_read(call);
        return;
    }
    buffer = co_buffer_get(copy);
    if (!buffer) {
        piece_was_read(call);
        copy_call_fail(call, -ENOMEM, true, piece->offset);
        return;
    }
    r = block_co_pread(copy->source, piece->offset, buffer, piece->length);
    piece_was_read(call);
    if (r >= 0 && call->fill) {
        call->fill(call->fill_arg, piece->offset, buffer, piece->length);
    }
    if (reactor_turn_expired()) {
        loop_co_give_way();
    }
    if (r < 0) {
        copy_call_fail(call, r, true, piece->offset);
    } else {
        r = co_write_copied_piece(call, piece, buffer);
        if (r < 0) {
            copy_call_fail(call, r, false, piece->offset);
        }
    }
    buffer_put(copy, buffer);
}

static void co_copy_piece(struct copy_call *call, const struct copy_piece *piece)
{
    int r;

    if (!piece->zero) {
        co_copy_piece_data(call, piece);
        return;
    }
    piece_was_read(call);
    r = block_co_write_zeroes(call->copy->target, piece->offset, piece->length,
                              call->copy->params.zero_flags);
    if (r < 0) {
        copy_call_fail(call, r, false, piece->offset);
    }
}

static void co_copy_pieces(struct copy_call *call)
{
    struct copy_piece piece;

    while (co_claim_piece(call, &piece)) {
        co_copy_piece(call, &piece);
        if (reactor_turn_expired()) {
            loop_co_give_way();
        }
    }
}

static void co_copy_worker(void *arg)
{
    struct copy_call *call = arg;

    co_copy_pieces(call);
    co_group_done(&call->workers);
}

int block_co_copy(struct block_copy *copy, uint64_t offset, uint64_t length,
                  struct block_copy_failure *failure)
{
    return block_co_copy_filled(copy, offset, length, NULL, NULL, failure);
}

int block_co_copy_filled(struct block_copy *copy, uint64_t offset, uint64_t length,
                         void (*fill)(void *arg, uint64_t offset, void *buf, uint64_t length),
                         void *arg, struct block_copy_failure *failure)
{
    struct copy_call call = {
        .copy = copy,
        .reads_all = length <= CHUNK_SIZE || fill,
        .fill = fill,
        .fill_arg = arg,
        .pos = offset,
        .end = offset + length,
    };
    uint64_t chunks = div_round_up(length, copy->chunk_size);

    co_mutex_init(&call.claim_lock);
    co_group_init(&call.workers);
    for (unsigned i = 1; i < copy->params.max_workers && i < chunks; i++) {
        co_group_add(&call.workers);
        if (co_spawn(co_get_home(co_self()), co_copy_worker, &call) < 0) {
            co_group_done(&call.workers); /* continue with fewer workers */
            break;
        }
    }
    co_copy_pieces(&call);
    co_group_wait(&call.workers);
    co_group_destroy(&call.workers);
    co_mutex_destroy(&call.claim_lock);
    if (call.writes_only) {
        atomic_fetch_sub(&copy->writing_only, 1);
    }
    if (call.r < 0 && failure) {
        *failure = call.failure;
    }
    return call.r;
}

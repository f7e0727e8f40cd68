/* SPDX-License-Identifier: Apache-2.0 */
/* The copying of a mirror job: buffers, pieces, the loop. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "base/time_units.h"
#include "block/block.h"
#include "job/copy_loop.h"
#include "job/mirror_internal.h"
#include "loop/loop.h"

#define DEFAULT_BUF_SIZE (16 * MiB)
#define MAX_WORKERS 16u
/* The longest piece of zeroes: it holds up the guest's writes there in the mode write-blocking. */
#define MAX_ZEROES (64 * MiB)
#define BUFFER_ALIGNMENT 4096
/* A mirror does not catch up if that many passes, for that long, have left no less. */
#define IDLE_PASSES 4
#define IDLE_NS (10 * NS_PER_SECOND)

/* --- buffers ---------------------------------------------------------------------------------- */

/* In the first bytes of a buffer that is not in use. */
struct free_buffer {
    struct list link;
};

void *mirror_get_buffer(struct mirror *s)
{
    struct free_buffer *b = NULL;

    if (!list_is_empty(&s->free_buffers)) {
        b = LIST_FIRST(&s->free_buffers, struct free_buffer, link);
        list_remove(&b->link);
    } else if (posix_memalign((void **)&b, BUFFER_ALIGNMENT, s->chunk) != 0) {
        return NULL;
    }
    return b;
}

void mirror_put_buffer(struct mirror *s, void *buffer)
{
    struct free_buffer *b = buffer;

    list_prepend(&s->free_buffers, &b->link);
}

void mirror_free_buffers(struct mirror *s)
{
    struct free_buffer *b, *next;

    LIST_FOREACH_SAFE (b, next, &s->free_buffers, link) {
        free(b);
    }
}

/* --- pieces ----------------------------------------------------------------------------------- */

/*
 * After a pass through what was dirty. Guests that write as fast as the job copies keep it from its
 * end: no pass leaves less than others did.
 */
static void note_pass(struct mirror *s)
{
    struct mirror_passes *p = &s->passes;
    uint64_t left = dirty_bitmap_count(mirror_top_todo(s->top));
    int64_t now = loop_now_ns();

    p->since++;
    if (p->least_ns == 0 || left < p->least - p->least / 16) {
        p->least = left;
        p->least_ns = now;
        p->since = 0;
    } else if (!p->warned && !s->ready && s->copy_mode == MIRROR_COPY_BACKGROUND &&
               p->since >= IDLE_PASSES && now - p->least_ns >= IDLE_NS) {
        p->warned = true;
        log_warning("job '%s' does not catch up: guests of node '%s' write as fast as it copies, "
                    "%llu bytes are left%s",
                    job_id(s->job), block_node_name(s->params.source), (unsigned long long)left,
                    strcmp(s->params.type, "mirror") == 0
                        ? "; in the copy mode write-blocking (block-job-change) it would"
                        : "");
    }
}

/* What is known to be zero may be long, and does not count for the speed limit. */
static int co_mirror_plan(void *arg, struct copy_piece_plan *piece, uint64_t max_length)
{
    struct mirror *s = arg;
    struct block_status status;
    uint64_t zeroes;
    uint32_t granularity = dirty_bitmap_granularity(mirror_top_todo(s->top));
    int r;

    if (piece->offset < s->passes.offset) {
        note_pass(s);
    }
    s->passes.offset = piece->offset;
    r = block_co_status_above(block_root_edge(s->root), NULL, piece->offset,
                              MIN(max_length, MAX(MAX_ZEROES, piece->length)), &status, NULL);

    if (r < 0 || !(status.flags & BLOCK_STATUS_ZERO)) {
        return 0; /* copied as data: the status only saves work */
    }
    zeroes = status.length >= max_length ? max_length : round_down(status.length, granularity);
    if (zeroes > 0) {
        piece->length = zeroes;
        piece->paced = 0;
    }
    return 0;
}

static int co_mirror_piece(void *arg, const struct copy_piece_plan *piece, bool *ret_reading)
{
    struct mirror *s = arg;
    struct mirror_top_copy copy = {
        .offset = piece->offset,
        .length = piece->length,
        .buffer = mirror_get_buffer(s),
        .buffer_size = s->chunk,
        .entrance = block_root_edge(s->root),
        .is_cancelled = mirror_is_cancelled,
        .arg = s,
    };
    int r;

    if (!copy.buffer) {
        return -ENOMEM;
    }
    r = mirror_top_co_copy(s->top, &copy);
    *ret_reading = copy.reading;
    mirror_put_buffer(s, copy.buffer);
    if (r == 0) {
        flush_behind_note(&s->flushes, piece->paced);
    }
    return r;
}

int mirror_co_copy_range(struct mirror *s, uint64_t begin, uint64_t end, bool one_pass)
{
    uint64_t buffers = (s->params.buf_size ? s->params.buf_size : DEFAULT_BUF_SIZE) / s->chunk;
    struct copy_loop_params loop = {
        .job = s->job,
        .todo = mirror_top_todo(s->top),
        .chunk = s->chunk,
        .workers = (unsigned)MIN(MAX(buffers, 1), MAX_WORKERS),
        .on_source_error = s->params.on_source_error,
        .on_target_error = s->params.on_target_error,
        .live = true,
        .begin = begin,
        .end = end,
        .one_pass = one_pass,
        .co_plan = co_mirror_plan,
        .co_copy = co_mirror_piece,
        .arg = s,
    };
    int r;

    s->idle = false;
    r = copy_loop_co_run(&loop);
    flush_behind_co_wait(&s->flushes);
    s->idle = true;
    return r;
}

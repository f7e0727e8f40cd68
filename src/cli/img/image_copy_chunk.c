/* SPDX-License-Identifier: Apache-2.0 */
/* Reading and writing one chunk, with zeroes left out. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/img/image_copy_internal.h"

struct image_copy_source *image_copy_source_at(struct image_copy *c, uint64_t offset)
{
    size_t i = 0;

    while (i + 1 < c->source_count && offset >= c->source[i].start + c->source[i].size) {
        i++;
    }
    return &c->source[i];
}

/* Read one sector at a time; sectors that cannot be read become zeroes. */
static void co_salvage(struct image_copy *c, struct image_copy_source *s, uint64_t offset,
                       uint8_t *to, uint64_t length)
{
    for (uint64_t done = 0; done < length; done += SALVAGE_STEP) {
        size_t size = (size_t)MIN(length - done, SALVAGE_STEP);
        int r = block_co_pread(s->disk.edge, offset + done, to + done, size);

        if (r < 0) {
            if (!c->options->quiet) {
                cli_warn("error while reading offset %" PRIu64 ": %s", offset + done, strerror(-r));
            }
            memset(to + done, 0, size);
        }
    }
}

/* Read the worker's chunk, which may span sources. */
static int co_read_chunk(struct worker *w)
{
    struct image_copy *c = w->c;
    const struct chunk *chunk = &w->chunk;
    uint64_t done = 0;

    while (done < chunk->length) {
        struct image_copy_source *s = image_copy_source_at(c, chunk->offset + done);
        uint64_t within = chunk->offset + done - s->start;
        uint64_t length = MIN(chunk->length - done, s->size - within);
        int r = block_co_pread(s->disk.edge, within, w->buffer + done, (size_t)length);

        if (r < 0 && c->options->salvage) {
            co_salvage(c, s, within, w->buffer + done, length);
        } else if (r < 0) {
            return error_set_errno(&w->err, -r, "error while reading at byte %" PRIu64 " of '%s'",
                                   within, s->disk.name);
        }
        done += length;
    }
    return 0;
}

static int write_failed(struct worker *w, uint64_t offset, int result)
{
    return error_set_errno(&w->err, -result, "error while writing at byte %" PRIu64, offset);
}

static int co_write_chunk_data(struct worker *w, uint64_t offset, const uint8_t *data,
                               uint64_t length)
{
    const struct image_copy *c = w->c;
    const struct cli_disk *target = &c->target->disk;
    unsigned flags = c->options->compressed ? BLOCK_REQ_COMPRESSED : 0;
    int r;

    if (target->writethrough && !c->options->compressed) {
        flags |= BLOCK_REQ_FUA;
    }
    r = block_co_pwrite(target->edge, offset, data, (size_t)length, flags);
    return r < 0 ? write_failed(w, offset, r) : 0;
}

/* Whether the target reads as zeroes at `offset` without a write. */
static bool is_zero_there(const struct image_copy *c, uint64_t offset)
{
    return offset >= c->target->zero_from;
}

bool image_copy_is_backed(const struct image_copy *c, uint64_t offset)
{
    return c->target->share_backing && offset < c->target->backing_size;
}

bool image_copy_is_left_out(const struct image_copy *c, const struct chunk *chunk)
{
    return chunk->kind == IMAGE_COPY_BACKING ||
           (chunk->kind == IMAGE_COPY_ZERO && is_zero_there(c, chunk->offset));
}

static int co_write_chunk_zeroes(struct worker *w, uint64_t offset, uint64_t length)
{
    int r;

    if (is_zero_there(w->c, offset)) {
        return 0;
    }
    r = block_co_write_zeroes(w->c->target->disk.edge, offset, length, BLOCK_REQ_MAY_UNMAP);
    return r < 0 ? write_failed(w, offset, r) : 0;
}

/* The number of bytes from `at` in a chunk to the end of the granule. */
static uint64_t piece_length_at(const struct image_copy *c, const struct chunk *chunk, uint64_t at)
{
    uint64_t offset = chunk->offset + at;

    return MIN(round_down(offset, c->granule) + c->granule - offset, chunk->length - at);
}

static void find_zero_granules(struct worker *w)
{
    const struct image_copy *c = w->c;
    uint64_t piece;
    size_t i = 0;

    w->all_zero = c->options->min_sparse > 0;
    for (uint64_t at = 0; at < w->chunk.length && c->options->min_sparse > 0; at += piece) {
        piece = piece_length_at(c, &w->chunk, at);
        w->zero[i] = buffer_is_zero(w->buffer + at, (size_t)piece);
        w->all_zero &= w->zero[i++];
    }
}

/*
 * Write a chunk that was read, run by run. Granules that are zero are left out, or zeroed where the
 * target may have other contents; neighbours of one kind go in one request.
 */
static int co_write_runs(struct worker *w)
{
    struct image_copy *c = w->c;
    const struct chunk *chunk = &w->chunk;
    uint64_t at = 0;
    size_t i = 0;

    if (c->options->min_sparse == 0) {
        return co_write_chunk_data(w, chunk->offset, w->buffer, chunk->length);
    }
    while (at < chunk->length) {
        uint64_t begin = at;
        bool zero = w->zero[i];
        int r;

        for (; at < chunk->length && w->zero[i] == zero; i++) {
            at += piece_length_at(c, chunk, at);
        }
        r = zero ? co_write_chunk_zeroes(w, chunk->offset + begin, at - begin)
                 : co_write_chunk_data(w, chunk->offset + begin, w->buffer + begin, at - begin);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

/* Let the system copy a chunk. -ENOTSUP: it has to be read and written. */
static int co_offload_chunk(struct worker *w)
{
    struct image_copy *c = w->c;
    const struct chunk *chunk = &w->chunk;
    uint64_t done = 0;
    unsigned flags = c->target->disk.writethrough ? BLOCK_REQ_FUA : 0;

    while (done < chunk->length) {
        uint64_t at = chunk->offset + done;
        struct image_copy_source *s = image_copy_source_at(c, at);
        uint64_t length = MIN(chunk->length - done, s->start + s->size - at);
        int r = block_co_copy_range(s->disk.edge, at - s->start, c->target->disk.edge, at, &length,
                                    flags);

        if (r < 0) {
            return r == -ENOTSUP || c->options->salvage ? -ENOTSUP : write_failed(w, at, r);
        }
        done += length;
    }
    return 0;
}

static int co_read_and_find_zeroes(struct worker *w)
{
    int r = co_read_chunk(w);

    if (r == 0) {
        find_zero_granules(w);
    }
    return r;
}

int image_copy_co_fetch(struct worker *w)
{
    bool reads = w->chunk.kind == IMAGE_COPY_DATA && !w->c->options->offload;

    w->all_zero = false;
    return reads ? co_read_and_find_zeroes(w) : 0;
}

bool image_copy_needs_no_put(const struct worker *w)
{
    return image_copy_is_left_out(w->c, &w->chunk) ||
           (w->chunk.kind == IMAGE_COPY_DATA && w->all_zero &&
            is_zero_there(w->c, w->chunk.offset));
}

int image_copy_co_put(struct worker *w)
{
    struct image_copy *c = w->c;
    int r;

    switch (w->chunk.kind) {
    case IMAGE_COPY_BACKING:
        return 0;
    case IMAGE_COPY_ZERO:
        return co_write_chunk_zeroes(w, w->chunk.offset, w->chunk.length);
    case IMAGE_COPY_DATA:
        break;
    }
    if (c->options->offload) {
        r = co_offload_chunk(w);
        if (r != -ENOTSUP) {
            return r;
        }
        r = co_read_and_find_zeroes(w);
        if (r < 0) {
            return r;
        }
    }
    return co_write_runs(w);
}

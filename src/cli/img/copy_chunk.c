/* SPDX-License-Identifier: Apache-2.0 */
/* Reading and writing one chunk of `img convert`, zeroes left out. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/control.h"
#include "cli/cli.h"
#include "cli/img/copy_internal.h"

struct convert_source *convert_source_at(struct convert *c, uint64_t offset)
{
    size_t i = 0;

    while (i + 1 < c->source_count && offset >= c->source[i].start + c->source[i].size) {
        i++;
    }
    return &c->source[i];
}

/* Read what can be read a sector at a time; the rest becomes zeroes. */
static void co_salvage(struct convert *c, struct convert_source *s, uint64_t offset, uint8_t *to,
                       uint64_t length)
{
    for (uint64_t done = 0; done < length; done += SALVAGE_STEP) {
        size_t size = (size_t)MIN(length - done, SALVAGE_STEP);
        int rc = block_co_pread(s->disk.edge, offset + done, to + done, size);

        if (rc < 0) {
            if (!c->quiet) {
                cli_warn("error while reading offset %" PRIu64 ": %s", offset + done,
                         strerror(-rc));
            }
            memset(to + done, 0, size);
        }
    }
}

/* Read a chunk, which may span sources. */
static int co_read_chunk(struct convert *c, const struct chunk *chunk, uint8_t *buffer)
{
    uint64_t done = 0;

    while (done < chunk->length) {
        struct convert_source *s = convert_source_at(c, chunk->offset + done);
        uint64_t within = chunk->offset + done - s->start;
        uint64_t length = MIN(chunk->length - done, s->size - within);
        int rc = block_co_pread(s->disk.edge, within, buffer + done, (size_t)length);

        if (rc < 0 && c->salvage) {
            co_salvage(c, s, within, buffer + done, length);
        } else if (rc < 0) {
            cli_fail("error while reading at byte %" PRIu64 " of '%s': %s", within, s->disk.name,
                     strerror(-rc));
            return rc;
        }
        done += length;
    }
    return 0;
}

static int write_failed(uint64_t offset, int rc)
{
    cli_fail("error while writing at byte %" PRIu64 ": %s", offset, strerror(-rc));
    return rc;
}

static int co_write_data(struct convert *c, uint64_t offset, const uint8_t *data, uint64_t length)
{
    unsigned flags = c->compressed ? BLOCK_REQ_COMPRESSED : 0;
    int rc;

    if (c->target.writethrough && !c->compressed) {
        flags |= BLOCK_REQ_FUA;
    }
    rc = block_co_pwrite(c->target.edge, offset, data, (size_t)length, flags);
    return rc < 0 ? write_failed(offset, rc) : 0;
}

/* Whether the target reads as zeroes at `offset` as it is. */
static bool is_zero_there(const struct convert *c, uint64_t offset)
{
    return offset >= c->zero_from;
}

bool convert_is_backed(const struct convert *c, uint64_t offset)
{
    return c->share_backing && offset < c->target_backing_size;
}

bool convert_is_left_out(const struct convert *c, const struct chunk *chunk)
{
    return chunk->kind == CONVERT_BACKING ||
           (chunk->kind == CONVERT_ZERO && is_zero_there(c, chunk->offset));
}

static int co_write_nothing(struct convert *c, uint64_t offset, uint64_t length)
{
    int rc;

    if (is_zero_there(c, offset)) {
        return 0;
    }
    rc = block_co_write_zeroes(c->target.edge, offset, length, BLOCK_REQ_MAY_UNMAP);
    return rc < 0 ? write_failed(offset, rc) : 0;
}

/* Bytes from `at` within a chunk to the end of the granule. */
static uint64_t piece_at(const struct convert *c, const struct chunk *chunk, uint64_t at)
{
    uint64_t offset = chunk->offset + at;

    return MIN(round_down(offset, c->granule) + c->granule - offset, chunk->length - at);
}

static void find_zeroes(struct worker *w)
{
    const struct convert *c = w->c;
    uint64_t piece;
    size_t i = 0;

    w->all_zero = c->min_sparse > 0;
    for (uint64_t at = 0; at < w->chunk.length && c->min_sparse > 0; at += piece) {
        piece = piece_at(c, &w->chunk, at);
        w->zero[i] = buffer_is_zero(w->buffer + at, (size_t)piece);
        w->all_zero &= w->zero[i++];
    }
}

/*
 * Write a chunk that was read, run by run: granules that are zero are left out (or zeroed where the target
 * may hold something), and neighbours of one kind go in one request.
 */
static int co_write_runs(struct worker *w)
{
    struct convert *c = w->c;
    const struct chunk *chunk = &w->chunk;
    uint64_t at = 0;
    size_t i = 0;

    if (c->min_sparse == 0) {
        return co_write_data(c, chunk->offset, w->buffer, chunk->length);
    }
    while (at < chunk->length) {
        uint64_t begin = at;
        bool zero = w->zero[i];
        int rc;

        for (; at < chunk->length && w->zero[i] == zero; i++) {
            at += piece_at(c, chunk, at);
        }
        rc = zero ? co_write_nothing(c, chunk->offset + begin, at - begin)
                  : co_write_data(c, chunk->offset + begin, w->buffer + begin, at - begin);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

/* Have the system copy a chunk. -ENOTSUP: it has to be read and written. */
static int co_offload_chunk(struct convert *c, const struct chunk *chunk)
{
    uint64_t done = 0;
    unsigned flags = c->target.writethrough ? BLOCK_REQ_FUA : 0;

    while (done < chunk->length) {
        uint64_t at = chunk->offset + done;
        struct convert_source *s = convert_source_at(c, at);
        uint64_t length = MIN(chunk->length - done, s->start + s->size - at);
        int rc =
            block_co_copy_range(s->disk.edge, at - s->start, c->target.edge, at, &length, flags);

        if (rc < 0) {
            return rc == -ENOTSUP || c->salvage ? -ENOTSUP : write_failed(at, rc);
        }
        done += length;
    }
    return 0;
}

static int co_read_and_look(struct worker *w)
{
    int rc = co_read_chunk(w->c, &w->chunk, w->buffer);

    if (rc == 0) {
        find_zeroes(w);
    }
    return rc;
}

int convert_co_fetch(struct worker *w)
{
    bool reads = w->chunk.kind == CONVERT_DATA && !w->c->offload;

    w->all_zero = false;
    return reads ? co_read_and_look(w) : 0;
}

bool convert_needs_no_put(const struct worker *w)
{
    return convert_is_left_out(w->c, &w->chunk) ||
           (w->chunk.kind == CONVERT_DATA && w->all_zero && is_zero_there(w->c, w->chunk.offset));
}

int convert_co_put(struct worker *w)
{
    struct convert *c = w->c;
    int rc;

    switch (w->chunk.kind) {
    case CONVERT_BACKING:
        return 0;
    case CONVERT_ZERO:
        return co_write_nothing(c, w->chunk.offset, w->chunk.length);
    case CONVERT_DATA:
        break;
    }
    if (c->offload) {
        rc = co_offload_chunk(c, &w->chunk);
        if (rc != -ENOTSUP) {
            return rc;
        }
        rc = co_read_and_look(w);
        if (rc < 0) {
            return rc;
        }
    }
    return co_write_runs(w);
}

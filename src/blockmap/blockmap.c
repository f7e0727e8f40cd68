/* SPDX-License-Identifier: Apache-2.0 */
#include "blockmap/blockmap.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

#define ZERO_PIECE (64 * KiB)

static const uint8_t zero_piece[ZERO_PIECE] __attribute__((aligned(4096)));

void blockmap_init(struct blockmap *map, const struct blockmap_ops *ops, uint64_t block_size)
{
    map->ops = ops;
    map->block_size = block_size;
    if (!map->initialised) {
        co_mutex_init(&map->lock);
        map->initialised = true;
    }
}

void blockmap_destroy(struct blockmap *map)
{
    if (map->initialised) {
        co_mutex_destroy(&map->lock);
        map->initialised = false;
    }
}

int blockmap_co_read_exactly(struct block_node *node, struct block_edge *edge, uint64_t offset,
                             void *buf, size_t size, const char *what, struct error *err)
{
    const char *name = block_node_display_name(node);
    uint64_t file_size = block_edge_size(edge);
    int r;

    if (!range_fits(offset, size, file_size)) {
        return error_set(err, EINVAL,
                         "The %s of '%s' is not within the file: offset %" PRIu64
                         ", length %zu, file size %" PRIu64,
                         what, name, offset, size, file_size);
    }
    r = block_co_pread(edge, offset, buf, size);
    return r < 0 ? error_set_errno(err, -r, "Could not read the %s of '%s'", what, name) : 0;
}

int blockmap_refuse_writing(const struct block_node *node, const char *why, struct error *err)
{
    if (node->read_only) {
        return 0;
    }
    return error_set(err, EACCES, "Image is read-only: '%s' %s", block_node_display_name(node),
                     why);
}

/* --- room in the file ------------------------------------------------------------------------- */

/* How much longer the file becomes than it has to be. */
#define ROOM_STEP (64 * MiB)

/* Make the file end at `end`, and have `footer` before that. */
static int blockmap_co_grow(struct block_edge *edge, uint64_t end, const uint8_t *footer)
{
    static const uint8_t zeroes[BLOCKMAP_FOOTER];
    int r = footer ? -ENOTSUP : block_co_extend(edge, end);

    return r == -ENOTSUP ? block_co_pwrite(edge, end - BLOCKMAP_FOOTER, footer ? footer : zeroes,
                                           BLOCKMAP_FOOTER, 0)
                         : r;
}

int blockmap_co_make_room_locked(struct block_edge *edge, struct blockmap_room *room, uint64_t end,
                                 const uint8_t *footer)
{
    uint64_t least = end + (footer ? BLOCKMAP_FOOTER : 0);
    int r = 0;

    if (least <= room->end) {
        return 0;
    }
    room->is_used = true;
    if (block_edge_size(edge) < least) {
        r = blockmap_co_grow(edge, least + ROOM_STEP, footer);
        if (r < 0) {
            r = blockmap_co_grow(edge, least, footer);
        }
    }
    UNLESS_FAILED(r, block_co_flush(edge));
    if (r == 0) {
        room->end = block_edge_size(edge);
    }
    return r;
}

void blockmap_co_cut_room(struct block_edge *edge, struct blockmap_room *room, uint64_t end)
{
    if (room->is_used && block_edge_size(edge) > end) {
        (void)block_co_truncate(edge, end, BLOCK_PREALLOC_OFF, NULL);
    }
    *room = (struct blockmap_room){0};
}

/* --- reading ---------------------------------------------------------------------------------- */

/* Bytes [offset, offset + length) of the backing file, with zeroes past its end. */
static int blockmap_co_read_backing(struct block_node *node, uint64_t offset, struct iov iov)
{
    uint64_t size = node->backing ? block_edge_size(node->backing) : 0;
    size_t inside = offset < size ? MIN(size - offset, iov.size) : 0;
    IOV_PART_AUTO(part);
    int r = 0;

    if (inside > 0) {
        r = iov_part_set(&part, iov, 0, inside);
        UNLESS_FAILED(r, block_co_preadv(node->backing, offset, part.iov, 0));
    }
    if (r == 0 && inside < iov.size) {
        iov_fill(iov, inside, 0, iov.size - inside);
    }
    return r;
}

static int blockmap_co_read_run(struct block_node *node, uint64_t offset, struct iov iov,
                                const struct blockmap_run *run)
{
    const struct blockmap *map = node->opaque;

    switch (run->kind) {
    case BLOCKMAP_ABSENT:
        return blockmap_co_read_backing(node, offset, iov);
    case BLOCKMAP_ZERO:
        iov_fill(iov, 0, 0, iov.size);
        return 0;
    case BLOCKMAP_DATA:
        block_co_event(run->edge, BLOCK_EVENT_READ_AIO);
        return block_co_preadv(run->edge, run->host, iov, 0);
    case BLOCKMAP_COMPRESSED:
        return map->ops->co_read_compressed(node, offset, iov, run);
    }
    return -EIO;
}

int blockmap_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    const struct blockmap *map = node->opaque;
    struct blockmap_run run;

    if (flags & BLOCK_REQ_PREFETCH) {
        return 0;
    }
    for (uint64_t done = 0; done < iov.size; done += run.length) {
        IOV_PART_AUTO(part);
        int r = map->ops->co_find(node, offset + done, iov.size - done, &run);

        UNLESS_FAILED(r, iov_part_set(&part, iov, done, run.length));
        UNLESS_FAILED(r, blockmap_co_read_run(node, offset + done, part.iov, &run));
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

/* Unlike reads, status queries need not be aligned. */
int blockmap_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                       struct block_status *ret_status)
{
    const struct blockmap *map = node->opaque;
    uint64_t unit = MAX(node->limits.request_alignment, 1u);
    uint64_t lead = offset % unit;
    uint64_t aligned = round_up(lead + length, unit);
    struct blockmap_run run;
    int r = map->ops->co_find(node, offset - lead,
                              MIN(aligned, block_node_size(node) - (offset - lead)), &run);

    if (r < 0) {
        return r;
    }
    *ret_status = (struct block_status){.length = MIN(run.length - lead, length)};
    switch (run.kind) {
    case BLOCKMAP_ABSENT:
        break;
    case BLOCKMAP_ZERO:
        ret_status->flags = BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_ZERO;
        break;
    case BLOCKMAP_DATA:
        ret_status->flags = BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_DATA | BLOCK_STATUS_OFFSET |
                            (run.is_preallocated ? BLOCK_STATUS_RECURSE : 0);
        ret_status->map = run.host + lead;
        ret_status->file = run.edge->node;
        break;
    case BLOCKMAP_COMPRESSED:
        ret_status->flags = BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_DATA | BLOCK_STATUS_COMPRESSED;
        break;
    }
    return 0;
}

/* --- writing ---------------------------------------------------------------------------------- */

/* Whether a block reads as zeroes, and not by chance. */
static bool shows_zeroes(const struct block_node *node, const struct blockmap_run *run)
{
    return run->kind == BLOCKMAP_ZERO || (run->kind == BLOCKMAP_ABSENT && !node->backing);
}

/* What the block shows now, in [from, to) of the disk, is written to the place of the block. */
static int co_copy_up(struct block_node *node, uint64_t block, uint64_t from, uint64_t to,
                      const struct blockmap_place *place, const struct blockmap_run *run)
{
    bool zero = shows_zeroes(node, run);
    AUTO_FREE uint8_t *buf = NULL;
    int r = 0;

    if (from == to || (zero && place->is_zero)) {
        return 0;
    }
    if (zero) {
        return block_co_write_zeroes(place->edge, place->host + (from - block), to - from, 0);
    }
    if (posix_memalign((void **)&buf, 4096, ZERO_PIECE) != 0) {
        return -ENOMEM;
    }
    for (uint64_t at = from, n; at < to && r == 0; at += n) {
        struct iovec vec;

        n = MIN(to - at, ZERO_PIECE);
        r = blockmap_co_read_run(node, at, iov_from_buf(&vec, buf, n), run);
        UNLESS_FAILED(r, block_co_pwrite(place->edge, place->host + (at - block), buf, n, 0));
    }
    return r;
}

/* Steps 1 to 4 for the part of one block, which is ABSENT, ZERO or COMPRESSED all over. */
static int co_fill_block_locked(struct block_node *node, uint64_t offset, struct iov iov,
                                const struct blockmap_run *run)
{
    struct blockmap *map = node->opaque;
    uint64_t block = offset - offset % map->block_size;
    uint64_t end = MIN(block + map->block_size, block_node_size(node));
    struct blockmap_place place = {0};
    int r = map->ops->co_reserve_locked(node, block, end - block, &place);

    if (r < 0) {
        return r;
    }
    r = co_copy_up(node, block, block, offset, &place, run);
    block_co_event(place.edge, BLOCK_EVENT_WRITE_AIO);
    UNLESS_FAILED(r, block_co_pwritev(place.edge, place.host + (offset - block), iov, 0));
    UNLESS_FAILED(r, co_copy_up(node, block, offset + iov.size, end, &place, run));
    if (!shows_zeroes(node, run) || !place.is_zero) {
        UNLESS_FAILED(r, block_co_flush(place.edge));
    }
    if (r < 0) {
        map->ops->co_give_back_locked(node, &place);
        return r;
    }
    return map->ops->co_link_locked(node, block, &place);
}

/* Another request may have allocated the block since it was found: look again. */
static int co_allocate_part(struct block_node *node, uint64_t offset, struct iov iov,
                            size_t *ret_done)
{
    struct blockmap *map = node->opaque;
    struct blockmap_run run;
    int r;

    *ret_done = 0;
    if (!map->ops->co_reserve_locked) {
        return -ENOTSUP;
    }
    co_mutex_lock(&map->lock);
    r = map->ops->co_find(node, offset, iov.size, &run);
    if (r == 0 && run.kind != BLOCKMAP_DATA &&
        (run.kind != BLOCKMAP_COMPRESSED || map->ops->replaces_compressed)) {
        r = co_fill_block_locked(node, offset, iov, &run);
        *ret_done = r == -EAGAIN ? 0 : iov.size;
        r = r == -EAGAIN ? 0 : r;
    }
    co_mutex_unlock(&map->lock);
    return r;
}

int blockmap_co_begin_writing(struct block_node *node)
{
    struct blockmap *map = node->opaque;
    int r = 0;

    if (!map->ops->co_begin_writing_locked || atomic_load(&map->is_writing)) {
        return 0;
    }
    co_mutex_lock(&map->lock);
    if (!atomic_load(&map->is_writing)) {
        r = map->ops->co_begin_writing_locked(node);
        if (r == 0) {
            atomic_store(&map->is_writing, true);
        }
    }
    co_mutex_unlock(&map->lock);
    return r;
}

/* Write the beginning of `iov`, within one block. */
static int blockmap_co_write_part(struct block_node *node, uint64_t offset, struct iov iov,
                                  size_t *ret_done)
{
    struct blockmap *map = node->opaque;
    size_t length = MIN(iov.size, map->block_size - offset % map->block_size);
    struct blockmap_run run;
    IOV_PART_AUTO(part);
    int r = map->ops->co_find(node, offset, length, &run);

    if (r < 0) {
        return r;
    }
    switch (run.kind) {
    case BLOCKMAP_DATA:
        r = iov_part_set(&part, iov, 0, run.length);
        *ret_done = run.length;
        block_co_event(run.edge, BLOCK_EVENT_WRITE_AIO);
        return r < 0 ? r : block_co_pwritev(run.edge, run.host, part.iov, 0);
    case BLOCKMAP_ABSENT:
    case BLOCKMAP_ZERO:
        r = iov_part_set(&part, iov, 0, length);
        return r < 0 ? r : co_allocate_part(node, offset, part.iov, ret_done);
    case BLOCKMAP_COMPRESSED:
        r = map->ops->replaces_compressed ? iov_part_set(&part, iov, 0, length) : -EIO;
        return r < 0 ? r : co_allocate_part(node, offset, part.iov, ret_done);
    }
    return -EIO;
}

int blockmap_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    int r = blockmap_co_begin_writing(node);

    for (size_t done = 0, n; r == 0 && done < iov.size; done += n) {
        IOV_PART_AUTO(part);

        n = 0;
        r = iov_part_set(&part, iov, done, iov.size - done);
        UNLESS_FAILED(r, blockmap_co_write_part(node, offset + done, part.iov, &n));
    }
    return r;
}

static int blockmap_co_write_zero_data(struct block_node *node, uint64_t offset, uint64_t length)
{
    int r = 0;

    for (uint64_t done = 0, n; done < length && r == 0; done += n) {
        struct iovec vec;

        n = MIN(length - done, ZERO_PIECE);
        r = blockmap_co_pwritev(node, offset + done,
                                iov_from_buf(&vec, (void *)(uintptr_t)zero_piece, (size_t)n), 0);
    }
    return r;
}

/* An absent area becomes zeroes: by a mark if the driver has one for whole blocks. */
static int co_zero_absent(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct blockmap *map = node->opaque;
    bool whole = offset % map->block_size == 0 &&
                 (length == map->block_size || offset + length == block_node_size(node));
    struct blockmap_run run;
    int r = -ENOTSUP;

    if (whole && map->ops->co_zero_locked) {
        co_mutex_lock(&map->lock);
        r = map->ops->co_find(node, offset, length, &run);
        if (r == 0) {
            r = run.kind == BLOCKMAP_ABSENT && run.length == length
                    ? map->ops->co_zero_locked(node, offset)
                    : -ENOTSUP;
        }
        co_mutex_unlock(&map->lock);
    }
    return r == -ENOTSUP ? blockmap_co_write_zero_data(node, offset, length) : r;
}

int blockmap_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                             unsigned flags)
{
    struct blockmap *map = node->opaque;
    struct blockmap_run run;
    int r = blockmap_co_begin_writing(node);

    for (uint64_t done = 0; done < length && r == 0; done += run.length) {
        uint64_t at = offset + done;
        uint64_t rest = MIN(length - done, map->block_size - at % map->block_size);

        r = map->ops->co_find(node, at, rest, &run);
        if (r < 0 || run.kind == BLOCKMAP_ZERO || (run.kind == BLOCKMAP_ABSENT && !node->backing)) {
            continue;
        }
        if (run.kind == BLOCKMAP_ABSENT) {
            r = co_zero_absent(node, at, run.length);
        } else if (run.kind == BLOCKMAP_DATA) {
            r = block_co_write_zeroes(run.edge, run.host, run.length, flags & BLOCK_REQ_MAY_UNMAP);
        } else {
            r = blockmap_co_write_zero_data(node, at, run.length);
        }
    }
    return r;
}

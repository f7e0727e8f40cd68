/* SPDX-License-Identifier: Apache-2.0 */
/* What readers of the frozen contents do: read, query the status, discard. */
#include <errno.h>

#include "base/checked.h"
#include "filter/copy_before_write.h"

/* Longest area from which one status query excludes guest writes. */
#define STATUS_MAX (1 * GiB)
/*
 * An area of at most FRAGMENTED_UNITS (bits of a word) and FRAGMENTED_MAX bytes is fragmented if it
 * has at least FRAGMENTED_RUNS runs, in turns on the disk and in the target; or SPARSE_RUNS, if no
 * more than one of SPARSE_PART units is in the target: to read these from both costs little.
 */
#define FRAGMENTED_RUNS 5u
#define SPARSE_RUNS 3u
#define SPARSE_PART 8u
#define FRAGMENTED_UNITS 64u
#define FRAGMENTED_MAX (256u * KiB)

/* A fleecing read of the active disk, or of the target; on the reader's stack. */
struct cbw_reader {
    struct range_item item;
    struct range_index *index; /* the index that the reader is in */
    struct co_queue waiters;   /* guest writes, or releases */
};

void cbw_co_wait_readers_release(struct cbw_state *s, struct range_index *index, uint64_t offset,
                                 uint64_t length)
{
    struct range_item *item;

    while ((item = range_index_find(index, offset, length, NULL, NULL))) {
        struct cbw_reader *reader = container_of(item, struct cbw_reader, item);

        co_queue_wait_for_release(&reader->waiters, &s->lock, "a read of the snapshot, by node",
                                  s->name, -1);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
}

int cbw_co_discard_copies(struct cbw_state *s, uint64_t start, uint64_t end)
{
    start = round_down(start, s->cluster_size);
    end = MIN(round_up(end, s->cluster_size), block_edge_size(s->target));
    return block_co_discard(s->target, start, end - start);
}

/* --- fleecing reads --------------------------------------------------------------------------- */

static void reader_begin_locked(struct range_index *index, struct cbw_reader *reader,
                                uint64_t offset, uint64_t length)
{
    reader->index = index;
    range_index_add(index, &reader->item, offset, length);
}

static void reader_end(struct cbw_state *s, struct cbw_reader *reader)
{
    pthread_mutex_lock(&s->lock);
    range_index_remove(reader->index, &reader->item);
    co_queue_wake_all(&reader->waiters);
    pthread_mutex_unlock(&s->lock);
}

/*
 * Find where the frozen contents at `offset` are, and how far. On success `reader` is in an index;
 * reader_end() removes it. *ret_edge NULL: they are held, and the data are copied to `iov`, if it
 * is given; `reader` is in no index.
 */
static int snapshot_locate(struct cbw_state *s, uint64_t offset, uint64_t length,
                           struct cbw_reader *reader, struct block_edge **ret_edge,
                           uint64_t *ret_length, const struct iov *iov, size_t iov_offset)
{
    const struct held_item *item;
    uint64_t run;
    int r = 0;

    co_queue_init(&reader->waiters);
    pthread_mutex_lock(&s->lock);
    if (s->broken || !dirty_bitmap_status(s->access, offset, offset + length, &run)) {
        r = -EACCES;
    } else if ((item = held_at(&s->held, offset, run, &run))) {
        run = MIN(run, item->offset + item->length - offset);
        if (iov) {
            iov_copy_from_buf(*iov, iov_offset, item->data + (offset - item->offset), run);
        }
        *ret_edge = NULL;
    } else if (dirty_bitmap_status(s->done, offset, offset + run, &run)) {
        *ret_edge = s->target;
        reader_begin_locked(&s->target_readers, reader, offset, run);
    } else {
        *ret_edge = s->file;
        reader_begin_locked(&s->readers, reader, offset, run);
    }
    pthread_mutex_unlock(&s->lock);
    if (r == 0) {
        *ret_length = run;
    }
    return r;
}

/* --- areas in pieces -------------------------------------------------------------------------- */

static uint64_t low_bits(unsigned count)
{
    return count < 64 ? (UINT64_C(1) << count) - 1 : UINT64_MAX;
}

/* The units of [offset, ...) that are in the target: bit i is the unit i after that of `offset`. */
static uint64_t units_done_locked(struct cbw_state *s, uint64_t offset)
{
    uint64_t first = offset / s->unit, units = 0;
    unsigned shift = first % 8;
    uint8_t bits[9];

    dirty_bitmap_serialize(s->done, first - shift, bits, sizeof(bits));
    for (unsigned i = 0; i < 8; i++) {
        units |= (uint64_t)bits[i] << 8 * i;
    }
    return shift ? units >> shift | (uint64_t)bits[8] << (64 - shift) : units;
}

/*
 * How much at `offset`, up to `length`, is fragmented: the disk and the target alternate there.
 * 0: nothing.
 */
static uint64_t fragmented_locked(struct cbw_state *s, uint64_t offset, uint64_t length)
{
    uint64_t end = MIN(offset + MIN(length, FRAGMENTED_MAX),
                       round_down(offset, s->unit) + (uint64_t)FRAGMENTED_UNITS * s->unit);
    unsigned count = (unsigned)((end - 1) / s->unit - offset / s->unit) + 1, least;
    uint64_t done, turns;

    if (count < SPARSE_RUNS) {
        return 0;
    }
    done = units_done_locked(s, offset) & low_bits(count);
    least =
        (unsigned)__builtin_popcountll(done) * SPARSE_PART <= count ? SPARSE_RUNS : FRAGMENTED_RUNS;
    /* a bit for each unit that is elsewhere than the one before it */
    turns = (done ^ done >> 1) & low_bits(count - 1);
    return (unsigned)__builtin_popcountll(turns) + 1 < least ? 0 : end - offset;
}

/* A read of a fragmented area. */
struct pieces {
    uint64_t length; /* 0: it is not fragmented */
    uint64_t done;   /* its units that are in the target */
    struct cbw_reader of_disk, of_target;
};

/* If the area is fragmented, the reader is in both indexes. */
static void pieces_begin(struct cbw_state *s, uint64_t offset, uint64_t length, struct pieces *p)
{
    uint64_t run;

    p->length = 0;
    pthread_mutex_lock(&s->lock);
    if (!s->broken && held_is_empty(&s->held) &&
        dirty_bitmap_status(s->access, offset, offset + length, &run)) {
        p->length = fragmented_locked(s, offset, run);
    }
    if (p->length > 0) {
        unsigned units = (unsigned)((offset + p->length - 1) / s->unit - offset / s->unit) + 1;

        p->done = units_done_locked(s, offset) & low_bits(units);
        co_queue_init(&p->of_disk.waiters);
        reader_begin_locked(&s->readers, &p->of_disk, offset, p->length);
        co_queue_init(&p->of_target.waiters);
        reader_begin_locked(&s->target_readers, &p->of_target, offset, p->length);
    }
    pthread_mutex_unlock(&s->lock);
}

static int co_read_part(struct block_edge *edge, uint64_t offset, struct iov iov, uint64_t at,
                        uint64_t length)
{
    IOV_PART_AUTO(part);
    int r = iov_part_set(&part, iov, at, length);

    return UNLESS_FAILED(r, block_co_preadv(edge, offset, part.iov, 0));
}

/*
 * Read a fragmented area at `offset` to `iov` at `at`: all of it from the disk, and then over that
 * what is in the target. So guests' writes do not wait for reads of the target. *ret_length 0: it
 * is not fragmented; or reading failed, perhaps of bytes that nobody needs.
 */
static void co_read_fragmented(struct cbw_state *s, uint64_t offset, struct iov iov, uint64_t at,
                               uint64_t *ret_length)
{
    struct pieces p;
    uint64_t first = round_down(offset, s->unit), end;
    int r;

    *ret_length = 0;
    pieces_begin(s, offset, iov.size - at, &p);
    if (p.length == 0) {
        return;
    }
    end = offset + p.length;
    r = co_read_part(s->file, offset, iov, at, p.length);
    reader_end(s, &p.of_disk);
    while (p.done != 0 && r == 0) {
        unsigned unit = (unsigned)__builtin_ctzll(p.done);
        uint64_t rest = ~(p.done >> unit);
        unsigned count = rest ? (unsigned)__builtin_ctzll(rest) : 64;
        uint64_t from = MAX(first + unit * (uint64_t)s->unit, offset);
        uint64_t to = MIN(first + (unit + count) * (uint64_t)s->unit, end);

        r = co_read_part(s->target, from, iov, at + (from - offset), to - from);
        p.done &= ~(low_bits(count) << unit);
    }
    reader_end(s, &p.of_target);
    if (r == 0) {
        *ret_length = p.length;
    }
}

/* --- reads ------------------------------------------------------------------------------------ */

int cbw_co_snapshot_read(struct cbw_state *s, uint64_t offset, struct iov iov)
{
    size_t done = 0;

    if (!range_fits(offset, iov.size, s->size)) {
        return -EIO;
    }
    while (done < iov.size) {
        IOV_PART_AUTO(part);
        struct cbw_reader reader;
        struct block_edge *edge;
        uint64_t length;
        int r;

        co_read_fragmented(s, offset + done, iov, done, &length);
        if (length > 0) {
            done += length;
            continue;
        }
        r = snapshot_locate(s, offset + done, iov.size - done, &reader, &edge, &length, &iov, done);
        if (r < 0) {
            return r;
        }
        if (!edge) {
            done += length;
            continue;
        }
        if (length == iov.size) {
            r = block_co_preadv(edge, offset, iov, 0);
        } else {
            r = iov_part_set(&part, iov, done, length);
            UNLESS_FAILED(r, block_co_preadv(edge, offset + done, part.iov, 0));
        }
        reader_end(s, &reader);
        if (r < 0) {
            return r;
        }
        done += length;
    }
    return 0;
}

/* --- status ----------------------------------------------------------------------------------- */

/*
 * How much at `offset`, up to `length`, is fragmented, and all of it data on the disk: then it
 * counts as data, whatever pieces of it are in the target. 0: nothing.
 */
static uint64_t co_data_in_pieces(struct cbw_state *s, uint64_t offset, uint64_t length)
{
    const unsigned wanted = BLOCK_STATUS_DATA, unwanted = BLOCK_STATUS_ZERO;
    struct block_status status = {.length = 0};
    struct cbw_reader reader;
    uint64_t run, pieces = 0, pos = 0;
    int depth, r;

    pthread_mutex_lock(&s->lock);
    if (!s->broken && dirty_bitmap_status(s->access, offset, offset + length, &run)) {
        pieces = fragmented_locked(s, offset, run);
    }
    if (pieces > 0) {
        co_queue_init(&reader.waiters);
        reader_begin_locked(&s->readers, &reader, offset, pieces);
    }
    pthread_mutex_unlock(&s->lock);
    if (pieces == 0) {
        return 0;
    }
    do {
        depth = 0;
        r = block_co_status_above(s->file, NULL, offset + pos, pieces - pos, &status, &depth);
        pos += status.length;
    } while (r == 0 && depth > 0 && status.length > 0 &&
             (status.flags & (wanted | unwanted)) == wanted && pos < pieces);
    reader_end(s, &reader);
    /* An error may be of a byte that nobody needs. */
    return r == 0 && depth > 0 && (status.flags & (wanted | unwanted)) == wanted && pos >= pieces
               ? pieces
               : 0;
}

int cbw_co_snapshot_status(struct cbw_state *s, uint64_t offset, uint64_t length,
                           struct block_status *ret_status)
{
    struct cbw_reader reader;
    struct block_edge *edge;
    uint64_t run;
    int depth = 0, r;

    if (offset >= s->size || length == 0) {
        *ret_status = (struct block_status){.flags = BLOCK_STATUS_EOF};
        return 0;
    }
    length = MIN(MIN(length, STATUS_MAX), s->size - offset);
    run = co_data_in_pieces(s, offset, length);
    if (run > 0) {
        *ret_status = (struct block_status){
            .flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED |
                     (offset + run == s->size ? BLOCK_STATUS_EOF : 0),
            .length = run,
        };
        return 0;
    }
    r = snapshot_locate(s, offset, length, &reader, &edge, &length, NULL, 0);
    if (r < 0) {
        return r;
    }
    if (!edge) {
        *ret_status = (struct block_status){
            .flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED |
                     (offset + length == s->size ? BLOCK_STATUS_EOF : 0),
            .length = length,
        };
        return 0;
    }
    r = block_co_status_above(edge, NULL, offset, length, ret_status, &depth);
    reader_end(s, &reader);
    if (r < 0) {
        return r;
    }
    /* No map: the bytes may move from the disk to the target at any time. */
    ret_status->flags &= BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO;
    if (edge == s->target || depth > 0) {
        ret_status->flags |= BLOCK_STATUS_ALLOCATED;
    } else {
        ret_status->flags |= BLOCK_STATUS_ZERO;
    }
    ret_status->length = MIN(ret_status->length, length);
    if (ret_status->length == 0) {
        /* The node ends before the frozen disk does; these bytes are not known to be zero. */
        ret_status->length = length;
        ret_status->flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
    }
    if (offset + ret_status->length == s->size) {
        ret_status->flags |= BLOCK_STATUS_EOF;
    }
    ret_status->map = 0;
    ret_status->file = NULL;
    return 0;
}

/* The part of [offset, end) in the cluster of `at` is discarded; whether the whole cluster is. */
static bool discard_part_locked(struct cbw_state *s, uint64_t at, uint64_t offset, uint64_t end)
{
    uint64_t first = round_down(at, s->cluster_size);
    uint64_t size = MIN(s->cluster_size, s->size - first);

    return discard_parts_add(&s->parts, first / s->cluster_size, (uint32_t)size,
                             (uint32_t)(MAX(offset, first) - first),
                             (uint32_t)(MIN(end, first + size) - first));
}

/*
 * [*start, *end) is discarded: change it to the clusters that are discarded as a whole now. False
 * if there are none.
 */
static bool whole_clusters_locked(struct cbw_state *s, uint64_t *start, uint64_t *end)
{
    uint64_t offset = *start, stop = *end;
    bool ragged_end = stop < s->size && !is_aligned(stop, s->cluster_size);

    *start = round_up(offset, s->cluster_size);
    *end = ragged_end ? round_down(stop, s->cluster_size) : stop;
    if (*start > *end) { /* all in one cluster */
        *start = *end;
        *end = discard_part_locked(s, offset, offset, stop) ? *start + s->cluster_size : *start;
    } else {
        if (*start > offset && discard_part_locked(s, offset, offset, stop)) {
            *start -= s->cluster_size;
        }
        if (ragged_end && discard_part_locked(s, stop, offset, stop)) {
            *end += s->cluster_size;
        }
    }
    *end = MIN(*end, s->size);
    return *start < *end;
}

int cbw_co_snapshot_discard(struct cbw_state *s, uint64_t offset, uint64_t length)
{
    uint64_t start = offset, end = offset + length;

    if (!range_fits(offset, length, s->size)) {
        return -EIO;
    }
    pthread_mutex_lock(&s->lock);
    if (length == 0 || !whole_clusters_locked(s, &start, &end)) {
        pthread_mutex_unlock(&s->lock);
        return 0;
    }
    dirty_bitmap_clear(s->access, start, end - start);
    dirty_bitmap_clear(s->done, start, end - start);
    cbw_co_wait_readers_release(s, &s->target_readers, start, end - start);
    return cbw_co_discard_copies(s, start, end);
}

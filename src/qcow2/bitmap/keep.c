/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Adding bits to stored bitmaps while the image is in use, so that regions can become cold.
 *
 * The bitmaps are marked in use, so clusters of bits and entries of tables may be written in place.
 * Bits are only ever added, so a write that a crash tears leaves some of the old bits or some of
 * the new ones; the regions concerned are hot until all of them are stable. A part of a bitmap that
 * has no cluster gets one, whose refcount and contents are stable before the table names it (R1);
 * without space that part is stored as "all dirty".
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/bitmaps.h"
#include "qcow2/bitmap/joint.h"
#include "qcow2/bitmap/store.h"
#include "qcow2/table/commit.h"

/* Bytes of bits that are read and written as a unit, at most a cluster. */
#define PIECE_BYTES 4096u

/* An entry of a table that is to be written once what it names is stable. */
struct new_entry {
    uint64_t position; /* file offset */
    uint64_t value;
};

struct keep {
    struct qcow2 *q;
    struct bitmap_store st;    /* for clusters that are allocated */
    struct new_entry *entries; /* of all bitmaps */
    size_t count, room;
    uint8_t *bits, *stored; /* a cluster each */
    /* Of the bitmap that is being stored. */
    struct block_bitmap *b;
    const struct stored_bitmap *s;
    uint64_t last_piece; /* the last one that was stored, and those before it; UINT64_MAX: none */
};

/* Bits of [at, at + size) bytes of the bitmap, with those that its successor has. */
static bool gather(struct keep *k, uint64_t at, size_t size)
{
    AUTO_FREE uint8_t *more = k->b->successor ? malloc(size) : NULL;
    bool any = dirty_bitmap_serialize(k->b->bits, at * 8, k->bits, size);

    if (!k->b->successor) {
        return any;
    }
    if (!more) {
        memset(k->bits, 0xff, size);
        return true;
    }
    any |= dirty_bitmap_serialize(k->b->successor->bits, at * 8, more, size);
    for (size_t i = 0; i < size; i++) {
        k->bits[i] |= more[i];
    }
    return any;
}

static int add_kept_entry(struct keep *k, uint64_t position, uint64_t value)
{
    if (k->count == k->room) {
        size_t room = MAX(k->room * 2, 16);
        struct new_entry *grown = realloc(k->entries, room * sizeof(*grown));

        if (!grown) {
            return -ENOMEM;
        }
        k->entries = grown;
        k->room = room;
    }
    k->entries[k->count++] = (struct new_entry){.position = position, .value = value};
    return 0;
}

/* A part of the bitmap that has no cluster: all of its bits. */
static int co_keep_cluster(struct keep *k, uint64_t index, uint64_t position)
{
    struct qcow2 *q = k->q;
    uint64_t value = BITMAP_TABLE_ALL_ONES;
    int r = 0;

    if (!gather(k, index * q->cluster_size, q->cluster_size)) {
        return 0;
    }
    if (!k->st.no_room) {
        r = qcow2_co_store_write_new(q, &k->st, k->bits, q->cluster_size, &value);
        k->st.no_room = qcow2_is_no_room(r);
    }
    if (k->st.no_room) {
        value = BITMAP_TABLE_ALL_ONES;
        log_warning("image '%s': no space to store bitmap '%s' exactly: %llu bytes are stored as "
                    "dirty that are not",
                    block_node_display_name(q->node), k->b->name,
                    (unsigned long long)qcow2_bitmap_clean_bytes(q, k->b, k->bits, index));
        r = 0;
    }
    return UNLESS_FAILED(r, add_kept_entry(k, position, value));
}

static int co_keep_in_cluster(struct keep *k, uint64_t offset, uint64_t at, size_t size)
{
    struct qcow2 *q = k->q;
    bool same = true;
    int r;

    if (!gather(k, at, size)) {
        return 0;
    }
    r = block_co_pread(q->node->file, offset, k->stored, size);
    for (size_t i = 0; r == 0 && i < size; i++) {
        k->bits[i] |= k->stored[i];
        same = same && k->bits[i] == k->stored[i];
    }
    if (r < 0 || same) {
        return r;
    }
    r = qcow2_co_overlap_check(q, offset, size, 0);
    return UNLESS_FAILED(r, block_co_pwrite(q->node->file, offset, k->bits, size, 0));
}

/* Store the bits at [at, at + size) bytes of the bitmap, a part of one cluster of it. */
static int co_keep_piece(struct keep *k, uint64_t at, size_t size)
{
    struct qcow2 *q = k->q;
    uint64_t index = at / q->cluster_size, entry, offset;
    uint64_t position = k->s->table_offset + index * 8, budget = UINT64_MAX;
    uint8_t raw[8];
    int r;

    if (index >= k->s->table_entries) {
        return -EINVAL;
    }
    for (size_t i = 0; i < k->count; i++) {
        if (k->entries[i].position == position) {
            return 0; /* all bits of it were stored just now */
        }
    }
    r = block_co_pread(q->node->file, position, raw, sizeof(raw));
    if (r < 0) {
        return r;
    }
    entry = load_be64(raw);
    offset = entry & ENTRY_OFFSET_MASK;
    r = qcow2_check_bitmap_table(q, &entry, 1, &budget);
    if (r < 0 || entry == BITMAP_TABLE_ALL_ONES) {
        return r;
    }
    return offset == 0 ? co_keep_cluster(k, index, position)
                       : co_keep_in_cluster(k, offset + at % q->cluster_size, at, size);
}

static int co_keep_range(struct keep *k, const struct block_activity_range *range)
{
    uint64_t end = MIN(range->offset + range->length, dirty_bitmap_size(k->b->bits));
    uint64_t piece_bytes = MIN(PIECE_BYTES, k->q->cluster_size), first, last;
    int r = 0;

    if (range->offset >= end) {
        return 0;
    }
    first = range->offset / k->b->granularity / 8 / piece_bytes;
    last = (end - 1) / k->b->granularity / 8 / piece_bytes;
    if (k->last_piece != UINT64_MAX) {
        first = MAX(first, k->last_piece + 1);
    }
    for (uint64_t piece = first; piece <= last && r == 0; piece++) {
        r = co_keep_piece(k, piece * piece_bytes, piece_bytes);
        k->last_piece = piece;
    }
    return r;
}

/* New clusters are stable before tables name them. */
static int co_keep_entries(struct keep *k)
{
    struct qcow2 *q = k->q;
    uint8_t raw[8];
    int r = k->st.made.count > 0 ? qcow2_co_commit(q) : 0; /* R1 */

    for (size_t i = 0; i < k->count && r == 0; i++) {
        store_be64(raw, k->entries[i].value);
        k->st.written = true;
        r = qcow2_co_overlap_check(q, k->entries[i].position, sizeof(raw), 0);
        UNLESS_FAILED(r,
                      block_co_pwrite(q->node->file, k->entries[i].position, raw, sizeof(raw), 0));
    }
    return r;
}

/*
 * A bitmap that has turned out to be unreadable is not kept any more. The header must say so before
 * a region becomes cold.
 */
static int co_note_void_locked(struct qcow2 *q)
{
    struct stored_bitmap *s;
    bool any = false;

    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        bool is_new = !s->is_void && s->loaded && s->loaded->inconsistent;

        s->is_void = s->is_void || is_new;
        any = any || is_new;
    }
    return any ? qcow2_co_write_activity_header_locked(q) : 0;
}

static bool is_kept(const struct block_bitmap *b)
{
    return b->persistent && b->enabled && !b->inconsistent && !b->read_only;
}

static int co_keep_all(struct keep *k, const struct block_activity_range *ranges, size_t count)
{
    struct block_bitmap *b;
    int r = 0;

    for (b = block_bitmap_next(k->q->node, NULL); b && r == 0;
         b = block_bitmap_next(k->q->node, b)) {
        if (!is_kept(b)) {
            continue;
        }
        k->b = b;
        k->s = b->driver_state;
        k->last_piece = UINT64_MAX;
        r = k->s ? 0 : -EBUSY; /* it was never stored */
        for (size_t i = 0; i < count && r == 0; i++) {
            r = co_keep_range(k, &ranges[i]);
        }
    }
    return UNLESS_FAILED(r, co_keep_entries(k));
}

static int co_keep_locked(struct qcow2 *q, const struct block_activity_range *ranges, size_t count)
{
    AUTO_FREE uint8_t *bits = malloc(q->cluster_size);
    AUTO_FREE uint8_t *stored = malloc(q->cluster_size);
    struct keep k = {.q = q, .bits = bits, .stored = stored};
    int r = bits && stored ? 0 : -ENOMEM;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    UNLESS_FAILED(r, co_note_void_locked(q));
    UNLESS_FAILED(r, co_keep_all(&k, ranges, count));
    if (r < 0 && !k.st.written) {
        qcow2_co_store_give_back(q, &k.st, 0);
    }
    cluster_runs_clear(&k.st.made);
    free(k.entries);
    return r;
}

int qcow2_co_store_bits_of(struct block_node *node, const struct block_activity_range *ranges,
                           size_t count)
{
    struct qcow2 *q = qcow2_state(node);
    int r = qcow2_check_writable(q);

    if (r < 0) {
        return r;
    }
    if (!co_mutex_trylock(&q->bitmaps.mutex)) {
        return -EBUSY;
    }
    /* Both directories would have to get the bits. */
    r = q->joint.state == JOINT_PREPARED ? -EBUSY : 0;
    if (q->joint.waits) {
        qcow2_joint_look_again(q);
    }
    co_mutex_lock(&q->bitmaps.bits_mutex);
    UNLESS_FAILED(r, co_keep_locked(q, ranges, count));
    co_mutex_unlock(&q->bitmaps.bits_mutex);
    co_mutex_unlock(&q->bitmaps.mutex);
    return r;
}

int qcow2_co_bitmap_will_change(struct block_node *node, struct block_bitmap *bitmap,
                                struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    struct stored_bitmap *b;
    int r = 0;

    if (q->read_only) {
        return 0;
    }
    /* What is marked from here on must not be trusted after a crash. */
    r = q->activity.offset > 0 ? qcow2_co_store_bitmaps(q, err) : 0;
    if (r < 0) {
        return r;
    }
    co_mutex_lock(&q->bitmaps.mutex);
    b = qcow2_find_stored(q, bitmap->name);
    r = b ? qcow2_co_mark_in_use_locked(q, b) : 0;
    co_mutex_unlock(&q->bitmaps.mutex);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not mark bitmap '%s' of '%s' as in use",
                               bitmap->name, block_node_display_name(node));
    }
    return 0;
}

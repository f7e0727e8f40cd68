/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The activity log in the image (docs/qcow2.md, "Activity log").
 *
 * The map of hot regions lies in clusters that a header extension of our own names, under an
 * autoclear bit: a program that does not know it clears the bit when it opens the image for
 * writing, and from then on neither the map nor bits that are marked in use count.
 *
 *   begin    map, all cold; refcounts (R1) -> header: extension and autoclear bit -> marks in use
 *   end      bits, tables and directory without marks -> header: the new directory, without the
 *            extension and the bit (one switch, R3) -> the clusters of the map are free
 *
 * Each arrow is a sync. The first request into a cold region begins the log. What can't be stored
 * at the end stays: map and bits are still right.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/bitmaps.h"
#include "loop/loop.h"
#include "qcow2/bitmap/store.h"
#include "qcow2/header/header.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/new_table.h"
#include "qcow2/table/refcount.h"
#include "trace/events.h"

#define PAUSE_RETRY_NS 100000

/* --- at open ---------------------------------------------------------------------------------- */

int qcow2_co_activity_open(struct qcow2 *q, struct error *err)
{
    struct qcow2_activity *a = &q->activity;
    struct block_node *node = q->node;
    AUTO_FREE uint8_t *map = NULL;
    unsigned bits = block_activity_region_bits(block_node_size(node));
    int r;

    if (a->log || q->version < 3 || (a->level == BLOCK_DURABILITY_OFF && a->offset == 0)) {
        return 0;
    }
    r = qcow2_co_read_activity(q, &map, err);
    if (r == 0 && a->offset == 0 && (q->header.autoclear & AUTOCLEAR_ACTIVITY)) {
        /* It can't be used. The clusters are as good as free: the header must not name them. */
        q->header.autoclear &= ~AUTOCLEAR_ACTIVITY;
        r = qcow2_co_write_header(q, err);
    }
    if (r < 0) {
        return r;
    }
    a->log = block_activity_new(
        node, a->level == BLOCK_DURABILITY_OFF ? BLOCK_DURABILITY_POWER : a->level,
        map ? a->region_bits : bits, a->limit);
    if (!a->log) {
        return error_out_of_memory(err);
    }
    if (map && block_activity_adopt(a->log, map) < 0) {
        qcow2_activity_close(q);
        return error_out_of_memory(err);
    }
    node->log = a->log;
    block_activity_update(node);
    block_activity_start(a->log);
    return 0;
}

void qcow2_activity_set_options(struct qcow2 *q)
{
    struct qcow2_activity *a = &q->activity;

    if (a->log && a->level == BLOCK_DURABILITY_OFF && a->offset == 0) {
        qcow2_activity_close(q);
    } else if (a->log) {
        block_activity_set_options(a->log, MAX(a->level, BLOCK_DURABILITY_PROCESS), a->limit);
    }
}

void qcow2_co_pause_activity(struct qcow2 *q)
{
    if (!q->activity.log) {
        return;
    }
    block_activity_stop(q->activity.log);
    while (block_activity_is_busy(q->activity.log)) {
        loop_co_sleep(PAUSE_RETRY_NS);
    }
}

void qcow2_activity_close(struct qcow2 *q)
{
    if (q->activity.log) {
        if (q->node->log == q->activity.log) {
            q->node->log = q->node->activity = NULL;
        }
        block_activity_free(q->activity.log);
        q->activity.log = NULL;
    }
}

/* --- begin ------------------------------------------------------------------------------------ */

int qcow2_co_write_activity_header_locked(struct qcow2 *q)
{
    CO_ASSERT_HELD(&q->bitmaps.mutex);
    return qcow2_activity_is_possible(q) ? qcow2_co_write_header(q, NULL) : -ENOSPC;
}

/* The log covers only bitmaps whose stored bits are current. */
static void ignore_what_is_not_current(struct qcow2 *q)
{
    struct stored_bitmap *s;

    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        s->is_void =
            s->is_void || (s->flags & BITMAP_FLAG_IN_USE) || (s->loaded && s->loaded->unstored);
    }
}

static int co_begin_locked(struct qcow2 *q, struct error *err)
{
    unsigned bits = (unsigned)__builtin_ctzll(block_activity_region_size(q->activity.log));
    uint64_t size = block_activity_map_bytes(block_node_size(q->node), bits), offset;
    AUTO_FREE uint8_t *map = calloc(1, size);
    int r = map ? 0 : -ENOMEM;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    ignore_what_is_not_current(q);
    UNLESS_FAILED(r, qcow2_activity_is_possible(q) ? 0 : -ENOSPC);
    UNLESS_FAILED(r, qcow2_co_write_new_clusters(q, map, size, &offset));
    if (r < 0) {
        return error_set_errno(err, -r, "Could not write the map");
    }
    r = qcow2_co_commit(q); /* R1 */
    if (r < 0) {
        error_set_errno(err, -r, "Could not write the map");
    } else {
        q->activity.region_bits = bits;
        qcow2_set_activity_map(q, offset, size);
        r = qcow2_co_write_header(q, err);
        if (r < 0) {
            qcow2_set_activity_map(q, 0, 0);
        }
    }
    if (r < 0) {
        qcow2_co_free_new_clusters(q, offset, size);
    }
    return r;
}

/* On the main reactor, whose other code reads bitmaps.stored without a lock. */
static void co_commit_what_is_stale(void *arg)
{
    /* What was changed and could not be stored. Without success it stays inconsistent. */
    (void)qcow2_co_commit_bitmaps(arg, NULL);
}

int qcow2_co_begin_activity(struct block_node *node)
{
    struct qcow2 *q = qcow2_state(node);
    ERROR_AUTO(err);
    int r = qcow2_check_writable(q);

    if (r < 0) {
        return r;
    }
    if (q->activity.offset == 0) {
        loop_co_call_on(reactor_main(), co_commit_what_is_stale, node);
    }
    co_mutex_lock(&q->bitmaps.mutex);
    r = q->activity.offset > 0 ? 0 : co_begin_locked(q, &err);
    co_mutex_unlock(&q->bitmaps.mutex);
    trace_qcow2_activity(node->name, true, block_activity_region_size(q->activity.log), r);
    if (qcow2_is_no_room(r) || r == -ENOMEM) {
        log_warning("image '%s': there is no room for the activity log (%s); its bitmaps will be "
                    "inconsistent after a crash",
                    block_node_display_name(node), error_message(&err));
        block_activity_give_up(q->activity.log);
        r = 0;
    }
    return UNLESS_FAILED(r, qcow2_co_mark_bitmaps(q));
}

/* Bits and tables need more; storing them says so. */
bool qcow2_co_activity_has_room(struct block_node *node)
{
    struct qcow2 *q = qcow2_state(node);
    uint64_t size = block_activity_map_bytes(
        block_node_size(node),
        (unsigned)__builtin_ctzll(block_activity_region_size(q->activity.log)));
    AUTO_FREE uint8_t *map = calloc(1, size);
    uint64_t offset;

    if (!map || qcow2_check_writable(q) < 0 || !qcow2_activity_is_possible(q) ||
        qcow2_co_write_new_clusters(q, map, size, &offset) < 0) {
        return false;
    }
    qcow2_co_free_new_clusters(q, offset, size);
    return true;
}

/* --- while in use ----------------------------------------------------------------------------- */

int qcow2_co_write_activity(struct block_node *node, uint64_t at, const void *buf, size_t size,
                            bool sync)
{
    struct qcow2 *q = qcow2_state(node);
    uint64_t offset = q->activity.offset + at;
    int r = qcow2_check_writable(q);

    UNLESS_FAILED(r, qcow2_co_overlap_check(q, offset, size, 0));
    return UNLESS_FAILED(r,
                         block_co_pwrite(node->file, offset, buf, size, sync ? BLOCK_REQ_FUA : 0));
}

int qcow2_co_sync_activity(struct block_node *node)
{
    return block_co_flush(node->file);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Persistent bitmaps: loading them at open.
 *
 * An open reads the tables only. The bits stay in the image until they are needed (struct
 * block_bitmap, `unread`): those of a large disk may take a quarter of a gigabyte, and most opens
 * do not use them. Guest writes meanwhile set bits in an empty bitmap, which is merged with the
 * stored bits when those are read or stored.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/size.h"
#include "block/bitmaps.h"
#include "qcow2/bitmap/joint.h"
#include "qcow2/bitmap/stored.h"
#include "trace/events.h"

/* Limit in bytes for the tables that an open reads. */
#define OPEN_TABLE_BYTES (256 * MiB)

/* --- open ------------------------------------------------------------------------------------- */

/* Limits for the tables of all bitmaps at open. */
struct budgets {
    /* Bytes that are left of the file: see qcow2_bitmap_budget(). */
    uint64_t bytes;
    /*
     * Bytes of tables that may still be read. Errors in the other tables are found when their bits
     * are needed.
     */
    uint64_t tables;
};

/*
 * *ret_bits is an empty bitmap, or NULL if what is stored can't be used: it is marked in use
 * without an activity log, or its table is invalid. `hot`: the map of the log; NULL: there is none.
 */
static int co_prepare_bits(struct qcow2 *q, const struct stored_bitmap *b, const uint8_t *hot,
                           struct budgets *budgets, struct dirty_bitmap **ret_bits,
                           struct error *err)
{
    uint64_t bytes = (uint64_t)b->table_entries * 8;
    AUTO_FREE uint64_t *table = NULL;
    int r;

    *ret_bits = NULL;
    if ((b->flags & BITMAP_FLAG_IN_USE) && (!hot || b->is_void)) {
        return 0;
    }
    r = bytes <= budgets->tables || !qcow2_bitmap_fits_disk(q, b)
            ? qcow2_co_read_checked_table(q, b, &budgets->bytes, &table)
            : 0;
    budgets->tables -= MIN(bytes, budgets->tables);
    if (r < 0 && r != -ENOMEM) {
        log_warning("image '%s': bitmap '%s' can't be read (%s); it is inconsistent",
                    block_node_display_name(q->node), b->name, strerror(-r));
        return 0;
    }
    *ret_bits =
        r == 0 ? dirty_bitmap_new(block_node_size(q->node), 1u << b->granularity_bits) : NULL;
    return *ret_bits ? 0 : error_out_of_memory(err);
}

/*
 * A bitmap that can't be used is added as inconsistent, and can only be removed. It does not keep
 * the image from opening.
 */
static int co_load_bitmap(struct qcow2 *q, struct stored_bitmap *b, const uint8_t *hot,
                          struct budgets *budgets, struct error *err)
{
    struct dirty_bitmap *bits;
    struct block_bitmap *loaded;
    int r;

    if (!qcow2_bitmap_is_known(b)) {
        log_warning(
            "image '%s': bitmap '%s' has an unknown type or flags; it is kept, but not used",
            block_node_display_name(q->node), b->name);
        return 0;
    }
    r = co_prepare_bits(q, b, hot, budgets, &bits, err);
    trace_qcow2_bitmap_load(q->node->name, b->name, r == 0 && !bits, r);
    if (r < 0) {
        return r;
    }
    r = block_bitmap_attach_loaded(q->node, b->name, bits, 1u << b->granularity_bits, &loaded, err);
    if (r < 0) {
        return r;
    }
    loaded->unread = bits != NULL;
    block_bitmap_set_enabled(loaded, bits && (b->flags & BITMAP_FLAG_AUTO));
    loaded->read_only = q->read_only;
    loaded->driver_state = b;
    if (!bits) {
        loaded->lost_why = b->flags & BITMAP_FLAG_IN_USE
                               ? "a program that had the image open did not store it: it ended "
                                 "abruptly, or does not keep bitmaps"
                               : "its table in the image is invalid";
    }
    b->loaded = loaded;
    b->is_void = b->is_void || !bits;
    if (bits) {
        qcow2_apply_excess(b, loaded);
    }
    if (bits && (b->flags & BITMAP_FLAG_IN_USE) && loaded->enabled) {
        block_bitmap_add_excess(loaded, qcow2_set_hot_regions(q, hot, bits), qcow2_excess_crash);
    }
    return 0;
}

/* Which entries of the directory the activity log says nothing of. */
static void mark_void_entries(struct qcow2 *q)
{
    struct stored_bitmap *b;
    uint32_t entry = 0;

    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        for (unsigned i = 0; i < q->activity.void_count; i++) {
            b->is_void = b->is_void || q->activity.void_entries[i] == entry;
        }
        entry++;
    }
}

/* Say what a crash costs. */
static void report_recovery(struct qcow2 *q)
{
    struct block_bitmap *b;
    uint64_t excess = 0;
    unsigned count = 0;
    char text[32];

    for (b = block_bitmap_next(q->node, NULL); b; b = block_bitmap_next(q->node, b)) {
        count += b->persistent && !b->inconsistent && b->excess > 0;
        excess = MAX(excess, b->excess);
    }
    if (count > 0) {
        log_notice("image '%s' was not closed cleanly: dirty bitmaps are complete; at most %s may "
                   "be dirty in excess",
                   block_node_display_name(q->node), size_format(excess, text, sizeof(text)));
    }
}

int qcow2_co_load_bitmaps(struct qcow2 *q, struct error *err)
{
    struct budgets budgets = {.bytes = qcow2_bitmap_budget(q), .tables = OPEN_TABLE_BYTES};
    AUTO_FREE uint8_t *hot = NULL;
    struct stored_bitmap *b;
    int r;

    if (q->bitmaps.directory_size == 0 && q->joint.state == JOINT_NONE) {
        return 0;
    }
    r = q->bitmaps.directory_size > 0 ? qcow2_co_read_bitmap_directory(q, err) : 0;
    UNLESS_FAILED(r, qcow2_co_read_activity(q, &hot, err));
    if (r < 0) {
        return r;
    }
    mark_void_entries(q);
    r = qcow2_co_joint_open(q, !(q->node->open_flags & (BLOCK_OPEN_CHECK | BLOCK_OPEN_NO_IO)), err);
    if (r < 0) {
        return r;
    }
    qcow2_note_excess(q); /* of the entries that count */
    if (q->node->open_flags & BLOCK_OPEN_CHECK) {
        return 0; /* a check needs the directory only */
    }
    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        r = co_load_bitmap(q, b, hot, &budgets, err);
        if (r < 0) {
            return r;
        }
    }
    r = qcow2_co_joint_add_other(q, hot, err);
    if (r == 0) {
        report_recovery(q);
    }
    return r;
}

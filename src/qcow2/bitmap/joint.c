/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/bitmap/joint.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "block/bitmaps.h"
#include "qcow2/bitmap/reserve.h"
#include "qcow2/bitmap/store.h"
#include "qcow2/header/header.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/new_table.h"

/* What a joint change adds to a header: its extension, one record of excess, more void entries. */
#define HEADER_ROOM 192u

/* The header has room for the extension in all of its forms, and the record for its list. */
static bool has_room(struct qcow2 *q)
{
    return qcow2_activity_is_possible(q) && q->header.end + HEADER_ROOM <= q->cluster_size &&
           (q->cluster_size >= 4 * KiB ||
            (!q->header.backing_filename && !q->header.data_filename));
}

char *qcow2_co_joint_name(struct block_node *node)
{
    struct qcow2 *q = qcow2_state(node);

    if (q->read_only || !node->log || !has_room(q) || q->joint.state == JOINT_PREPARED) {
        return NULL;
    }
    if (q->joint.state != JOINT_NONE) {
        /* One that a crash had interrupted: the others have been opened since then. */
        co_mutex_lock(&q->bitmaps.mutex);
        (void)qcow2_co_joint_retire_locked(q, NULL);
        co_mutex_unlock(&q->bitmaps.mutex);
    }
    if (q->joint.state != JOINT_NONE) {
        log_warning("image '%s': it still has to tell other images of an earlier change of "
                    "bitmaps; it takes part in no other one until they were opened",
                    block_node_display_name(node));
        return NULL;
    }
    return qcow2_co_joint_file_name(q);
}

/* --- prepare ---------------------------------------------------------------------------------- */

static void append_be32(struct strbuf *sb, uint32_t value)
{
    uint8_t bytes[4];

    store_be32(bytes, value);
    strbuf_append(sb, bytes, sizeof(bytes));
}

static void append_be64(struct strbuf *sb, uint64_t value)
{
    uint8_t bytes[8];

    store_be64(bytes, value);
    strbuf_append(sb, bytes, sizeof(bytes));
}

/* The record: docs/qcow2.md, "Joint changes". */
static int build_record(const struct bitmap_store *st, const struct block_joint *joint, size_t own,
                        struct strbuf *record)
{
    const struct stored_bitmap *b;
    uint32_t bitmaps = 0, voids = 0, entry = 0;

    LIST_FOREACH (b, &st->entries, link) {
        bitmaps++;
        voids += qcow2_activity_ignores(b);
    }
    if (voids > ACTIVITY_VOID_MAX || joint->count > JOINT_NAMES_MAX) {
        return -ENOSPC;
    }
    append_be64(record, st->directory_offset);
    append_be64(record, st->directory_size);
    append_be32(record, bitmaps);
    append_be32(record, voids);
    append_be32(record, (uint32_t)joint->count);
    append_be32(record, (uint32_t)own);
    LIST_FOREACH (b, &st->entries, link) {
        if (qcow2_activity_ignores(b)) {
            append_be32(record, entry);
        }
        entry++;
    }
    for (size_t i = 0; i < joint->count; i++) {
        append_be32(record, (uint32_t)strlen(joint->names[i]));
        strbuf_append(record, joint->names[i], strlen(joint->names[i]));
    }
    return record->failed ? -ENOMEM : record->len > JOINT_RECORD_BYTES_MAX ? -ENOSPC : 0;
}

/* The second directory and the record, stable (R1). */
static int co_write_second(struct qcow2 *q, struct bitmap_store *st,
                           const struct block_joint *joint, size_t own, struct error *err)
{
    STRBUF_AUTO(record);
    uint64_t offset;
    int r = qcow2_co_build_directory(q, st);

    UNLESS_FAILED(r, qcow2_co_write_directory(q, st));
    UNLESS_FAILED(r, build_record(st, joint, own, &record));
    UNLESS_FAILED(r, qcow2_co_write_new_clusters(q, record.data, record.len, &offset));
    if (r == 0) {
        q->joint.offset = offset;
        q->joint.size = record.len;
        r = qcow2_co_commit(q);
    }
    return r < 0 ? error_set_errno(err, -r, "Could not write the bitmaps of '%s'",
                                   block_node_display_name(q->node))
                 : 0;
}

static void co_unwrite_record(struct qcow2 *q)
{
    if (q->joint.size > 0) {
        qcow2_co_free_new_clusters(q, q->joint.offset, q->joint.size);
        q->joint.offset = q->joint.size = 0;
    }
}

/* Who has to be asked, or may ask. */
static int take_names(struct qcow2_joint *j, const struct block_joint *joint, size_t own)
{
    qcow2_joint_free_names(j);
    j->names = calloc(joint->count, sizeof(char *));
    j->own = (uint32_t)own;
    for (size_t i = 0; j->names && i < joint->count; i++) {
        j->names[i] = strdup(joint->names[i]);
        if (!j->names[i]) {
            return -ENOMEM;
        }
        j->name_count++;
    }
    return j->names ? 0 : -ENOMEM;
}

static int co_prepare_locked(struct qcow2 *q, struct bitmap_store *st,
                             const struct block_joint *joint, size_t own, struct error *err)
{
    int r;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    qcow2_store_begin(q, st);
    st->stays_in_use = true;
    memcpy(q->joint.id, joint->id, sizeof(q->joint.id));
    r = take_names(&q->joint, joint, own) < 0 ? error_out_of_memory(err) : 0;
    UNLESS_FAILED(r, co_write_second(q, st, joint, own, err));
    UNLESS_FAILED(r, qcow2_co_joint_set_state_locked(q, JOINT_PREPARED, err));
    if (r < 0) {
        co_unwrite_record(q);
        qcow2_joint_free_names(&q->joint);
        return qcow2_co_store_end(q, st, r);
    }
    qcow2_reserve_take_used_locked(q, &st->made);
    q->joint.store = st;
    qcow2_joint_know(q);
    return 0;
}

int qcow2_co_prepare_bitmaps(struct block_node *node, const struct block_joint *joint, size_t own,
                             struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    struct bitmap_store *st = calloc(1, sizeof(*st));
    int r;

    if (!st) {
        return error_out_of_memory(err);
    }
    co_mutex_lock(&q->bitmaps.mutex);
    co_mutex_lock(&q->bitmaps.bits_mutex);
    r = co_prepare_locked(q, st, joint, own, err);
    co_mutex_unlock(&q->bitmaps.bits_mutex);
    if (r < 0) {
        co_mutex_unlock(&q->bitmaps.mutex);
        free(st);
    } /* else nothing else is stored until the other state is settled */
    return r;
}

/* --- settle ----------------------------------------------------------------------------------- */

static int co_settle_done_locked(struct qcow2 *q, bool first, struct error *err)
{
    struct bitmap_store *st = q->joint.store;
    int r;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    q->joint.store = NULL;
    r = qcow2_co_switch_to_written(q, st, first ? JOINT_DONE : JOINT_NONE, err);
    if (r < 0 && first) {
        q->joint.store = st; /* nothing is decided */
        return r;
    }
    if (r == 0) {
        qcow2_co_free_replaced(q, &st->old);
    } else { /* it is decided, and the header has to follow */
        qcow2_switch_in_memory(q, st);
        q->joint.other_clusters = st->old;
        st->old = (struct cluster_runs){0};
    }
    qcow2_note_stored_locked(q);
    qcow2_joint_free_store(st);
    qcow2_co_reserve_end_locked(q);
    return r;
}

static int co_settle_undone_locked(struct qcow2 *q, struct error *err)
{
    int r = qcow2_co_joint_set_state_locked(q, JOINT_NONE, err);

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    if (r == 0) {
        qcow2_co_joint_ended(q);
    }
    return r;
}

int qcow2_co_settle_bitmaps(struct block_node *node, bool done, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    bool first = q->joint.own == 0;
    int r;

    CO_ASSERT_HELD(&q->bitmaps.mutex);
    co_mutex_lock(&q->bitmaps.bits_mutex);
    r = done ? co_settle_done_locked(q, first, err) : co_settle_undone_locked(q, err);
    co_mutex_unlock(&q->bitmaps.bits_mutex);
    if (r == 0 || !done || !first) { /* else it is to be settled as not done */
        co_mutex_unlock(&q->bitmaps.mutex);
    }
    return r;
}

int qcow2_co_forget_joint(struct block_node *node, struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    int r = 0;

    co_mutex_lock(&q->bitmaps.mutex);
    if (q->joint.state == JOINT_DONE || q->joint.state == JOINT_UNDONE) {
        r = qcow2_co_joint_set_state_locked(q, JOINT_NONE, err);
        if (r == 0) {
            qcow2_co_joint_ended(q);
        }
    }
    co_mutex_unlock(&q->bitmaps.mutex);
    return r;
}

/* --- what an open found ---------------------------------------------------------------------- */

/* The directory that counts becomes that of the header. */
static int co_settle_locked(struct qcow2 *q, struct error *err)
{
    bool first = q->joint.own == 0;
    int r = qcow2_co_joint_set_state_locked(q, first ? JOINT_UNDONE : JOINT_NONE, err);

    if (r < 0) {
        return r;
    }
    if (first) {
        qcow2_co_free_replaced(q, &q->joint.other_clusters);
        return qcow2_co_joint_retire_locked(q, err);
    }
    qcow2_co_joint_ended(q);
    qcow2_joint_tell_first(q);
    return 0;
}

int qcow2_co_joint_settle_found(struct qcow2 *q, struct error *err)
{
    ERROR_AUTO(why);
    int r;

    if (q->joint.waits) {
        return 0;
    }
    if (q->joint.state == JOINT_PREPARED && q->joint.in_doubt) {
        if (qcow2_co_commit_bitmaps(q->node, &why) < 0) {
            log_warning("image '%s': what its bitmaps have after an interrupted change can't be "
                        "stored now: %s",
                        block_node_display_name(q->node), error_message(&why));
        }
        return 0;
    }
    co_mutex_lock(&q->bitmaps.mutex);
    r = q->joint.state == JOINT_PREPARED ? co_settle_locked(q, err)
                                         : qcow2_co_joint_retire_locked(q, err);
    co_mutex_unlock(&q->bitmaps.mutex);
    return r;
}

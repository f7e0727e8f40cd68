/* SPDX-License-Identifier: Apache-2.0 */
/* Joint changes: what an open finds of one that a crash has interrupted. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/bitmaps.h"
#include "qcow2/bitmap/joint.h"
#include "qcow2/bitmap/store.h"
#include "qcow2/header/header.h"

/* --- the record ------------------------------------------------------------------------------- */

/* The record in memory, and what its fixed fields say. */
struct record {
    uint8_t *bytes;
    uint64_t size;
    uint32_t bitmaps, voids, names;
};

static void record_clear(struct record *rec)
{
    free(rec->bytes);
}

static int co_read_record(struct qcow2 *q, struct record *rec)
{
    const struct qcow2_joint *j = &q->joint;
    int r;

    if (!is_aligned(j->offset, q->cluster_size) || j->size < JOINT_FIXED_SIZE ||
        j->size > JOINT_RECORD_BYTES_MAX ||
        !range_fits(j->offset, j->size, block_edge_size(q->node->file))) {
        return -EINVAL;
    }
    rec->size = j->size;
    rec->bytes = malloc(j->size);
    if (!rec->bytes) {
        return -ENOMEM;
    }
    r = block_co_pread(q->node->file, j->offset, rec->bytes, rec->size);
    if (r < 0) {
        return r;
    }
    rec->bitmaps = load_be32(rec->bytes + JOINT_BITMAPS);
    rec->voids = load_be32(rec->bytes + JOINT_VOIDS);
    rec->names = load_be32(rec->bytes + JOINT_NAMES);
    return rec->bitmaps <= BITMAPS_MAX && rec->voids <= ACTIVITY_VOID_MAX && rec->names > 0 &&
                   range_fits(JOINT_FIXED_SIZE, (uint64_t)rec->voids * 4, rec->size) &&
                   rec->names <= JOINT_NAMES_MAX
               ? 0
               : -EINVAL;
}

/* Takes the names of the images. */
static int take_record_names(struct qcow2_joint *j, const struct record *rec)
{
    uint64_t at = JOINT_FIXED_SIZE + (uint64_t)rec->voids * 4;

    j->own = load_be32(rec->bytes + JOINT_OWN);
    j->names = calloc(rec->names, sizeof(char *));
    if (!j->names) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < rec->names; i++) {
        uint32_t length = range_fits(at, 4, rec->size) ? load_be32(rec->bytes + at) : UINT32_MAX;

        if (length == 0 || !range_fits(at + 4, length, rec->size)) {
            return -EINVAL;
        }
        j->names[i] = strndup((const char *)rec->bytes + at + 4, length);
        if (!j->names[i]) {
            return -ENOMEM;
        }
        j->name_count++;
        at += 4 + (uint64_t)length;
    }
    return j->own < rec->names ? 0 : -EINVAL;
}

/* Exchange bitmaps.stored, and where it was read, with the other directory. */
static void exchange_directories(struct qcow2 *q)
{
    struct qcow2_joint *j = &q->joint;
    uint64_t offset = q->bitmaps.directory_offset, size = q->bitmaps.directory_size;
    struct list stored;

    list_init(&stored);
    list_splice(&stored, &q->bitmaps.stored);
    list_splice(&q->bitmaps.stored, &j->other);
    list_splice(&j->other, &stored);
    q->bitmaps.directory_offset = j->other_offset;
    q->bitmaps.directory_size = j->other_size;
    q->header.autoclear &= ~AUTOCLEAR_BITMAPS;
    q->header.autoclear |= j->other_size > 0 ? AUTOCLEAR_BITMAPS : 0;
    j->other_offset = offset;
    j->other_size = size;
}

/* Reads the directory that the record names, to joint.other. */
static int co_read_other_directory(struct qcow2 *q, const struct record *rec)
{
    struct qcow2_joint *j = &q->joint;
    uint32_t count = q->bitmaps.directory_count, entry = 0;
    struct stored_bitmap *b;
    int r = 0;

    j->other_offset = load_be64(rec->bytes + JOINT_DIRECTORY_OFFSET);
    j->other_size = load_be64(rec->bytes + JOINT_DIRECTORY_SIZE);
    if (j->other_size > BITMAP_DIRECTORY_BYTES_MAX ||
        !is_aligned(j->other_offset, q->cluster_size)) {
        return -EINVAL;
    }
    exchange_directories(q);
    q->bitmaps.directory_count = rec->bitmaps;
    if (q->bitmaps.directory_size > 0) {
        r = qcow2_co_read_bitmap_directory(q, NULL);
    }
    LIST_FOREACH (b, &q->bitmaps.stored, link) {
        for (uint32_t i = 0; i < rec->voids; i++) {
            b->is_void |= load_be32(rec->bytes + JOINT_FIXED_SIZE + (size_t)4 * i) == entry;
        }
        entry++;
    }
    exchange_directories(q);
    q->bitmaps.directory_count = count;
    return r;
}

/* --- clusters --------------------------------------------------------------------------------- */

static int joint_by_offset(const void *a, const void *b)
{
    const struct cluster_run *x = a, *y = b;

    return (x->offset > y->offset) - (x->offset < y->offset);
}

static int add_log_cluster(struct cluster_runs *runs, uint64_t offset, uint64_t size)
{
    return cluster_runs_add(
        runs, (struct cluster_run){.offset = offset, .length = size, .why = QCOW2_FREED_BY_OTHER});
}

/*
 * Entries in all bitmap tables of one directory; they bound time and memory. A file can have many
 * more than bytes of its own: in holes, or in tables that are named again and again.
 */
#define ENTRIES_MAX (16u * MiB)

/* What the tables of a directory may have. */
struct collect_budget {
    uint64_t bytes, entries;
};

/* Appends the clusters of the table and the bits of one bitmap. */
static int co_collect_bitmap(struct qcow2 *q, const struct stored_bitmap *b,
                             struct collect_budget *budget, struct cluster_runs *ret_runs)
{
    AUTO_FREE uint64_t *table = NULL;
    uint64_t bytes = (uint64_t)b->table_entries * 8;
    int r = bytes <= budget->bytes && b->table_entries <= budget->entries ? 0 : -EINVAL;

    if (bytes == 0) {
        return 0;
    }
    budget->entries -= r == 0 ? b->table_entries : 0;
    UNLESS_FAILED(r, qcow2_co_read_bitmap_table(q, b, &table));
    UNLESS_FAILED(r, qcow2_check_bitmap_table(q, table, b->table_entries, &budget->bytes));
    for (uint64_t at = 0; at < bytes && r == 0; at += q->cluster_size) {
        r = add_log_cluster(ret_runs, b->table_offset + at, q->cluster_size);
    }
    for (uint32_t i = 0; i < b->table_entries && r == 0; i++) {
        uint64_t offset = table[i] & ENTRY_OFFSET_MASK;

        r = offset > 0 ? add_log_cluster(ret_runs, offset, q->cluster_size) : 0;
    }
    return r;
}

/*
 * All clusters of a directory, one a run, sorted. An error if they are not known: then nothing may
 * be freed.
 */
static int co_collect_directory(struct qcow2 *q, const struct list *directory, uint64_t offset,
                                uint64_t size, struct cluster_runs *ret_runs)
{
    struct collect_budget budget = {.bytes = qcow2_bitmap_budget(q), .entries = ENTRIES_MAX};
    const struct stored_bitmap *b;
    int r = 0;

    LIST_FOREACH (b, directory, link) {
        UNLESS_FAILED(r, co_collect_bitmap(q, b, &budget, ret_runs));
    }
    for (uint64_t at = 0; at < size && r == 0; at += q->cluster_size) {
        r = add_log_cluster(ret_runs, offset + at, q->cluster_size);
    }
    if (r == 0 && ret_runs->count > 0) {
        qsort(ret_runs->runs, ret_runs->count, sizeof(*ret_runs->runs), joint_by_offset);
    }
    return r;
}

/* Sets joint.other_clusters: those of `other` that are not in `used`. */
static int find_other_clusters(struct qcow2 *q, const struct cluster_runs *used,
                               const struct cluster_runs *other)
{
    size_t k = 0;
    int r = 0;

    for (size_t i = 0; i < other->count && r == 0; i++) {
        while (k < used->count && used->runs[k].offset < other->runs[i].offset) {
            k++;
        }
        if (k == used->count || used->runs[k].offset != other->runs[i].offset) {
            r = add_log_cluster(&q->joint.other_clusters, other->runs[i].offset, q->cluster_size);
        }
    }
    return r;
}

/* --- the decision ----------------------------------------------------------------------------- */

/* Returns whether the other directory has taken the place of that of the header. */
static bool co_decide_joint(struct qcow2 *q, bool ask)
{
    struct qcow2_joint *j = &q->joint;
    enum qcow2_joint_state state = JOINT_UNDONE;
    int r = 0;

    if (j->own > 0) { /* else the header itself says that nothing was decided */
        r = ask ? qcow2_co_joint_ask(q, 0, &state) : -ENODATA;
    }
    j->in_doubt = r < 0;
    j->waits = r == -ENOTCONN;
    if (r == 0 && state == JOINT_DONE) {
        exchange_directories(q);
    }
    if (j->waits) {
        log_warning("image '%s': a change of the bitmaps of several disks was interrupted; its "
                    "bitmaps have what they had before and after it until '%s' is open, too",
                    block_node_display_name(q->node), j->names[0]);
    } else if (r < 0 && ask) {
        log_warning("image '%s': a change of the bitmaps of several disks was interrupted, and "
                    "'%s' does not say whether it was made; its bitmaps have what they had before "
                    "and after it",
                    block_node_display_name(q->node), j->names[0]);
    }
    return r == 0 && state == JOINT_DONE;
}

static int co_choose_directory(struct qcow2 *q, bool ask)
{
    struct qcow2_joint *j = &q->joint;
    struct cluster_runs own = {0}, other = {0};
    int r = co_collect_directory(q, &q->bitmaps.stored, q->bitmaps.directory_offset,
                                 q->bitmaps.directory_size, &own);

    UNLESS_FAILED(r, co_collect_directory(q, &j->other, j->other_offset, j->other_size, &other));
    if (r == 0) {
        r = co_decide_joint(q, ask) ? find_other_clusters(q, &other, &own)
                                    : find_other_clusters(q, &own, &other);
    }
    cluster_runs_clear(&own);
    cluster_runs_clear(&other);
    return r;
}

static int co_open_record(struct qcow2 *q, bool ask)
{
    CLEANUP(record_clear) struct record rec = {0};
    int r = co_read_record(q, &rec);

    UNLESS_FAILED(r, take_record_names(&q->joint, &rec));
    if (r < 0 || q->joint.state != JOINT_PREPARED) {
        return r;
    }
    r = co_read_other_directory(q, &rec);
    return UNLESS_FAILED(r, co_choose_directory(q, ask));
}

int qcow2_co_joint_open(struct qcow2 *q, bool ask, struct error *err)
{
    int r = q->joint.state == JOINT_NONE ? 0 : co_open_record(q, ask);

    if (r == -ENOMEM) {
        return error_out_of_memory(err);
    }
    if (r < 0) {
        log_warning("image '%s': the record of a change of the bitmaps of several disks is "
                    "damaged; they are as before",
                    block_node_display_name(q->node));
        qcow2_joint_free(q);
        q->joint = (struct qcow2_joint){.is_stale = true};
        list_init(&q->joint.other);
        list_init(&q->joint.link);
    } else if (q->joint.state != JOINT_NONE) {
        qcow2_joint_know(q);
    }
    return 0;
}

/* --- in doubt --------------------------------------------------------------------------------- */

/* What `o` has is added to its bitmap, which may be dirty in as much in excess. */
static int co_add_bits(struct block_bitmap *b, const struct stored_bitmap *o,
                       struct dirty_bitmap *bits)
{
    uint64_t before, other = dirty_bitmap_count(bits), after;
    int r = block_co_bitmap_fetch(b, NULL);

    if (r == -ENOMEM) {
        return r;
    }
    if (r < 0) {
        block_bitmap_lose(b, "its bits could not be read from the image");
        return 0;
    }
    before = dirty_bitmap_count(b->bits);
    r = dirty_bitmap_merge_alone(b->bits, bits);
    after = dirty_bitmap_count(b->bits);
    block_bitmap_add_excess(b, after - MIN(after, MIN(before, other)), qcow2_excess_in_doubt);
    block_bitmap_set_enabled(b, b->enabled || (o->flags & BITMAP_FLAG_AUTO));
    b->unstored = true;
    return r;
}

/* A bitmap that only the other directory has. */
static int add_joint_bitmap(struct qcow2 *q, const struct stored_bitmap *o,
                            struct dirty_bitmap *bits, struct error *err)
{
    struct block_bitmap *b;
    int r = block_bitmap_attach_loaded(q->node, o->name, bits, 1u << o->granularity_bits, &b, err);

    if (r < 0) {
        return r;
    }
    block_bitmap_set_enabled(b, o->flags & BITMAP_FLAG_AUTO);
    block_bitmap_add_excess(b, q->excess_written, qcow2_excess_crash);
    b->read_only = q->read_only;
    b->unstored = true;
    return 0;
}

static int co_add_one(struct qcow2 *q, const struct stored_bitmap *o, const uint8_t *hot,
                      struct error *err)
{
    struct block_bitmap *b = block_bitmap_find(q->node, o->name);
    struct dirty_bitmap *bits = NULL;
    int r;

    if (!qcow2_bitmap_is_known(o) || (!b && qcow2_find_stored(q, o->name))) {
        return 0;
    }
    if ((b && b->inconsistent) || o->is_void || ((o->flags & BITMAP_FLAG_IN_USE) && !hot)) {
        if (b) {
            block_bitmap_lose(b, qcow2_excess_in_doubt);
        }
        return 0;
    }
    r = qcow2_co_read_bits_of(q, o, hot, &bits);
    if (r == -ENOMEM) {
        return error_out_of_memory(err);
    }
    if (r < 0) {
        if (b) {
            block_bitmap_lose(b, "its bits could not be read from the image");
        }
        return 0;
    }
    if (!b) {
        return add_joint_bitmap(q, o, bits, err);
    }
    r = co_add_bits(b, o, bits);
    dirty_bitmap_free(bits);
    return r < 0 ? error_out_of_memory(err) : 0;
}

int qcow2_co_joint_add_other(struct qcow2 *q, const uint8_t *hot, struct error *err)
{
    const struct stored_bitmap *o;
    int r = 0;

    if (!q->joint.in_doubt) {
        return 0;
    }
    LIST_FOREACH (o, &q->joint.other, link) {
        const struct stored_bitmap *s = qcow2_find_stored(q, o->name);

        if (!s || s->table_offset != o->table_offset || s->flags != o->flags) {
            UNLESS_FAILED(r, co_add_one(q, o, hot, err));
        }
    }
    return r;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking: count every reference that the metadata makes, compare with the refcounts.
 *
 *   refcount too high: a leak (space is lost)     too low: a corruption (data may be overwritten)
 *
 * The counts are kept per cluster of the file, in memory that is bounded by the size of the file.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/check/check.h"
#include "qcow2/check/rebuild.h"
#include "qcow2/header/header.h"
#include "qcow2/table/commit.h"

/* References to so many clusters behind the end of the file keep new refcounts out of there. */
#define BEYOND_END_MAX (1u << 20)

/*
 * What the counts of references may take: for each cluster of a file one byte in the worst case that is likely, many snapshots, or so
 * much that it does not matter.
 */
#define COUNTS_BYTES_MIN (256 * MiB)
#define COUNTS_PART_OF_FILE 256

/* So much of tables is read although they lie across others. */
#define AGAIN_BYTES (64 * MiB)
/* Tables are read in pieces of so many entries. */
#define PIECE_ENTRIES (128u << 10)

/* --- complaints -------------------------------------------------------------------------------- */

static void complain(struct check *c, const char *fmt, va_list ap)
{
    char line[256];

    if (c->complaints++ < CHECK_COMPLAINTS_MAX) {
        vsnprintf(line, sizeof(line), fmt, ap);
        fprintf(stderr, "%s\n", line);
    }
}

void qcow2_complain(struct check *c, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    complain(c, fmt, ap);
    va_end(ap);
}

void qcow2_complain_corrupt(struct check *c, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    complain(c, fmt, ap);
    va_end(ap);
    c->result->corruptions++;
}

/* --- counting ---------------------------------------------------------------------------------- */

/* `n` clusters from `first` on have as many references as can be counted. */
static void complain_overflow(struct check *c, uint64_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n && c->complaints < CHECK_COMPLAINTS_MAX; i++) {
        qcow2_complain(
            c,
            "ERROR: overflow cluster offset=%#llx\nUse qemu-img amend to increase the refcount "
            "entry "
            "width or qemu-img convert to create a clean copy if the image cannot be opened for "
            "writing",
            (unsigned long long)(first + i) << c->q->cluster_bits);
    }
}

/* There is one run of clusters [first, first + n) that can't have c->times more: they get what they can. */
static void count_too_many(struct check *c, uint64_t first, uint64_t n, uint32_t references)
{
    uint32_t room = (uint32_t)MIN(c->refcount_max, UINT32_MAX) - references;
    uint64_t done, lost;

    if (room > 0 && counts_add_times(c->counts, first, n, room, &done) < 0) {
        c->out_of_memory = true;
        return;
    }
    complain_overflow(c, first, n);
    if (__builtin_mul_overflow(n, (uint64_t)(c->times - room), &lost)) {
        lost = UINT32_MAX;
    }
    c->result->corruptions += lost;
    c->overflows += lost;
}

/* Clusters [first, first + n) of the file. */
static void count_clusters(struct check *c, uint64_t first, uint64_t n)
{
    while (n > 0 && !c->out_of_memory) {
        uint64_t done, full = 0;
        uint32_t references;
        int r = counts_add_times(c->counts, first, n, c->times, &done);

        if (r == -ENOMEM) {
            c->out_of_memory = true;
        } else if (r < 0) {
            full = counts_run(c->counts, first + done, n - done, &references);
            count_too_many(c, first + done, full, references);
        }
        first += done + full;
        n -= done + full;
    }
}

void qcow2_check_count(struct check *c, uint64_t offset, uint64_t length)
{
    uint64_t first = qcow2_cluster_index(c->q, offset), last, end;

    if (length == 0) {
        return;
    }
    if (add_overflows(offset, length, &end) ||
        (end > c->file_size && end - c->file_size >= c->q->cluster_size)) {
        qcow2_complain_corrupt(c,
                               "ERROR: counting reference for region exceeding the end of the file "
                               "by one cluster or more: offset %#llx size %#llx",
                               (unsigned long long)offset, (unsigned long long)length);
        c->flags_doubtful = true;
        if (first < c->clusters + BEYOND_END_MAX) {
            c->beyond_end = MAX(c->beyond_end, first + 1);
        }
        return;
    }
    last = qcow2_cluster_index(c->q, end - 1);
    c->clusters = MAX(c->clusters, last + 1);
    count_clusters(c, first, last - first + 1);
}

int qcow2_co_check_read(struct check *c, uint64_t offset, void *buf, size_t size)
{
    uint64_t there = offset < c->file_size ? MIN(size, c->file_size - offset) : 0;
    int r = there > 0 ? block_co_pread(c->q->node->file, offset, buf, there) : 0;

    memset((uint8_t *)buf + there, 0, size - there);
    if (r < 0) {
        qcow2_complain(c, "ERROR: could not read %zu bytes at offset %#llx: %s", size,
                       (unsigned long long)offset, strerror(-r));
        c->result->check_errors++;
    }
    return r;
}

bool qcow2_check_may_repair_table(const struct check *c, uint64_t offset)
{
    const struct qcow2 *q = c->q;

    return is_aligned(offset, q->cluster_size) &&
           !qcow2_overlap_is_suspect(q, offset, q->cluster_size,
                                     OVERLAP_BIT(OVERLAP_ACTIVE_L2) |
                                         OVERLAP_BIT(OVERLAP_INACTIVE_L2));
}

bool qcow2_check_take(struct check *c, uint64_t *left, uint64_t amount, const char *what,
                      const struct qcow2_snapshot *s)
{
    if (*left >= amount) {
        *left -= amount;
        return true;
    }
    if (!c->incomplete) { /* told however much was told before: it is why nothing can be repaired */
        fprintf(stderr, "ERROR image '%s'", block_node_display_name(c->q->node));
        if (s) {
            fprintf(stderr, ", snapshot %s (%s)", s->id, s->name);
        }
        fprintf(stderr, ": %s lie upon each other; not all of them are checked\n", what);
        c->result->corruptions++;
    }
    *left = 0;
    c->incomplete = true;
    return false;
}

bool qcow2_co_check_is_hole(struct check *c, uint64_t offset, uint64_t size)
{
    struct block_status status;

    if (!c->many_holes || !range_fits(offset, size, c->file_size)) {
        return offset >= c->file_size;
    }
    if (offset < c->extent_begin || offset >= c->extent_end) {
        if (block_co_status(c->q->node->file, offset, c->file_size - offset, &status) < 0) {
            return false;
        }
        c->extent_begin = offset;
        c->extent_end = offset + status.length;
        c->extent_is_hole = status.flags & BLOCK_STATUS_ZERO;
    }
    return c->extent_is_hole && size <= c->extent_end - offset;
}

int qcow2_co_check_read_table(struct check *c, uint64_t offset, uint64_t entries,
                              check_piece_fn *fn, void *arg)
{
    uint64_t there = offset < c->file_size ? div_round_up(c->file_size - offset, 8) : 0;
    AUTO_FREE uint64_t *piece = NULL;
    uint64_t n;
    int r = 0;

    entries = MIN(entries, there);
    for (uint64_t i = 0; i < entries && r == 0; i += n) {
        n = MIN(entries - i, PIECE_ENTRIES);
        if (qcow2_co_check_is_hole(c, offset + i * 8, n * 8)) {
            continue;
        }
        piece = piece ? piece : calloc(PIECE_ENTRIES, sizeof(*piece));
        if (!piece) {
            return -ENOMEM;
        }
        r = qcow2_co_check_read(c, offset + i * 8, piece, n * 8);
        if (r < 0) {
            return r == -ENOMEM ? r : 0;
        }
        for (uint64_t k = 0; k < n; k++) {
            piece[k] = be64toh(piece[k]);
        }
        r = fn(c, piece, n, arg);
    }
    return r;
}

static int check_init(struct check *c)
{
    struct block_edge *file = c->q->node->file;
    uint64_t stored, memory = COUNTS_BYTES_MIN;

    c->file_size = block_edge_size(file);
    if (block_co_allocated_size(file->node, &stored) == 0) {
        memory = MAX(memory, stored / COUNTS_PART_OF_FILE);
        c->many_holes = stored < c->file_size / 2;
    }
    c->times = 1;
    c->again_left = AGAIN_BYTES;
    c->clusters = div_round_up(c->file_size, c->q->cluster_size);
    c->counts = counts_new(c->clusters + 1, c->refcount_max, memory);
    c->tables = counts_new(c->clusters + 1, UINT32_MAX, memory);
    c->walked = counts_new(c->clusters + 1, 2, memory);
    return c->counts && c->tables && c->walked ? 0 : -ENOMEM;
}

static void check_release(struct check *c)
{
    counts_free(c->counts);
    counts_free(c->tables);
    counts_free(c->walked);
}

int qcow2_co_count_references(struct qcow2 *q, uint64_t refcount_max, struct counts **ret,
                              uint64_t *ret_clusters, struct error *err)
{
    struct block_check_result result = {0};
    struct check c = {.q = q,
                      .result = &result,
                      .refcount_max = refcount_max,
                      .snapshot_table_size = q->snapshots.size};
    int r = check_init(&c);

    r = r < 0 ? r : qcow2_co_check_contents(&c);
    if (r == 0 && (result.corruptions || result.check_errors)) {
        r = -EIO;
    }
    if (r == 0) {
        *ret = TAKE_PTR(c.counts);
        *ret_clusters = c.clusters;
    }
    check_release(&c);
    return r < 0 ? error_set_errno(err, -r, "Could not count the references of '%s'",
                                   block_node_display_name(q->node))
                 : 0;
}

/* --- repairing --------------------------------------------------------------------------------- */

/* All is repaired: the image is neither dirty nor corrupt any more. */
static int co_clear_marks(struct check *c, struct error *err)
{
    uint64_t marks = INCOMPAT_DIRTY | INCOMPAT_CORRUPT;

    if ((!(c->q->header.incompatible & marks) && !atomic_load(&c->q->corrupt)) ||
        c->result->corruptions || c->result->check_errors || !(c->fix & BLOCK_CHECK_FIX_ERRORS)) {
        return 0;
    }
    c->q->header.incompatible &= ~marks;
    atomic_store(&c->q->corrupt, false);
    c->q->commit.refcounts_behind = false;
    return qcow2_co_write_header(c->q, err);
}

/* After repairs with refcounts that are right: those that count what is no longer referenced. What is still wrong is told again if `aloud`. */
static int co_count_again(struct check *c, bool aloud)
{
    struct block_check_result kept = *c->result;
    struct check again = {
        .q = c->q, .result = c->result, .fix = c->fix, .refcount_max = c->refcount_max};
    int r;

    again.complaints = aloud ? c->complaints : CHECK_COMPLAINTS_MAX;
    again.snapshot_table_size = c->q->snapshots.size;
    r = check_init(&again);
    r = r < 0 ? r : qcow2_co_check_contents(&again);
    if (r == 0 && c->result->check_errors > kept.check_errors) {
        r = -EIO;
    }
    if (r == 0) {
        qcow2_check_refcount_structures(&again);
    }
    *c->result = kept;
    check_release(c);
    c->counts = again.counts;
    c->tables = again.tables;
    c->walked = again.walked;
    c->incomplete |= again.incomplete;
    c->complaints = MAX(c->complaints, aloud ? again.complaints : 0);
    c->file_size = again.file_size;
    c->clusters = again.clusters;
    c->flags_doubtful = again.flags_doubtful;
    return r;
}

/* What was wrong with the refcounts is put right by new ones; then what the old ones took is freed. */
static int co_rebuild(struct check *c, uint64_t other_corruptions, struct error *err)
{
    struct block_check_result *result = c->result, ignored = {0};
    uint64_t beyond = MAX(c->clusters, c->beyond_end);
    int r;

    fprintf(stderr, "Rebuilding refcount structure\n");
    r = qcow2_co_rebuild_refcounts(c->q, c->counts, c->clusters, beyond, err);
    if (r < 0) {
        return r;
    }
    /* The old structure may be repaired over; nobody else uses the image. */
    qcow2_overlap_destroy(c->q);
    r = qcow2_co_overlap_init(c->q);
    if (r < 0) {
        return error_set(err, -r, "Out of memory");
    }
    result->corruptions_fixed += result->corruptions - other_corruptions;
    result->corruptions = other_corruptions;
    result->leaks_fixed += result->leaks;
    result->leaks = result->check_errors = 0;
    r = co_count_again(c, true);
    if (r == 0) {
        c->result = &ignored;
        r = qcow2_co_check_refcounts(c, c->fix);
        c->result = result;
        result->corruptions += ignored.corruptions;
        result->leaks += ignored.leaks;
        result->check_errors += ignored.check_errors;
    }
    return r < 0 ? error_set_errno(err, -r, "Could not rebuild the refcounts of '%s'",
                                   block_node_display_name(c->q->node))
                 : 0;
}

/* The refcounts were compared: put right what can be. What was found before that, in contents and in refcount structures. */
static int co_repair_refcounts(struct check *c, const struct block_check_result *contents,
                               const struct block_check_result *structures, struct error *err)
{
    struct block_check_result *r = c->result;

    if (c->rebuild && (c->fix & BLOCK_CHECK_FIX_ERRORS)) {
        return co_rebuild(c, contents->corruptions, err);
    }
    if (c->rebuild) {
        fprintf(stderr, "ERROR need to rebuild refcount structures\n");
        return -EIO;
    }
    if (!c->inexact) {
        return 0;
    }
    r->corruptions = structures->corruptions;
    r->leaks = structures->leaks;
    r->check_errors = structures->check_errors;
    return qcow2_co_check_refcounts(c, c->fix);
}

/* That the old table's clusters are freed is no repair of its own, and not worth a word. */
static int co_repair_snapshot_table(struct check *c, struct error *err)
{
    uint64_t leaks_fixed = c->result->leaks_fixed;
    unsigned complaints = c->complaints;
    int r = qcow2_co_fix_snapshot_table(c, err);

    r = r < 0 ? r : co_count_again(c, false);
    c->complaints = CHECK_COMPLAINTS_MAX;
    r = r < 0 ? r : qcow2_co_check_refcounts(c, c->fix);
    c->complaints = complaints;
    c->result->leaks_fixed = leaks_fixed;
    return r;
}

/* --- all of it --------------------------------------------------------------------------------------- */

static int co_check_refcounts(struct check *c, struct error *err)
{
    struct block_check_result contents, structures;
    int r = qcow2_co_check_snapshot_table(c, err);

    r = r < 0 ? r : qcow2_co_check_contents(c);
    if (r < 0) {
        return r;
    }
    contents = *c->result;
    if (contents.check_errors > 0 || c->incomplete) {
        c->fix = 0; /* what could not be read may refer to what seems to be leaked */
    }
    qcow2_check_refcount_structures(c);
    structures = *c->result;
    r = c->out_of_memory ? -ENOMEM : qcow2_co_check_refcounts(c, 0);
    if (r == 0 && c->fix) {
        r = co_repair_refcounts(c, &contents, &structures, err);
    }
    if (r == 0 && c->snapshot_faults > 0 && (c->fix & BLOCK_CHECK_FIX_ERRORS) && !c->inexact) {
        r = co_repair_snapshot_table(c, err);
    }
    return r;
}

static int co_check_all(struct check *c, struct error *err)
{
    struct qcow2 *q = c->q;
    int r = co_check_refcounts(c, err);

    r = r < 0 ? r : qcow2_co_check_copied(c);
    if (r == 0 && c->fix && !q->read_only) {
        r = qcow2_co_commit(q);
    }
    if (r == -ENOMEM) {
        return error_set(err, ENOMEM,
                         "Image '%s' has references to more places than there is memory for",
                         block_node_display_name(q->node));
    }
    if (r < 0) {
        return error_set(err, -r, "%s", strerror(-r));
    }
    return c->fix ? co_clear_marks(c, err) : 0;
}

int qcow2_co_check(struct block_node *node, unsigned fix, struct block_check_result *ret,
                   struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    struct check c = {.q = q, .result = ret, .fix = fix, .refcount_max = q->refcounts.max};
    int r;

    memset(ret, 0, sizeof(*ret));
    r = q->read_only ? 0 : qcow2_co_commit(q);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not write the metadata of '%s'",
                               block_node_display_name(node));
    }
    if (check_init(&c) < 0) {
        check_release(&c);
        return error_set(err, ENOMEM, "Out of memory");
    }
    ret->total_clusters = div_round_up(block_node_size(node), q->cluster_size);
    r = co_check_all(&c, err);
    ret->image_end_offset = c.used_end << q->cluster_bits;
    check_release(&c);
    return r;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/check/context.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"

/*
 * A reference up to this many clusters past the end of the file keeps rebuilt refcount blocks
 * behind it.
 */
#define BEYOND_END_MAX (1u << 20)

/*
 * Memory limit of the reference counts: 1/256 of the file's size on disk, at least 256 MiB. Even
 * with clusters of 512 bytes that is two bytes for each cluster; counts up to 255 take one.
 */
#define COUNTS_BYTES_MIN (256 * MiB)
#define COUNTS_PART_OF_FILE 256

/* Limit in bytes for reading tables that overlap other tables. */
#define OVERLAPPING_TABLE_BYTES_MAX (64 * MiB)
/* Entries that are read at once of a table. */
#define PIECE_ENTRIES (128u << 10)

int qcow2_co_check_init(struct check *c)
{
    struct block_edge *file = c->q->node->file;
    uint64_t stored, memory = COUNTS_BYTES_MIN;

    c->file_size = block_edge_size(file);
    if (block_co_allocated_size(file->node, &stored) == 0) {
        memory = MAX(memory, stored / COUNTS_PART_OF_FILE);
        c->many_holes = stored < c->file_size / 2;
    }
    c->times = 1;
    c->overlap_bytes_left = OVERLAPPING_TABLE_BYTES_MAX;
    c->clusters = div_round_up(c->file_size, c->q->cluster_size);
    c->counts = reference_counts_new(c->clusters + 1, c->refcount_max, memory);
    c->snapshot_tables = reference_counts_new(c->clusters + 1, UINT32_MAX, memory);
    c->active_tables = reference_counts_new(c->clusters + 1, 2, memory);
    return c->counts && c->snapshot_tables && c->active_tables ? 0 : -ENOMEM;
}

void qcow2_check_release(struct check *c)
{
    reference_counts_free(c->counts);
    reference_counts_free(c->snapshot_tables);
    reference_counts_free(c->active_tables);
}

/* --- reports ---------------------------------------------------------------------------------- */

static void check_vreport(struct check *c, enum log_level level, const char *fmt, va_list ap)
{
    if (c->reports++ < CHECK_REPORTS_MAX) {
        log_vreport(level, fmt, ap);
    }
}

void qcow2_check_report(struct check *c, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    check_vreport(c, LOG_LEVEL_WARNING, fmt, ap);
    va_end(ap);
}

void qcow2_check_report_corruption(struct check *c, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    check_vreport(c, LOG_LEVEL_ERROR, fmt, ap);
    va_end(ap);
    c->result->corruptions++;
}

/* --- counting --------------------------------------------------------------------------------- */

/* The clusters [first, first + n) have more references than can be counted. */
static void report_overflow(struct check *c, uint64_t first, uint64_t n)
{
    for (uint64_t i = 0; i < n && c->reports < CHECK_REPORTS_MAX; i++) {
        qcow2_check_report(
            c,
            "ERROR: overflow cluster offset=%#llx\nUse qemu-img amend to increase the refcount "
            "entry "
            "width or qemu-img convert to create a clean copy if the image cannot be opened for "
            "writing",
            (unsigned long long)(first + i) << c->q->cluster_bits);
    }
}

/*
 * The clusters [first, first + n) have `references` each, and c->times more do not fit: count as
 * many as do, and a corruption for each one that is left over.
 */
static void count_up_to_max(struct check *c, uint64_t first, uint64_t n, uint32_t references)
{
    uint32_t room = (uint32_t)MIN(c->refcount_max, UINT32_MAX) - references;
    uint64_t done, lost;

    if (room > 0 && reference_counts_add_times(c->counts, first, n, room, &done) < 0) {
        c->out_of_memory = true;
        return;
    }
    report_overflow(c, first, n);
    if (__builtin_mul_overflow(n, (uint64_t)(c->times - room), &lost)) {
        lost = UINT32_MAX;
    }
    c->result->corruptions += lost;
    c->overflows += lost;
}

/* Count the clusters [first, first + n), which are clusters of the file. */
static void count_clusters(struct check *c, uint64_t first, uint64_t n)
{
    while (n > 0 && !c->out_of_memory) {
        uint64_t done, full = 0;
        uint32_t references;
        int r = reference_counts_add_times(c->counts, first, n, c->times, &done);

        if (r == -ENOMEM) {
            c->out_of_memory = true;
        } else if (r < 0) {
            full = reference_counts_run(c->counts, first + done, n - done, &references);
            count_up_to_max(c, first + done, full, references);
        }
        first += done + full;
        n -= done + full;
    }
}

void qcow2_check_add_reference(struct check *c, uint64_t offset, uint64_t length)
{
    uint64_t first = qcow2_cluster_index(c->q, offset), last, end;

    if (length == 0) {
        return;
    }
    if (add_overflows(offset, length, &end) ||
        (end > c->file_size && end - c->file_size >= c->q->cluster_size)) {
        qcow2_check_report_corruption(
            c,
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

/* --- reading ---------------------------------------------------------------------------------- */

int qcow2_co_check_read(struct check *c, uint64_t offset, void *buf, size_t size)
{
    uint64_t there = offset < c->file_size ? MIN(size, c->file_size - offset) : 0;
    int r = there > 0 ? block_co_pread(c->q->node->file, offset, buf, there) : 0;

    memset((uint8_t *)buf + there, 0, size - there);
    if (r < 0) {
        qcow2_check_report(c, "ERROR: could not read %zu bytes at offset %#llx: %s", size,
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

bool qcow2_check_take_overlap(struct check *c, uint64_t bytes, const char *what,
                              const struct qcow2_snapshot *s)
{
    if (c->overlap_bytes_left >= bytes) {
        c->overlap_bytes_left -= bytes;
        return true;
    }
    /* Printed beyond CHECK_REPORTS_MAX too: this finding is why nothing can be repaired. */
    if (!c->incomplete) {
        const char *image = block_node_display_name(c->q->node);

        if (s) {
            log_report(
                LOG_LEVEL_ERROR,
                "ERROR image '%s', snapshot %s (%s): %s overlap; not all of them are checked",
                image, s->id, s->name, what);
        } else {
            log_report(LOG_LEVEL_ERROR, "ERROR image '%s': %s overlap; not all of them are checked",
                       image, what);
        }
        c->result->corruptions++;
    }
    c->overlap_bytes_left = 0;
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

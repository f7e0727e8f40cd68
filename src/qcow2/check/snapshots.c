/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking: the snapshot table, which is read as far as it can be parsed, and the references of the
 * snapshots. Errors in the table itself are repaired by writing it again.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/check/parts.h"
#include "qcow2/header/header.h"
#include "qcow2/snapshot/snapshot.h"
#include "qcow2/snapshot/table.h"

/* --- the table -------------------------------------------------------------------------------- */

/* An error that writing the table again repairs. */
static void count_table_fault(struct check *c)
{
    c->snapshot_faults++;
    c->result->corruptions++;
}

static const char *repairing_or_error(const struct check *c)
{
    return c->fix & BLOCK_CHECK_FIX_ERRORS ? "Repairing" : "ERROR";
}

/* Appends the next entry of the table to q->snapshots. Errors in it are reported and counted. */
static int co_read_next_snapshot(struct check *c, uint32_t index, struct qcow2_table_reader *t,
                                 struct error *err)
{
    struct qcow2_snapshot *s = NULL;
    uint32_t extra_size = 0;
    int r = qcow2_co_read_snapshot(t, &s, &extra_size);

    if (r < 0) {
        return r;
    }
    list_append(&c->q->snapshots.list, &s->link);
    if (extra_size > SNAPSHOT_EXTRA_MAX) {
        if (!(c->fix & BLOCK_CHECK_FIX_ERRORS)) {
            log_error("ERROR failed to read the snapshot table: Too much extra metadata in "
                      "snapshot table entry %u\n" QCOW2_REMOVE_EXTRA,
                      index);
            return error_set(err, EFBIG, "File too large");
        }
        qcow2_check_report(
            c, "Discarding too much extra metadata in snapshot table entry %u (%u > %u)", index,
            extra_size, SNAPSHOT_EXTRA_MAX);
        count_table_fault(c);
    } else if (c->q->version >= 3 && extra_size < SNAP_EXTRA_ICOUNT) {
        qcow2_check_report(c, "%s snapshot table entry %u is incomplete", repairing_or_error(c),
                           index);
        count_table_fault(c);
    }
    return 0;
}

/*
 * Lets the header name the first `count` snapshots only. The table stays where it is; the clusters
 * of the others leak.
 */
static int co_drop_snapshots_from(struct check *c, uint32_t count, struct error *err)
{
    uint32_t more = c->q->snapshots.count - count;
    int r;

    c->q->snapshots.count = count;
    r = qcow2_co_write_header(c->q, err);
    if (r == 0) {
        c->result->corruptions_fixed += more;
    }
    return r;
}

/* The header names more snapshots than SNAPSHOTS_MAX. */
static int co_drop_beyond_count_limit(struct check *c, struct error *err)
{
    uint32_t more = c->q->snapshots.count - SNAPSHOTS_MAX;

    if (!(c->fix & BLOCK_CHECK_FIX_ERRORS)) {
        log_error("ERROR snapshot table too large\n" QCOW2_REMOVE_OVERHANGING, more);
        return error_set(err, EFBIG, "File too large");
    }
    qcow2_check_report(c, "Discarding %u overhanging snapshots", more);
    return co_drop_snapshots_from(c, SNAPSHOTS_MAX, err);
}

/* The entries behind the first `count` exceed the greatest size of a table. */
static int co_drop_beyond_size_limit(struct check *c, uint32_t count, struct error *err)
{
    uint32_t more = c->q->snapshots.count - count;

    if (!(c->fix & BLOCK_CHECK_FIX_ERRORS)) {
        log_error("ERROR failed to read the snapshot table: Snapshot table is too "
                  "big\n" QCOW2_REMOVE_OVERHANGING,
                  more);
        return error_set(err, EFBIG, "File too large");
    }
    qcow2_check_report(c, "Discarding %u overhanging snapshots (snapshot table is too big)", more);
    return co_drop_snapshots_from(c, count, err);
}

int qcow2_co_check_snapshot_table(struct check *c, struct error *err)
{
    struct qcow2 *q = c->q;
    struct qcow2_table_reader t = {.q = q, .at = q->snapshots.offset, .lenient = true};
    int r = q->snapshots.count > SNAPSHOTS_MAX ? co_drop_beyond_count_limit(c, err) : 0;

    qcow2_free_snapshots(q);
    for (uint32_t i = 0; i < q->snapshots.count && r == 0; i++) {
        c->snapshot_table_size = t.at - q->snapshots.offset;
        r = co_read_next_snapshot(c, i, &t, err);
        if (r == -EOVERFLOW) {
            t.at = q->snapshots.offset + c->snapshot_table_size;
            r = co_drop_beyond_size_limit(c, i, err);
            break;
        }
    }
    c->snapshot_table_size = t.at - q->snapshots.offset;
    q->snapshots.size = MIN(c->snapshot_table_size, c->file_size);
    return r;
}

int qcow2_co_fix_snapshot_table(struct check *c, struct error *err)
{
    int r;

    /*
     * The old table has no reliable end, so it is not freed: the count that follows finds it
     * leaked.
     */
    c->q->snapshots.size = 0;
    r = qcow2_co_switch_snapshots(c->q, err);
    if (r == 0) {
        c->result->corruptions -= c->snapshot_faults;
        c->result->corruptions_fixed += c->snapshot_faults;
        c->snapshot_faults = 0;
    }
    return r;
}

/* --- references ------------------------------------------------------------------------------- */

/* Whether the snapshot has an L1 table that can be read. If not, a corruption is reported. */
static bool has_readable_l1(struct check *c, const struct qcow2_snapshot *s)
{
    if ((uint64_t)s->l1_size * 8 > L1_BYTES_MAX) {
        qcow2_check_report_corruption(c,
                                      "ERROR snapshot %s (%s) l1_size=%#x: L1 table is too large; "
                                      "snapshot table entry corrupted",
                                      s->id, s->name, s->l1_size);
        return false;
    }
    if (!is_aligned(s->l1_offset, c->q->cluster_size) || s->l1_offset > INT64_MAX) {
        qcow2_check_report_corruption(
            c,
            "ERROR snapshot %s (%s) l1_offset=%#llx: L1 table is not cluster "
            "aligned; snapshot table entry corrupted",
            s->id, s->name, (unsigned long long)s->l1_offset);
        return false;
    }
    return true;
}

/* By offset, then size, of their L1 tables. */
static int by_l1_table(const void *a, const void *b)
{
    const struct qcow2_snapshot *x = *(const struct qcow2_snapshot *const *)a;
    const struct qcow2_snapshot *y = *(const struct qcow2_snapshot *const *)b;

    if (x->l1_offset != y->l1_offset) {
        return x->l1_offset < y->l1_offset ? -1 : 1;
    }
    return (x->l1_size > y->l1_size) - (x->l1_size < y->l1_size);
}

/*
 * Counts the references of an L1 table that `times` snapshots share, of which `s` is one. Tables
 * are visited by offset; *end is the end of those before.
 */
static int co_count_shared_l1(struct check *c, struct qcow2_snapshot *s, uint32_t times,
                              uint64_t *end)
{
    uint64_t bytes = (uint64_t)s->l1_size * 8, before = qcow2_check_unweighted_corruptions(c);
    int r = 0;

    c->times = times;
    qcow2_check_add_reference(c, s->l1_offset, bytes);
    if (s->l1_offset >= *end || s->l1_offset >= c->file_size ||
        qcow2_check_take_overlap(c, bytes, "L1 tables", s)) {
        r = qcow2_co_check_read_table(c, s->l1_offset, s->l1_size, qcow2_co_check_snapshot_l1, s);
    }
    c->times = 1;
    *end = MAX(*end, s->l1_offset + bytes);
    c->result->corruptions += (qcow2_check_unweighted_corruptions(c) - before) * (times - 1);
    return r;
}

int qcow2_co_check_snapshots(struct check *c)
{
    AUTO_FREE struct qcow2_snapshot **all =
        calloc(c->q->snapshots.count + 1u, sizeof(struct qcow2_snapshot *));
    uint32_t count = 0, n;
    struct qcow2_snapshot *s;
    uint64_t end = 0;
    int r = all ? 0 : -ENOMEM;

    qcow2_check_add_reference(c, c->q->snapshots.offset, c->snapshot_table_size);
    LIST_FOREACH (s, &c->q->snapshots.list, link) {
        if (r == 0 && has_readable_l1(c, s)) {
            all[count++] = s;
        }
    }
    if (count > 0) {
        qsort(all, count, sizeof(struct qcow2_snapshot *), by_l1_table);
    }
    for (uint32_t i = 0; i < count && r == 0; i += n) {
        n = 1;
        while (i + n < count && by_l1_table(&all[i], &all[i + n]) == 0) {
            n++;
        }
        r = co_count_shared_l1(c, all[i], n, &end);
    }
    return UNLESS_FAILED(r, qcow2_co_check_snapshot_l2_tables(c));
}

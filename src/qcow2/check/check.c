/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking: count every reference that the metadata makes, compare the counts with the refcounts,
 * repair.
 *
 *   refcount too high: a leak (space is lost)     too low: a corruption (data may be overwritten)
 *
 *   snapshot table -> contents -> refcounts -> [repairs] -> COPIED flags -> [marks cleared]
 */
#include "qcow2/check/check.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "qcow2/check/parts.h"
#include "qcow2/header/header.h"
#include "qcow2/header/mark_corrupt.h"
#include "qcow2/table/commit.h"

int qcow2_co_count_references(struct qcow2 *q, uint64_t refcount_max,
                              struct reference_counts **ret_counts, uint64_t *ret_clusters,
                              struct error *err)
{
    struct block_check_result result = {0};
    struct check c = {.q = q,
                      .result = &result,
                      .refcount_max = refcount_max,
                      .snapshot_table_size = q->snapshots.size};
    int r = qcow2_co_check_init(&c);

    UNLESS_FAILED(r, qcow2_co_check_contents(&c));
    if (r == 0 && (result.corruptions || result.check_errors)) {
        r = -EIO;
    }
    if (r == 0) {
        *ret_counts = TAKE_PTR(c.counts);
        *ret_clusters = c.clusters;
    }
    qcow2_check_release(&c);
    return r < 0 ? error_set_errno(err, -r, "Could not count the references of '%s'",
                                   block_node_display_name(q->node))
                 : 0;
}

/* --- repairing -------------------------------------------------------------------------------- */

/* Clears the dirty and the corrupt bit if errors were to be repaired and none is left. */
static int co_clear_marks(struct check *c, struct error *err)
{
    uint64_t marks = INCOMPAT_DIRTY | INCOMPAT_CORRUPT;

    /* A verdict that came up during the check is repaired as well: report it before, not after. */
    (void)qcow2_co_conclude(c->q, 0);
    if ((!(c->q->header.incompatible & marks) && !atomic_load(&c->q->corrupt)) ||
        c->result->corruptions || c->result->check_errors || !(c->fix & BLOCK_CHECK_FIX_ERRORS)) {
        return 0;
    }
    c->q->header.incompatible &= ~marks;
    atomic_store(&c->q->corrupt, false);
    c->q->commit.refcounts_behind = false;
    return qcow2_co_write_header(c->q, err);
}

/*
 * Counts the references again, after a repair removed some. c->result does not change. Errors
 * that are left are reported again if `reported`.
 */
static int co_count_again(struct check *c, bool reported)
{
    struct block_check_result kept = *c->result;
    struct check recount = {
        .q = c->q, .result = c->result, .fix = c->fix, .refcount_max = c->refcount_max};
    int r;

    recount.reports = reported ? c->reports : CHECK_REPORTS_MAX;
    recount.snapshot_table_size = c->q->snapshots.size;
    r = qcow2_co_check_init(&recount);
    UNLESS_FAILED(r, qcow2_co_check_contents(&recount));
    if (r == 0 && c->result->check_errors > kept.check_errors) {
        r = -EIO;
    }
    if (r == 0) {
        qcow2_check_refcount_structures(&recount);
    }
    *c->result = kept;
    qcow2_check_release(c);
    c->counts = recount.counts;
    c->snapshot_tables = recount.snapshot_tables;
    c->active_tables = recount.active_tables;
    c->incomplete |= recount.incomplete;
    c->reports = MAX(c->reports, reported ? recount.reports : 0);
    c->file_size = recount.file_size;
    c->clusters = recount.clusters;
    c->flags_doubtful = recount.flags_doubtful;
    return r;
}

/*
 * Replaces all refcounts, then frees the clusters of the old ones. `other_corruptions`: those found
 * outside the refcounts.
 */
static int co_rebuild(struct check *c, uint64_t other_corruptions, struct error *err)
{
    struct block_check_result *result = c->result, ignored = {0};
    uint64_t beyond = MAX(c->clusters, c->beyond_end);
    int r;

    log_report(LOG_LEVEL_WARNING, "Rebuilding refcount structure");
    r = qcow2_co_rebuild_refcounts(c->q, c->counts, c->clusters, beyond, err);
    if (r < 0) {
        return r;
    }
    /*
     * Build the overlap set again, without the clusters of the old refcounts, so that they can be
     * freed.
     */
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

/*
 * Repairs refcounts that were compared. `contents` and `structures`: the result as it was after the
 * check of the contents, and of the refcount structures.
 */
static int co_repair_refcounts(struct check *c, const struct block_check_result *contents,
                               const struct block_check_result *structures, struct error *err)
{
    struct block_check_result *r = c->result;

    if (c->must_rebuild && (c->fix & BLOCK_CHECK_FIX_ERRORS)) {
        return co_rebuild(c, contents->corruptions, err);
    }
    if (c->must_rebuild) {
        log_report(LOG_LEVEL_ERROR, "ERROR need to rebuild refcount structures");
        return -EIO;
    }
    if (!c->refcounts_differ) {
        return 0;
    }
    r->corruptions = structures->corruptions;
    r->leaks = structures->leaks;
    r->check_errors = structures->check_errors;
    return qcow2_co_check_refcounts(c, c->fix);
}

/*
 * Writes the snapshot table again and frees the old one. Freeing is neither reported nor counted as
 * a repaired leak.
 */
static int co_repair_snapshot_table(struct check *c, struct error *err)
{
    uint64_t leaks_fixed = c->result->leaks_fixed;
    unsigned reports = c->reports;
    int r = qcow2_co_fix_snapshot_table(c, err);

    UNLESS_FAILED(r, co_count_again(c, false));
    c->reports = CHECK_REPORTS_MAX;
    UNLESS_FAILED(r, qcow2_co_check_refcounts(c, c->fix));
    c->reports = reports;
    c->result->leaks_fixed = leaks_fixed;
    return r;
}

/* --- all of it -------------------------------------------------------------------------------- */

static int co_check_references(struct check *c, struct error *err)
{
    struct block_check_result contents, structures;
    uint64_t beyond_end;
    int r = qcow2_co_check_snapshot_table(c, err);

    UNLESS_FAILED(r, qcow2_co_check_contents(c));
    if (r < 0) {
        return r;
    }
    contents = *c->result;
    if (contents.check_errors > 0 || c->incomplete) {
        c->fix = 0; /* tables that were not read may refer to clusters that seem to be leaked */
    }
    beyond_end = c->beyond_end;
    qcow2_check_refcount_structures(c);
    c->beyond_end = beyond_end; /* nothing refers to the old structures once they are replaced */
    structures = *c->result;
    r = c->out_of_memory ? -ENOMEM : qcow2_co_check_refcounts(c, 0);
    if (r == 0 && c->fix) {
        r = co_repair_refcounts(c, &contents, &structures, err);
    }
    if (r == 0 && c->snapshot_faults > 0 && (c->fix & BLOCK_CHECK_FIX_ERRORS) &&
        !c->refcounts_differ) {
        r = co_repair_snapshot_table(c, err);
    }
    return r;
}

static int co_check_all(struct check *c, struct error *err)
{
    struct qcow2 *q = c->q;
    int r = co_check_references(c, err);

    UNLESS_FAILED(r, qcow2_co_check_copied(c));
    if (r == 0 && c->fix && !q->read_only) {
        r = qcow2_co_commit(q);
    }
    if (r == -ENOMEM) {
        return error_set(err, ENOMEM,
                         "Image '%s' has references to more clusters than there is memory to count",
                         block_node_display_name(q->node));
    }
    if (r < 0) {
        return error_set(err, -r, "%s", strerror(-r));
    }
    return c->fix ? co_clear_marks(c, err) : 0;
}

int qcow2_co_check(struct block_node *node, unsigned fix, struct block_check_result *ret_result,
                   struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    struct check c = {.q = q, .result = ret_result, .fix = fix, .refcount_max = q->refcounts.max};
    int r;

    memset(ret_result, 0, sizeof(*ret_result));
    /* The first one may free clusters: the second one writes that. */
    r = q->read_only ? 0 : qcow2_co_commit(q);
    if (r == 0 && !q->read_only) {
        r = qcow2_co_commit(q);
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Could not write the metadata of '%s'",
                               block_node_display_name(node));
    }
    if (qcow2_co_check_init(&c) < 0) {
        qcow2_check_release(&c);
        return error_out_of_memory(err);
    }
    ret_result->total_clusters = div_round_up(block_node_size(node), q->cluster_size);
    r = co_check_all(&c, err);
    ret_result->image_end_offset = c.used_end << q->cluster_bits;
    qcow2_check_release(&c);
    return r;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking: COPIED must be set exactly where the refcount is 1. A flag that is wrongly set lets
 * shared data be overwritten; one that is wrongly clear causes useless copies. Entries are repaired
 * in the caches, as by writes.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "qcow2/check/parts.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/map.h"
#include "qcow2/table/refcount.h"

/* Whether flags are to be repaired: with errors; with leaks only if no other fault was found. */
static bool is_to_be_fixed(const struct check *c)
{
    const struct block_check_result *r = c->result;

    return (c->fix & BLOCK_CHECK_FIX_ERRORS) ||
           (c->fix && !r->corruptions && !r->check_errors && !r->leaks);
}

/* Whether the flag of an entry is wrong. *ret_refcount is then its refcount, for the message. */
static bool co_has_wrong_flag_locked(struct check *c, uint64_t entry, bool is_l1,
                                     uint64_t *ret_refcount)
{
    uint64_t index = qcow2_cluster_index(c->q, entry & ENTRY_OFFSET_MASK);

    CO_ASSERT_HELD(&c->q->lock);
    if (c->q->has_data_file && !is_l1) {
        *ret_refcount = 1; /* clusters of a data file have no refcounts, and are never shared */
    } else if (!c->refcounts_differ && index < c->clusters) {
        *ret_refcount = reference_counts_get(c->counts, index);
    } else if (qcow2_co_refcount_get_locked(c->q, index, ret_refcount) < 0) {
        return false; /* reported when the refcounts were checked */
    }
    return (*ret_refcount == 1) != !!(entry & ENTRY_COPIED);
}

static void count_wrong_flag(struct check *c, bool fixed)
{
    *(fixed ? &c->result->corruptions_fixed : &c->result->corruptions) += 1;
    c->result->copied_flags += !fixed;
}

/*
 * The flag is set or cleared, not inverted: two L1 entries may name one table, whose entries are
 * then visited twice.
 */
static int co_fix_copied_locked(struct check *c, uint64_t table, uint64_t index, bool copied)
{
    struct qcow2 *q = c->q;
    uint64_t at = table + (index << (3 + q->extended_l2));
    uint64_t slice_at = round_down(at, q->caches.l2.entry_size);
    unsigned i = (unsigned)((at - slice_at) >> (3 + q->extended_l2));
    struct cache_entry *slice;
    int r = cache_co_get(&q->caches.l2, slice_at, &slice);

    CO_ASSERT_HELD(&c->q->lock);
    if (r == 0) {
        uint64_t entry = qcow2_load_entry(q, slice, i) & ~ENTRY_COPIED;

        entry |= copied ? ENTRY_COPIED : 0;
        qcow2_store_entry(q, slice, i, entry, qcow2_load_bitmap(q, slice, i));
        cache_mark_dirty(&q->caches.l2, slice);
        cache_put(slice);
    }
    return r;
}

static void co_check_entry_locked(struct check *c, uint64_t table, uint64_t index, uint64_t entry,
                                  bool fix)
{
    uint64_t refcount;

    CO_ASSERT_HELD(&c->q->lock);
    if ((entry & L2_COMPRESSED) || !(entry & ENTRY_OFFSET_MASK) ||
        !co_has_wrong_flag_locked(c, entry, false, &refcount)) {
        return;
    }
    qcow2_check_report(c, "%s OFLAG_COPIED data cluster: l2_entry=%llx refcount=%llu",
                       fix ? "Repairing" : "ERROR", (unsigned long long)entry,
                       (unsigned long long)refcount);
    if (fix && co_fix_copied_locked(c, table, index, refcount == 1) < 0) {
        c->result->check_errors++;
        fix = false;
    }
    count_wrong_flag(c, fix);
}

/* Check the flags of an L2 table. `entries` is a buffer for it. */
static void co_check_table_locked(struct check *c, uint64_t table, uint64_t *entries, bool fix)
{
    struct qcow2 *q = c->q;

    CO_ASSERT_HELD(&c->q->lock);
    if (qcow2_co_check_read(c, table, entries, q->cluster_size) < 0) {
        return;
    }
    for (uint64_t i = 0; i < qcow2_table_entries(q); i++) {
        uint64_t entry = entries[i << q->extended_l2];

        if (entry != 0) {
            co_check_entry_locked(c, table, i, be64toh(entry), fix);
        }
    }
}

static void co_check_l1_entry_locked(struct check *c, uint32_t index, uint64_t entry, bool fix)
{
    uint64_t refcount;

    CO_ASSERT_HELD(&c->q->lock);
    if (!co_has_wrong_flag_locked(c, entry, true, &refcount)) {
        return;
    }
    qcow2_check_report(c, "%s OFLAG_COPIED L2 cluster: l1_index=%u l1_entry=%llx refcount=%llu",
                       fix ? "Repairing" : "ERROR", index, (unsigned long long)entry,
                       (unsigned long long)refcount);
    count_wrong_flag(c, fix);
    if (fix) {
        qcow2_set_l1_entry_locked(c->q, index, entry ^ ENTRY_COPIED);
    }
}

/*
 * Whether no flag can be wrong: all entries of the active tables have it, and no cluster is
 * referenced twice.
 */
static bool are_all_flags_right(const struct check *c)
{
    return !c->flags_doubtful && !c->refcounts_differ && !reference_counts_any_shared(c->counts);
}

/*
 * Whether to check the L2 table at `table` now. Skips holes. c->active_tables has 1 for each table
 * that was read before, and 2 (its maximum) once it was checked here; further references to it, and
 * misaligned tables, are checked as long as c->overlap_bytes_left lasts.
 */
static bool co_take_table_to_check(struct check *c, uint64_t table)
{
    uint64_t size = c->q->cluster_size, done;

    if (qcow2_co_check_is_hole(c, table, size)) {
        return false;
    }
    if (is_aligned(table, size) &&
        reference_counts_add(c->active_tables, qcow2_cluster_index(c->q, table), 1, &done) == 0) {
        return true;
    }
    if (c->overlap_bytes_left < size) {
        return false;
    }
    c->overlap_bytes_left -= size;
    return true;
}

int qcow2_co_check_copied(struct check *c)
{
    struct qcow2 *q = c->q;
    AUTO_FREE uint64_t *entries = malloc(q->cluster_size);
    bool fix = is_to_be_fixed(c);
    int r = entries ? 0 : -ENOMEM;

    if (are_all_flags_right(c)) {
        return 0;
    }
    for (uint32_t i = 0; i < q->l1.size && r == 0; i++) {
        uint64_t entry = atomic_load_explicit(&q->l1.entries[i], memory_order_relaxed);
        uint64_t table = entry & ENTRY_OFFSET_MASK;

        if (table == 0) {
            continue;
        }
        co_mutex_lock(&q->lock);
        co_check_l1_entry_locked(c, i, entry, fix);
        if (table < c->file_size && co_take_table_to_check(c, table)) {
            co_check_table_locked(c, table, entries, fix && qcow2_check_may_repair_table(c, table));
        }
        co_mutex_unlock(&q->lock);
        r = fix ? qcow2_co_commit_if_much_dirty(q) : 0;
    }
    return r;
}

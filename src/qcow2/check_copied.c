/* SPDX-License-Identifier: Apache-2.0 */
/*
 * COPIED must be there exactly when the refcount is 1: a wrong flag lets shared data be overwritten, or
 * copies what is not shared. Entries are changed in the caches, as a write would.
 */
#include "qcow2/check.h"

/* Flags are put right on demand, and with leaks only when there is nothing else that may be wrong. */
static bool is_to_be_fixed(const struct check *c)
{
    const struct block_check_result *r = c->result;

    return (c->fix & BLOCK_CHECK_FIX_ERRORS) ||
           (c->fix && !r->corruptions && !r->check_errors && !r->leaks);
}

/* Whether the flag of an entry is wrong; *ret_refcount for the message. */
static bool co_is_wrong_locked(struct check *c, uint64_t entry, uint64_t *ret_refcount)
{
    uint64_t index = qcow2_cluster_index(c->q, entry & ENTRY_OFFSET_MASK);

    if (!c->inexact && index < c->clusters) {
        *ret_refcount = c->counts[index];
    } else if (qcow2_co_refcount_get_locked(c->q, index, ret_refcount) < 0) {
        return false; /* what can't be read was complained about before */
    }
    return (*ret_refcount == 1) != !!(entry & ENTRY_COPIED);
}

static void tell(struct check *c, bool fix)
{
    *(fix ? &c->result->corruptions_fixed : &c->result->corruptions) += 1;
    c->result->copied_flags += !fix;
}

static void co_check_entry_locked(struct check *c, struct cache_entry *slice, unsigned i, bool fix)
{
    uint64_t entry = qcow2_load_entry(c->q, slice, i), refcount;

    if ((entry & L2_COMPRESSED) || !(entry & ENTRY_OFFSET_MASK) ||
        !co_is_wrong_locked(c, entry, &refcount)) {
        return;
    }
    qcow2_complain(c, "%s OFLAG_COPIED data cluster: l2_entry=%llx refcount=%llu",
                   fix ? "Repairing" : "ERROR", (unsigned long long)entry,
                   (unsigned long long)refcount);
    tell(c, fix);
    if (fix) {
        qcow2_store_entry(c->q, slice, i, entry ^ ENTRY_COPIED, qcow2_load_bitmap(c->q, slice, i));
        cache_mark_dirty(&c->q->l2_cache, slice);
    }
}

static void co_check_table_locked(struct check *c, uint64_t table, bool fix)
{
    struct qcow2 *q = c->q;

    for (uint64_t at = 0; at < q->cluster_size; at += q->l2_cache.entry_size) {
        struct cache_entry *slice;

        if (cache_co_get(&q->l2_cache, table + at, &slice) < 0) {
            c->result->check_errors++;
            return;
        }
        for (unsigned i = 0; i < qcow2_slice_entries(q); i++) {
            co_check_entry_locked(c, slice, i, fix);
        }
        cache_put(slice);
    }
}

static void co_check_l1_entry_locked(struct check *c, uint32_t index, uint64_t entry, bool fix)
{
    uint64_t refcount;

    if (!co_is_wrong_locked(c, entry, &refcount)) {
        return;
    }
    qcow2_complain(c, "%s OFLAG_COPIED L2 cluster: l1_index=%u l1_entry=%llx refcount=%llu",
                   fix ? "Repairing" : "ERROR", index, (unsigned long long)entry,
                   (unsigned long long)refcount);
    tell(c, fix);
    if (fix) {
        qcow2_set_l1_entry_locked(c->q, index, entry ^ ENTRY_COPIED);
    }
}

int qcow2_co_check_copied(struct check *c)
{
    struct qcow2 *q = c->q;
    bool fix = is_to_be_fixed(c);
    uint64_t visited = 0;
    int r = 0;

    for (uint32_t i = 0; i < q->l1_size && visited <= c->clusters && r == 0; i++) {
        uint64_t entry = atomic_load_explicit(&q->l1[i], memory_order_relaxed);
        uint64_t table = entry & ENTRY_OFFSET_MASK;

        if (table == 0) {
            continue;
        }
        co_mutex_lock(&q->lock);
        co_check_l1_entry_locked(c, i, entry, fix);
        if (is_aligned(table, q->cluster_size) && qcow2_cluster_index(q, table) < c->clusters &&
            !q->has_data_file) {
            co_check_table_locked(c, table, fix);
            visited++;
        }
        co_mutex_unlock(&q->lock);
        r = fix ? qcow2_co_limit_dirty(q) : 0;
    }
    return r;
}

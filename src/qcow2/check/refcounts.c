/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking: the refcount table and blocks, and their refcounts against the references that were
 * found.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "qcow2/check/parts.h"
#include "qcow2/table/refcount.h"

/* --- structures ------------------------------------------------------------------------------- */

/*
 * Whether entry `index` of the refcount table can name a refcount block. If not, a corruption is
 * reported.
 */
static bool names_refblock(struct check *c, uint32_t index, uint64_t entry)
{
    uint64_t block = entry & REFTABLE_OFFSET_MASK;

    if (entry & ~REFTABLE_OFFSET_MASK) {
        qcow2_check_report_corruption(c, "ERROR refcount table entry %u has reserved bits set",
                                      index);
        c->must_rebuild = true;
        return false;
    }
    if (!is_aligned(block, c->q->cluster_size)) {
        c->must_rebuild = true;
        qcow2_check_report_corruption(
            c, "ERROR refcount block %u is not cluster aligned; refcount table entry corrupted",
            index);
        return false;
    }
    if (qcow2_cluster_index(c->q, block) >= c->clusters) {
        /* Without a repair this is harmless: all refcounts of a missing block are 0. */
        c->must_rebuild |= (c->fix & BLOCK_CHECK_FIX_ERRORS) != 0;
        qcow2_check_report_corruption(c, "%s refcount block %u is outside image",
                                      c->fix & BLOCK_CHECK_FIX_ERRORS ? "Repairing" : "ERROR",
                                      index);
        return false;
    }
    return true;
}

void qcow2_check_refcount_structures(struct check *c)
{
    struct qcow2 *q = c->q;

    qcow2_check_add_reference(c, q->reftable.offset, (uint64_t)q->reftable.size * 8);
    for (uint32_t i = 0; i < q->reftable.size; i++) {
        uint64_t block = q->reftable.entries[i] & REFTABLE_OFFSET_MASK;
        uint32_t references;

        if (q->reftable.entries[i] == 0) {
            continue;
        }
        if (!names_refblock(c, i, q->reftable.entries[i])) {
            continue;
        }
        qcow2_check_add_reference(c, block, q->cluster_size);
        references = reference_counts_get(c->counts, qcow2_cluster_index(q, block));
        /* A block that shares its cluster has refcounts that can't be trusted. */
        if (references != 1) {
            qcow2_check_report_corruption(c, "ERROR refcount block %u refcount=%u", i, references);
            c->must_rebuild = true;
        }
    }
}

/* --- blocks ----------------------------------------------------------------------------------- */

/* The refcounts, as stored, of the area of the file that one refcount block covers. */
struct area {
    uint64_t first, end; /* cluster indexes: [first, end) */
    uint8_t *block;      /* the block: cluster_size bytes */
    bool none;           /* there is no block: all refcounts are 0 */
    bool unreadable;
};

/* File offset of the refcount block at `index` of the refcount table; 0: none. */
static uint64_t refblock_offset(const struct qcow2 *q, uint64_t index)
{
    return index < q->reftable.size ? q->reftable.entries[index] & REFTABLE_OFFSET_MASK : 0;
}

/* Loads the area that contains `cluster`. -ENOMEM; other errors make it unreadable. */
static int co_load_area(struct check *c, uint64_t cluster, struct area *a)
{
    struct qcow2 *q = c->q;
    uint64_t index = cluster >> q->refcounts.block_bits, block = refblock_offset(q, index);
    int r = 0;

    a->first = index << q->refcounts.block_bits;
    a->end = a->first + (1ULL << q->refcounts.block_bits);
    a->none = block == 0;
    a->unreadable = !is_aligned(block, q->cluster_size) || block > INT64_MAX;
    if (!a->none && !a->unreadable) {
        r = qcow2_co_check_read(c, block, a->block, q->cluster_size);
        a->unreadable = r < 0;
    }
    return r == -ENOMEM ? r : 0;
}

/* How many of `n` refcounts from `index` equal `value`. */
static uint64_t equal_refcounts(const uint8_t *block, unsigned order, uint64_t index, uint64_t n,
                                uint64_t value)
{
    uint64_t i = 0;

    if (order == 4) {
        const uint16_t *p = (const uint16_t *)(const void *)block + index;
        uint16_t want = htobe16((uint16_t)value);

        while (i + 16 <= n) {
            uint16_t differ = 0;

            for (unsigned j = 0; j < 16; j++) {
                differ |= p[i + j] ^ want;
            }
            if (differ) {
                break;
            }
            i += 16;
        }
    }
    while (i < n && qcow2_refcount_load(block, order, index + i) == value) {
        i++;
    }
    return i;
}

/* --- comparing -------------------------------------------------------------------------------- */

/* Whether the refcount could be changed from `have` to `want`. */
static bool co_fix_refcount(struct check *c, uint64_t cluster, uint64_t have, uint64_t want)
{
    int r;

    co_mutex_lock(&c->q->lock);
    r = qcow2_co_refcount_add_locked(c->q, cluster, 1, (int64_t)(want - have));
    co_mutex_unlock(&c->q->lock);
    return r == 0;
}

/* Reports, and repairs if it may, a refcount `have` that should be `want`. */
static void co_report_refcount(struct check *c, unsigned fix, uint64_t cluster, uint64_t have,
                               uint64_t want)
{
    bool leak = have > want;
    bool fixable = fix & (leak ? BLOCK_CHECK_FIX_LEAKS : BLOCK_CHECK_FIX_ERRORS);

    if (have == 0) {
        /* The block does not exist, or does not count clusters in use: it can't be relied on. */
        c->must_rebuild = true;
    }
    qcow2_check_report(c, "%s cluster %llu refcount=%llu reference=%llu",
                       fixable ? "Repairing"
                       : leak  ? "Leaked"
                               : "ERROR",
                       (unsigned long long)cluster, (unsigned long long)have,
                       (unsigned long long)want);
    if (fixable && co_fix_refcount(c, cluster, have, want)) {
        *(leak ? &c->result->leaks_fixed : &c->result->corruptions_fixed) += 1;
    } else {
        *(leak ? &c->result->leaks : &c->result->corruptions) += 1;
        c->refcounts_differ = true;
    }
}

static void report_unreadable(struct check *c, uint64_t first, uint64_t n)
{
    c->result->check_errors += n;
    c->refcounts_differ = true;
    for (uint64_t i = 0; i < n && c->reports < CHECK_REPORTS_MAX; i++) {
        unsigned long long cluster = first + i;

        qcow2_check_report(c, "Can't get refcount for cluster %llu: %s", cluster, strerror(EIO));
    }
}

/* Compares the clusters [first, first + n) of an area, each of which has `want` references. */
static void co_compare_refcounts(struct check *c, unsigned fix, const struct area *a,
                                 uint64_t first, uint64_t n, uint32_t want)
{
    struct qcow2 *q = c->q;

    if (a->unreadable) {
        report_unreadable(c, first, n);
        return;
    }
    for (uint64_t i = 0; i < n;) {
        uint64_t index = first + i - a->first, have = 0, equal;

        equal = a->none ? (want == 0 ? n - i : 0)
                        : equal_refcounts(a->block, q->refcounts.order, index, n - i, want);
        i += equal;
        if (equal > 0 && want > 0) {
            c->used_end = MAX(c->used_end, first + i);
        }
        if (i == n) {
            break;
        }
        have = a->none ? 0 : qcow2_refcount_load(a->block, q->refcounts.order, index + equal);
        c->used_end = MAX(c->used_end, first + i + 1);
        co_report_refcount(c, fix, first + i, have, want);
        i++;
    }
}

/* The first cluster from `cluster` on that a refcount block covers; UINT64_MAX: none. */
static uint64_t next_covered_cluster(const struct qcow2 *q, uint64_t cluster)
{
    uint64_t index = cluster >> q->refcounts.block_bits;

    while (index < q->reftable.size && refblock_offset(q, index) == 0) {
        index++;
    }
    return index < q->reftable.size ? MAX(cluster, index << q->refcounts.block_bits) : UINT64_MAX;
}

int qcow2_co_check_refcounts(struct check *c, unsigned fix)
{
    AUTO_FREE uint8_t *block = malloc(c->q->cluster_size);
    struct area area = {.block = block};
    uint64_t at = 0, next = next_covered_cluster(c->q, 0), n;
    int r = block ? 0 : -ENOMEM;

    c->refcounts_differ = false;
    c->used_end = 1;
    while (at < c->clusters && r == 0) {
        uint32_t want;

        n = reference_counts_run(c->counts, at, c->clusters - at, &want);
        if (at >= area.end || at < area.first) {
            next = next < at ? next_covered_cluster(c->q, at) : next;
            if (want == 0 && next > at) {
                at += MIN(n, next - at);
                continue;
            }
            r = co_load_area(c, at, &area);
        }
        n = MIN(n, area.end - at);
        if (r == 0) {
            co_compare_refcounts(c, fix, &area, at, n, want);
        }
        at += n;
    }
    return r;
}

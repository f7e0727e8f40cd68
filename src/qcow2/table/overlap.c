/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/table/overlap.h"

#include <errno.h>
#include <stdlib.h>

#include "qcow2/table/l1.h"
#include "qcow2/table/verdict.h"

/* --- the set ---------------------------------------------------------------------------------- */

/*
 * Open addressing. A slot is 0 if empty, or
 *
 *   | 1 (1 bit) | cluster index (47 bits) | kinds (16 bits) |
 *
 * A slot without kinds stands for no cluster. Clusters that no table entry can address are not
 * guarded.
 */
#define SLOT_USED (1ULL << 63)
#define SLOT_KIND_BITS 16
#define SLOT_KINDS ((1ULL << SLOT_KIND_BITS) - 1)
#define CLUSTER_MAX (1ULL << 47)
#define SLOTS_MIN 256

struct overlap_set {
    struct overlap_set *before; /* the set that this one replaced */
    uint64_t mask;              /* slots, a power of two, minus 1 */
    uint64_t used;
    _Atomic uint64_t slots[];
};

static uint64_t key_of(uint64_t cluster)
{
    return SLOT_USED | cluster << SLOT_KIND_BITS;
}

/* The slot of a cluster, or the empty one that it would take. *ret_slot: its contents. */
static _Atomic uint64_t *find_slot(struct overlap_set *s, uint64_t cluster, uint64_t *ret_slot)
{
    uint64_t h = cluster * 0x9e3779b97f4a7c15ULL, key = key_of(cluster);

    for (uint64_t i = h >> 20 & s->mask;; i = (i + 1) & s->mask) {
        *ret_slot = atomic_load_explicit(&s->slots[i], memory_order_relaxed);
        if (*ret_slot == 0 || (*ret_slot & ~SLOT_KINDS) == key) {
            return &s->slots[i];
        }
    }
}

static struct overlap_set *current_set(const struct qcow2 *q)
{
    return atomic_load_explicit(&q->guard.set, memory_order_acquire);
}

static unsigned kinds_of(const struct qcow2 *q, uint64_t cluster)
{
    struct overlap_set *s = current_set(q);
    uint64_t slot = 0;

    if (s && cluster < CLUSTER_MAX) {
        (void)find_slot(s, cluster, &slot);
    }
    return (unsigned)(slot & SLOT_KINDS);
}

static void set_kinds(struct overlap_set *s, uint64_t cluster, unsigned kinds)
{
    uint64_t slot;
    _Atomic uint64_t *place = find_slot(s, cluster, &slot);

    s->used += slot == 0;
    atomic_store_explicit(place, key_of(cluster) | (slot & SLOT_KINDS) | kinds,
                          memory_order_relaxed);
}

/* Replace the set by one of twice the size, without unused slots. False if out of memory. */
static bool grow_set(struct qcow2 *q)
{
    struct overlap_set *s = current_set(q);
    uint64_t slots = s ? (s->mask + 1) * 2 : SLOTS_MIN;
    struct overlap_set *larger = calloc(1, sizeof(*larger) + slots * sizeof(uint64_t));

    if (!larger) {
        return false;
    }
    larger->mask = slots - 1;
    larger->before = s;
    for (uint64_t i = 0; s && i <= s->mask; i++) {
        uint64_t slot = atomic_load_explicit(&s->slots[i], memory_order_relaxed);

        if (slot & SLOT_KINDS) {
            set_kinds(larger, (slot & ~SLOT_USED) >> SLOT_KIND_BITS, (unsigned)(slot & SLOT_KINDS));
        }
    }
    atomic_store_explicit(&q->guard.set, larger, memory_order_release);
    return true;
}

static void clear_kind(struct qcow2 *q, uint64_t cluster, unsigned kind)
{
    uint64_t slot;
    _Atomic uint64_t *place = find_slot(current_set(q), cluster, &slot);

    atomic_store_explicit(place, slot & ~(uint64_t)OVERLAP_BIT(kind), memory_order_relaxed);
}

void qcow2_overlap_destroy(struct qcow2 *q)
{
    struct overlap_set *s = current_set(q), *before;

    for (; s; s = before) {
        before = s->before;
        free(s);
    }
    atomic_store(&q->guard.set, NULL);
}

/* --- noting ---------------------------------------------------------------------------------- */

void qcow2_overlap_note_locked(struct qcow2 *q, enum overlap_kind kind, uint64_t offset,
                               uint64_t length)
{
    uint64_t first = qcow2_cluster_index(q, offset), last;

    CO_ASSERT_HELD(&q->lock);
    if (!current_set(q) || !(q->guard.kinds & OVERLAP_BIT(kind)) || length == 0 ||
        offset + length < offset) {
        return;
    }
    last = MIN(qcow2_cluster_index(q, offset + length - 1), CLUSTER_MAX - 1);
    for (uint64_t i = first; i <= last; i++) {
        struct overlap_set *s = current_set(q);

        if (s->used * 2 > s->mask && !grow_set(q)) {
            return;
        }
        set_kinds(current_set(q), i, OVERLAP_BIT(kind));
    }
}

/* Snapshots' L1 tables have at most the size of the file in total, unless they overlap. */
static void note_inactive_l1_locked(struct qcow2 *q)
{
    uint64_t left = block_edge_size(q->node->file);
    const struct qcow2_snapshot *s;

    CO_ASSERT_HELD(&q->lock);
    LIST_FOREACH (s, &q->snapshots.list, link) {
        uint64_t bytes = (uint64_t)s->l1_size * 8;

        if (bytes <= left) {
            qcow2_overlap_note_locked(q, OVERLAP_INACTIVE_L1, s->l1_offset, bytes);
            left -= bytes;
        }
    }
}

void qcow2_overlap_note_header_locked(struct qcow2 *q)
{
    CO_ASSERT_HELD(&q->lock);
    qcow2_overlap_note_locked(q, OVERLAP_MAIN_HEADER, 0, q->cluster_size);
    qcow2_overlap_note_locked(q, OVERLAP_MAIN_HEADER, q->header.luks_offset, q->header.luks_size);
    qcow2_overlap_note_locked(q, OVERLAP_ACTIVE_L1, q->l1.offset, (uint64_t)q->l1.size * 8);
    qcow2_overlap_note_locked(q, OVERLAP_REFCOUNT_TABLE, q->reftable.offset,
                              (uint64_t)q->reftable.size * 8);
    qcow2_overlap_note_locked(q, OVERLAP_SNAPSHOT_TABLE, q->snapshots.offset, q->snapshots.size);
    qcow2_overlap_note_locked(q, OVERLAP_BITMAP_DIRECTORY, q->bitmaps.directory_offset,
                              q->bitmaps.directory_size);
    note_inactive_l1_locked(q);
}

void qcow2_overlap_note_tables_locked(struct qcow2 *q, enum overlap_kind kind, const uint64_t *l1,
                                      uint32_t entries)
{
    CO_ASSERT_HELD(&q->lock);
    for (uint32_t i = 0; i < entries; i++) {
        uint64_t table = l1[i] & ENTRY_OFFSET_MASK;

        if (table != 0 && is_aligned(table, q->cluster_size)) {
            qcow2_overlap_note_locked(q, kind, table, q->cluster_size);
        }
    }
}

void qcow2_overlap_note_refblocks_locked(struct qcow2 *q)
{
    CO_ASSERT_HELD(&q->lock);
    for (uint32_t i = 0; i < q->reftable.size; i++) {
        uint64_t block = q->reftable.entries[i] & REFTABLE_OFFSET_MASK;

        if (block != 0 && is_aligned(block, q->cluster_size)) {
            qcow2_overlap_note_locked(q, OVERLAP_REFCOUNT_BLOCK, block, q->cluster_size);
        }
    }
}

static void note_active_l2_locked(struct qcow2 *q)
{
    CO_ASSERT_HELD(&q->lock);
    for (uint32_t i = 0; i < q->l1.size; i++) {
        uint64_t entry = atomic_load_explicit(&q->l1.entries[i], memory_order_relaxed);

        qcow2_overlap_note_tables_locked(q, OVERLAP_ACTIVE_L2, &entry, 1);
    }
}

/* --- L2 tables of snapshots: on disk only ----------------------------------------------------- */

/* Note all of them (`ret_is_one` NULL), or find out whether `cluster` is one of them. */
static int co_visit_inactive_l2_locked(struct qcow2 *q, uint64_t cluster, bool *ret_is_one)
{
    uint64_t left = block_edge_size(q->node->file);
    const struct qcow2_snapshot *s;

    CO_ASSERT_HELD(&q->lock);
    LIST_FOREACH (s, &q->snapshots.list, link) {
        uint64_t *l1 = NULL;
        int r = qcow2_check_snapshot_l1(q, s, NULL);

        if (r >= 0 && (uint64_t)s->l1_size * 8 > left) {
            r = -EINVAL;
        }
        UNLESS_FAILED(r, qcow2_co_read_l1(q, s->l1_offset, s->l1_size, &l1));
        if (r < 0) {
            return r;
        }
        left -= (uint64_t)s->l1_size * 8;
        if (!ret_is_one) {
            qcow2_overlap_note_tables_locked(q, OVERLAP_INACTIVE_L2, l1, s->l1_size);
        }
        for (uint32_t i = 0; ret_is_one && i < s->l1_size && !*ret_is_one; i++) {
            uint64_t table = l1[i] & ENTRY_OFFSET_MASK;

            *ret_is_one = table != 0 && qcow2_cluster_index(q, table) == cluster;
        }
        free(l1);
    }
    return 0;
}

/* --- begin ----------------------------------------------------------------------------------- */

int qcow2_co_overlap_init(struct qcow2 *q)
{
    if (q->read_only || q->guard.kinds == 0) {
        return 0;
    }
    if (!grow_set(q)) {
        return -ENOMEM;
    }
    co_mutex_lock(&q->lock);
    qcow2_overlap_note_header_locked(q);
    qcow2_overlap_note_refblocks_locked(q);
    note_active_l2_locked(q);
    if (q->guard.kinds & OVERLAP_BIT(OVERLAP_INACTIVE_L2)) {
        q->guard.unreadable = co_visit_inactive_l2_locked(q, 0, NULL);
    }
    co_mutex_unlock(&q->lock);
    return 0;
}

/* --- asking ---------------------------------------------------------------------------------- */

static bool is_within(const struct qcow2 *q, uint64_t cluster, uint64_t offset, uint64_t length)
{
    return ranges_overlap(cluster << q->cluster_bits, q->cluster_size, offset, length);
}

static bool is_active_l2(const struct qcow2 *q, uint64_t cluster)
{
    for (uint32_t i = 0; i < q->l1.size; i++) {
        uint64_t table =
            atomic_load_explicit(&q->l1.entries[i], memory_order_relaxed) & ENTRY_OFFSET_MASK;

        if (table != 0 && qcow2_cluster_index(q, table) == cluster) {
            return true;
        }
    }
    return false;
}

static bool is_refblock(const struct qcow2 *q, uint64_t cluster)
{
    for (uint32_t i = 0; i < q->reftable.size; i++) {
        uint64_t block = q->reftable.entries[i] & REFTABLE_OFFSET_MASK;

        if (block != 0 && qcow2_cluster_index(q, block) == cluster) {
            return true;
        }
    }
    return false;
}

static bool is_inactive_l1(const struct qcow2 *q, uint64_t cluster)
{
    const struct qcow2_snapshot *s;

    LIST_FOREACH (s, &q->snapshots.list, link) {
        if (is_within(q, cluster, s->l1_offset, (uint64_t)s->l1_size * 8)) {
            return true;
        }
    }
    return false;
}

/* Whether the cluster is of the kind that the set says, according to the tables. */
static int co_is_kind_locked(struct qcow2 *q, uint64_t cluster, enum overlap_kind kind,
                             bool *ret_flag)
{
    CO_ASSERT_HELD(&q->lock);
    *ret_flag = false;
    switch (kind) {
    case OVERLAP_MAIN_HEADER:
        *ret_flag =
            cluster == 0 || is_within(q, cluster, q->header.luks_offset, q->header.luks_size);
        break;
    case OVERLAP_ACTIVE_L1:
        *ret_flag = is_within(q, cluster, q->l1.offset, (uint64_t)q->l1.size * 8);
        break;
    case OVERLAP_ACTIVE_L2:
        *ret_flag = is_active_l2(q, cluster);
        break;
    case OVERLAP_REFCOUNT_BLOCK:
        *ret_flag = is_refblock(q, cluster);
        break;
    case OVERLAP_REFCOUNT_TABLE:
        *ret_flag = is_within(q, cluster, q->reftable.offset, (uint64_t)q->reftable.size * 8);
        break;
    case OVERLAP_SNAPSHOT_TABLE:
        *ret_flag = is_within(q, cluster, q->snapshots.offset, q->snapshots.size);
        break;
    case OVERLAP_INACTIVE_L1:
        *ret_flag = is_inactive_l1(q, cluster);
        break;
    case OVERLAP_INACTIVE_L2:
        return co_visit_inactive_l2_locked(q, cluster, ret_flag);
    case OVERLAP_BITMAP_DIRECTORY:
        *ret_flag = is_within(q, cluster, q->bitmaps.directory_offset, q->bitmaps.directory_size);
        break;
    case OVERLAP_KINDS:
        break;
    }
    return 0;
}

/*
 * The first of `kinds` that the cluster is, else OVERLAP_KINDS. Stale kinds are removed from the
 * set.
 */
static int co_find_kind_locked(struct qcow2 *q, uint64_t cluster, unsigned kinds,
                               enum overlap_kind *ret_kind)
{
    CO_ASSERT_HELD(&q->lock);
    for (unsigned kind = 0; kind < OVERLAP_KINDS; kind++) {
        bool is_true = false;
        int r;

        if (!(kinds & OVERLAP_BIT(kind))) {
            continue;
        }
        r = co_is_kind_locked(q, cluster, (enum overlap_kind)kind, &is_true);
        if (r < 0 || is_true) {
            *ret_kind = (enum overlap_kind)kind;
            return r;
        }
        clear_kind(q, cluster, kind);
    }
    *ret_kind = OVERLAP_KINDS;
    return 0;
}

bool qcow2_co_overlap_hits_locked(struct qcow2 *q, uint64_t offset)
{
    uint64_t cluster = qcow2_cluster_index(q, offset);
    unsigned kinds = kinds_of(q, cluster);
    enum overlap_kind kind = OVERLAP_KINDS;

    CO_ASSERT_HELD(&q->lock);
    return kinds && (co_find_kind_locked(q, cluster, kinds, &kind) < 0 || kind != OVERLAP_KINDS);
}

static int co_check_cluster_locked(struct qcow2 *q, uint64_t cluster, unsigned kinds)
{
    static const char *const names[OVERLAP_KINDS] = {
        "qcow2_header",      "active L1 table",   "active L2 table",
        "refcount block",    "refcount table",    "snapshot table",
        "inactive L1 table", "inactive L2 table", "bitmap directory",
    };
    enum overlap_kind kind = OVERLAP_KINDS;
    int r = co_find_kind_locked(q, cluster, kinds, &kind);

    CO_ASSERT_HELD(&q->lock);
    if (r < 0 || kind == OVERLAP_KINDS) {
        return r;
    }
    return qcow2_corrupt(q, "Preventing invalid write on metadata (overlaps with %s)", names[kind]);
}

bool qcow2_overlap_is_suspect(const struct qcow2 *q, uint64_t offset, uint64_t length,
                              unsigned ignore)
{
    uint64_t last = qcow2_cluster_index(q, offset + length - 1);

    for (uint64_t i = qcow2_cluster_index(q, offset); i <= last; i++) {
        if (kinds_of(q, i) & ~ignore) {
            return true;
        }
    }
    return q->guard.unreadable != 0;
}

int qcow2_co_overlap_check_locked(struct qcow2 *q, uint64_t offset, uint64_t length,
                                  unsigned ignore)
{
    uint64_t last = qcow2_cluster_index(q, offset + length - 1);
    int r = q->guard.unreadable;

    CO_ASSERT_HELD(&q->lock);
    q->guard.refused = q->guard.refused || r < 0;
    for (uint64_t i = qcow2_cluster_index(q, offset); i <= last && r == 0; i++) {
        unsigned kinds = kinds_of(q, i) & ~ignore;

        r = kinds ? co_check_cluster_locked(q, i, kinds) : 0;
    }
    return r;
}

int qcow2_co_overlap_check(struct qcow2 *q, uint64_t offset, uint64_t length, unsigned ignore)
{
    int r;

    if (!qcow2_overlap_is_suspect(q, offset, length, ignore)) {
        return 0;
    }
    co_mutex_lock(&q->lock);
    r = qcow2_co_overlap_check_locked(q, offset, length, ignore);
    co_mutex_unlock(&q->lock);
    return r;
}

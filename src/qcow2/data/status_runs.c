/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/data/status_runs.h"

#include <errno.h>

#include "qcow2/data/sparse.h"
#include "qcow2/table/map.h"
#include "qcow2/table/verdict.h"

/* Entries of L2 and L1 tables that one call looks at. */
#define ENTRIES_MAX 16384u

struct walk {
    struct qcow2 *q;
    struct block_run *runs;
    unsigned count, max;
    /* Entries that may still be looked at. */
    unsigned budget;
    /* Up to where the status is known, and where the walk ends. */
    uint64_t at, end;
    bool has_backing;
};

static unsigned flags_of(const struct walk *w, enum cluster_type type)
{
    switch (type) {
    case CLUSTER_ZERO:
    case CLUSTER_ZERO_ALLOC:
        return BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED;
    case CLUSTER_NORMAL:
    case CLUSTER_COMPRESSED:
        return BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
    default:
        return w->has_backing ? 0 : BLOCK_STATUS_ZERO;
    }
}

/* The next `length` bytes, or those up to the end, are of one kind. False: no room for another. */
static bool add_bytes(struct walk *w, uint64_t length, unsigned flags)
{
    length = MIN(length, w->end - w->at);
    if (w->count > 0 && w->runs[w->count - 1].flags == flags) {
        w->runs[w->count - 1].length += length;
    } else if (w->count == w->max) {
        return false;
    } else {
        w->runs[w->count++] = (struct block_run){.length = length, .flags = flags};
    }
    w->at += length;
    return true;
}

/* The subclusters of a cluster, from where the walk is. 1: no room for another run. */
static int add_cluster(struct walk *w, uint64_t entry, uint64_t bitmap)
{
    const struct qcow2 *q = w->q;
    uint64_t in_cluster = w->at & (q->cluster_size - 1);
    unsigned subs = 1u << (q->cluster_bits - q->subcluster_bits);
    uint64_t size = 1ULL << q->subcluster_bits, skip = in_cluster & (size - 1), host;

    for (unsigned sub = (unsigned)(in_cluster >> q->subcluster_bits); sub < subs; sub++) {
        enum cluster_type type;
        int r = qcow2_decode_entry(q, entry, bitmap, sub, &type, &host);

        if (r < 0) {
            return r;
        }
        if (w->at == w->end) {
            return 0;
        }
        if (!add_bytes(w, size - skip, flags_of(w, type))) {
            return 1;
        }
        skip = 0;
    }
    return 0;
}

/* The entries of a slice from `index` on. 1: no room for another run; -EIO: see *ret_index. */
static int add_slice(struct walk *w, struct cache_entry *slice, unsigned index, unsigned *ret_index)
{
    unsigned entries = qcow2_slice_entries(w->q);
    int r = 0;

    for (; index < entries && w->at < w->end && w->budget > 0 && r == 0; index++) {
        uint64_t entry, bitmap;

        w->budget--;
        qcow2_load_both(w->q, slice, index, &entry, &bitmap);
        r = add_cluster(w, entry, bitmap);
        *ret_index = index;
    }
    return r;
}

/* As much as one slice, or an L2 table that is not there, says. 1: no room for another run. */
static int co_add_next(struct walk *w)
{
    struct qcow2_slice_place place = {0};
    struct cache_entry *slice;
    unsigned index;
    int r = qcow2_find_slice(w->q, w->at, &place);

    if (r < 0) {
        return r;
    }
    if (!place.exists) {
        uint64_t span = qcow2_l2_span(w->q);

        w->budget--;
        return add_bytes(w, span - (w->at & (span - 1)), flags_of(w, CLUSTER_UNALLOCATED)) ? 0 : 1;
    }
    r = cache_co_get(&w->q->caches.l2, place.offset, &slice);
    if (r < 0) {
        return r;
    }
    r = add_slice(w, slice, place.index, &index);
    if (r < 0 && w->count == 0) {
        r = qcow2_corrupt_entry(w->q, slice, index, w->at, false);
    }
    cache_put(slice);
    return r;
}

int qcow2_co_status_runs(struct block_node *node, bool contents, uint64_t offset, uint64_t length,
                         struct block_run *ret_runs, unsigned max, unsigned *ret_count)
{
    struct qcow2 *q = qcow2_state(node);
    struct walk w = {
        .q = q,
        .runs = ret_runs,
        .max = max,
        .budget = ENTRIES_MAX,
        .at = offset,
        .end = offset + length,
        .has_backing = node->backing,
    };
    int r = 0;

    if (contents && q->crypt_method == CRYPT_NONE && qcow2_co_is_sparse(q)) {
        return -ENOTSUP;
    }
    while (w.at < w.end && w.budget > 0 && r == 0) {
        r = co_add_next(&w);
    }
    *ret_count = w.count;
    /* An error behind what is known already is found again by the next call. */
    return r < 0 && w.count == 0 ? r : 0;
}

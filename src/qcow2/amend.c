/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changing properties of an image that were chosen when it was made. Every step leaves an image that opens, and is
 * switched by the first sector of the header (R3):
 *
 *   version up        header
 *   version down      zero clusters to data or to nothing -> header
 *   refcount width    all refcounts anew, elsewhere -> header
 *   backing file, lazy refcounts: header
 */
#include "qcow2/amend.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "qcow2/check.h"
#include "qcow2/rebuild.h"
#include "qcow2/references.h"
#include "qcow2/snapshot.h"

struct amend {
    struct qcow2 *q;
    block_progress_fn *progress;
    void *progress_arg;
    uint32_t version;
    unsigned refcount_order;
    bool lazy_refcounts;
    bool has_backing_file, has_backing_fmt;
    char *backing_file, *backing_fmt;
};

static void amend_release(struct amend *a)
{
    free(a->backing_file);
    free(a->backing_fmt);
}

static void report(const struct amend *a, uint64_t done, uint64_t total)
{
    if (a->progress) {
        a->progress(a->progress_arg, done, total);
    }
}

/* --- options --------------------------------------------------------------------------------- */

/* What is left is no option at all, or one of those that only a new image can have. */
static int refuse_rest(const struct options *opts, struct error *err)
{
    struct json_object *rest;
    struct json_object_iterator it;
    const struct block_option_desc *o = qcow2_create_options;

    if (options_is_empty(opts) || !(rest = options_to_json(opts))) {
        return options_check_empty(opts, "Amending of format 'qcow2'", err);
    }
    it = json_object_iter_begin(rest);
    while (o->name && strcmp(o->name, json_object_iter_peek_name(&it)) != 0) {
        o++;
    }
    error_set(err, EINVAL, "Invalid parameter '%s'", json_object_iter_peek_name(&it));
    if (o->name) {
        error_hint(err, "This option is only supported for image creation");
    }
    json_object_put(rest);
    return -EINVAL;
}

static int take_options(struct amend *a, struct options *opts, struct error *err)
{
    static const char *const compat_names[] = {"0.10", "v2", "1.1", "v3", NULL};
    struct qcow2 *q = a->q;
    bool lazy = q->compatible & COMPAT_LAZY_REFCOUNTS;
    uint64_t bits;
    int compat, r;

    a->has_backing_file = options_has(opts, "backing_file");
    a->has_backing_fmt = options_has(opts, "backing_fmt");
    if ((r = options_take_enum(opts, "compat", compat_names, q->version == 2 ? 0 : 2, &compat,
                               err)) < 0 ||
        (r = options_take_uint(opts, "refcount_bits", 1ULL << q->refcount_order, 64, &bits, err)) <
            0 ||
        (r = options_take_bool(opts, "lazy_refcounts", lazy, &a->lazy_refcounts, err)) < 0 ||
        (r = options_take_str(opts, "backing_file", &a->backing_file, err)) < 0 ||
        (r = options_take_str(opts, "backing_fmt", &a->backing_fmt, err)) < 0 ||
        (r = refuse_rest(opts, err)) < 0) {
        return r;
    }
    a->version = compat < 2 ? 2 : 3;
    if (!is_power_of_2(bits)) {
        return error_set(err, EINVAL,
                         "Refcount width must be a power of two and may not exceed 64 bits");
    }
    a->refcount_order = (unsigned)__builtin_ctzll(bits);
    if (a->refcount_order != 4 && a->version < 3) {
        return error_set(err, EINVAL,
                         "Refcount widths other than 16 bits require compatibility level 1.1 or "
                         "above (use compat=1.1 or greater)");
    }
    if (a->lazy_refcounts && a->version < 3) {
        return error_set(err, EINVAL,
                         "Lazy refcounts only supported with compatibility level 1.1 and above "
                         "(use compat=1.1 or greater)");
    }
    return 0;
}

/* --- version --------------------------------------------------------------------------------- */

static int check_downgrade(struct qcow2 *q, struct error *err)
{
    uint64_t features = q->incompatible & ~(INCOMPAT_DIRTY | INCOMPAT_CORRUPT);
    const struct qcow2_snapshot *s;

    if (features) {
        return error_set(err, ENOTSUP,
                         "Cannot downgrade an image with incompatible features set (bits %#llx)",
                         (unsigned long long)features);
    }
    if (!list_is_empty(&q->stored_bitmaps)) {
        return error_set(err, ENOTSUP,
                         "Cannot downgrade an image with persistent bitmaps; remove them first");
    }
    LIST_FOREACH (s, &q->snapshots, link) {
        if (s->vm_state_size > UINT32_MAX || s->disk_size != block_node_size(q->node)) {
            return error_set(err, ENOTSUP,
                             "Internal snapshot '%s' prevents downgrade of image: version 2 can't "
                             "record its sizes",
                             s->id);
        }
    }
    return 0;
}

/* One zero cluster: data where a backing file would shine through, or it had a place; else nothing. */
static int co_expand_entry_locked(struct qcow2 *q, struct cache_entry *slice, unsigned index)
{
    uint64_t entry = qcow2_load_entry(q, slice, index), host, got;
    enum cluster_type type;
    bool fresh;
    int r = qcow2_decode_entry(q, entry, 0, 0, &type, &host);

    if (r < 0) {
        return qcow2_co_corrupt_entry(q, slice, index, 0, false);
    }
    if (type != CLUSTER_ZERO && type != CLUSTER_ZERO_ALLOC) {
        return 0;
    }
    if (type == CLUSTER_ZERO && !q->node->backing) {
        qcow2_store_entry(q, slice, index, 0, 0);
        cache_mark_dirty(&q->l2_cache, slice);
        return 0;
    }
    if (type == CLUSTER_ZERO || !(entry & ENTRY_COPIED)) {
        uint64_t old = host;

        r = qcow2_co_alloc_locked(q, 1, true, &host, &got, &fresh);
        if (r == 0 && old != 0) {
            r = qcow2_free_later_locked(q, old, q->cluster_size, false, QCOW2_FREED_BY_OTHER);
        }
    }
    r = r < 0 ? r : qcow2_co_overlap_check_locked(q, host, q->cluster_size, 0);
    r = r < 0 ? r : block_co_write_zeroes(q->node->file, host, q->cluster_size, 0);
    if (r == 0) {
        qcow2_store_entry(q, slice, index, host | ENTRY_COPIED, 0);
        cache_mark_dirty(&q->l2_cache, slice);
    }
    return r;
}

static int co_expand_zero_clusters(struct amend *a, struct error *err)
{
    struct qcow2 *q = a->q;
    /* Also what lies beyond the end of the disk, the state of a machine perhaps: version 2 knows no zero flag anywhere. */
    uint64_t size = q->l1_size * qcow2_l2_span(q), at = 0;
    int r = 0;

    while (at < size && r == 0) {
        struct qcow2_run run;
        struct cache_entry *slice;
        unsigned index;

        r = qcow2_co_map(q, at, size - at, &run);
        if (r == 0 && (run.type == CLUSTER_ZERO || run.type == CLUSTER_ZERO_ALLOC)) {
            run.length = MIN(run.length, q->cluster_size);
            co_mutex_lock(&q->lock);
            r = qcow2_co_l2_slice_locked(q, at, &slice, &index);
            if (r == 0) {
                r = co_expand_entry_locked(q, slice, index);
                cache_put(slice);
            }
            co_mutex_unlock(&q->lock);
            r = r < 0 ? r : qcow2_co_limit_dirty(q);
        }
        at += run.length;
        report(a, at, size);
    }
    r = r < 0 ? r : qcow2_co_commit(q);
    return r < 0 ? error_set_errno(err, -r, "Failed to turn zero into data clusters") : 0;
}

/* Snapshots have tables of their own; what they hold can't be told to version 2 either. */
static int co_check_snapshots_for_zeroes(struct qcow2 *q, struct error *err)
{
    AUTO_FREE uint64_t *table = malloc(q->cluster_size);
    const struct qcow2_snapshot *s;

    LIST_FOREACH (s, &q->snapshots, link) {
        AUTO_FREE uint64_t *l1 = NULL;
        int r = table ? qcow2_co_read_l1(q, s->l1_offset, s->l1_size, &l1) : -ENOMEM;

        for (uint32_t i = 0; i < s->l1_size && r == 0; i++) {
            uint64_t offset = l1[i] & ENTRY_OFFSET_MASK;

            if (offset == 0) {
                continue;
            }
            r = block_co_pread(q->node->file, offset, table, q->cluster_size);
            for (uint64_t e = 0; e < q->cluster_size / 8 && r == 0; e++) {
                uint64_t entry = be64toh(table[e]);

                if (!(entry & L2_COMPRESSED) && (entry & L2_ZERO)) {
                    return error_set(err, ENOTSUP,
                                     "Internal snapshot '%s' prevents downgrade of image: it has "
                                     "zero clusters",
                                     s->id);
                }
            }
        }
        if (r < 0) {
            return error_set_errno(err, -r, "Could not read snapshot '%s'", s->id);
        }
    }
    return 0;
}

static int co_downgrade(struct amend *a, struct error *err)
{
    struct qcow2 *q = a->q;
    uint64_t incompatible = q->incompatible, compatible = q->compatible, autoclear = q->autoclear;
    int r;

    if ((r = check_downgrade(q, err)) < 0 || (r = co_check_snapshots_for_zeroes(q, err)) < 0 ||
        (r = co_expand_zero_clusters(a, err)) < 0) {
        return r;
    }
    q->version = 2;
    q->incompatible = q->compatible = q->autoclear = 0;
    r = qcow2_co_write_header(q, err);
    if (r < 0) {
        q->version = 3;
        q->incompatible = incompatible;
        q->compatible = compatible;
        q->autoclear = autoclear;
    }
    return r;
}

static int co_upgrade(struct amend *a, struct error *err)
{
    int r;

    a->q->version = 3;
    r = qcow2_co_write_header(a->q, err);
    if (r < 0) {
        a->q->version = 2;
    }
    return r;
}

/* --- refcount width -------------------------------------------------------------------------- */

static int co_change_refcount_width(struct amend *a, struct error *err)
{
    struct qcow2 *q = a->q;
    unsigned old_order = q->refcount_order;
    struct counts *counts = NULL;
    uint64_t clusters = 0;
    int r = qcow2_co_commit(q);

    r = r < 0 ? error_set_errno(err, -r, "Could not write the metadata of '%s'",
                                block_node_display_name(q->node))
              : qcow2_co_count_references(q, &counts, &clusters, err);
    if (r < 0) {
        return r;
    }
    report(a, 1, 2);
    qcow2_set_refcount_order(q, a->refcount_order);
    r = qcow2_co_rebuild_refcounts(q, counts, clusters, clusters, err);
    if (r < 0) {
        qcow2_set_refcount_order(q, old_order);
        if (r == -ERANGE) {
            error_hint(err, "A cluster has more references than %u bits can count",
                       1u << a->refcount_order);
        }
    }
    counts_free(counts);
    return r;
}

/* --- amend ----------------------------------------------------------------------------------- */

static int co_apply(struct amend *a, struct error *err)
{
    struct qcow2 *q = a->q;
    int r = 0;

    if (a->version > q->version && (r = co_upgrade(a, err)) < 0) {
        return r;
    }
    if (a->refcount_order != q->refcount_order && (r = co_change_refcount_width(a, err)) < 0) {
        return r;
    }
    if (a->lazy_refcounts != !!(q->compatible & COMPAT_LAZY_REFCOUNTS)) {
        q->compatible ^= COMPAT_LAZY_REFCOUNTS;
        if ((r = qcow2_co_write_header(q, err)) < 0) {
            q->compatible ^= COMPAT_LAZY_REFCOUNTS;
            return r;
        }
    }
    if (a->has_backing_file || a->has_backing_fmt) {
        const char *file = a->has_backing_file ? a->backing_file : q->backing_filename;
        const char *format = a->has_backing_fmt ? a->backing_fmt : q->backing_format;

        if ((r = qcow2_co_change_backing(q->node, file, format, err)) < 0) {
            return r;
        }
    }
    return a->version < q->version ? co_downgrade(a, err) : 0;
}

int qcow2_co_amend(struct block_node *node, struct options *opts, block_progress_fn *progress,
                   void *progress_arg, struct error *err)
{
    CLEANUP(amend_release)
    struct amend a = {.q = qcow2_state(node), .progress = progress, .progress_arg = progress_arg};
    int r = take_options(&a, opts, err);

    if (r < 0) {
        return r;
    }
    report(&a, 0, 1);
    r = qcow2_co_catch_up(a.q, err);
    r = r < 0 ? r : co_apply(&a, err);
    if (r == 0) {
        report(&a, 1, 1);
    }
    return r;
}

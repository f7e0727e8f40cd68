/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changing properties of an image that were chosen when it was created. Each step leaves an image
 * that opens, and is switched by the first sector of the header (R3):
 *
 *   version up        snapshot table -> header
 *   version down      downgrade.c
 *   refcount width    all refcounts, written elsewhere -> header
 *   size              resize.c
 *   backing file, data file, lazy refcounts: header
 *   keys              luks/volume.h
 */
#include "qcow2/amend.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "qcow2/bitmap/bitmap.h"
#include "qcow2/check/check.h"
#include "qcow2/check/reference_counts.h"
#include "qcow2/create.h"
#include "qcow2/data/crypt.h"
#include "qcow2/downgrade.h"
#include "qcow2/encryption.h"
#include "qcow2/header/header.h"
#include "qcow2/resize.h"
#include "qcow2/snapshot/references.h"
#include "qcow2/snapshot/table.h"
#include "qcow2/table/commit.h"

const struct block_option_desc qcow2_amend_options[] = {
    {"backing_file", "str", "File name of a base image"},
    {"backing_fmt", "str", "Image format of the base image"},
    {"compat", "str", "Compatibility level (v2 [0.10] or v3 [1.1])"},
    {"data_file", "str", "File name of an external data file"},
    {"data_file_raw", "bool (on/off)", "The external data file must stay valid as a raw image"},
    LUKS_CHANGE_OPTION_DESCS("encrypt."),
    {"lazy_refcounts", "bool (on/off)", "Postpone refcount updates"},
    {"refcount_bits", "num", "Width of a reference count entry in bits"},
    {"size", "size", "Virtual disk size"},
    {NULL, NULL, NULL},
};

struct amend {
    struct qcow2 *q;
    block_progress_fn *progress;
    void *progress_arg;
    uint32_t version;
    unsigned refcount_order;
    uint64_t size;
    bool lazy_refcounts, data_file_raw;
    bool has_backing_file, has_backing_fmt, has_data_file, has_key_change, force;
    struct luks_change key_change;
    char *backing_file, *backing_fmt, *data_file;
};

static void amend_release(struct amend *a)
{
    free(a->backing_file);
    free(a->backing_fmt);
    free(a->data_file);
    luks_change_release(&a->key_change);
}

static void report_progress(void *arg, uint64_t done, uint64_t total)
{
    const struct amend *a = arg;

    if (a->progress) {
        a->progress(a->progress_arg, done, total);
    }
}

/* --- options --------------------------------------------------------------------------------- */

/* Refuse the options that are left: unknown ones, and those for creation only. */
static int refuse_other_options(const struct options *opts, struct error *err)
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

/* Taken first, since other options depend on the version. */
static int take_version(struct amend *a, struct options *opts, struct error *err)
{
    AUTO_FREE char *compat = NULL;
    int r = options_take_text(opts, "compat", &compat, err);

    if (r < 0) {
        return r;
    }
    if (!compat) {
        a->version = a->q->version;
    } else if (strcmp(compat, "0.10") == 0 || strcmp(compat, "v2") == 0) {
        a->version = 2;
    } else if (strcmp(compat, "1.1") == 0 || strcmp(compat, "v3") == 0) {
        a->version = 3;
    } else {
        return error_set(err, EINVAL, "Unknown compatibility level %s", compat);
    }
    return 0;
}

static int take_refcounts(struct amend *a, struct options *opts, struct error *err)
{
    struct qcow2 *q = a->q;
    /* Off by default in version 2, which has no lazy refcounts. */
    bool lazy = a->version >= 3 && (q->header.compatible & COMPAT_LAZY_REFCOUNTS);
    uint64_t bits;
    int r;

    if ((r = options_take_uint(opts, "refcount_bits", 1ULL << q->refcounts.order, UINT64_MAX, &bits,
                               err)) < 0 ||
        (r = options_take_bool(opts, "lazy_refcounts", lazy, &a->lazy_refcounts, err)) < 0) {
        return r;
    }
    if (!is_power_of_2(bits) || bits > 64) {
        return error_set(err, EINVAL,
                         "Refcount width must be a power of two and may not exceed 64 bits");
    }
    a->refcount_order = (unsigned)__builtin_ctzll(bits);
    if (a->refcount_order != 4 && a->version < 3) {
        return a->refcount_order == q->refcounts.order
                   ? error_set(err, EINVAL, "compat=0.10 requires refcount_bits=16")
                   : error_set(err, EINVAL,
                               "Refcount widths other than 16 bits require compatibility level "
                               "1.1 or above (use compat=1.1 or greater)");
    }
    if (a->lazy_refcounts && a->version < 3) {
        return error_set(err, EINVAL,
                         "Lazy refcounts only supported with compatibility level 1.1 and above "
                         "(use compat=1.1 or greater)");
    }
    return 0;
}

static int take_data_file(struct amend *a, struct options *opts, struct error *err)
{
    struct qcow2 *q = a->q;
    int r;

    a->has_data_file = options_has(opts, "data_file");
    if ((r = options_take_text(opts, "data_file", &a->data_file, err)) < 0 ||
        (r = options_take_bool(opts, "data_file_raw", q->data_file_raw, &a->data_file_raw, err)) <
            0) {
        return r;
    }
    if (a->has_data_file && !q->has_data_file) {
        return error_set(err, EINVAL,
                         "data-file can only be set for images that use an external data file");
    }
    if (a->data_file_raw && !q->data_file_raw) {
        /* Data may be in a backing file, and zeroes may be recorded by a flag only. */
        return error_set(err, EINVAL, "data-file-raw cannot be set on existing images");
    }
    return 0;
}

static int take_amend_options(struct amend *a, struct options *opts, struct error *err)
{
    int r;

    a->has_backing_file = options_has(opts, "backing_file");
    a->has_backing_fmt = options_has(opts, "backing_fmt");
    if ((r = take_version(a, opts, err)) < 0 || (r = take_refcounts(a, opts, err)) < 0 ||
        (r = take_data_file(a, opts, err)) < 0 ||
        (r = options_take_size(opts, "size", block_node_size(a->q->node), &a->size, err)) < 0 ||
        (r = options_take_text(opts, "backing_file", &a->backing_file, err)) < 0 ||
        (r = options_take_text(opts, "backing_fmt", &a->backing_fmt, err)) < 0 ||
        (r = qcow2_take_key_change(a->q, opts, &a->key_change, &a->has_key_change, err)) < 0) {
        return r;
    }
    return refuse_other_options(opts, err);
}

/* --- version --------------------------------------------------------------------------------- */

static int co_upgrade(struct amend *a, struct error *err)
{
    struct qcow2 *q = a->q;
    int r;

    q->version = 3;
    /* Version 3 wants the disk size in every snapshot entry, which old programs left out. */
    r = q->snapshots.count > 0 ? qcow2_co_switch_snapshots(q, err) : qcow2_co_write_header(q, err);
    if (r < 0) {
        q->version = 2;
    }
    return r;
}

/* --- refcount width -------------------------------------------------------------------------- */

/* Before anything is written: whether all counts fit into the new width. */
static int check_counts(const struct amend *a, const struct reference_counts *counts,
                        uint64_t clusters, struct error *err)
{
    unsigned bits = 1u << a->refcount_order;

    for (uint64_t i = 0; bits < 32 && i < clusters; i++) {
        unsigned long long count = reference_counts_get(counts, i);

        if (count >> bits) {
            return error_set(err, ERANGE,
                             "Cannot decrease refcount entry width to %u bits: Cluster at offset "
                             "%#llx has a refcount of %llu",
                             bits, (unsigned long long)i << a->q->cluster_bits, count);
        }
    }
    return 0;
}

static bool exceeds(const struct reference_counts *counts, uint64_t clusters, uint64_t max)
{
    for (uint64_t i = 0; max < UINT32_MAX && i < clusters; i++) {
        if (reference_counts_get(counts, i) > max) {
            return true;
        }
    }
    return false;
}

/* Clear the COPIED flags of clusters with more references than the old width could count. */
static int co_unshare(struct qcow2 *q, struct error *err)
{
    int r = qcow2_co_update_copied(q);

    UNLESS_FAILED(r, qcow2_co_commit(q));
    return r < 0 ? error_set_errno(err, -r, "Could not update the L2 tables of '%s'",
                                   block_node_display_name(q->node))
                 : 0;
}

static int co_change_refcount_width(struct amend *a, struct error *err)
{
    struct qcow2 *q = a->q;
    unsigned old_order = q->refcounts.order;
    uint64_t old_max = q->refcounts.max, max = UINT64_MAX >> (64 - (1u << a->refcount_order));
    struct reference_counts *counts = NULL;
    uint64_t clusters = 0;
    bool uncounted = false;
    int r;

    qcow2_co_unreserve_bitmaps(q);
    r = qcow2_co_commit(q);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not write the metadata of '%s'",
                               block_node_display_name(q->node));
    }
    r = qcow2_co_count_references(q, MAX(max, old_max), &counts, &clusters, err);
    if (r < 0) {
        return r;
    }
    if ((r = check_counts(a, counts, clusters, err)) < 0) {
        reference_counts_free(counts);
        return r;
    }
    report_progress(a, 1, 2);
    qcow2_set_refcount_order(q, a->refcount_order);
    r = qcow2_co_rebuild_refcounts(q, counts, clusters, clusters, err);
    if (r < 0) {
        qcow2_set_refcount_order(q, old_order);
        if (r == -ERANGE) {
            error_hint(err, "A cluster has more references than %u bits can count",
                       1u << a->refcount_order);
        }
    }
    uncounted = r == 0 && exceeds(counts, clusters, old_max);
    reference_counts_free(counts);
    return uncounted ? co_unshare(q, err) : r;
}

/* --- amend ----------------------------------------------------------------------------------- */

static int co_set_lazy_refcounts(struct qcow2 *q, bool lazy, struct error *err)
{
    uint64_t before = q->header.compatible;
    int r;

    if (lazy == !!(before & COMPAT_LAZY_REFCOUNTS)) {
        return 0;
    }
    q->header.compatible ^= COMPAT_LAZY_REFCOUNTS;
    r = qcow2_co_write_header(q, err);
    if (r < 0) {
        q->header.compatible = before;
    }
    return r;
}

/* Change what the header says about the data file; the open one stays open. */
static int co_amend_data_file(struct amend *a, struct error *err)
{
    struct qcow2 *q = a->q;
    char *old_name = q->header.data_filename;
    uint64_t old_autoclear = q->header.autoclear;
    int r;

    if (!a->has_data_file && a->data_file_raw == q->data_file_raw) {
        return 0;
    }
    if (a->has_data_file) {
        q->header.data_filename = a->data_file && *a->data_file ? a->data_file : NULL;
    }
    q->header.autoclear &= a->data_file_raw ? UINT64_MAX : ~AUTOCLEAR_DATA_FILE_RAW;
    r = qcow2_co_write_header(q, err);
    if (r < 0) {
        q->header.data_filename = old_name;
        q->header.autoclear = old_autoclear;
        return r;
    }
    q->data_file_raw = a->data_file_raw;
    if (a->has_data_file) {
        if (q->header.data_filename) {
            a->data_file = NULL; /* the image owns it now */
        }
        free(old_name);
    }
    return 0;
}

static int co_amend_backing(struct amend *a, struct error *err)
{
    const char *file = a->has_backing_file ? a->backing_file : a->q->header.backing_filename;
    const char *format = a->has_backing_fmt ? a->backing_fmt : a->q->header.backing_format;

    if (!a->has_backing_file && !a->has_backing_fmt) {
        return 0;
    }
    /* An empty name means none. */
    return qcow2_co_change_backing(a->q->node, file && *file ? file : NULL,
                                   format && *format ? format : NULL, err);
}

static int co_apply_amend(struct amend *a, struct error *err)
{
    struct qcow2 *q = a->q;
    int r;

    if (a->has_key_change) {
        r = luks_co_change(qcow2_luks_volume(q), &a->key_change, a->force, err);
        if (r < 0) {
            return r;
        }
    }
    if (a->version > q->version && (r = co_upgrade(a, err)) < 0) {
        return r;
    }
    if (a->refcount_order != q->refcounts.order && (r = co_change_refcount_width(a, err)) < 0) {
        return r;
    }
    if ((r = co_set_lazy_refcounts(q, a->lazy_refcounts, err)) < 0 ||
        (r = co_amend_data_file(a, err)) < 0 || (r = co_amend_backing(a, err)) < 0) {
        return r;
    }
    if (a->size != block_node_size(q->node) &&
        (r = qcow2_co_truncate(q->node, a->size, BLOCK_PREALLOC_OFF, err)) < 0) {
        return r;
    }
    return a->version < q->version ? qcow2_co_downgrade(q, report_progress, a, err) : 0;
}

int qcow2_co_amend(struct block_node *node, struct options *opts, bool force,
                   block_progress_fn *progress, void *progress_arg, struct error *err)
{
    CLEANUP(amend_release)
    struct amend a = {
        .q = qcow2_state(node), .progress = progress, .progress_arg = progress_arg, .force = force};
    int r = take_amend_options(&a, opts, err);

    if (r < 0) {
        return r;
    }
    report_progress(&a, 0, 1);
    r = qcow2_co_write_lazy_refcounts(a.q, err);
    return r < 0 ? r : co_apply_amend(&a, err);
}

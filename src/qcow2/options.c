/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The options of an open image, by the names and with the words of QEMU (qapi:
 * BlockdevOptionsQcow2).
 */
#include "qcow2/options.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "luks/types.h"
#include "qcow2/qcow2.h"
#include "schema/define.h"

#define L2_CACHE_DEFAULT (32 * MiB)
#define L2_SLICE_DEFAULT 4096
#define REF_CACHE_DEFAULT (8 * MiB)
#define CLEAN_INTERVAL_DEFAULT 600

/* --- types ----------------------------------------------------------------------------------- */

ENUM(overlap_mode_type, "Qcow2OverlapCheckMode", "none", "constant", "cached", "all");
OBJECT(overlap_flags_type, "Qcow2OverlapCheckFlags",
       OPT("template", overlap_mode_type, .dflt = "cached", .help = "what the others default to"),
       OPT("main-header", schema_bool), OPT("active-l1", schema_bool),
       OPT("active-l2", schema_bool), OPT("refcount-table", schema_bool),
       OPT("refcount-block", schema_bool), OPT("snapshot-table", schema_bool),
       OPT("inactive-l1", schema_bool), OPT("inactive-l2", schema_bool),
       OPT("bitmap-directory", schema_bool));
static const struct schema_type overlap_type = {
    .kind = SCHEMA_ALTERNATE,
    .name = "Qcow2OverlapChecks",
    .choice = (const struct schema_type *const[]){&overlap_flags_type, &overlap_mode_type, NULL},
};

const struct schema_type qcow2_encryption_format_type =
    ENUM_INIT("BlockdevQcow2EncryptionFormat", "aes", "luks");
OBJECT(encrypt_aes_type, "QCryptoBlockOptionsQCow",
       OPT("key-secret", schema_str,
           .help = "id of the secret; required unless only metadata are "
                   "read"));
static const struct schema_type encrypt_type = {
    .kind = SCHEMA_OBJECT,
    .name = "BlockdevQcow2Encryption",
    .members = MEMBERS(REQ("format", qcow2_encryption_format_type)),
    .tag = "format",
    .variants = (const struct schema_variant[]){{"aes", &encrypt_aes_type},
                                                {"luks", &luks_key_type},
                                                {NULL, NULL}},
};

ENUM(durability_type, "TidemarkBitmapDurability", "off", "process", "power");

const struct schema_type qcow2_options_type = OBJECT_INIT(
    "BlockdevOptionsQcow2", REQ("file", block_ref_type),
    OPT("backing", block_ref_or_null_type,
        .help = "default: the file that the image records; null: none"),
    OPT("lazy-refcounts", schema_bool, .dflt = "as the image says",
        .help = "write refcounts late; after a crash they are repaired"),
    OPT("pass-discard-request", schema_bool, .dflt = "as discard",
        .help = "discard clusters that guests discard in the file, too"),
    OPT("pass-discard-snapshot", schema_bool, .dflt = "true",
        .help = "likewise clusters that a deleted snapshot frees"),
    OPT("pass-discard-other", schema_bool, .dflt = "false", .help = "likewise all others"),
    OPT("discard-no-unref", schema_bool, .dflt = "false",
        .help = "guests' discards keep the clusters allocated, against fragments"),
    OPT("overlap-check", overlap_type, .dflt = "cached",
        .help = "which metadata each write is checked against"),
    OPT("cache-size", schema_bytes, .unit = "bytes", .help = "of both caches together"),
    OPT("l2-cache-size", schema_bytes, .dflt = "32 MiB, at most what the disk needs",
        .unit = "bytes"),
    OPT("l2-cache-entry-size", schema_bytes, .dflt = "4 KiB, at most a cluster", .unit = "bytes",
        .min = 512, .max = 2 * MiB, .help = "a power of two up to the cluster size"),
    OPT("refcount-cache-size", schema_bytes, .dflt = "8 MiB", .unit = "bytes"),
    OPT("cache-clean-interval", schema_int, .dflt = "600", .unit = "seconds", .max = UINT_MAX,
        .help = "release cache entries that were not used for so long; 0: never"),
    OPT("durable-bitmaps", durability_type, .dflt = "power; off in programs named as QEMU's",
        .help = "what persistent bitmaps survive: the death of the process, or a loss of power; "
                "off with cache.no-flush"),
    OPT("durable-bitmaps-size", schema_bytes, .dflt = "1% of the disk, at most 32 GiB",
        .unit = "bytes", .help = "what may be dirty in excess after a crash"),
    OPT("encrypt", encrypt_type),
    OPT("data-file", block_ref_type, .help = "default: the file that the image records"));

/* --- caches ---------------------------------------------------------------------------------- */

/* Bytes that all L2 entries of a disk of `size` bytes take. */
static uint64_t all_l2_bytes(const struct qcow2 *q, uint64_t size)
{
    uint64_t entries = div_round_up(size, q->cluster_size);

    return round_up(entries << (3 + q->extended_l2), q->cluster_size);
}

int qcow2_fit_l2_cache(struct qcow2 *q, uint64_t size)
{
    uint64_t all = all_l2_bytes(q, size);
    int r = cache_set_limit(&q->caches.l2, MIN(q->caches.l2_max, all));

    if (r == 0 && q->caches.l2_max >= all) {
        q->caches.l2.dirty_limit = SIZE_MAX; /* no slice ever has to make room for another */
    }
    return r;
}

/* cache-size limits both caches together. If only that is given, refcounts get a fifth. */
static int take_cache_sizes(struct options *opts, uint64_t *ret_l2, uint64_t *ret_ref,
                            struct error *err)
{
    bool has_both = options_has(opts, "cache-size"), has_l2 = options_has(opts, "l2-cache-size");
    bool has_ref = options_has(opts, "refcount-cache-size");
    uint64_t both;
    int r;

    if ((r = options_take_size(opts, "cache-size", 0, &both, err)) < 0 ||
        (r = options_take_size(opts, "l2-cache-size", L2_CACHE_DEFAULT, ret_l2, err)) < 0 ||
        (r = options_take_size(opts, "refcount-cache-size", REF_CACHE_DEFAULT, ret_ref, err)) < 0 ||
        !has_both) {
        return r;
    }
    if (has_l2 && has_ref) {
        return error_set(err, EINVAL,
                         "cache-size, l2-cache-size and refcount-cache-size may not be set at the "
                         "same time");
    }
    if ((has_l2 && *ret_l2 > both) || (has_ref && *ret_ref > both)) {
        return error_set(err, EINVAL, "%s-cache-size may not exceed cache-size",
                         has_l2 ? "l2" : "refcount");
    }
    if (!has_ref) {
        *ret_ref = has_l2 ? both - *ret_l2 : both / 5;
    }
    *ret_l2 = both - *ret_ref;
    return 0;
}

/* A negative number is too big: QEMU parses an unsigned one. */
static int take_clean_interval(struct qcow2 *q, struct options *opts, struct error *err)
{
    static const char key[] = "cache-clean-interval";
    AUTO_FREE char *text = NULL;
    uint64_t seconds;
    int r = options_take_uint(opts, key, CLEAN_INTERVAL_DEFAULT, UINT64_MAX, &seconds, NULL);

    if (r < 0) {
        if (options_take_str(opts, key, &text, NULL) == 0 && text && text[0] == '-') {
            return error_set(err, EINVAL, "Cache clean interval too big");
        }
        return error_set(err, EINVAL, "Parameter '%s' expects a number", key);
    }
    if (seconds > UINT_MAX) {
        return error_set(err, EINVAL, "Cache clean interval too big");
    }
    q->caches.clean_seconds = (unsigned)seconds;
    return 0;
}

static int take_caches(struct qcow2 *q, struct options *opts,
                       struct qcow2_cache_options *ret_options, struct error *err)
{
    int r;

    if ((r = take_cache_sizes(opts, &q->caches.l2_max, &ret_options->ref_bytes, err)) < 0 ||
        (r = options_take_size(opts, "l2-cache-entry-size", MIN(L2_SLICE_DEFAULT, q->cluster_size),
                               &ret_options->slice, err)) < 0) {
        return r;
    }
    if (!is_power_of_2(ret_options->slice) || ret_options->slice < 512 ||
        ret_options->slice > q->cluster_size) {
        return error_set(err, EINVAL,
                         "L2 cache entry size must be a power of two between 512 and the cluster "
                         "size (%llu)",
                         (unsigned long long)q->cluster_size);
    }
    if (MIN(q->caches.l2_max, all_l2_bytes(q, block_node_size(q->node))) / ret_options->slice >
        INT_MAX) {
        return error_set(err, EINVAL, "L2 cache size too big");
    }
    if (ret_options->ref_bytes / q->cluster_size > INT_MAX) {
        return error_set(err, EINVAL, "Refcount cache size too big");
    }
    return take_clean_interval(q, opts, err);
}

/* --- overlap checks -------------------------------------------------------------------------- */

static int take_overlap_template(struct options *group, const char *mode, unsigned *ret_value,
                                 struct error *err)
{
    static const struct {
        const char *name;
        unsigned kinds;
    } templates[] = {{"none", 0},
                     {"constant", OVERLAP_CONSTANT},
                     {"cached", OVERLAP_CACHED},
                     {"all", OVERLAP_ALL}};
    AUTO_FREE char *own_value = NULL;
    AUTO_FREE char *template = NULL;
    int r;

    if ((r = options_take_str(group, OPTIONS_OWN_VALUE, &own_value, err)) < 0 ||
        (r = options_take_str(group, "template", &template, err)) < 0) {
        return r;
    }
    mode = mode ? mode : own_value;
    if (mode && template && strcmp(mode, template) != 0) {
        return error_set(err, EINVAL,
                         "Conflicting values for qcow2 options 'overlap-check' ('%s') and "
                         "'overlap-check.template' ('%s')",
                         mode, template);
    }
    mode = mode ? mode : template ? template : "cached";
    for (size_t i = 0; i < ARRAY_SIZE(templates); i++) {
        if (strcmp(mode, templates[i].name) == 0) {
            *ret_value = templates[i].kinds;
            return 0;
        }
    }
    return error_set(err, EINVAL,
                     "Unsupported value '%s' for qcow2 option 'overlap-check'. Allowed are any of "
                     "the following: none, constant, cached, all",
                     mode);
}

static int take_overlap_check(struct qcow2 *q, struct options *opts, struct error *err)
{
    static const char *const names[OVERLAP_KINDS] = {
        "main-header",    "active-l1",   "active-l2",   "refcount-block",   "refcount-table",
        "snapshot-table", "inactive-l1", "inactive-l2", "bitmap-directory",
    };
    AUTO_OPTIONS struct options *group = NULL;
    AUTO_FREE char *mode = NULL;
    unsigned kinds = 0;
    int r = options_take_child(opts, "overlap-check", &group, &mode, err);

    if (r < 0) {
        return r;
    }
    if (!group && !(group = options_new())) {
        return error_out_of_memory(err);
    }
    r = take_overlap_template(group, mode, &kinds, err);
    for (unsigned kind = 0; kind < OVERLAP_KINDS && r == 0; kind++) {
        bool on;

        if (options_take_bool(group, names[kind], kinds & OVERLAP_BIT(kind), &on, NULL) < 0) {
            return error_set(err, EINVAL, "Parameter 'overlap-check.%s' expects 'on' or 'off'",
                             names[kind]);
        }
        kinds = (kinds & ~OVERLAP_BIT(kind)) | (on ? OVERLAP_BIT(kind) : 0);
    }
    q->guard.kinds = kinds;
    return r < 0 ? r : options_check_empty(group, "overlap-check", err);
}

/* --- discard --------------------------------------------------------------------------------- */

static int take_discard(struct qcow2 *q, struct options *opts, struct error *err)
{
    bool *pass = q->options.pass_discard;
    int r;

    if ((r = options_take_bool(opts, "pass-discard-request", q->node->discard_unmap,
                               &pass[QCOW2_FREED_BY_REQUEST], err)) < 0 ||
        (r = options_take_bool(opts, "pass-discard-snapshot", true, &pass[QCOW2_FREED_BY_SNAPSHOT],
                               err)) < 0 ||
        (r = options_take_bool(opts, "pass-discard-other", false, &pass[QCOW2_FREED_BY_OTHER],
                               err)) < 0 ||
        (r = options_take_bool(opts, "discard-no-unref", false, &q->options.discard_no_unref,
                               err)) < 0) {
        return r;
    }
    pass[QCOW2_FREED_BY_SHRINKING] = true;
    if (q->options.discard_no_unref && q->version < 3) {
        return error_set(err, EINVAL, "discard-no-unref is only supported since qcow2 version 3");
    }
    return 0;
}

/* --- durable bitmaps ------------------------------------------------------------------------- */

static enum block_durability default_durability = BLOCK_DURABILITY_POWER;

void qcow2_durable_bitmaps_off_by_default(void)
{
    default_durability = BLOCK_DURABILITY_OFF;
}

static int take_durability(struct qcow2 *q, struct options *opts, struct error *err)
{
    static const char key[] = "durable-bitmaps";
    static const char *const levels[] = {"off", "process", "power", NULL};
    AUTO_FREE char *text = NULL;
    int level = q->node->cache_no_flush ? BLOCK_DURABILITY_OFF : (int)default_durability;
    int r = options_take_str(opts, key, &text, err);

    if (r == 0 && text) {
        for (level = 0; levels[level] && strcmp(levels[level], text) != 0; level++) {
        }
        if (!levels[level]) {
            return error_set(err, EINVAL, "Parameter '%s' does not accept value '%s'", key, text);
        }
    }
    q->activity.level = (enum block_durability)level;
    return UNLESS_FAILED(
        r, options_take_size(opts, "durable-bitmaps-size", 0, &q->activity.limit, err));
}

/* --- all of them ----------------------------------------------------------------------------- */

int qcow2_take_options(struct qcow2 *q, struct options *opts,
                       struct qcow2_cache_options *ret_options, struct error *err)
{
    int r;

    if ((r = take_caches(q, opts, ret_options, err)) < 0 ||
        (r = options_take_bool(opts, "lazy-refcounts", q->header.compatible & COMPAT_LAZY_REFCOUNTS,
                               &q->commit.lazy_refcounts, err)) < 0 ||
        (r = take_overlap_check(q, opts, err)) < 0 || (r = take_durability(q, opts, err)) < 0) {
        return r;
    }
    if (q->commit.lazy_refcounts && q->version < 3) {
        return error_set(err, EINVAL,
                         "Lazy refcounts require a qcow2 image with at least qemu 1.1 "
                         "compatibility level");
    }
    return take_discard(q, opts, err);
}

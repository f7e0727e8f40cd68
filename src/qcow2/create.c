/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making an image:
 *
 *   cluster 0   header        2              refcount block 0
 *   1           refcount table  3 ...        L1 table
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "qcow2/state.h"

const struct block_option_desc qcow2_create_options[] = {
    {"backing_file", "str", "File name of a base image"},
    {"backing_fmt", "str", "Image format of the base image"},
    {"cluster_size", "size", "qcow2 cluster size"},
    {"compat", "str", "Compatibility level (v2 [0.10] or v3 [1.1])"},
    {"compression_type", "str", "Compression method used for image cluster compression"},
    {"lazy_refcounts", "bool (on/off)", "Postpone refcount updates"},
    {"preallocation", "str", "Preallocation mode (allowed values: off, metadata, falloc, full)"},
    {"refcount_bits", "num", "Width of a reference count entry in bits"},
    {NULL, NULL, NULL},
};

struct create {
    const char *filename;
    uint64_t size, cluster_size, refcount_bits;
    int compression;
    char *backing_file, *backing_fmt;
    uint32_t l1_size;
};

static void create_release(struct create *c)
{
    free(c->backing_file);
    free(c->backing_fmt);
}

static int take_unsupported(struct options *opts, struct error *err)
{
    static const char *const compat_names[] = {"1.1", "v3", "0.10", "v2", NULL};
    static const char *const prealloc_names[] = {"off", "metadata", "falloc", "full", NULL};
    int compat, prealloc, r;
    bool lazy, extended;

    if ((r = options_take_enum(opts, "compat", compat_names, 0, &compat, err)) < 0 ||
        (r = options_take_enum(opts, "preallocation", prealloc_names, 0, &prealloc, err)) < 0 ||
        (r = options_take_bool(opts, "lazy_refcounts", false, &lazy, err)) < 0 ||
        (r = options_take_bool(opts, "extended_l2", false, &extended, err)) < 0) {
        return r;
    }
    if (compat >= 2) {
        return error_set(err, ENOTSUP, "compat=%s (version 2) is not supported yet",
                         compat_names[compat]);
    }
    if (prealloc != 0) {
        return error_set(err, ENOTSUP, "preallocation=%s is not supported yet",
                         prealloc_names[prealloc]);
    }
    if (lazy || extended) {
        return error_set(err, ENOTSUP, "%s=on is not supported yet",
                         lazy ? "lazy_refcounts" : "extended_l2");
    }
    return 0;
}

static int take_options(struct create *c, struct options *opts, struct error *err)
{
    static const char *const compression_names[] = {"zlib", "zstd", NULL};
    int r;

    if ((r = options_take_size(opts, "cluster_size", 64 * KiB, &c->cluster_size, err)) < 0 ||
        (r = options_take_uint(opts, "refcount_bits", 16, 64, &c->refcount_bits, err)) < 0 ||
        (r = options_take_enum(opts, "compression_type", compression_names, 0, &c->compression,
                               err)) < 0 ||
        (r = options_take_str(opts, "backing_file", &c->backing_file, err)) < 0 ||
        (r = options_take_str(opts, "backing_fmt", &c->backing_fmt, err)) < 0 ||
        (r = take_unsupported(opts, err)) < 0 ||
        (r = options_check_empty(opts, "Format 'qcow2'", err)) < 0) {
        return r;
    }
    if (!is_power_of_2(c->cluster_size) || c->cluster_size < 512 || c->cluster_size > 2 * MiB) {
        return error_set(err, EINVAL, "Cluster size must be a power of two between 512 and 2048k");
    }
    if (c->refcount_bits != 16) {
        return error_set(err, ENOTSUP, "refcount_bits=%llu is not supported yet (16 is)",
                         (unsigned long long)c->refcount_bits);
    }
    if (c->backing_file && strlen(c->backing_file) > BACKING_NAME_MAX) {
        return error_set(err, EINVAL, "Backing file name is too long: %zu bytes; at most %d",
                         strlen(c->backing_file), BACKING_NAME_MAX);
    }
    return 0;
}

static int check_size(struct create *c, struct error *err)
{
    uint64_t span = c->cluster_size * (c->cluster_size / 8);
    uint64_t l1_size = div_round_up(c->size, span);

    if (c->size > INT64_MAX || l1_size * 8 > L1_BYTES_MAX) {
        return error_set(err, EFBIG,
                         "The image size is too large for file format 'qcow2' (try using a larger "
                         "cluster size)");
    }
    c->l1_size = (uint32_t)MAX(l1_size, 1u);
    return 0;
}

/* The refcount block counts everything that is there at the beginning, and that has to fit. */
static int co_write_refcounts(struct block_edge *file, const struct create *c, uint64_t clusters)
{
    AUTO_FREE uint8_t *block = calloc(1, c->cluster_size);
    uint8_t entry[8];
    int r;

    if (!block) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < clusters; i++) {
        store_be16(block + i * 2, 1);
    }
    store_be64(entry, 2 * c->cluster_size);
    r = block_co_pwrite(file, 2 * c->cluster_size, block, c->cluster_size, 0);
    return r < 0 ? r : block_co_pwrite(file, c->cluster_size, entry, sizeof(entry), 0);
}

/* Borrow the header writer: fill in a state that has just what it looks at. */
static int co_write_first_header(struct block_root *root, const struct create *c, struct error *err)
{
    struct block_node *stand_in = calloc(1, sizeof(*stand_in));
    struct qcow2 *q = calloc(1, sizeof(*q));
    int r = -ENOMEM;

    if (stand_in && q) {
        stand_in->file = block_root_edge(root);
        stand_in->name = (char *)(uintptr_t)c->filename;
        block_node_set_size(stand_in, c->size);
        q->node = stand_in;
        q->version = 3;
        q->cluster_size = c->cluster_size;
        q->cluster_bits = (unsigned)__builtin_ctzll(c->cluster_size);
        q->refcount_order = (unsigned)__builtin_ctzll(c->refcount_bits);
        q->compression = (enum compression_type)c->compression;
        q->incompatible = c->compression == COMPRESSION_ZLIB ? 0 : INCOMPAT_COMPRESSION;
        q->l1_size = c->l1_size;
        q->l1_offset = 3 * c->cluster_size;
        q->reftable_offset = c->cluster_size;
        q->reftable_entries = (uint32_t)(c->cluster_size / 8);
        q->backing_filename = c->backing_file;
        q->backing_format = c->backing_fmt;
        list_init(&q->extensions);
        list_init(&q->stored_bitmaps);
        list_init(&q->snapshots);
        r = qcow2_co_write_header(q, err);
    }
    free(stand_in);
    free(q);
    return r;
}

static int co_write_image(struct block_root *root, const struct create *c, struct error *err)
{
    struct block_edge *file = block_root_edge(root);
    uint64_t l1_clusters = div_round_up((uint64_t)c->l1_size * 8, c->cluster_size);
    uint64_t clusters = 3 + l1_clusters;
    int r;

    if (clusters > c->cluster_size * 8 / c->refcount_bits) {
        return error_set(err, EFBIG,
                         "The image size is too large for clusters of %llu bytes (try using a "
                         "larger cluster size)",
                         (unsigned long long)c->cluster_size);
    }
    r = block_co_truncate(file, clusters * c->cluster_size, BLOCK_PREALLOC_OFF, err);
    if (r < 0) {
        return r;
    }
    r = co_write_refcounts(file, c, clusters);
    r = r < 0 ? r : block_co_flush(file);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not write the refcounts of '%s'", c->filename);
    }
    return co_write_first_header(root, c, err);
}

int qcow2_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err)
{
    CLEANUP(create_release) struct create c = {.filename = filename, .size = size};
    struct block_root *root;
    int r;

    if ((r = take_options(&c, opts, err)) < 0 || (r = check_size(&c, err)) < 0 ||
        (r = block_co_create_file(filename, &root, err)) < 0) {
        return r;
    }
    r = co_write_image(root, &c, err);
    block_co_root_release(root);
    return r;
}

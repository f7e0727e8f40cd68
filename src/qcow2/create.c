/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Creating an image. Layout of a new one:
 *
 *   header | refcount table | refcount blocks | header of LUKS, if there is one | L1 table
 */
#include "qcow2/create.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "block/control_lock.h"
#include "qcow2/encryption.h"
#include "qcow2/header/header.h"
#include "qcow2/resize.h"
#include "qcow2/table/refcount.h"
#include "luks/types.h"
#include "schema/define.h"

const struct block_option_desc qcow2_create_options[] = {
    {"backing_file", "str", "File name of a base image"},
    {"backing_fmt", "str", "Image format of the base image"},
    {"cluster_size", "size", "qcow2 cluster size"},
    {"compat", "str", "Compatibility level (v2 [0.10] or v3 [1.1])"},
    {"data_file", "str", "File name of an external data file"},
    {"data_file_raw", "bool (on/off)", "The external data file must stay valid as a raw image"},
    LUKS_FORMAT_OPTION_DESCS("encrypt."),
    {"encrypt.format", "str", "Encrypt the image, format choices: 'aes', 'luks'"},
    {"encrypt.key-secret", "str", "ID of secret providing qcow AES key or LUKS passphrase"},
    {"encryption", "bool (on/off)",
     "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"},
    {"extended_l2", "bool (on/off)", "Extended L2 tables"},
    {"compression_type", "str", "Compression method used for image cluster compression"},
    {"lazy_refcounts", "bool (on/off)", "Postpone refcount updates"},
    {"preallocation", "str", "Preallocation mode (allowed values: off, metadata, falloc, full)"},
    {"refcount_bits", "num", "Width of a reference count entry in bits"},
    {NULL, NULL, NULL},
};

ENUM(version_type, "BlockdevQcow2Version", "v2", "v3");
const struct schema_type qcow2_compression_type = ENUM_INIT("Qcow2CompressionType", "zlib", "zstd");
ENUM(crypto_format_type, "QCryptoBlockFormat", "qcow", "luks");
OBJECT(crypto_aes_type, "QCryptoBlockOptionsQCow",
       OPT("key-secret", schema_str,
           .help = "id of the secret; required unless only metadata are "
                   "read"));
static const struct schema_type crypto_create_type = {
    .kind = SCHEMA_OBJECT,
    .name = "QCryptoBlockCreateOptions",
    .members = MEMBERS(REQ("format", crypto_format_type)),
    .tag = "format",
    .variants = (const struct schema_variant[]){{"qcow", &crypto_aes_type},
                                                {"luks", &luks_format_type},
                                                {NULL, NULL}},
};
static const struct schema_type crypto_amend_type = {
    .kind = SCHEMA_OBJECT,
    .name = "QCryptoBlockAmendOptions",
    .members = MEMBERS(REQ("format", crypto_format_type)),
    .tag = "format",
    .variants = (const struct schema_variant[]){{"luks", &luks_change_type}, {NULL, NULL}},
};
const struct schema_type qcow2_amend_type =
    OBJECT_INIT("BlockdevAmendOptionsQcow2", OPT("encrypt", crypto_amend_type));
const struct schema_type qcow2_create_type = OBJECT_INIT(
    "BlockdevCreateOptionsQcow2", REQ("file", block_ref_type),
    OPT("data-file", block_ref_type, .help = "where guests' data are; default: in the image"),
    OPT("data-file-raw", schema_bool, .dflt = "false",
        .help = "the data file can be read as a raw image"),
    OPT("extended-l2", schema_bool, .dflt = "false", .help = "clusters have 32 subclusters"),
    REQ("size", schema_size, .unit = "bytes"), OPT("version", version_type, .dflt = "v3"),
    OPT("backing-file", schema_str, .help = "what the image records as its backing file"),
    OPT("backing-fmt", block_driver_names_type),
    OPT("cluster-size", schema_size, .dflt = "64 KiB", .unit = "bytes", .min = 512, .max = 2 * MiB,
        .help = "a power of two"),
    OPT("preallocation", block_prealloc_type, .dflt = "off"),
    OPT("lazy-refcounts", schema_bool, .dflt = "false"),
    OPT("refcount-bits", schema_int, .dflt = "16", .min = 1, .max = 64, .help = "a power of two"),
    OPT("compression-type", qcow2_compression_type, .dflt = "zlib"),
    OPT("encrypt", crypto_create_type));

/* QEMU has no larger disks, and says so. */
#define SIZE_MAX_SHOWN ((uint64_t)(INT64_MAX + 1ULL - GiB))

struct create {
    const char *filename;
    uint64_t size, cluster_size, refcount_bits;
    uint32_t version;
    int compression, prealloc;
    bool lazy_refcounts, extended_l2, data_file_raw;
    struct qcow2_new_encryption encryption;
    char *backing_file, *backing_fmt, *data_file;
    struct options *file_options; /* for creating the file */
    /* Layout, in clusters. */
    uint64_t table_clusters, blocks, luks_clusters, l1_clusters;
    uint32_t l1_size;
};

static void create_release(struct create *c)
{
    free(c->backing_file);
    free(c->backing_fmt);
    free(c->data_file);
    options_free(c->file_options);
    qcow2_new_encryption_release(&c->encryption);
}

/* --- options --------------------------------------------------------------------------------- */

static int check_version_2(const struct create *c, struct error *err)
{
    if (c->version >= 3) {
        return 0;
    }
    if (c->refcount_bits != 16) {
        return error_set(err, EINVAL,
                         "Different refcount widths than 16 bits require compatibility level 1.1 "
                         "or above (use version=v3 or greater)");
    }
    if (c->lazy_refcounts) {
        return error_set(err, EINVAL,
                         "Lazy refcounts only supported with compatibility level 1.1 and above "
                         "(use version=v3 or greater)");
    }
    if (c->extended_l2) {
        return error_set(err, EINVAL,
                         "Extended L2 entries are only supported with compatibility level 1.1 and "
                         "above (use version=v3 or greater)");
    }
    if (c->data_file) {
        return error_set(err, EINVAL,
                         "External data files are only supported with compatibility level 1.1 and "
                         "above (use version=v3 or greater)");
    }
    if (c->compression != COMPRESSION_ZLIB) {
        return error_set(err, EINVAL,
                         "Non-zlib compression type is only supported with compatibility level "
                         "1.1 and above (use version=v3 or greater)");
    }
    return 0;
}

static int check_options(const struct create *c, struct error *err)
{
    if (!is_power_of_2(c->cluster_size) || c->cluster_size < 512 || c->cluster_size > 2 * MiB) {
        return error_set(err, EINVAL, "Cluster size must be a power of two between 512 and 2048k");
    }
    if (!is_power_of_2(c->refcount_bits) || c->refcount_bits > 64) {
        return error_set(err, EINVAL,
                         "Refcount width must be a power of two and may not exceed 64 bits");
    }
    if (c->backing_file && strlen(c->backing_file) > BACKING_NAME_MAX) {
        return error_set(err, EINVAL, "Backing file name is too long: %zu bytes; at most %d",
                         strlen(c->backing_file), BACKING_NAME_MAX);
    }
    if (c->backing_fmt && !c->backing_file) {
        return error_set(err, EINVAL, "Backing format cannot be used without backing file");
    }
    if (c->extended_l2 && c->cluster_size < 1ULL << EXTENDED_CLUSTER_BITS_MIN) {
        return error_set(err, EINVAL,
                         "Extended L2 entries are only supported with cluster sizes of at least "
                         "16384 bytes");
    }
    if (c->data_file_raw && !c->data_file) {
        return error_set(err, EINVAL, "data-file-raw requires data-file");
    }
    if (c->data_file_raw && c->backing_file) {
        return error_set(err, EINVAL,
                         "Backing file and data-file-raw cannot be used at the same time");
    }
    if (c->backing_file && c->prealloc != BLOCK_PREALLOC_OFF && !c->extended_l2) {
        return error_set(err, EINVAL,
                         "Backing file and preallocation can only be used at the same time if "
                         "extended_l2 is on");
    }
    if (c->encryption.method != CRYPT_NONE && c->prealloc != BLOCK_PREALLOC_OFF &&
        (c->version < 3 || c->data_file_raw)) {
        return error_set(err, EINVAL,
                         "Encryption cannot be used with data_file_raw, nor with preallocation in "
                         "version 2: what was not written would not read as zeroes");
    }
    return check_version_2(c, err);
}

/* Options of the file are passed on to its driver. */
static int take_file_options(struct create *c, struct options *opts, struct error *err)
{
    static const char *const names[] = {"nocow", "extent_size_hint"};

    c->file_options = options_new();
    if (!c->file_options) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        AUTO_FREE char *value = NULL;
        int r = options_take_text(opts, names[i], &value, err);

        if (r < 0) {
            return r;
        }
        if (value) {
            options_set_str(c->file_options, names[i], value);
        }
    }
    return 0;
}

/* Index of the option's value in `names`; 0 by default. `shown`: qemu-img's name in messages. */
static int take_choice(struct options *opts, const char *key, const char *shown,
                       const char *const *names, int *ret_value, struct error *err)
{
    AUTO_FREE char *text = NULL;
    int r = options_take_text(opts, key, &text, err);

    if (r < 0) {
        return r;
    }
    *ret_value = 0;
    for (int i = 0; text && names[i]; i++) {
        if (strcmp(text, names[i]) == 0) {
            *ret_value = i;
            return 0;
        }
    }
    return text ? error_set(err, EINVAL, "Parameter '%s' does not accept value '%s'", shown, text)
                : 0;
}

static int take_qcow2_create_options(struct create *c, struct options *opts, struct error *err)
{
    static const char *const compression_names[] = {"zlib", "zstd", NULL};
    static const char *const compat_names[] = {"1.1", "v3", "0.10", "v2", NULL};
    static const char *const prealloc_names[] = {"off", "metadata", "falloc", "full", NULL};
    int compat, r;

    if ((r = options_take_size(opts, "cluster_size", 64 * KiB, &c->cluster_size, err)) < 0 ||
        (r = options_take_uint(opts, "refcount_bits", 16, UINT64_MAX, &c->refcount_bits, err)) <
            0 ||
        (r = take_choice(opts, "compression_type", "compression-type", compression_names,
                         &c->compression, err)) < 0 ||
        (r = take_choice(opts, "compat", "version", compat_names, &compat, err)) < 0 ||
        (r = take_choice(opts, "preallocation", "preallocation", prealloc_names, &c->prealloc,
                         err)) < 0 ||
        (r = options_take_bool(opts, "lazy_refcounts", false, &c->lazy_refcounts, err)) < 0 ||
        (r = options_take_bool(opts, "extended_l2", false, &c->extended_l2, err)) < 0 ||
        (r = options_take_bool(opts, "data_file_raw", false, &c->data_file_raw, err)) < 0 ||
        (r = options_take_str(opts, "data_file", &c->data_file, err)) < 0 ||
        (r = options_take_str(opts, "backing_file", &c->backing_file, err)) < 0 ||
        (r = options_take_str(opts, "backing_fmt", &c->backing_fmt, err)) < 0 ||
        (r = qcow2_take_new_encryption(opts, &c->encryption, err)) < 0 ||
        (r = take_file_options(c, opts, err)) < 0 ||
        (r = options_check_empty(opts, "Format 'qcow2'", err)) < 0) {
        return r;
    }
    c->version = compat >= 2 ? 2 : 3;
    /* A raw data file is read without the image, so every cluster has to be mapped to it. */
    if (c->data_file_raw && c->prealloc == BLOCK_PREALLOC_OFF) {
        c->prealloc = BLOCK_PREALLOC_METADATA;
    }
    return check_options(c, err);
}

/* --- layout ---------------------------------------------------------------------------------- */

static uint64_t cluster_count(const struct create *c)
{
    return 1 + c->table_clusters + c->blocks + c->luks_clusters + c->l1_clusters;
}

/* Clusters of a refcount table that can count the image when all of it is allocated. */
static uint64_t full_table_clusters(const struct create *c)
{
    uint64_t per_block = c->cluster_size * 8 / c->refcount_bits, table = 1, blocks = 1, before;
    uint64_t clusters = 1 + c->luks_clusters + c->l1_clusters + c->l1_size +
                        (c->data_file ? 0 : div_round_up(c->size, c->cluster_size));

    do {
        before = table + blocks;
        blocks = div_round_up(clusters + table + blocks, per_block);
        table = div_round_up(blocks, c->cluster_size / 8);
    } while (table + blocks != before);
    return MIN(table, REFTABLE_BYTES_MAX / c->cluster_size);
}

static int plan_layout(struct create *c, struct error *err)
{
    uint64_t span = c->cluster_size * (c->cluster_size / (c->extended_l2 ? 16 : 8));
    uint64_t per_block, l1_size;

    assert(span > 0 && c->refcount_bits > 0); /* check_options() has checked them */
    per_block = c->cluster_size * 8 / c->refcount_bits;
    l1_size = div_round_up(c->size, span);
    if (c->size > INT64_MAX || l1_size * 8 > L1_BYTES_MAX) {
        return error_set(err, EFBIG,
                         "The image size is too large for file format 'qcow2' (try using a larger "
                         "cluster size)");
    }
    c->l1_size = (uint32_t)l1_size;
    c->l1_clusters = div_round_up((uint64_t)c->l1_size * 8, c->cluster_size);
    c->luks_clusters = div_round_up(qcow2_luks_size(&c->encryption), c->cluster_size);
    c->blocks = 1;
    /* With preallocation the table is made long enough at once. */
    c->table_clusters = c->prealloc == BLOCK_PREALLOC_OFF ? 1 : full_table_clusters(c);
    /* Blocks count themselves and the table, and the table references the blocks. */
    while (c->blocks * per_block < cluster_count(c) ||
           c->table_clusters * c->cluster_size / 8 < c->blocks) {
        c->blocks = MAX(c->blocks, div_round_up(cluster_count(c), per_block));
        c->table_clusters = MAX(c->table_clusters, div_round_up(c->blocks * 8, c->cluster_size));
    }
    return 0;
}

static uint64_t luks_offset(const struct create *c)
{
    return (1 + c->table_clusters + c->blocks) * c->cluster_size;
}

static uint64_t l1_offset(const struct create *c)
{
    return luks_offset(c) + c->luks_clusters * c->cluster_size;
}

static uint64_t l1_bytes(const struct create *c)
{
    return (uint64_t)c->l1_size * 8;
}

static int co_write_first_refcounts(struct block_edge *file, const struct create *c)
{
    AUTO_FREE uint8_t *blocks = calloc(c->blocks, c->cluster_size);
    AUTO_FREE uint8_t *table = calloc(c->table_clusters, c->cluster_size);
    unsigned order = (unsigned)__builtin_ctzll(c->refcount_bits);
    uint64_t first_block = (1 + c->table_clusters) * c->cluster_size;
    int r;

    if (!blocks || !table) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < cluster_count(c); i++) {
        uint64_t per_block = c->cluster_size * 8 / c->refcount_bits;

        qcow2_refcount_store(blocks + i / per_block * c->cluster_size, order, i % per_block, 1);
    }
    for (uint64_t i = 0; i < c->blocks; i++) {
        store_be64(table + i * 8, first_block + i * c->cluster_size);
    }
    r = block_co_pwrite(file, first_block, blocks, c->blocks * c->cluster_size, 0);
    return r < 0 ? r
                 : block_co_pwrite(file, c->cluster_size, table,
                                   c->table_clusters * c->cluster_size, 0);
}

/* Use the header writer, by a state that has just the members that it reads. */
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
        q->version = c->version;
        q->cluster_size = c->cluster_size;
        q->cluster_bits = (unsigned)__builtin_ctzll(c->cluster_size);
        q->refcounts.order = (unsigned)__builtin_ctzll(c->refcount_bits);
        q->compression = (enum compression_type)c->compression;
        q->header.incompatible = (c->compression == COMPRESSION_ZLIB ? 0 : INCOMPAT_COMPRESSION) |
                                 (c->extended_l2 ? INCOMPAT_EXTENDED_L2 : 0) |
                                 (c->data_file ? INCOMPAT_DATA_FILE : 0);
        q->header.autoclear = c->data_file_raw ? AUTOCLEAR_DATA_FILE_RAW : 0;
        q->header.data_filename = c->data_file;
        q->crypt_method = c->encryption.method;
        q->header.luks_size = qcow2_luks_size(&c->encryption);
        q->header.luks_offset = q->header.luks_size > 0 ? luks_offset(c) : 0;
        q->header.compatible = c->lazy_refcounts ? COMPAT_LAZY_REFCOUNTS : 0;
        q->l1.size = c->l1_size;
        q->l1.offset = c->l1_size ? l1_offset(c) : 0;
        q->reftable.offset = c->cluster_size;
        q->reftable.size = (uint32_t)(c->table_clusters * c->cluster_size / 8);
        q->header.backing_filename = c->backing_file;
        q->header.backing_format = c->backing_fmt;
        list_init(&q->header.extensions);
        list_init(&q->bitmaps.stored);
        list_init(&q->snapshots.list);
        r = qcow2_co_write_header(q, err);
    }
    free(stand_in);
    free(q);
    return r;
}

static bool is_device(struct block_root *root)
{
    return !block_root_node(root)->driver->keeps_zero_beyond_eof;
}

/* Make the file as large as @size. One that is larger stays so: it may be unable to grow again. */
static int co_enlarge(struct block_root *root, uint64_t size, struct error *err)
{
    struct block_edge *file = block_root_edge(root);

    return block_edge_size(file) >= size ? 0
                                         : block_co_truncate(file, size, BLOCK_PREALLOC_OFF, err);
}

/* As with qemu-img, the file ends with the L1 table, until the first commit extends it. */
static int co_write_image(struct block_root *root, const struct create *c, struct error *err)
{
    struct block_edge *file = block_root_edge(root);
    const uint64_t size = cluster_count(c) * c->cluster_size;
    const bool has_old = is_device(root) || block_edge_size(file) > 0;
    int r = co_enlarge(root, has_old ? size : l1_offset(c) + l1_bytes(c), err);

    if (r < 0) {
        return r;
    }
    if (has_old) {
        /* Tables are written only where they are not zero. */
        r = block_co_write_zeroes(file, 0, size, BLOCK_REQ_MAY_UNMAP);
    }
    UNLESS_FAILED(r, co_write_first_refcounts(file, c));
    /* The table gets space now, so that entries can be written on a full file system. */
    UNLESS_FAILED(r, block_co_write_zeroes(file, l1_offset(c), l1_bytes(c), 0));
    UNLESS_FAILED(r, block_co_flush(file));
    if (r < 0) {
        return error_set_errno(err, -r, "Could not write the tables of '%s'", c->filename);
    }
    if (c->luks_clusters > 0) {
        r = qcow2_co_write_luks(file, luks_offset(c), &c->encryption, err);
    }
    return r < 0 ? r : co_write_first_header(root, c, err);
}

/* Preallocate the clusters of the new image, and close it. */
static int co_preallocate_node(const struct create *c, struct block_node *node, struct error *err)
{
    int r =
        qcow2_co_preallocate(qcow2_state(node), 0, c->size, (enum block_prealloc)c->prealloc, err);
    UNLESS_FAILED(r, block_co_inactivate(node, err));
    block_co_unref(node);
    return r;
}

static int co_preallocate_image(const struct create *c, struct error *err)
{
    AUTO_OPTIONS struct options *opts = options_new();
    struct block_node *node;
    int r = opts ? qcow2_add_key_options(&c->encryption, opts, err) : error_out_of_memory(err);

    UNLESS_FAILED(r, block_co_open_filename(c->filename, "qcow2", TAKE_PTR(opts), BLOCK_OPEN_RDWR,
                                            &node, err));
    return r < 0 ? r : co_preallocate_node(c, node, err);
}

/* A relative name is resolved in the working directory, now and later. */
static int co_create_data_file(const struct create *c, struct error *err)
{
    struct block_root *root;
    int r = 0;

    if (strcmp(c->data_file, c->filename) == 0) {
        return error_set(err, EINVAL, "The data file can't be the image itself");
    }
    r = block_co_create_file(c->data_file, NULL, &root, err);
    if (r == 0) {
        r = co_enlarge(root, c->size, err);
        block_co_root_release(root);
    }
    return r;
}

int qcow2_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err)
{
    CLEANUP(create_release) struct create c = {.filename = filename, .size = size};
    struct block_root *root;
    int r;

    if ((r = take_qcow2_create_options(&c, opts, err)) < 0 || (r = plan_layout(&c, err)) < 0 ||
        (c.data_file && (r = co_create_data_file(&c, err)) < 0) ||
        (r = block_co_create_file(filename, TAKE_PTR(c.file_options), &root, err)) < 0) {
        return r;
    }
    r = co_write_image(root, &c, err);
    block_co_root_release(root);
    if (r == 0 && c.prealloc != BLOCK_PREALLOC_OFF) {
        r = co_preallocate_image(&c, err);
    }
    if (r < 0) {
        block_co_remove_unfinished(filename);
    }
    return r;
}

/* --- in nodes that exist ---------------------------------------------------------------------- */

/* What errors and the header call a node: its filename, if it has one. */
static const char *shown_name(const struct block_node *node)
{
    const char *filename = block_node_filename(node);

    return filename && *filename ? filename : block_node_name(node);
}

/* Write the image, with the control lock paused: I/O may take any time. */
static int co_write_in_nodes(const struct create *c, struct block_root *file,
                             struct block_root *data_file, struct error *err)
{
    bool held = block_control_pause();
    int r = 0;

    /* A data file keeps what it has: it may be a disk that the image is made for. */
    if (data_file) {
        r = co_enlarge(data_file, c->size, err);
    }
    UNLESS_FAILED(r, co_write_image(file, c, err));
    block_co_control_resume(held);
    return r;
}

static int co_preallocate_in_nodes(const struct create *c, struct block_node *file,
                                   struct block_node *data_file, struct error *err)
{
    AUTO_OPTIONS struct options *opts = options_new();
    struct block_node *node;
    int r = opts ? qcow2_add_key_options(&c->encryption, opts, err) : error_out_of_memory(err);

    if (r < 0) {
        return r;
    }
    options_set_str(opts, "driver", "qcow2");
    options_set_str(opts, "file", block_node_name(file));
    if (data_file) {
        options_set_str(opts, "data-file", block_node_name(data_file));
    }
    r = block_co_open(TAKE_PTR(opts), BLOCK_OPEN_RDWR | BLOCK_OPEN_NO_BACKING, &node, err);
    return r < 0 ? r : co_preallocate_node(c, node, err);
}

int qcow2_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                    struct options *opts, struct error *err)
{
    CLEANUP(create_release) struct create c = {.filename = shown_name(file), .size = size};
    struct block_root *file_root = NULL, *data_root = NULL;
    int r;

    if (size % 512 != 0) {
        return error_set(err, EINVAL, "Image size must be a multiple of 512 bytes");
    }
    if (size > INT64_MAX) {
        return error_set(err, EFBIG, "Could not resize image: Image size cannot be negative");
    }
    if (size > SIZE_MAX_SHOWN) {
        return error_set(err, EFBIG,
                         "Could not resize image: offset(%" PRIu64 ") exceeds maximum(%" PRIu64 ")",
                         size, SIZE_MAX_SHOWN);
    }
    if (file == data_file) {
        return error_set(err, EINVAL, "The data file can't be the image itself");
    }
    if (data_file) {
        options_set_str(opts, "data_file", shown_name(data_file));
    }
    r = take_qcow2_create_options(&c, opts, err);
    if (r == 0 && plan_layout(&c, NULL) < 0) {
        r = error_set(err, EFBIG,
                      "Could not resize image: Failed to grow the L1 table: File too large");
    }
    UNLESS_FAILED(r, block_co_format_begin(file, &file_root, err));
    if (data_file) {
        UNLESS_FAILED(r, block_co_format_begin(data_file, &data_root, err));
    }
    UNLESS_FAILED(r, co_write_in_nodes(&c, file_root, data_root, err));
    if (r == 0 && c.prealloc != BLOCK_PREALLOC_OFF) {
        /* The users keep the nodes, and leave them to the image for that time. */
        block_node_ref(file);
        block_co_root_release(file_root);
        block_co_root_release(data_root);
        file_root = data_root = NULL;
        r = co_preallocate_in_nodes(&c, file, data_file, err);
        block_co_unref(file);
    }
    block_co_root_release(data_root);
    block_co_root_release(file_root);
    return r;
}

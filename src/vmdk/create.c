/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making VMDK images. A sparse extent, in sectors:
 *
 *      0 header | 1 descriptor, 20 sectors | directory, tables | directory, tables | grains
 *
 * The first of the two directories is the copy. All tables exist from the beginning.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/strbuf.h"
#include "blockmap/create.h"
#include "schema/define.h"
#include "vmdk/image.h"

#define GRAIN_SECTORS 128ULL
#define GRAIN_SIZE (GRAIN_SECTORS * VMDK_SECTOR)
#define TABLE_SECTORS (VMDK_TABLE_MAX * 4 / VMDK_SECTOR)
#define DESCRIPTOR_SECTORS 20
/* Of each extent of the formats with "twoGb" in their names. */
#define SPLIT_SIZE (2 * GiB)
/* Sectors have numbers of 32 bits in grain tables, and each grain may be in the file. */
#define SPARSE_MAX (4ULL * 1024 * TiB)

const struct block_option_desc vmdk_create_options[] = {
    {"adapter_type", "str",
     "Virtual adapter type, can be one of ide (default), lsilogic, buslogic or legacyESX"},
    {"backing_file", "str", "File name of a base image"},
    {"backing_fmt", "str", "Must be 'vmdk' if present"},
    {"compat6", "bool (on/off)", "VMDK version 6 image"},
    {"hwversion", "str", "VMDK hardware version"},
    {"subformat", "str",
     "VMDK flat extent format, can be one of {monolithicSparse (default) | monolithicFlat | "
     "twoGbMaxExtentSparse | twoGbMaxExtentFlat | streamOptimized} "},
    {"toolsversion", "str", "VMware guest tools version"},
    {"zeroed_grain", "bool (on/off)",
     "Enable efficient zero writes using the zeroed-grain GTE feature"},
    {NULL, NULL, NULL},
};

enum subformat { SPARSE, FLAT, SPLIT_SPARSE, SPLIT_FLAT, STREAM };
#define SUBFORMATS                                                                                 \
    "monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat",            \
        "streamOptimized"
static const char *const subformats[] = {SUBFORMATS, NULL};
#define ADAPTERS "ide", "buslogic", "lsilogic", "legacyESX"
static const char *const adapters[] = {ADAPTERS, NULL};

ENUM(subformat_type, "BlockdevVmdkSubformat", SUBFORMATS);
ENUM(adapter_type, "BlockdevVmdkAdapterType", ADAPTERS);
const struct schema_type vmdk_create_type = OBJECT_INIT(
    "BlockdevCreateOptionsVmdk", REQ("file", block_ref_type),
    REQ("size", schema_size, .unit = "bytes"),
    OPT("subformat", subformat_type, .dflt = "monolithicSparse",
        .help = "those with extents in other files can't be made in nodes"),
    OPT("backing-file", schema_str, .help = "what the image records as its parent"),
    OPT("adapter-type", adapter_type, .dflt = "ide"), OPT("hwversion", schema_str, .dflt = "4"),
    OPT("toolsversion", schema_str, .dflt = "2147483647"),
    OPT("zeroed-grain", schema_bool, .dflt = "false",
        .help = "grains can be marked as zeroes; old programs can't read such images"));

struct vmdk_create {
    const char *filename;
    /* bytes */
    uint64_t size;
    int subformat, adapter;
    bool compat6, zeroed_grain;
    /* owned; NULL: not given */
    char *hwversion, *toolsversion, *backing_file, *backing_fmt;
    uint32_t parent_cid;
    struct options *file_options;
    /* The lines of the extents, and the name for the descriptor. */
    struct strbuf lines;
};

static void vmdk_create_release(struct vmdk_create *c)
{
    free(c->hwversion);
    free(c->toolsversion);
    free(c->backing_file);
    free(c->backing_fmt);
    options_free(c->file_options);
    strbuf_clear(&c->lines);
}

static bool is_flat(const struct vmdk_create *c)
{
    return c->subformat == FLAT || c->subformat == SPLIT_FLAT;
}

static bool is_split(const struct vmdk_create *c)
{
    return c->subformat == SPLIT_SPARSE || c->subformat == SPLIT_FLAT;
}

/* --- options ---------------------------------------------------------------------------------- */

/* As blockmap_take_choice(), in the words of QEMU's tools for this format. */
static int take_vmdk_choice(struct options *opts, const char *key, const char *const *names,
                            int *value, struct error *err)
{
    AUTO_FREE char *text = NULL;
    int r = options_take_str(opts, key, &text, err);

    if (r < 0 || !text) {
        return r;
    }
    for (int i = 0; names[i]; i++) {
        if (strcmp(names[i], text) == 0) {
            *value = i;
            return 0;
        }
    }
    return error_set(err, EINVAL, "invalid parameter value: %s", text);
}

static bool fits_quotes(const char *text)
{
    return !text || (!strpbrk(text, "\"\n") && strlen(text) < VMDK_FILENAME_MAX);
}

static int check_vmdk_create(const struct vmdk_create *c, struct error *err)
{
    if (c->compat6 && c->hwversion) {
        return error_set(err, EINVAL, "compat6 cannot be enabled with hwversion set");
    }
    if (is_flat(c) && c->backing_file) {
        return error_set(err, ENOTSUP, "Flat image can't have backing file");
    }
    if (is_flat(c) && c->zeroed_grain) {
        return error_set(err, ENOTSUP, "Flat image can't enable zeroed grain");
    }
    if (c->backing_fmt && strcmp(c->backing_fmt, "vmdk") != 0) {
        return error_set(err, EINVAL, "backing_file must be a vmdk image");
    }
    if (!fits_quotes(c->filename) || !fits_quotes(c->backing_file) || !fits_quotes(c->hwversion) ||
        !fits_quotes(c->toolsversion)) {
        return error_set(err, EINVAL,
                         "A name or version for the descriptor is longer than %d bytes, or has a "
                         "quotation mark or a line end",
                         VMDK_FILENAME_MAX - 1);
    }
    if (!is_flat(c) && !is_split(c) && c->size > SPARSE_MAX) {
        return error_set(err, EFBIG, "The image size is too large for file format 'vmdk'");
    }
    return 0;
}

static int take_vmdk_create(struct vmdk_create *c, struct options *opts, struct error *err)
{
    int r;

    c->parent_cid = VMDK_NO_PARENT;
    if ((r = take_vmdk_choice(opts, "subformat", subformats, &c->subformat, err)) < 0 ||
        (r = take_vmdk_choice(opts, "adapter_type", adapters, &c->adapter, err)) < 0 ||
        (r = options_take_str(opts, "hwversion", &c->hwversion, err)) < 0 ||
        (r = options_take_str(opts, "toolsversion", &c->toolsversion, err)) < 0 ||
        (r = options_take_str(opts, "backing_file", &c->backing_file, err)) < 0 ||
        (r = options_take_str(opts, "backing_fmt", &c->backing_fmt, err)) < 0 ||
        (r = options_take_bool(opts, "compat6", false, &c->compat6, err)) < 0 ||
        (r = options_take_bool(opts, "zeroed_grain", false, &c->zeroed_grain, err)) < 0 ||
        (r = blockmap_take_preallocation(opts, err)) < 0 ||
        (r = options_check_empty(opts, "Format 'vmdk'", err)) < 0) {
        return r;
    }
    if (c->hwversion && strcmp(c->hwversion, "undefined") == 0) { /* the default of QEMU's tools */
        free(c->hwversion);
        c->hwversion = NULL;
    }
    return check_vmdk_create(c, err);
}

/* The CID of the image that is to be the parent. */
static int co_find_parent_cid(struct vmdk_create *c, struct error *err)
{
    AUTO_FREE char *path = NULL;
    struct block_node *node;
    int r;

    if (!c->backing_file) {
        return 0;
    }
    path = block_resolve_relative(c->filename, c->backing_file);
    if (!path) {
        return error_out_of_memory(err);
    }
    r = block_co_open_filename(path, NULL, NULL, BLOCK_OPEN_NO_BACKING | BLOCK_OPEN_NO_IO, &node,
                               err);
    if (r < 0) {
        return r;
    }
    if (strcmp(node->driver->name, "vmdk") == 0) {
        c->parent_cid = ((const struct vmdk *)node->opaque)->descriptor.cid;
    } else {
        r = error_set(err, EINVAL, "Invalid backing file format: %s. Must be vmdk",
                      node->driver->name);
    }
    block_co_unref(node);
    return r;
}

/* --- a sparse extent -------------------------------------------------------------------------- */

struct layout {
    uint64_t capacity, tables, directory_sectors, copy, directory, grains;
};

/* In sectors. */
static struct layout plan_vmdk_layout(uint64_t size)
{
    struct layout l = {.capacity = size / VMDK_SECTOR, .copy = 1 + DESCRIPTOR_SECTORS};

    l.tables = div_round_up(div_round_up(l.capacity, GRAIN_SECTORS), VMDK_TABLE_MAX);
    l.directory_sectors = div_round_up(l.tables * 4, VMDK_SECTOR);
    l.directory = l.copy + l.directory_sectors + l.tables * TABLE_SECTORS;
    l.grains =
        round_up(l.directory + l.directory_sectors + l.tables * TABLE_SECTORS, GRAIN_SECTORS);
    return l;
}

static void fill_sparse_header(const struct vmdk_create *c, const struct layout *l, uint8_t *h)
{
    bool stream = c->subformat == STREAM;

    memset(h, 0, VMDK_HEADER_SIZE);
    store_signature(h, "KDMV");
    store_le32(h + 4, stream ? 3 : c->zeroed_grain ? 2 : 1);
    store_le32(h + 8, 3 | (c->zeroed_grain ? 4 : 0) | (stream ? 0x30000 : 0));
    store_le64(h + 12, l->capacity);
    store_le64(h + 20, GRAIN_SECTORS);
    store_le64(h + 28, 1);
    store_le64(h + 36, DESCRIPTOR_SECTORS);
    store_le32(h + 44, VMDK_TABLE_MAX);
    store_le64(h + 48, l->copy);
    store_le64(h + 56, l->directory);
    store_le64(h + 64, l->grains);
    store_signature(h + 73, "\n \r\n");
    store_le16(h + 77, stream ? 1 : 0);
}

/* A directory, whose tables follow it; they are zero. */
static int co_write_grain_directory(struct block_edge *file, const struct layout *l, uint64_t at)
{
    AUTO_FREE uint8_t *directory = calloc(MAX(l->directory_sectors, 1u), VMDK_SECTOR);

    if (!directory) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < l->tables; i++) {
        store_le32(directory + 4 * i, (uint32_t)(at + l->directory_sectors + i * TABLE_SECTORS));
    }
    return block_co_pwrite(file, at * VMDK_SECTOR, directory, l->directory_sectors * VMDK_SECTOR,
                           0);
}

static int co_write_sparse(struct block_edge *file, const struct vmdk_create *c, uint64_t size,
                           const char *descriptor, struct error *err)
{
    struct layout l = plan_vmdk_layout(size);
    uint8_t h[VMDK_HEADER_SIZE];
    int r = block_co_truncate(file, 0, BLOCK_PREALLOC_OFF, err);

    UNLESS_FAILED(r, block_co_truncate(file, l.grains * VMDK_SECTOR, BLOCK_PREALLOC_OFF, err));
    if (r < 0) {
        return r;
    }
    fill_sparse_header(c, &l, h);
    r = block_co_pwrite(file, 0, h, sizeof(h), 0);
    UNLESS_FAILED(r, co_write_grain_directory(file, &l, l.copy));
    UNLESS_FAILED(r, co_write_grain_directory(file, &l, l.directory));
    if (descriptor) {
        UNLESS_FAILED(r, block_co_pwrite(file, VMDK_SECTOR, descriptor, strlen(descriptor), 0));
    }
    return r < 0 ? error_set_errno(err, -r, "Could not write the metadata of the image") : 0;
}

/* --- the descriptor --------------------------------------------------------------------------- */

/* The part of the filename that is within the directory. */
static const char *base_name(const char *filename)
{
    const char *slash = strrchr(filename, '/');

    return slash ? slash + 1 : filename;
}

static void add_line(struct vmdk_create *c, uint64_t size, const char *name)
{
    strbuf_printf(&c->lines, "RW %" PRIu64 " %s \"%s\"%s\n", size / VMDK_SECTOR,
                  is_flat(c) ? "FLAT" : "SPARSE", name, is_flat(c) ? " 0" : "");
}

static int write_text(const struct vmdk_create *c, struct strbuf *out, struct error *err)
{
    unsigned heads = c->adapter == 0 ? 16 : 255;
    uint32_t cid;

    do {
        if (getrandom(&cid, sizeof(cid), 0) != (ssize_t)sizeof(cid)) {
            return error_set(err, EIO, "There are no random numbers");
        }
    } while (cid == VMDK_NO_PARENT);
    strbuf_printf(out,
                  "# Disk DescriptorFile\nversion=1\nCID=%08" PRIx32 "\nparentCID=%08" PRIx32
                  "\ncreateType=\"%s\"\n",
                  cid, c->parent_cid, subformats[c->subformat]);
    if (c->backing_file) {
        strbuf_printf(out, "parentFileNameHint=\"%s\"\n", c->backing_file);
    }
    strbuf_printf(out,
                  "\n# Extent description\n%s\n# The Disk Data Base\n#DDB\n\n"
                  "ddb.virtualHWVersion = \"%s\"\nddb.geometry.cylinders = \"%" PRIu64 "\"\n"
                  "ddb.geometry.heads = \"%u\"\nddb.geometry.sectors = \"63\"\n"
                  "ddb.adapterType = \"%s\"\nddb.toolsVersion = \"%s\"\n",
                  strbuf_str(&c->lines),
                  c->hwversion ? c->hwversion
                  : c->compat6 ? "6"
                               : "4",
                  c->size / VMDK_SECTOR / (UINT64_C(63) * heads), heads, adapters[c->adapter],
                  c->toolsversion ? c->toolsversion : "2147483647");
    return out->failed || c->lines.failed ? error_out_of_memory(err) : 0;
}

/* --- files ------------------------------------------------------------------------------------ */

struct extent_file {
    const struct vmdk_create *create;
    uint64_t size;
};

static int co_write_new_extent(struct block_edge *file, const void *arg, struct error *err)
{
    const struct extent_file *e = arg;

    return is_flat(e->create) ? block_co_truncate(file, e->size, BLOCK_PREALLOC_OFF, err)
                              : co_write_sparse(file, e->create, e->size, NULL, err);
}

/* "dir/disk-f001.vmdk" for "dir/disk.vmdk". The caller frees it; NULL: no memory. */
static char *extent_name(const struct vmdk_create *c, unsigned number)
{
    const char *base = base_name(c->filename), *dot = strrchr(base, '.');
    int length = (int)(dot ? dot - c->filename : (ptrdiff_t)strlen(c->filename));
    char *name;
    int r = is_split(c) ? asprintf(&name, "%.*s-%c%03u%s", length, c->filename,
                                   c->subformat == SPLIT_FLAT ? 'f' : 's', number, dot ?: "")
                        : asprintf(&name, "%.*s-flat%s", length, c->filename, dot ?: "");

    return r < 0 ? NULL : name;
}

static int co_create_extents(struct vmdk_create *c, struct error *err)
{
    uint64_t step = is_split(c) ? SPLIT_SIZE : MAX(c->size, 1u);
    unsigned number = 0;
    int r = 0;

    if (div_round_up(c->size, step) > VMDK_EXTENTS_MAX) {
        return error_set(err, EFBIG, "The image size is too large for file format 'vmdk'");
    }
    for (uint64_t at = 0; at < c->size && r == 0; at += step) {
        struct extent_file e = {.create = c, .size = MIN(c->size - at, step)};
        AUTO_FREE char *name = extent_name(c, ++number);

        if (!name) {
            return error_out_of_memory(err);
        }
        r = blockmap_co_create_file(name, options_clone(c->file_options), co_write_new_extent, &e,
                                    err);
        add_line(c, e.size, base_name(name));
    }
    return r;
}

static int co_write_vmdk(struct block_edge *file, const void *arg, struct error *err)
{
    const struct vmdk_create *c = arg;
    STRBUF_AUTO(text);
    int r = write_text(c, &text, err);

    if (r < 0) {
        return r;
    }
    if (c->subformat == SPARSE || c->subformat == STREAM) {
        if (strlen(strbuf_str(&text)) > (size_t)DESCRIPTOR_SECTORS * VMDK_SECTOR) {
            return error_set(err, EINVAL, "The descriptor of the image is longer than %d bytes",
                             DESCRIPTOR_SECTORS * VMDK_SECTOR);
        }
        return co_write_sparse(file, c, c->size, strbuf_str(&text), err);
    }
    r = block_co_truncate(file, 0, BLOCK_PREALLOC_OFF, err);
    UNLESS_FAILED(r, block_co_truncate(file, strlen(strbuf_str(&text)), BLOCK_PREALLOC_OFF, err));
    if (r < 0) {
        return r;
    }
    r = block_co_pwrite(file, 0, strbuf_str(&text), strlen(strbuf_str(&text)), 0);
    return r < 0 ? error_set_errno(err, -r, "Could not write the descriptor") : 0;
}

int vmdk_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err)
{
    CLEANUP(vmdk_create_release) struct vmdk_create c = {.filename = filename, .size = size};
    int r = blockmap_take_file_options(opts, &c.file_options, err);

    UNLESS_FAILED(r, take_vmdk_create(&c, opts, err));
    UNLESS_FAILED(r, co_find_parent_cid(&c, err));
    if (r == 0 && (is_flat(&c) || is_split(&c))) {
        r = co_create_extents(&c, err);
    } else {
        add_line(&c, size, base_name(filename));
    }
    return r < 0 ? r
                 : blockmap_co_create_file(filename, TAKE_PTR(c.file_options), co_write_vmdk, &c,
                                           err);
}

int vmdk_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                   struct options *opts, struct error *err)
{
    const char *filename = block_node_filename(file);
    CLEANUP(vmdk_create_release)
    struct vmdk_create c = {.filename = *filename ? filename : block_node_name(file), .size = size};
    int r = take_vmdk_create(&c, opts, err);

    if (r == 0 && (is_flat(&c) || is_split(&c))) {
        r = error_set(err, ENOTSUP,
                      "Images of the subformat '%s' have extents in other files, which are made by "
                      "a filename only",
                      subformats[c.subformat]);
    }
    UNLESS_FAILED(r, co_find_parent_cid(&c, err));
    add_line(&c, size, base_name(c.filename));
    return r < 0 ? r : blockmap_co_format(file, co_write_vmdk, &c, err);
}

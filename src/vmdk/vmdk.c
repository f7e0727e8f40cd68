/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver `vmdk`. Options: file, backing, and x-other-files, which says whether the extents and
 * the parent that a descriptor names may be opened.
 *
 *      monolithicSparse    header | descriptor | grain tables, twice | grains
 *      streamOptimized     the same with compressed grains; the tables may be at the end
 *      others              a descriptor; the extents, flat or sparse, are files of their own
 *
 * A grain that an extent does not have is zeroes, or the parent's. A compressed grain can be
 * written once.
 *
 * The open checks headers, directories and the descriptor; entries of grain tables are checked when
 * they are used.
 */
#include "vmdk/vmdk.h"

#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "blockmap/other_files.h"
#include "schema/define.h"
#include "vmdk/image.h"

/* Of images without sparse extents: no request is split. */
#define NO_BLOCKS (1ULL << 62)

/* --- I/O -------------------------------------------------------------------------------------- */

/* The extent of a byte of the disk. */
static struct vmdk_extent *vmdk_extent_at(const struct vmdk *d, uint64_t offset)
{
    unsigned low = 0, high = d->extent_count;

    while (high - low > 1) {
        unsigned middle = (low + high) / 2;

        if (d->extents[middle].start <= offset) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return &d->extents[low];
}

static int vmdk_co_find(struct block_node *node, uint64_t offset, uint64_t length,
                        struct blockmap_run *ret_run)
{
    struct vmdk_extent *e = vmdk_extent_at(node->opaque, offset);
    uint64_t within = offset - e->start;

    length = MIN(length, e->size - within);
    switch (e->type) {
    case VMDK_SPARSE:
        return vmdk_co_find_grains(e, within, length, ret_run);
    case VMDK_FLAT:
        *ret_run = (struct blockmap_run){.kind = BLOCKMAP_DATA,
                                         .length = length,
                                         .edge = e->edge,
                                         .host = e->flat_offset + within,
                                         .is_preallocated = true};
        break;
    case VMDK_ZERO:
        *ret_run = (struct blockmap_run){.kind = BLOCKMAP_ZERO, .length = length};
        break;
    }
    return 0;
}

static int vmdk_co_read_compressed(struct block_node *node, uint64_t offset, struct iov iov,
                                   const struct blockmap_run *run)
{
    struct vmdk_extent *e = vmdk_extent_at(node->opaque, offset);

    return vmdk_co_read_grain(e, run->host, (offset - e->start) % e->grain_size, iov);
}

static int vmdk_co_reserve_locked(struct block_node *node, uint64_t offset, uint64_t length,
                                  struct blockmap_place *ret_place)
{
    struct vmdk_extent *e = vmdk_extent_at(node->opaque, offset);
    uint64_t host = e->free_offset, end = host + e->grain_size;
    int r;

    if (e->type != VMDK_SPARSE) {
        return -EACCES;
    }
    if (e->directory[(offset - e->start) / e->grain_size / e->table_entries] == 0) {
        return -ENOTSUP;
    }
    if (end / VMDK_SECTOR > UINT32_MAX) {
        return -EFBIG;
    }
    /* The next grain goes to the end of the file: no entry may lead behind that. */
    r = blockmap_co_make_room_locked(e->edge, &e->room, end, NULL);
    if (r < 0) {
        return r;
    }
    e->free_offset = end;
    *ret_place =
        (struct blockmap_place){.edge = e->edge, .host = host, .is_zero = host >= e->first_size};
    return 0;
}

static void vmdk_co_give_back_locked(struct block_node *node, const struct blockmap_place *place)
{
    struct vmdk *d = node->opaque;

    for (size_t i = 0; i < d->extent_count; i++) {
        struct vmdk_extent *e = &d->extents[i];

        if (e->edge == place->edge && e->free_offset == place->host + e->grain_size) {
            e->first_size = MAX(e->first_size, e->free_offset);
            e->free_offset = place->host;
        }
    }
}

static int vmdk_co_link_locked(struct block_node *node, uint64_t offset,
                               const struct blockmap_place *place)
{
    struct vmdk_extent *e = vmdk_extent_at(node->opaque, offset);

    return vmdk_co_set_entry(e, offset - e->start, (uint32_t)(place->host / VMDK_SECTOR));
}

static int vmdk_co_zero_locked(struct block_node *node, uint64_t offset)
{
    struct vmdk_extent *e = vmdk_extent_at(node->opaque, offset);

    return e->has_zero_grains ? vmdk_co_set_entry(e, offset - e->start, 1) : -ENOTSUP;
}

/* Images above, which have recorded the CID, must notice that the image has changed. */
static int vmdk_co_change_cid(struct block_node *node)
{
    struct vmdk *d = node->opaque;
    char digits[9];
    uint32_t cid;
    int r;

    if (d->descriptor.cid_at == 0) {
        return 0;
    }
    do {
        if (getrandom(&cid, sizeof(cid), 0) != (ssize_t)sizeof(cid)) {
            return -EIO;
        }
    } while (cid == VMDK_NO_PARENT || cid == d->descriptor.cid);
    snprintf(digits, sizeof(digits), "%08" PRIx32, cid);
    r = block_co_pwrite(node->file, d->descriptor_offset + d->descriptor.cid_at, digits, 8, 0);
    if (r == 0) {
        d->descriptor.cid = cid;
    }
    return r;
}

static const struct blockmap_ops vmdk_map_ops = {
    .co_find = vmdk_co_find,
    .co_read_compressed = vmdk_co_read_compressed,
    .co_reserve_locked = vmdk_co_reserve_locked,
    .co_give_back_locked = vmdk_co_give_back_locked,
    .co_link_locked = vmdk_co_link_locked,
    .co_begin_writing_locked = vmdk_co_change_cid,
    .co_zero_locked = vmdk_co_zero_locked,
};

static int vmdk_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    const struct vmdk *d = node->opaque;
    int r = blockmap_co_begin_writing(node);

    for (size_t done = 0, n; done < iov.size && r == 0; done += n) {
        struct vmdk_extent *e = vmdk_extent_at(d, offset + done);
        IOV_PART_AUTO(part);

        /* A sparse extent gets plain grains, as from qemu-img. */
        if ((flags & BLOCK_REQ_COMPRESSED) && !e->compressed && e->type != VMDK_SPARSE) {
            return -ENOTSUP;
        }
        n = MIN(iov.size - done, e->start + e->size - (offset + done));
        r = iov_part_set(&part, iov, done, n);
        UNLESS_FAILED(r, e->compressed ? vmdk_co_write_grains(node, e, offset + done, part.iov)
                                       : blockmap_co_pwritev(node, offset + done, part.iov, 0));
    }
    return r;
}

/* --- extents ---------------------------------------------------------------------------------- */

/* Open the file of an extent, as what it is, whatever it contains. */
static int co_open_extent_file(struct block_node *node, struct options *opts, unsigned index,
                               enum other_files allowed, struct block_edge **ret_edge,
                               struct error *err)
{
    const struct vmdk *d = node->opaque;
    AUTO_OPTIONS struct options *child = options_new();
    AUTO_FREE char *path = NULL;
    char name[32];
    int r = child ? 0 : error_out_of_memory(err);

    UNLESS_FAILED(r, other_files_co_resolve(node, allowed, d->descriptor.extents[index].filename,
                                            "extent", &path, err));
    if (r < 0) {
        return r;
    }
    snprintf(name, sizeof(name), "extents.%u", index);
    options_set_str(child, "driver", "file");
    options_set_str(child, "filename", path);
    options_set_child(opts, name, TAKE_PTR(child));
    return block_co_open_child(node, opts, name, BLOCK_ROLE_DATA | BLOCK_ROLE_METADATA, false,
                               ret_edge, err);
}

static int check_flat(const struct block_node *node, const struct vmdk_extent *e, struct error *err)
{
    if (range_fits(e->flat_offset, e->size, block_edge_size(e->edge))) {
        return 0;
    }
    return error_set(err, EINVAL,
                     "Extent '%s' of '%s' is shorter than it should be: %" PRIu64
                     " bytes, expected %" PRIu64,
                     block_node_display_name(e->edge->node), block_node_display_name(node),
                     block_edge_size(e->edge), e->flat_offset + e->size);
}

static int co_open_extent(struct block_node *node, struct options *opts, unsigned index,
                          enum other_files allowed, struct error *err)
{
    struct vmdk *d = node->opaque;
    const struct vmdk_extent_line *line = &d->descriptor.extents[index];
    struct vmdk_extent *e = &d->extents[index];
    int r = 0;

    e->type = line->type;
    snprintf(e->type_name, sizeof(e->type_name), "%s", line->type_name);
    if (e->type != VMDK_ZERO) {
        r = co_open_extent_file(node, opts, index, allowed, &e->edge, err);
    }
    if (r == 0 && e->type == VMDK_SPARSE) {
        r = vmdk_co_open_sparse(node, e, err);
        if (r == 0 && e->size < line->size) {
            r = error_set(err, EINVAL,
                          "Extent '%s' of '%s' has %" PRIu64
                          " bytes of the disk, expected %" PRIu64,
                          block_node_display_name(e->edge->node), block_node_display_name(node),
                          e->size, line->size);
        }
    }
    e->size = line->size;
    e->flat_offset = line->offset;
    if (r == 0 && e->type == VMDK_FLAT) {
        r = check_flat(node, e, err);
    }
    return r;
}

static int co_open_extents(struct block_node *node, struct options *opts, enum other_files allowed,
                           struct error *err)
{
    struct vmdk *d = node->opaque;
    uint64_t start = 0;
    int r = 0;

    d->extents = calloc(MAX(d->descriptor.extent_count, 1u), sizeof(*d->extents));
    if (!d->extents) {
        return error_out_of_memory(err);
    }
    for (unsigned i = 0; i < d->descriptor.extent_count && r == 0; i++) {
        d->extent_count = i + 1;
        r = co_open_extent(node, opts, i, allowed, err);
        d->extents[i].start = start;
        if (r == 0 && (add_overflows(start, d->extents[i].size, &start) || start > INT64_MAX)) {
            r = error_set(err, EFBIG,
                          "The extents of '%s' together are over the limit of 2^63 "
                          "bytes",
                          block_node_display_name(node));
        }
    }
    block_node_set_size(node, start);
    return r;
}

/* --- opening ---------------------------------------------------------------------------------- */

static int co_read_descriptor(struct block_node *node, uint64_t offset, uint64_t size,
                              struct error *err)
{
    struct vmdk *d = node->opaque;
    const char *name = block_node_display_name(node);
    AUTO_FREE char *text = NULL;
    int r;

    if (size > VMDK_DESCRIPTOR_MAX) {
        return error_set(err, EFBIG,
                         "The descriptor of '%s' has %" PRIu64 " bytes, at most %d are "
                         "supported",
                         name, size, VMDK_DESCRIPTOR_MAX);
    }
    text = calloc(size + 1, 1);
    if (!text) {
        return error_out_of_memory(err);
    }
    d->descriptor_offset = offset;
    r = blockmap_co_read_exactly(node, node->file, offset, text, size, "descriptor", err);
    return r < 0 ? r : vmdk_parse_descriptor(text, size, name, &d->descriptor, err);
}

static bool is_type(const struct vmdk *d, const char *const *names)
{
    for (; *names; names++) {
        if (strcmp(d->descriptor.create_type, *names) == 0) {
            return true;
        }
    }
    return false;
}

static int co_open_described(struct block_node *node, struct options *opts,
                             enum other_files allowed, struct error *err)
{
    static const char *const types[] = {"monolithicFlat",     "vmfs",   "twoGbMaxExtentSparse",
                                        "twoGbMaxExtentFlat", "custom", NULL};
    const struct vmdk *d = node->opaque;

    if (!is_type(d, types)) {
        return error_set(err, ENOTSUP, "Unsupported image type '%s'", d->descriptor.create_type);
    }
    return co_open_extents(node, opts, allowed, err);
}

/* The file is a sparse extent, with a descriptor inside. */
static int co_open_monolithic(struct block_node *node, struct options *opts,
                              enum other_files allowed, struct error *err)
{
    static const char *const types[] = {"monolithicSparse", "streamOptimized", "", NULL};
    struct vmdk *d = node->opaque;
    struct vmdk_extent *e;
    int r;

    d->extents = calloc(1, sizeof(*d->extents));
    if (!d->extents) {
        return error_out_of_memory(err);
    }
    d->extent_count = 1;
    e = d->extents;
    e->edge = node->file;
    r = vmdk_co_open_sparse(node, e, err);
    if (r == 0 && e->descriptor_offset != 0) {
        r = co_read_descriptor(node, e->descriptor_offset, e->descriptor_size, err);
    }
    if (r == 0 && e->size == 0 && !is_type(d, types)) { /* a descriptor in a file of extents */
        vmdk_extent_release(e);
        free(d->extents);
        d->extents = NULL;
        d->extent_count = 0;
        return co_open_described(node, opts, allowed, err);
    }
    block_node_set_size(node, e->size);
    return r;
}

/* What keeps an image from being written: extents, and grains of which extents disagree. */
static int check_vmdk_writing(const struct block_node *node, struct error *err)
{
    const struct vmdk *d = node->opaque;
    uint64_t grain = 0;

    for (unsigned i = 0; i < d->extent_count && !node->read_only; i++) {
        const struct vmdk_extent *e = &d->extents[i];

        if (i < d->descriptor.extent_count && d->descriptor.extents[i].read_only) {
            return error_set(err, EACCES, "Image is read-only: extent %u of '%s' is RDONLY", i,
                             block_node_display_name(node));
        }
        if (e->type != VMDK_SPARSE) {
            continue;
        }
        if ((grain != 0 && e->grain_size != grain) || e->start % e->grain_size != 0) {
            return error_set(err, EACCES,
                             "Image is read-only: the extents of '%s' have different grains",
                             block_node_display_name(node));
        }
        grain = e->grain_size;
    }
    return 0;
}

static int vmdk_co_reopen_prepare(struct block_node *node, struct options *opts, struct error *err)
{
    return check_vmdk_writing(node, err);
}

static int vmdk_co_reload(struct block_node *node, struct error *err)
{
    struct vmdk *d = node->opaque;

    for (unsigned i = 0; i < d->extent_count; i++) {
        if (d->extents[i].type == VMDK_SPARSE) {
            vmdk_extent_reload(&d->extents[i]);
        }
    }
    atomic_store(&d->map.is_writing, false);
    return 0;
}

static void plan_blocks(struct block_node *node)
{
    struct vmdk *d = node->opaque;
    uint64_t grain = 0;

    for (unsigned i = 0; i < d->extent_count; i++) {
        grain = MAX(grain, d->extents[i].grain_size);
    }
    blockmap_init(&d->map, &vmdk_map_ops, grain ? grain : NO_BLOCKS);
    node->limits.cluster_size = grain <= UINT32_MAX ? (uint32_t)grain : 0;
}

static int co_load_vmdk(struct block_node *node, struct options *opts, enum other_files allowed,
                        struct error *err)
{
    uint8_t head[VMDK_SECTOR] = {0};
    uint64_t size = block_edge_size(node->file);
    int r = block_co_pread(node->file, 0, head, MIN(size, sizeof(head)));

    if (r < 0) {
        return error_set_errno(err, -r, "Could not read the header of '%s'",
                               block_node_display_name(node));
    }
    if (memcmp(head, "KDMV", 4) == 0 || memcmp(head, "COWD", 4) == 0) {
        r = co_open_monolithic(node, opts, allowed, err);
    } else if (vmdk_is_descriptor(head, sizeof(head))) {
        r = co_read_descriptor(node, 0, size, err);
        UNLESS_FAILED(r, co_open_described(node, opts, allowed, err));
    } else {
        r = error_set(err, EINVAL, "Image not in VMDK format: '%s'", block_node_display_name(node));
    }
    UNLESS_FAILED(r, check_vmdk_writing(node, err));
    if (r == 0) {
        plan_blocks(node);
    }
    return r;
}

/* --- the parent ------------------------------------------------------------------------------- */

/* Also of a parent that an option gives; one of another format has nothing to compare. */
static int check_parent_cid(const struct block_node *node, struct error *err)
{
    const struct vmdk *d = node->opaque;
    const struct block_node *parent = block_node_skip_filters(node->backing->node);
    const struct vmdk *p = parent->opaque;

    if (strcmp(parent->driver->name, "vmdk") != 0 ||
        p->descriptor.cid == d->descriptor.parent_cid) {
        return 0;
    }
    if (d->descriptor.parent_cid == VMDK_NO_PARENT) {
        return error_set(err, EINVAL, "Image '%s' has no parent, so '%s' can't be its parent",
                         block_node_display_name(node), block_node_display_name(parent));
    }
    return error_set(err, EINVAL,
                     "The parent '%s' of '%s' was changed after the image was made: its CID is "
                     "%08" PRIx32 ", expected %08" PRIx32,
                     block_node_display_name(parent), block_node_display_name(node),
                     p->descriptor.cid, d->descriptor.parent_cid);
}

static int vmdk_co_open_parent(struct block_node *node, struct options *opts,
                               enum other_files allowed, struct error *err)
{
    const struct vmdk *d = node->opaque;
    AUTO_FREE char *path = NULL;
    bool wanted = !options_has(opts, "backing") && !(node->open_flags & BLOCK_OPEN_NO_BACKING);
    bool recorded = wanted && d->descriptor.parent_name[0];
    int r = 0;

    if (wanted && !recorded && d->descriptor.parent_cid != VMDK_NO_PARENT) {
        return error_set(err, EINVAL,
                         "Image '%s' has a parent, with the CID %08" PRIx32
                         ", and does not name it",
                         block_node_display_name(node), d->descriptor.parent_cid);
    }
    if (recorded) {
        r = other_files_co_resolve(node, allowed, d->descriptor.parent_name, "parent", &path, err);
        UNLESS_FAILED(r, other_files_pass_on(opts, allowed, err));
    }
    UNLESS_FAILED(r, block_co_open_backing(node, opts, recorded ? d->descriptor.parent_name : NULL,
                                           "vmdk", err));
    return r == 0 && node->backing ? check_parent_cid(node, err) : r;
}

/* --- the driver ------------------------------------------------------------------------------- */

static int vmdk_co_inactivate(struct block_node *node, struct error *err)
{
    struct vmdk *d = node->opaque;

    for (unsigned i = 0; i < d->extent_count; i++) {
        struct vmdk_extent *e = &d->extents[i];

        blockmap_co_cut_room(e->edge, &e->room, e->free_offset);
    }
    return 0;
}

static void vmdk_co_close(struct block_node *node)
{
    struct vmdk *d = node->opaque;

    blockmap_destroy(&d->map);
    for (unsigned i = 0; i < d->extent_count; i++) {
        vmdk_extent_release(&d->extents[i]);
    }
    free(d->extents);
    d->extents = NULL;
    d->extent_count = 0;
    vmdk_descriptor_release(&d->descriptor);
}

static int vmdk_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    enum other_files allowed;
    int r = other_files_take(opts, &allowed, err);

    UNLESS_FAILED(r, block_co_open_child(node, opts, "file", BLOCK_ROLE_DATA | BLOCK_ROLE_METADATA,
                                         false, NULL, err));
    UNLESS_FAILED(r, co_load_vmdk(node, opts, allowed, err));
    UNLESS_FAILED(r, vmdk_co_open_parent(node, opts, allowed, err));
    if (r < 0) {
        vmdk_co_close(node);
        return r;
    }
    node->limits.request_alignment = VMDK_SECTOR;
    node->limits.memory_alignment = node->file->node->limits.memory_alignment;
    return 0;
}

static int vmdk_probe(const uint8_t *head, size_t size)
{
    bool is_sparse = size >= 4 && (memcmp(head, "KDMV", 4) == 0 || memcmp(head, "COWD", 4) == 0);

    return is_sparse || vmdk_is_descriptor(head, size) ? 100 : 0;
}

static int vmdk_co_get_info(struct block_node *node, struct block_info *ret_info)
{
    const struct vmdk *d = node->opaque;
    bool compressed = d->extent_count > 0 && d->extents[0].compressed;

    *ret_info = (struct block_info){
        .cluster_size = node->limits.cluster_size,
        .has_dirty_flag = true,
        .writes_whole_clusters = compressed,
        .backing_filename = d->descriptor.parent_name[0] ? d->descriptor.parent_name : NULL,
        .backing_format = d->descriptor.parent_name[0] ? "vmdk" : NULL,
    };
    return 0;
}

static struct json_object *extent_info(const struct vmdk_extent *e)
{
    struct json_object *o = json_object_new_object();

    if (e->compressed) {
        json_object_object_add(o, "compressed", json_object_new_boolean(true));
    }
    json_object_object_add(o, "virtual-size", json_object_new_uint64(e->size));
    json_object_object_add(
        o, "filename", json_object_new_string(e->edge ? block_node_filename(e->edge->node) : ""));
    if (e->type == VMDK_SPARSE) {
        json_object_object_add(o, "cluster-size", json_object_new_uint64(e->grain_size));
    }
    json_object_object_add(o, "format", json_object_new_string(e->type_name));
    return o;
}

static struct json_object *vmdk_co_specific_info(struct block_node *node)
{
    const struct vmdk *d = node->opaque;
    struct json_object *o = json_object_new_object(), *data = json_object_new_object();
    struct json_object *extents = json_object_new_array();

    for (unsigned i = 0; i < d->extent_count; i++) {
        json_object_array_add(extents, extent_info(&d->extents[i]));
    }
    json_object_object_add(data, "cid", json_object_new_uint64(d->descriptor.cid));
    json_object_object_add(data, "parent-cid", json_object_new_uint64(d->descriptor.parent_cid));
    json_object_object_add(data, "create-type", json_object_new_string(d->descriptor.create_type));
    json_object_object_add(data, "extents", extents);
    json_object_object_add(o, "type", json_object_new_string("vmdk"));
    json_object_object_add(o, "data", data);
    return o;
}

static int vmdk_co_check(struct block_node *node, unsigned fix,
                         struct block_check_result *ret_result, struct error *err)
{
    struct vmdk *d = node->opaque;
    int r = 0;

    if (fix) {
        return error_set(err, ENOTSUP, "This image format does not support checks");
    }
    *ret_result = (struct block_check_result){0};
    for (unsigned i = 0; i < d->extent_count && r == 0; i++) {
        if (d->extents[i].type == VMDK_SPARSE) {
            r = vmdk_co_check_extent(node, &d->extents[i], ret_result);
        }
    }
    return r < 0 ? error_set_errno(err, -r, "Could not read a grain table") : 0;
}

static const struct schema_type vmdk_options_type =
    OBJECT_INIT("BlockdevOptionsVmdk", REQ("file", block_ref_type),
                OPT("backing", block_ref_or_null_type,
                    .help = "the parent; default: as the image says, null: none"),
                OTHER_FILES_MEMBER);
OBJECT(extent_type, "VmdkExtentInfo", REQ("filename", schema_str), REQ("format", schema_str),
       REQ("virtual-size", schema_int), OPT("cluster-size", schema_int),
       OPT("compressed", schema_bool));
static const struct schema_type extents_type = ARRAY_INIT("VmdkExtentInfoList", extent_type);
OBJECT(vmdk_info_type, "ImageInfoSpecificVmdk", REQ("create-type", schema_str),
       REQ("cid", schema_int), REQ("parent-cid", schema_int), REQ("extents", extents_type));
static const struct schema_type vmdk_specific_info_type =
    OBJECT_INIT("ImageInfoSpecificVmdkWrapper", REQ("data", vmdk_info_type));

static const struct block_driver vmdk_driver = {
    .name = "vmdk",
    .help = "format: VMDK of VMware",
    .options = &vmdk_options_type,
    .instance_size = sizeof(struct vmdk),
    .is_format = true,
    .compresses = true,
    .probe = vmdk_probe,
    .co_open = vmdk_co_open,
    .co_close = vmdk_co_close,
    .co_reload = vmdk_co_reload,
    .co_inactivate = vmdk_co_inactivate,
    .co_reopen_prepare = vmdk_co_reopen_prepare,
    .reopen_options = block_no_options,
    .exchanges_file = true,
    .file_head = 4096,
    .co_create = vmdk_co_create,
    .co_format = vmdk_co_format,
    .create_options = vmdk_create_options,
    .create_type = &vmdk_create_type,
    .co_get_info = vmdk_co_get_info,
    .co_specific_info = vmdk_co_specific_info,
    .specific_info_type = &vmdk_specific_info_type,
    .co_check = vmdk_co_check,
    .co_preadv = blockmap_co_preadv,
    .co_pwritev = vmdk_co_pwritev,
    .co_write_zeroes = blockmap_co_write_zeroes,
    .co_status = blockmap_co_status,
};

void vmdk_register_driver(void)
{
    block_register_driver(&vmdk_driver);
}

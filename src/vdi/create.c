/* SPDX-License-Identifier: Apache-2.0 */
/* Making VDI images. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "block/option_types.h"
#include "blockmap/create.h"
#include "schema/define.h"
#include "vdi/image.h"

const struct block_option_desc vdi_create_options[] = {
    {"static", "bool (on/off)", "VDI static (pre-allocated) image"},
    {NULL, NULL, NULL},
};

const struct schema_type vdi_create_type =
    OBJECT_INIT("BlockdevCreateOptionsVdi", REQ("file", block_ref_type),
                REQ("size", schema_size, .unit = "bytes"),
                OPT("preallocation", block_prealloc_type, .dflt = "off",
                    .help = "metadata: a static disk; the others are refused"));

struct vdi_create {
    bool is_static;
    /* bytes */
    uint64_t size;
    uint32_t blocks;
};

static void fill_vdi_header(const struct vdi_create *c, uint8_t *h, uint64_t data)
{
    static const char text[] = "<<< Tidemark VM Virtual Disk Image >>>\n";

    memset(h, 0, VDI_HEADER_SIZE);
    memcpy(h, text, sizeof(text));
    store_le32(h + VDI_AT_SIGNATURE, VDI_SIGNATURE);
    store_le32(h + VDI_AT_VERSION, VDI_VERSION);
    store_le32(h + VDI_AT_HEADER_SIZE, 0x180);
    store_le32(h + VDI_AT_TYPE, c->is_static ? VDI_TYPE_STATIC : VDI_TYPE_DYNAMIC);
    store_le32(h + VDI_AT_TABLE, VDI_HEADER_SIZE);
    store_le32(h + VDI_AT_DATA, (uint32_t)data);
    store_le32(h + VDI_AT_SECTOR_SIZE, VDI_SECTOR);
    store_le64(h + VDI_AT_DISK_SIZE, c->size);
    store_le32(h + VDI_AT_BLOCK_SIZE, VDI_BLOCK_SIZE);
    store_le32(h + VDI_AT_BLOCKS, c->blocks);
    store_le32(h + VDI_AT_ALLOCATED, c->is_static ? c->blocks : 0);
    blockmap_fill_uuid(h + VDI_AT_UUID);
    blockmap_fill_uuid(h + VDI_AT_SNAPSHOT_UUID);
}

static int co_write_vdi(struct block_edge *file, const void *arg, struct error *err)
{
    const struct vdi_create *c = arg;
    uint64_t data = VDI_HEADER_SIZE + round_up((uint64_t)c->blocks * 4, VDI_SECTOR);
    uint64_t file_size = data + (c->is_static ? (uint64_t)c->blocks * VDI_BLOCK_SIZE : 0);
    AUTO_FREE uint8_t *b = calloc(1, data);
    int r = b ? blockmap_co_clear_file(file, file_size, err) : error_out_of_memory(err);

    if (r < 0) {
        return r;
    }
    fill_vdi_header(c, b, data);
    for (uint32_t i = 0; i < c->blocks; i++) {
        store_le32(b + VDI_HEADER_SIZE + 4 * (size_t)i, c->is_static ? i : VDI_ABSENT);
    }
    r = block_co_pwrite(file, 0, b, data, 0);
    return r < 0 ? error_set_errno(err, -r, "Could not write the metadata of the image") : 0;
}

static int take_vdi_create(struct vdi_create *c, uint64_t size, struct options *opts,
                           struct error *err)
{
    static const char *const modes[] = {"off", "metadata", "falloc", "full", NULL};
    int mode = 0, r;

    if ((r = options_take_bool(opts, "static", false, &c->is_static, err)) < 0 ||
        (r = blockmap_take_choice(opts, "preallocation", modes, &mode, err)) < 0 ||
        (r = options_check_empty(opts, "Format 'vdi'", err)) < 0) {
        return r;
    }
    if (size > (uint64_t)VDI_TABLE_MAX * VDI_BLOCK_SIZE) {
        return error_set(err, EFBIG,
                         "Unsupported VDI image size (size is 0x%" PRIx64
                         ", max supported is 0x%" PRIx64 ")",
                         size, (uint64_t)VDI_TABLE_MAX * VDI_BLOCK_SIZE);
    }
    c->is_static = c->is_static || mode == 1;
    c->size = size;
    c->blocks = (uint32_t)div_round_up(size, VDI_BLOCK_SIZE);
    return 0;
}

int vdi_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err)
{
    struct vdi_create c = {0};
    AUTO_OPTIONS struct options *file_options = NULL;
    int r = blockmap_take_file_options(opts, &file_options, err);

    UNLESS_FAILED(r, take_vdi_create(&c, size, opts, err));
    return r < 0 ? r
                 : blockmap_co_create_file(filename, TAKE_PTR(file_options), co_write_vdi, &c, err);
}

int vdi_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                  struct options *opts, struct error *err)
{
    struct vdi_create c = {0};
    int r = take_vdi_create(&c, size, opts, err);

    return r < 0 ? r : blockmap_co_format(file, co_write_vdi, &c, err);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Making VHDX images: in this order headers, regions, log, BAT, metadata, blocks. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "blockmap/create.h"
#include "schema/define.h"
#include "vhdx/image.h"

#define BLOCK_MAX (256 * MiB)
#define LOG_SIZE_MAX (64 * MiB)
#define SECTOR 512
#define ITEMS_AT VHDX_METADATA_TABLE_SIZE

const struct block_option_desc vhdx_create_options[] = {
    {"block_size", "size",
     "Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size."},
    {"block_state_zero", "bool (on/off)",
     "Force use of payload blocks of type 'ZERO'. Non-standard, but default.  Do not set to 'off' "
     "when using 'qemu-img convert' with subformat=dynamic."},
    {"log_size", "size", "Log size; min 1MB."},
    {"subformat", "str",
     "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'."},
    {"size", "size", "Virtual disk size; max of 64TB."},
    {NULL, NULL, NULL},
};

ENUM(subformat_type, "BlockdevVhdxSubformat", "dynamic", "fixed");
const struct schema_type vhdx_create_type =
    OBJECT_INIT("BlockdevCreateOptionsVhdx", REQ("file", block_ref_type),
                REQ("size", schema_size, .unit = "bytes"),
                OPT("log-size", schema_size, .dflt = "1 MiB", .unit = "bytes"),
                OPT("block-size", schema_size, .dflt = "by the size of the disk", .unit = "bytes",
                    .help = "a power of two from 1 MiB to 256 MiB"),
                OPT("subformat", subformat_type, .dflt = "dynamic"),
                OPT("block-state-zero", schema_bool, .dflt = "true",
                    .help = "blocks that were never written are marked as zeroes"));

struct vhdx_create {
    /* bytes */
    uint64_t size, log_size, block_size;
    bool fixed, state_zero, has_block_size;
    uint32_t chunk_ratio;
    uint64_t blocks, bat_offset, bat_size, metadata_offset, data_offset;
};

static void put_region(uint8_t *entry, const struct vhdx_guid *guid, uint64_t offset,
                       uint64_t length)
{
    memcpy(entry, guid->bytes, 16);
    store_le64(entry + 16, offset);
    store_le32(entry + 24, (uint32_t)length);
    store_le32(entry + 28, 1);
}

/* The first MiB. */
static void fill_head(const struct vhdx_create *c, uint8_t *b)
{
    static const char creator[] = "Tidemark";
    struct vhdx_header header = {
        .sequence = 1, .log_offset = VHDX_UNIT, .log_length = (uint32_t)c->log_size};
    uint8_t *regions = b + VHDX_REGIONS_1;

    store_signature(b, "vhdxfile");
    for (size_t i = 0; i < sizeof(creator) - 1; i++) {
        store_le16(b + 8 + 2 * i, (uint16_t)creator[i]);
    }
    blockmap_fill_uuid(header.file_write.bytes);
    blockmap_fill_uuid(header.data_write.bytes);
    vhdx_fill_header(&header, b + VHDX_HEADER_1);
    header.sequence++;
    vhdx_fill_header(&header, b + VHDX_HEADER_2);
    store_signature(regions, "regi");
    store_le32(regions + 8, 2);
    put_region(regions + 16, &vhdx_guid_bat, c->bat_offset, c->bat_size);
    put_region(regions + 48, &vhdx_guid_metadata, c->metadata_offset, VHDX_UNIT);
    store_le32(regions + 4, vhdx_checksum(regions, VHDX_REGIONS_SIZE, 4));
    memcpy(b + VHDX_REGIONS_2, regions, VHDX_REGIONS_SIZE);
}

struct item {
    const struct vhdx_guid *guid;
    uint32_t offset, length, flags;
};

static void fill_metadata(const struct vhdx_create *c, uint8_t *b)
{
    enum { REQUIRED = 4, OF_DISK = 2 };
    const struct item items[] = {
        {&vhdx_guid_file_parameters, 0, 8, REQUIRED},
        {&vhdx_guid_disk_size, 8, 8, REQUIRED | OF_DISK},
        {&vhdx_guid_disk_id, 16, 16, REQUIRED | OF_DISK},
        {&vhdx_guid_logical_sector, 32, 4, REQUIRED | OF_DISK},
        {&vhdx_guid_physical_sector, 36, 4, REQUIRED | OF_DISK},
    };
    uint8_t *values = b + ITEMS_AT;

    store_signature(b, "metadata");
    store_le16(b + 10, ARRAY_SIZE(items));
    for (size_t i = 0; i < ARRAY_SIZE(items); i++) {
        uint8_t *entry = b + 32 + 32 * i;

        memcpy(entry, items[i].guid->bytes, 16);
        store_le32(entry + 16, ITEMS_AT + items[i].offset);
        store_le32(entry + 20, items[i].length);
        store_le32(entry + 24, items[i].flags);
    }
    store_le32(values, (uint32_t)c->block_size);
    store_le32(values + 4, c->fixed ? 1 : 0);
    store_le64(values + 8, c->size);
    blockmap_fill_uuid(values + 16);
    store_le32(values + 32, SECTOR);
    store_le32(values + 36, SECTOR);
}

/* All entries of new images are alike, but for the places of fixed disks. */
static int co_write_bat(struct block_edge *file, const struct vhdx_create *c)
{
    uint64_t state = c->fixed ? VHDX_FULLY_PRESENT : VHDX_ZERO;
    uint64_t entries = c->blocks == 0 ? 0 : vhdx_bat_index(c->chunk_ratio, c->blocks - 1) + 1;
    AUTO_FREE uint8_t *bat = calloc(MAX(entries, 1u), 8);

    if (!c->fixed && !c->state_zero) {
        return 0;
    }
    if (!bat) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < c->blocks; i++) {
        store_le64(bat + 8 * vhdx_bat_index(c->chunk_ratio, i),
                   state | (c->fixed ? c->data_offset + i * c->block_size : 0));
    }
    return block_co_pwrite(file, c->bat_offset, bat, entries * 8, 0);
}

static int co_write_vhdx(struct block_edge *file, const void *arg, struct error *err)
{
    const struct vhdx_create *c = arg;
    AUTO_FREE uint8_t *head = calloc(1, VHDX_UNIT);
    AUTO_FREE uint8_t *metadata = calloc(1, (size_t)2 * VHDX_METADATA_TABLE_SIZE);
    int r = head && metadata ? 0 : error_out_of_memory(err);

    UNLESS_FAILED(r, block_co_truncate(file, 0, BLOCK_PREALLOC_OFF, err));
    UNLESS_FAILED(r, block_co_truncate(file,
                                       c->data_offset + (c->fixed ? c->blocks * c->block_size : 0),
                                       BLOCK_PREALLOC_OFF, err));
    if (r < 0) {
        return r;
    }
    fill_head(c, head);
    fill_metadata(c, metadata);
    r = block_co_pwrite(file, 0, head, VHDX_REGIONS_2 + VHDX_REGIONS_SIZE, 0);
    UNLESS_FAILED(r, co_write_bat(file, c));
    UNLESS_FAILED(r, block_co_pwrite(file, c->metadata_offset, metadata,
                                     (size_t)2 * VHDX_METADATA_TABLE_SIZE, 0));
    return r < 0 ? error_set_errno(err, -r, "Could not write the metadata of the image") : 0;
}

/* Larger disks have larger blocks, so that the BAT stays small. */
static uint64_t default_block_size(uint64_t size)
{
    return size > 32 * TiB    ? 64 * MiB
           : size > 100 * GiB ? 32 * MiB
           : size > GiB       ? 16 * MiB
                              : 8 * MiB;
}

/*
 * Entries of the BAT. For a disk without blocks QEMU expects those that would be below block -1,
 * and opens no image with fewer. They stay a hole in the file.
 */
static uint64_t bat_entries(const struct vhdx_create *c)
{
    uint64_t of_empty_disk = UINT32_MAX / c->chunk_ratio;

    if (c->blocks > 0) {
        return vhdx_bat_index(c->chunk_ratio, c->blocks - 1) + 1;
    }
    return of_empty_disk <= VHDX_ENTRIES_MAX ? of_empty_disk : 1;
}

static int plan_vhdx(struct vhdx_create *c, struct error *err)
{
    uint64_t entries;

    if (c->size > VHDX_SIZE_MAX) {
        return error_set(err, EFBIG, "Image size too large; max of 64TB");
    }
    if (c->log_size >= 4 * GiB) {
        return error_set(err, EFBIG, "Log size must be smaller than 4 GB");
    }
    if (c->log_size > LOG_SIZE_MAX) {
        return error_set(err, EFBIG, "Log size must be at most 64 MiB");
    }
    c->log_size = MAX(round_up(c->log_size, VHDX_UNIT), (uint64_t)VHDX_UNIT);
    if (c->block_size == 0) {
        c->block_size = default_block_size(c->size);
    }
    c->block_size = c->block_size < VHDX_UNIT ? VHDX_UNIT : MIN(c->block_size, BLOCK_MAX);
    if (!is_power_of_2(c->block_size)) {
        return error_set(err, EINVAL, "Block size must be a power of two");
    }
    c->chunk_ratio = (uint32_t)((8ULL << 20) * SECTOR / c->block_size);
    c->blocks = div_round_up(c->size, c->block_size);
    entries = bat_entries(c);
    if (entries > VHDX_ENTRIES_MAX) {
        return error_set(err, EFBIG, "The image size is too large for blocks of %llu MiB",
                         (unsigned long long)(c->block_size / MiB));
    }
    c->bat_offset = VHDX_UNIT + c->log_size;
    c->bat_size = round_up(entries * 8, VHDX_UNIT);
    c->metadata_offset = c->bat_offset + c->bat_size;
    c->data_offset = c->metadata_offset + VHDX_UNIT;
    return 0;
}

static int take_vhdx_create(struct vhdx_create *c, uint64_t size, struct options *opts,
                            struct error *err)
{
    static const char *const choices[] = {"dynamic", "fixed", NULL};
    int choice = 0, r;

    c->has_block_size = options_has(opts, "block_size");
    if ((r = blockmap_take_choice(opts, "subformat", choices, &choice, err)) < 0 ||
        (r = options_take_size(opts, "log_size", VHDX_UNIT, &c->log_size, err)) < 0 ||
        (r = options_take_size(opts, "block_size", 0, &c->block_size, err)) < 0 ||
        (r = options_take_bool(opts, "block_state_zero", true, &c->state_zero, err)) < 0 ||
        (r = blockmap_take_preallocation(opts, err)) < 0 ||
        (r = options_check_empty(opts, "Format 'vhdx'", err)) < 0) {
        return r;
    }
    c->fixed = choice == 1;
    c->size = size;
    return 0;
}

/* In commands sizes are taken as they are; on command lines they are rounded. */
static int check_exact_sizes(const struct vhdx_create *c, struct error *err)
{
    if (c->log_size % MiB != 0 || c->log_size == 0) {
        return error_set(err, EINVAL, "Log size must be a multiple of 1 MB");
    }
    if (c->block_size % MiB != 0 || (c->has_block_size && c->block_size == 0)) {
        return error_set(err, EINVAL, "Block size must be a multiple of 1 MB");
    }
    if (c->block_size != 0 && !is_power_of_2(c->block_size)) {
        return error_set(err, EINVAL, "Block size must be a power of two");
    }
    if (c->block_size > BLOCK_MAX) {
        return error_set(err, EINVAL, "Block size must not exceed %llu", BLOCK_MAX);
    }
    return 0;
}

int vhdx_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err)
{
    struct vhdx_create c = {0};
    AUTO_OPTIONS struct options *file_options = NULL;
    int r = blockmap_take_file_options(opts, &file_options, err);

    UNLESS_FAILED(r, take_vhdx_create(&c, size, opts, err));
    UNLESS_FAILED(r, plan_vhdx(&c, err));
    return r < 0
               ? r
               : blockmap_co_create_file(filename, TAKE_PTR(file_options), co_write_vhdx, &c, err);
}

int vhdx_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                   struct options *opts, struct error *err)
{
    struct vhdx_create c = {0};
    int r = take_vhdx_create(&c, size, opts, err);

    UNLESS_FAILED(r, check_exact_sizes(&c, err));
    UNLESS_FAILED(r, plan_vhdx(&c, err));
    return r < 0 ? r : blockmap_co_format(file, co_write_vhdx, &c, err);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver `vdi`. Options: file; backing, of differencing disks. The open checks header and
 * table, so that no later access is outside the file.
 *
 * The header counts the blocks in the file; the next block goes behind them. An entry of the table
 * may have reached the disk before a crash, and the counter not: so the open takes what is greater,
 * the counter or the last block that an entry leads to.
 */
#include "vdi/vdi.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/option_types.h"
#include "blockmap/blockmap.h"
#include "schema/define.h"
#include "vdi/image.h"

#define BLOCK_MAX (256 * MiB)

struct vdi {
    struct blockmap map;
    uint64_t table_offset, data_offset;
    uint32_t blocks, block_size;
    /* VDI_TYPE_* */
    uint32_t type;
    uint8_t uuid[VDI_UUID_SIZE], parent_uuid[VDI_UUID_SIZE];
    /* owned; `blocks` entries; NULL: opened to be shown, and the table is too large */
    uint32_t *table;
    /* Blocks in the file; guarded by map.lock. */
    uint32_t allocated;
    /* As the header has it. */
    uint32_t counted;
    struct blockmap_room room;
    /* Of the file, when it was opened: what comes behind is ours, and zeroes. */
    uint64_t first_size;
};

/* --- I/O -------------------------------------------------------------------------------------- */

static uint32_t vdi_entry(const struct vdi *d, uint64_t index)
{
    return __atomic_load_n(&d->table[index], __ATOMIC_ACQUIRE);
}

static bool is_absent(uint32_t entry)
{
    return entry >= VDI_DISCARDED;
}

/* What an entry says of its block. */
static enum blockmap_kind vdi_kind(const struct vdi *d, uint32_t entry)
{
    if (!is_absent(entry)) {
        return BLOCKMAP_DATA;
    }
    return d->type == VDI_TYPE_DIFF && entry == VDI_ABSENT ? BLOCKMAP_ABSENT : BLOCKMAP_ZERO;
}

static uint64_t vdi_place(const struct vdi *d, uint32_t entry)
{
    return d->data_offset + (uint64_t)entry * d->block_size;
}

static int vdi_co_find(struct block_node *node, uint64_t offset, uint64_t length,
                       struct blockmap_run *ret_run)
{
    const struct vdi *d = node->opaque;
    uint64_t index = offset / d->block_size, within = offset % d->block_size;
    uint64_t end = offset - within + d->block_size;
    uint32_t entry, before;
    enum blockmap_kind kind;

    if (!d->table) {
        return -EFBIG;
    }
    entry = before = vdi_entry(d, index);
    kind = vdi_kind(d, entry);
    while (end < offset + length) {
        uint32_t next = vdi_entry(d, ++index);

        if (vdi_kind(d, next) != kind || (kind == BLOCKMAP_DATA && next != before + 1)) {
            break;
        }
        before = next;
        end += d->block_size;
    }
    *ret_run =
        (struct blockmap_run){.kind = kind,
                              .length = MIN(length, end - offset),
                              .edge = node->file,
                              .host = kind == BLOCKMAP_DATA ? vdi_place(d, entry) + within : 0,
                              .is_preallocated = d->type == VDI_TYPE_STATIC};
    return 0;
}

static int vdi_co_reserve_locked(struct block_node *node, uint64_t offset, uint64_t length,
                                 struct blockmap_place *ret_place)
{
    struct vdi *d = node->opaque;
    uint64_t host = vdi_place(d, d->allocated);
    uint8_t counter[4];
    int r;

    if (d->allocated >= VDI_DISCARDED - 1) {
        return -EFBIG;
    }
    r = blockmap_co_make_room_locked(node->file, &d->room, host + d->block_size, NULL);
    store_le32(counter, d->allocated + 1);
    UNLESS_FAILED(r, block_co_pwrite(node->file, VDI_AT_ALLOCATED, counter, sizeof(counter), 0));
    if (r < 0) {
        return r;
    }
    d->counted = ++d->allocated;
    *ret_place =
        (struct blockmap_place){.edge = node->file, .host = host, .is_zero = host >= d->first_size};
    return 0;
}

static void vdi_co_give_back_locked(struct block_node *node, const struct blockmap_place *place)
{
    struct vdi *d = node->opaque;
    uint8_t counter[4];

    d->first_size = MAX(d->first_size, place->host + d->block_size);
    d->counted = --d->allocated;
    store_le32(counter, d->allocated);
    /* If that fails a check finds one block too many, until the next one is allocated. */
    (void)block_co_pwrite(node->file, VDI_AT_ALLOCATED, counter, sizeof(counter), 0);
}

static int vdi_co_link_locked(struct block_node *node, uint64_t offset,
                              const struct blockmap_place *place)
{
    struct vdi *d = node->opaque;
    uint64_t index = offset / d->block_size;
    uint32_t entry = (uint32_t)((place->host - d->data_offset) / d->block_size);
    uint8_t bytes[4];
    int r;

    store_le32(bytes, entry);
    r = block_co_pwrite(node->file, d->table_offset + index * sizeof(bytes), bytes, sizeof(bytes),
                        0);
    if (r == 0) {
        __atomic_store_n(&d->table[index], entry, __ATOMIC_RELEASE);
    }
    return r;
}

static const struct blockmap_ops vdi_map_ops = {
    .co_find = vdi_co_find,
    .co_reserve_locked = vdi_co_reserve_locked,
    .co_give_back_locked = vdi_co_give_back_locked,
    .co_link_locked = vdi_co_link_locked,
};

/* --- opening ---------------------------------------------------------------------------------- */

static bool is_no_uuid(const uint8_t *uuid)
{
    static const uint8_t none[VDI_UUID_SIZE];

    return memcmp(uuid, none, sizeof(none)) == 0;
}

static int check_vdi_kind(const uint8_t *h, struct error *err)
{
    uint32_t version = load_le32(h + VDI_AT_VERSION), type = load_le32(h + VDI_AT_TYPE);

    if (load_le32(h + VDI_AT_SIGNATURE) != VDI_SIGNATURE) {
        return error_set(err, EINVAL, "Image not in VDI format (bad signature %08" PRIx32 ")",
                         load_le32(h + VDI_AT_SIGNATURE));
    }
    if (version != VDI_VERSION) {
        return error_set(err, ENOTSUP, "unsupported VDI image (version %" PRIu32 ".%" PRIu32 ")",
                         version >> 16, version & 0xffff);
    }
    if (type != VDI_TYPE_DYNAMIC && type != VDI_TYPE_STATIC && type != VDI_TYPE_DIFF) {
        return error_set(err, ENOTSUP,
                         "unsupported VDI image (type %" PRIu32
                         ", expected 1, dynamic, 2, static, or 4, differencing)",
                         type);
    }
    if (type != VDI_TYPE_DIFF && !is_no_uuid(h + VDI_AT_LINK_UUID)) {
        return error_set(err, ENOTSUP, "unsupported VDI image (non-NULL link UUID)");
    }
    if (type != VDI_TYPE_DIFF && !is_no_uuid(h + VDI_AT_PARENT_UUID)) {
        return error_set(err, ENOTSUP, "unsupported VDI image (non-NULL parent UUID)");
    }
    return 0;
}

static int check_vdi_places(const struct vdi *d, const uint8_t *h, struct error *err)
{
    if (d->table_offset % VDI_SECTOR != 0) {
        return error_set(err, ENOTSUP,
                         "unsupported VDI image (unaligned block map offset 0x%" PRIx64 ")",
                         d->table_offset);
    }
    if (d->data_offset % VDI_SECTOR != 0) {
        return error_set(err, ENOTSUP,
                         "unsupported VDI image (unaligned data offset 0x%" PRIx64 ")",
                         d->data_offset);
    }
    if (load_le32(h + VDI_AT_SECTOR_SIZE) != VDI_SECTOR) {
        return error_set(err, ENOTSUP, "unsupported VDI image (sector size %" PRIu32 " is not 512)",
                         load_le32(h + VDI_AT_SECTOR_SIZE));
    }
    return 0;
}

static int check_vdi_sizes(const struct block_node *node, const uint8_t *h, uint64_t disk,
                           struct error *err)
{
    const struct vdi *d = node->opaque;
    uint64_t most = (uint64_t)VDI_BLOCKS_MAX * VDI_BLOCK_SIZE, blocks;

    if (disk > most) {
        return error_set(err, EFBIG,
                         "Unsupported VDI image size (size is 0x%" PRIx64
                         ", max supported is 0x%" PRIx64 ")",
                         disk, most);
    }
    if (!is_power_of_2(d->block_size) || d->block_size < 4096 || d->block_size > BLOCK_MAX) {
        return error_set(err, ENOTSUP, "unsupported VDI image (block size %" PRIu32 " is not %u)",
                         d->block_size, VDI_BLOCK_SIZE);
    }
    if (load_le32(h + VDI_AT_BLOCK_EXTRA) != 0) {
        return error_set(err, ENOTSUP,
                         "unsupported VDI image (%" PRIu32 " more bytes for each block)",
                         load_le32(h + VDI_AT_BLOCK_EXTRA));
    }
    blocks = div_round_up(disk, d->block_size);
    if (d->blocks < blocks) {
        return error_set(err, EINVAL,
                         "unsupported VDI image (disk size %" PRIu64
                         ", image bitmap has room for %" PRIu64 ")",
                         disk, (uint64_t)d->blocks * d->block_size);
    }
    if (d->blocks > VDI_BLOCKS_MAX) {
        return error_set(err, EINVAL,
                         "unsupported VDI image (too many blocks %" PRIu32 ", max is %" PRIu32 ")",
                         d->blocks, VDI_BLOCKS_MAX);
    }
    if (d->table_offset < VDI_HEADER_SIZE || d->table_offset + blocks * 4 > d->data_offset) {
        /* Which nobody makes; but `info` may show a header without a table. */
        if (!(node->open_flags & BLOCK_OPEN_NO_IO)) {
            return error_set(err, EINVAL,
                             "unsupported VDI image (block map at 0x%" PRIx64 " with %" PRIu64
                             " entries, data at 0x%" PRIx64 ")",
                             d->table_offset, blocks, d->data_offset);
        }
    }
    return 0;
}

static int check_vdi_entries(struct block_node *node, struct error *err)
{
    struct vdi *d = node->opaque;
    uint64_t file = block_edge_size(node->file);

    for (uint32_t i = 0; i < d->blocks; i++) {
        uint32_t entry = d->table[i] = load_le32(&d->table[i]);

        if (is_absent(entry)) {
            continue;
        }
        /* The last block may be cut: what is not there reads as zeroes. */
        if (vdi_place(d, entry) >= file) {
            return error_set(err, EINVAL,
                             "Block %" PRIu32 " of image '%s' is not within the file: offset "
                             "%" PRIu64 ", file size %" PRIu64,
                             i, block_node_display_name(node), vdi_place(d, entry), file);
        }
        d->allocated = MAX(d->allocated, entry + 1);
    }
    return 0;
}

static int co_load_vdi_table(struct block_node *node, struct error *err)
{
    struct vdi *d = node->opaque;
    int r;

    if (d->blocks > VDI_TABLE_MAX) {
        if (node->open_flags & BLOCK_OPEN_NO_IO) {
            return 0; /* without a table: see vdi_co_find() */
        }
        return error_set(err, EFBIG,
                         "The block map of image '%s' has %" PRIu32 " entries, at most %" PRIu32
                         " are supported",
                         block_node_display_name(node), d->blocks, VDI_TABLE_MAX);
    }
    d->table = calloc(MAX(d->blocks, 1u), sizeof(*d->table));
    if (!d->table) {
        return error_out_of_memory(err);
    }
    r = blockmap_co_read_exactly(node, node->file, d->table_offset, d->table,
                                 d->blocks * sizeof(*d->table), "block map", err);
    return r < 0 ? r : check_vdi_entries(node, err);
}

static int co_load_vdi(struct block_node *node, struct error *err)
{
    struct vdi *d = node->opaque;
    uint8_t h[VDI_HEADER_SIZE];
    uint64_t disk;
    int r = blockmap_co_read_exactly(node, node->file, 0, h, sizeof(h), "header", err);

    UNLESS_FAILED(r, check_vdi_kind(h, err));
    if (r < 0) {
        return r;
    }
    disk = load_le64(h + VDI_AT_DISK_SIZE);
    disk = disk > INT64_MAX ? disk : round_up(disk, VDI_SECTOR);
    d->type = load_le32(h + VDI_AT_TYPE);
    d->table_offset = load_le32(h + VDI_AT_TABLE);
    d->data_offset = load_le32(h + VDI_AT_DATA);
    d->block_size = load_le32(h + VDI_AT_BLOCK_SIZE);
    d->blocks = load_le32(h + VDI_AT_BLOCKS);
    d->allocated = d->counted = load_le32(h + VDI_AT_ALLOCATED);
    memcpy(d->uuid, h + VDI_AT_UUID, sizeof(d->uuid));
    memcpy(d->parent_uuid, h + VDI_AT_LINK_UUID, sizeof(d->parent_uuid));
    r = check_vdi_places(d, h, err);
    UNLESS_FAILED(r, check_vdi_sizes(node, h, disk, err));
    if (r < 0) {
        return r;
    }
    block_node_set_size(node, disk);
    d->first_size = block_edge_size(node->file);
    d->room = (struct blockmap_room){0};
    d->blocks = (uint32_t)div_round_up(disk, d->block_size);
    if (d->allocated > VDI_TABLE_MAX) {
        return error_set(err, EINVAL, "unsupported VDI image (%" PRIu32 " blocks allocated)",
                         d->allocated);
    }
    return co_load_vdi_table(node, err);
}

/* --- the driver ------------------------------------------------------------------------------- */

static void vdi_co_close(struct block_node *node)
{
    struct vdi *d = node->opaque;

    blockmap_destroy(&d->map);
    free(d->table);
    d->table = NULL;
}

/* A VDI image names its parent by UUID only: so the user says which file it is. */
static int co_open_vdi_parent(struct block_node *node, struct options *opts, struct error *err)
{
    const struct vdi *d = node->opaque;
    const struct vdi *parent;
    int r = 0;

    if (!options_has(opts, "backing") && !(node->open_flags & BLOCK_OPEN_NO_BACKING)) {
        return error_set(err, EINVAL,
                         "Image '%s' is a differencing one, and has no name of its parent: give it "
                         "with the option 'backing'",
                         block_node_display_name(node));
    }
    r = block_co_open_backing(node, opts, NULL, "vdi", err);
    if (r < 0 || !node->backing || strcmp(node->backing->node->driver->name, "vdi") != 0) {
        return r; /* another format: the user chose it */
    }
    parent = node->backing->node->opaque;
    return memcmp(parent->uuid, d->parent_uuid, sizeof(parent->uuid)) == 0
               ? 0
               : error_set(err, EINVAL,
                           "The parent '%s' of image '%s' has another UUID than the image expects",
                           block_node_display_name(node->backing->node),
                           block_node_display_name(node));
}

static int vdi_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct vdi *d = node->opaque;
    int r = block_co_open_child(node, opts, "file", BLOCK_ROLE_DATA | BLOCK_ROLE_METADATA, false,
                                NULL, err);

    UNLESS_FAILED(r, co_load_vdi(node, err));
    if (r == 0 && d->type == VDI_TYPE_DIFF) {
        r = blockmap_refuse_writing(node, "is a differencing disk", err);
        UNLESS_FAILED(r, co_open_vdi_parent(node, opts, err));
    }
    if (r < 0) {
        vdi_co_close(node);
        return r;
    }
    blockmap_init(&d->map, &vdi_map_ops, d->block_size);
    node->limits.cluster_size = d->block_size;
    node->limits.request_alignment = VDI_SECTOR;
    node->limits.memory_alignment = node->file->node->limits.memory_alignment;
    return 0;
}

static int vdi_co_inactivate(struct block_node *node, struct error *err)
{
    struct vdi *d = node->opaque;

    blockmap_co_cut_room(node->file, &d->room, vdi_place(d, d->allocated));
    return 0;
}

static int vdi_co_reopen_prepare(struct block_node *node, struct options *opts, struct error *err)
{
    const struct vdi *d = node->opaque;

    return d->type == VDI_TYPE_DIFF ? blockmap_refuse_writing(node, "is a differencing disk", err)
                                    : 0;
}

/* Another process may have allocated blocks. */
static int vdi_co_reload(struct block_node *node, struct error *err)
{
    struct vdi *d = node->opaque;
    struct vdi old = *d;
    uint64_t size = block_node_size(node);
    int r;

    d->table = NULL;
    r = co_load_vdi(node, err);
    free(r < 0 ? d->table : old.table);
    if (r < 0) {
        *d = old;
        block_node_set_size(node, size); /* as long as its table */
    }
    return r;
}

static int vdi_probe(const uint8_t *head, size_t size)
{
    return size >= VDI_HEADER_SIZE && load_le32(head + VDI_AT_SIGNATURE) == VDI_SIGNATURE ? 100 : 0;
}

static int vdi_co_get_info(struct block_node *node, struct block_info *ret_info)
{
    const struct vdi *d = node->opaque;

    *ret_info = (struct block_info){.cluster_size = d->block_size};
    return 0;
}

/* Blocks that two entries lead to, and the counter of the header. */
static int vdi_co_check(struct block_node *node, unsigned fix,
                        struct block_check_result *ret_result, struct error *err)
{
    const struct vdi *d = node->opaque;
    struct block_check_result result = {0};
    AUTO_FREE uint8_t *seen = calloc(1, (size_t)d->allocated / 8 + 1);
    uint32_t used = 0;

    if (fix) {
        return error_set(err, ENOTSUP, "This image format does not support checks");
    }
    if (!seen) {
        return error_out_of_memory(err);
    }
    for (uint32_t i = 0; i < d->blocks; i++) {
        uint32_t entry = d->table[i];
        uint8_t bit = (uint8_t)(1u << entry % 8);

        if (is_absent(entry)) {
            continue;
        }
        used++;
        if (entry >= d->counted) {
            log_report(LOG_LEVEL_ERROR, "ERROR: block index %" PRIu32 " too large, is %" PRIu32, i,
                       entry);
            result.corruptions++;
        } else if (seen[entry / 8] & bit) {
            log_report(LOG_LEVEL_ERROR,
                       "ERROR: block index %" PRIu32 " also used by block %" PRIu32, i, entry);
            result.corruptions++;
        }
        seen[entry / 8] |= bit;
    }
    if (used != d->counted) {
        log_report(LOG_LEVEL_ERROR,
                   "ERROR: allocated blocks mismatch, is %" PRIu32 ", should be %" PRIu32, used,
                   d->counted);
        result.corruptions++;
    }
    *ret_result = result;
    return 0;
}

static const struct schema_type vdi_options_type =
    OBJECT_INIT("BlockdevOptionsVdi", REQ("file", block_ref_type),
                OPT("backing", block_ref_or_null_type,
                    .help = "the parent of a differencing disk, whose name the image has not"));

static const struct block_driver vdi_driver = {
    .name = "vdi",
    .help = "format: VDI of VirtualBox",
    .options = &vdi_options_type,
    .instance_size = sizeof(struct vdi),
    .is_format = true,
    .probe = vdi_probe,
    .co_open = vdi_co_open,
    .co_close = vdi_co_close,
    .co_reload = vdi_co_reload,
    .co_inactivate = vdi_co_inactivate,
    .co_reopen_prepare = vdi_co_reopen_prepare,
    .reopen_options = block_no_options,
    .exchanges_file = true,
    .file_head = 512,
    .co_create = vdi_co_create,
    .co_format = vdi_co_format,
    .create_options = vdi_create_options,
    .create_type = &vdi_create_type,
    .co_get_info = vdi_co_get_info,
    .co_check = vdi_co_check,
    .co_preadv = blockmap_co_preadv,
    .co_pwritev = blockmap_co_pwritev,
    .co_write_zeroes = blockmap_co_write_zeroes,
    .co_status = blockmap_co_status,
};

void vdi_register_driver(void)
{
    block_register_driver(&vdi_driver);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The header and the BAT: what they may be, and the fields that change. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "parallels/image.h"

const char parallels_magic[] = "WithoutFreeSpace";
const char parallels_magic_extended[] = "WithouFreSpacExt";

int parallels_co_write_fields(struct block_node *node)
{
    const struct parallels *p = node->opaque;
    uint8_t bytes[PARALLELS_HEADER_SIZE - PARALLELS_AT_IN_USE];

    store_le32(bytes, p->in_use);
    store_le32(bytes + (PARALLELS_AT_DATA - PARALLELS_AT_IN_USE), p->data_sector);
    store_le32(bytes + (PARALLELS_AT_FLAGS - PARALLELS_AT_IN_USE), p->flags);
    store_le64(bytes + (PARALLELS_AT_EXTENSION - PARALLELS_AT_IN_USE), p->extension);
    return block_co_pwrite(node->file, PARALLELS_AT_IN_USE, bytes, sizeof(bytes), 0);
}

/* What is wrong is said in QEMU's words. *ret_sectors: of the disk. */
static int take_parallels_header(struct parallels *p, const uint8_t *h, uint64_t *ret_sectors,
                                 struct error *err)
{
    bool is_extended = memcmp(h, parallels_magic_extended, PARALLELS_MAGIC_SIZE) == 0;
    uint32_t tracks = load_le32(h + PARALLELS_AT_TRACKS);

    if ((!is_extended && memcmp(h, parallels_magic, PARALLELS_MAGIC_SIZE) != 0) ||
        load_le32(h + PARALLELS_AT_VERSION) != PARALLELS_VERSION) {
        return error_set(err, EINVAL, "Image not in Parallels format");
    }
    if (tracks == 0) {
        return error_set(err, EINVAL, "Invalid image: Zero sectors per track");
    }
    if (tracks > PARALLELS_TRACKS_MAX) {
        return error_set(err, EINVAL, "Invalid image: Too big cluster");
    }
    p->cluster_size = (uint64_t)tracks * PARALLELS_SECTOR;
    if (load_le32(h + PARALLELS_AT_ENTRIES) > PARALLELS_ENTRIES_MAX) {
        return error_set(err, EFBIG, "Catalog too large");
    }
    p->unit = is_extended ? p->cluster_size : PARALLELS_SECTOR;
    p->entries = load_le32(h + PARALLELS_AT_ENTRIES);
    p->bat_end = parallels_bat_end(p->entries);
    p->in_use = load_le32(h + PARALLELS_AT_IN_USE);
    p->data_sector = load_le32(h + PARALLELS_AT_DATA);
    p->flags = load_le32(h + PARALLELS_AT_FLAGS);
    p->extension = load_le64(h + PARALLELS_AT_EXTENSION);
    *ret_sectors = load_le64(h + PARALLELS_AT_SECTORS);
    /* The other 4 bytes have no meaning in such images. */
    *ret_sectors &= is_extended ? UINT64_MAX : UINT32_MAX;
    return 0;
}

static int check_parallels_sizes(const struct block_node *node, uint64_t sectors, struct error *err)
{
    const struct parallels *p = node->opaque;
    uint64_t clusters;

    if (sectors > INT64_MAX / PARALLELS_SECTOR) {
        return error_set(err, EFBIG, "The disk of image '%s' has %" PRIu64 " sectors: too many",
                         block_node_display_name(node), sectors);
    }
    clusters = div_round_up(sectors * PARALLELS_SECTOR, p->cluster_size);
    if (p->entries < clusters) {
        return error_set(err, EINVAL,
                         "The BAT of image '%s' has %" PRIu32 " entries, its disk has %" PRIu64
                         " clusters",
                         block_node_display_name(node), p->entries, clusters);
    }
    return 0;
}

static int co_load_parallels_bat(struct block_node *node, struct error *err)
{
    struct parallels *p = node->opaque;
    int r;

    if (p->entries > PARALLELS_TABLE_MAX) {
        if (node->open_flags & BLOCK_OPEN_NO_IO) {
            return 0; /* without a table: see parallels_co_find() */
        }
        return error_set(err, EFBIG,
                         "The BAT of image '%s' has %" PRIu32 " entries, at most %d are supported",
                         block_node_display_name(node), p->entries, PARALLELS_TABLE_MAX);
    }
    p->bat = calloc(MAX(p->entries, 1u), sizeof(*p->bat));
    if (!p->bat) {
        return error_out_of_memory(err);
    }
    r = blockmap_co_read_exactly(node, node->file, PARALLELS_HEADER_SIZE, p->bat,
                                 p->entries * sizeof(*p->bat), "BAT", err);
    if (r < 0) {
        return r;
    }
    for (uint32_t i = 0; i < p->entries; i++) {
        p->bat[i] = load_le32(&p->bat[i]);
    }
    return parallels_find_places(node) < 0 ? error_out_of_memory(err) : 0;
}

int parallels_co_load(struct block_node *node, struct error *err)
{
    struct parallels *p = node->opaque;
    uint8_t h[PARALLELS_HEADER_SIZE];
    uint64_t sectors = 0;
    int r = blockmap_co_read_exactly(node, node->file, 0, h, sizeof(h), "header", err);

    UNLESS_FAILED(r, take_parallels_header(p, h, &sectors, err));
    UNLESS_FAILED(r, check_parallels_sizes(node, sectors, err));
    if (r < 0) {
        return r;
    }
    block_node_set_size(node, sectors * PARALLELS_SECTOR);
    p->room = (struct blockmap_room){0};
    p->zero_from = block_edge_size(node->file);
    p->has_unlinked = p->keeps_extension = p->is_extension_read = false;
    p->needs_repair = p->in_use == PARALLELS_IN_USE || !parallels_is_data_valid(node);
    /* An older program, or a crash, leaves an extension that is not up to date. */
    p->keeps_extension = p->extension != 0 && p->in_use == PARALLELS_CLOSED;
    return co_load_parallels_bat(node, err);
}

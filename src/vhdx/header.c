/* SPDX-License-Identifier: Apache-2.0 */
/* Headers and region tables: [MS-VHDX] 2.2. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "vhdx/image.h"

#define REGIONS_MAX 2047
#define FILE_TYPE_SIZE 8

const struct vhdx_guid vhdx_guid_bat = {{0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64,
                                         0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08}};
const struct vhdx_guid vhdx_guid_metadata = {{0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8,
                                              0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e}};

/* --- headers ---------------------------------------------------------------------------------- */

static bool is_valid_header(const uint8_t *h)
{
    return memcmp(h, "head", 4) == 0 && load_le32(h + 4) == vhdx_checksum(h, VHDX_HEADER_SIZE, 4);
}

static int parse_vhdx_header(const struct block_node *node, const uint8_t *h, uint64_t offset,
                             struct vhdx_header *header, struct error *err)
{
    const char *name = block_node_display_name(node);

    if (load_le16(h + 66) != 1 || load_le16(h + 64) != 0) {
        return error_set(err, ENOTSUP,
                         "Image '%s' has version %u, and a log of version %u, expected 1 and 0",
                         name, load_le16(h + 66), load_le16(h + 64));
    }
    header->offset = offset;
    header->sequence = load_le64(h + 8);
    memcpy(header->file_write.bytes, h + 16, 16);
    memcpy(header->data_write.bytes, h + 32, 16);
    memcpy(header->log.bytes, h + 48, 16);
    header->log_length = load_le32(h + 68);
    header->log_offset = load_le64(h + 72);
    if (header->log_length % VHDX_UNIT != 0 || header->log_offset % VHDX_UNIT != 0 ||
        header->log_offset < VHDX_UNIT || header->log_offset > INT64_MAX) {
        return error_set(err, EINVAL,
                         "The log of image '%s' is not in whole units of 1 MiB: offset %" PRIu64
                         ", length %" PRIu32,
                         name, header->log_offset, header->log_length);
    }
    return 0;
}

int vhdx_co_read_header(struct block_node *node, struct error *err)
{
    struct vhdx *d = node->opaque;
    const char *name = block_node_display_name(node);
    uint8_t type[FILE_TYPE_SIZE], h[2][VHDX_HEADER_SIZE];
    bool valid[2];
    int r = blockmap_co_read_exactly(node, node->file, 0, type, sizeof(type), "file type", err);

    if (r == 0 && memcmp(type, "vhdxfile", sizeof(type)) != 0) {
        r = error_set(err, EINVAL, "Image not in VHDX format: '%s'", name);
    }
    UNLESS_FAILED(r, blockmap_co_read_exactly(node, node->file, VHDX_HEADER_1, h[0], sizeof(h[0]),
                                              "header", err));
    UNLESS_FAILED(r, blockmap_co_read_exactly(node, node->file, VHDX_HEADER_2, h[1], sizeof(h[1]),
                                              "header", err));
    if (r < 0) {
        return r;
    }
    valid[0] = is_valid_header(h[0]);
    valid[1] = is_valid_header(h[1]);
    if (!valid[0] && !valid[1]) {
        return error_set(err, EINVAL, "No valid VHDX header found in '%s'", name);
    }
    if (valid[1] && (!valid[0] || load_le64(h[1] + 8) > load_le64(h[0] + 8))) {
        return parse_vhdx_header(node, h[1], VHDX_HEADER_2, &d->header, err);
    }
    return parse_vhdx_header(node, h[0], VHDX_HEADER_1, &d->header, err);
}

void vhdx_fill_header(const struct vhdx_header *header, uint8_t *h)
{
    memset(h, 0, VHDX_HEADER_SIZE);
    store_signature(h, "head");
    store_le64(h + 8, header->sequence);
    memcpy(h + 16, header->file_write.bytes, 16);
    memcpy(h + 32, header->data_write.bytes, 16);
    memcpy(h + 48, header->log.bytes, 16);
    store_le16(h + 66, 1);
    store_le32(h + 68, header->log_length);
    store_le64(h + 72, header->log_offset);
    store_le32(h + 4, vhdx_checksum(h, VHDX_HEADER_SIZE, 4));
}

int vhdx_co_write_header(struct block_edge *file, struct vhdx_header *header)
{
    struct vhdx_header next = *header;
    uint8_t h[VHDX_HEADER_SIZE];
    int r;

    next.offset = header->offset == VHDX_HEADER_1 ? VHDX_HEADER_2 : VHDX_HEADER_1;
    next.sequence++;
    vhdx_fill_header(&next, h);
    r = block_co_flush(file);
    UNLESS_FAILED(r, block_co_pwrite(file, next.offset, h, sizeof(h), 0));
    UNLESS_FAILED(r, block_co_flush(file));
    if (r == 0) {
        *header = next;
    }
    return r;
}

/* --- regions ---------------------------------------------------------------------------------- */

static bool is_valid_table(const uint8_t *t)
{
    return memcmp(t, "regi", 4) == 0 && load_le32(t + 8) <= REGIONS_MAX &&
           load_le32(t + 4) == vhdx_checksum(t, VHDX_REGIONS_SIZE, 4);
}

/* Regions are no part of the first MiB or of the log. */
static int check_region(const struct block_node *node, const struct vhdx_region *region,
                        struct error *err)
{
    const struct vhdx *d = node->opaque;

    if (region->offset % VHDX_UNIT != 0 || region->offset < VHDX_UNIT ||
        region->length % VHDX_UNIT != 0 || region->length == 0 || region->offset > INT64_MAX ||
        ranges_overlap(region->offset, region->length, d->header.log_offset,
                       d->header.log_length)) {
        return error_set(err, EINVAL,
                         "A region of image '%s' is not in whole units of 1 MiB, or overlaps: "
                         "offset %" PRIu64 ", length %" PRIu32,
                         block_node_display_name(node), region->offset, region->length);
    }
    return 0;
}

static int parse_region(const struct block_node *node, struct vhdx *d, const uint8_t *entry,
                        struct error *err)
{
    struct vhdx_region region = {.offset = load_le64(entry + 16), .length = load_le32(entry + 24)};
    struct vhdx_region *known = NULL;

    if (vhdx_guid_equals(entry, &vhdx_guid_bat)) {
        known = &d->bat;
    } else if (vhdx_guid_equals(entry, &vhdx_guid_metadata)) {
        known = &d->metadata;
    } else if (load_le32(entry + 28) & 1) {
        return error_set(err, ENOTSUP, "Image '%s' has a region that is required and not known",
                         block_node_display_name(node));
    } else {
        return 0;
    }
    if (known->length != 0) {
        return error_set(err, EINVAL, "Image '%s' has a region twice",
                         block_node_display_name(node));
    }
    *known = region;
    return check_region(node, &region, err);
}

static int parse_regions(struct block_node *node, const uint8_t *t, struct error *err)
{
    struct vhdx *d = node->opaque;
    int r = 0;

    for (uint32_t i = 0; i < load_le32(t + 8) && r == 0; i++) {
        r = parse_region(node, d, t + 16 + 32 * (size_t)i, err);
    }
    if (r < 0) {
        return r;
    }
    if (d->bat.length == 0 || d->metadata.length == 0 ||
        ranges_overlap(d->bat.offset, d->bat.length, d->metadata.offset, d->metadata.length)) {
        return error_set(err, EINVAL,
                         "Image '%s' has no block allocation table or no metadata, or they overlap",
                         block_node_display_name(node));
    }
    return 0;
}

int vhdx_co_read_regions(struct block_node *node, struct error *err)
{
    AUTO_FREE uint8_t *t = malloc(VHDX_REGIONS_SIZE);
    int r = t ? vhdx_co_read(node, VHDX_REGIONS_1, t, VHDX_REGIONS_SIZE, "region table", err)
              : error_out_of_memory(err);

    if (r == 0 && !is_valid_table(t)) {
        r = vhdx_co_read(node, VHDX_REGIONS_2, t, VHDX_REGIONS_SIZE, "region table", err);
    }
    if (r == 0 && !is_valid_table(t)) {
        r = error_set(err, EINVAL, "No valid region table found in '%s'",
                      block_node_display_name(node));
    }
    return r < 0 ? r : parse_regions(node, t, err);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The metadata region: [MS-VHDX] 2.6. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "vhdx/image.h"

#define ITEMS_MAX 2047
#define BLOCK_MAX (256 * MiB)

const struct vhdx_guid vhdx_guid_file_parameters = {{0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d,
                                                     0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7,
                                                     0x6b}};
const struct vhdx_guid vhdx_guid_disk_size = {{0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2,
                                               0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8}};
const struct vhdx_guid vhdx_guid_disk_id = {{0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45, 0x93,
                                             0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46}};
const struct vhdx_guid vhdx_guid_logical_sector = {{0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47,
                                                    0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab,
                                                    0x5f}};
const struct vhdx_guid vhdx_guid_physical_sector = {{0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44,
                                                     0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5,
                                                     0x56}};

const struct vhdx_guid vhdx_guid_locator = {{0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab,
                                             0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c}};

enum { FLAG_REQUIRED = 1 << 2, FLAG_HAS_PARENT = 1 << 1 };

/* Read the item of an entry; `size` bytes are wanted. */
static int co_read_item(struct block_node *node, const uint8_t *entry, uint8_t *value, size_t size,
                        struct error *err)
{
    const struct vhdx *d = node->opaque;
    uint32_t offset = load_le32(entry + 16), length = load_le32(entry + 20);

    if (length < size || offset < VHDX_METADATA_TABLE_SIZE ||
        !range_fits(offset, length, d->metadata.length)) {
        return error_set(err, EINVAL,
                         "A metadata item of '%s' is not within the region: offset %" PRIu32
                         ", length %" PRIu32,
                         block_node_display_name(node), offset, length);
    }
    return vhdx_co_read(node, d->metadata.offset + offset, value, size, "metadata", err);
}

static int co_parse_item(struct block_node *node, const uint8_t *entry, struct error *err)
{
    struct vhdx *d = node->opaque;
    uint8_t value[8];
    int r = 0;

    if (vhdx_guid_equals(entry, &vhdx_guid_file_parameters)) {
        r = co_read_item(node, entry, value, 8, err);
        d->block_size = r < 0 ? 0 : load_le32(value);
        d->has_parent = r == 0 && (load_le32(value + 4) & FLAG_HAS_PARENT);
    } else if (vhdx_guid_equals(entry, &vhdx_guid_locator)) {
        r = d->has_locator ? error_set(err, EINVAL, "Image '%s' has a metadata item twice",
                                       block_node_display_name(node))
                           : co_read_item(node, entry, value, 0, err);
        d->has_locator = true;
        UNLESS_FAILED(r, vhdx_co_read_locator(node, d->metadata.offset + load_le32(entry + 16),
                                              load_le32(entry + 20), err));
    } else if (vhdx_guid_equals(entry, &vhdx_guid_disk_size)) {
        r = co_read_item(node, entry, value, 8, err);
        d->disk_size = r < 0 ? 0 : load_le64(value);
    } else if (vhdx_guid_equals(entry, &vhdx_guid_logical_sector)) {
        r = co_read_item(node, entry, value, 4, err);
        d->sector_size = r < 0 ? 0 : load_le32(value);
    } else if (!vhdx_guid_equals(entry, &vhdx_guid_disk_id) &&
               !vhdx_guid_equals(entry, &vhdx_guid_physical_sector) &&
               (load_le32(entry + 24) & FLAG_REQUIRED)) {
        return error_set(err, ENOTSUP,
                         "Image '%s' has a metadata item that is required and not known",
                         block_node_display_name(node));
    }
    return r;
}

static int check_disk(const struct block_node *node, struct error *err)
{
    const struct vhdx *d = node->opaque;
    const char *name = block_node_display_name(node);

    if (!is_power_of_2(d->block_size) || d->block_size < VHDX_UNIT || d->block_size > BLOCK_MAX) {
        return error_set(err, EINVAL,
                         "Block size of image '%s' must be a power of two from 1 MiB to 256 MiB: "
                         "%" PRIu32,
                         name, d->block_size);
    }
    if (d->sector_size != 512 && d->sector_size != 4096) {
        return error_set(err, EINVAL,
                         "Logical sector size of image '%s' must be 512 or 4096: %" PRIu32, name,
                         d->sector_size);
    }
    if (d->disk_size > VHDX_SIZE_MAX || d->disk_size % d->sector_size != 0) {
        return error_set(err, EINVAL,
                         "Disk size of image '%s' must be whole sectors, and at most 64 TiB: "
                         "%" PRIu64,
                         name, d->disk_size);
    }
    return 0;
}

int vhdx_co_read_metadata(struct block_node *node, struct error *err)
{
    struct vhdx *d = node->opaque;
    AUTO_FREE uint8_t *t = malloc(VHDX_METADATA_TABLE_SIZE);
    unsigned count;
    int r = t ? vhdx_co_read(node, d->metadata.offset, t, VHDX_METADATA_TABLE_SIZE,
                             "metadata table", err)
              : error_out_of_memory(err);

    if (r < 0) {
        return r;
    }
    count = load_le16(t + 10);
    if (memcmp(t, "metadata", 8) != 0 || count > ITEMS_MAX) {
        return error_set(err, EINVAL, "The metadata table of '%s' is not valid",
                         block_node_display_name(node));
    }
    for (unsigned i = 0; i < count && r == 0; i++) {
        r = co_parse_item(node, t + 32 + 32 * (size_t)i, err);
    }
    return r < 0 ? r : check_disk(node, err);
}

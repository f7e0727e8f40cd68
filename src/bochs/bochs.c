/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Growing images of Bochs. All numbers are little-endian.
 *
 *      header    512 bytes
 *      catalog   one 32-bit entry per extent of the disk: the position of the extent after the
 *                catalog, counted in extents, or ABSENT
 *      extents   each is a bitmap, in whole sectors, and the data
 *
 * A bit of the bitmap, the lowest of a byte first, is set if its sector was written. Other sectors
 * read as zeroes.
 *
 * The open checks header and catalog, so that no later access is outside the file.
 */
#include "bochs/bochs.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "block/driver.h"

#define SECTOR 512
#define HEADER_SIZE 512
#define ABSENT UINT32_MAX
#define VERSION_1 0x00010000
#define VERSION_2 0x00020000

/* Bochs does not create larger ones. The limits bound memory to 4 MiB and disks to 8 TiB. */
#define CATALOG_MAX (1u << 20)
#define EXTENT_MAX (8 * MiB)
#define BITMAP_MAX (1 * MiB)

/* The most bytes of a bitmap that are read at once. */
#define BITMAP_PIECE 256

/* Offsets in the header. */
enum {
    OFFSET_MAGIC = 0,
    OFFSET_TYPE = 32,
    OFFSET_SUBTYPE = 48,
    OFFSET_VERSION = 64,
    OFFSET_HEADER_SIZE = 68,
    OFFSET_CATALOG = 72,
    OFFSET_BITMAP = 76,
    OFFSET_EXTENT = 80,
    /* in version 1; version 2 has a timestamp here */
    OFFSET_DISK_1 = 84,
    /* in version 2 */
    OFFSET_DISK_2 = 88
};

static const char magic[32] = "Bochs Virtual HD Image";
static const char type[16] = "Redolog";
static const char subtype[16] = "Growing";

struct bochs {
    /* bytes of data; a power of two */
    uint64_t extent_size;
    /* bytes, in whole sectors */
    uint64_t bitmap_size;
    /* of the first extent in the file */
    uint64_t data_offset;
    uint32_t header_size;
    /* entries in the file */
    uint32_t catalog_size;
    /* entries that the disk needs */
    uint32_t used;
    /* owned; `used` entries */
    uint32_t *catalog;
};

/* Adjacent sectors that are all present, or all absent. */
struct bochs_run {
    bool present;
    uint64_t length;
    /* if present: the offset in the file */
    uint64_t host;
};

/* --- open */

static int check_bochs_kind(const struct block_node *node, const uint8_t *h, struct error *err)
{
    const char *name = block_node_display_name(node);
    uint32_t version = load_le32(h + OFFSET_VERSION);

    if (strncmp((const char *)h + OFFSET_MAGIC, magic, sizeof(magic)) != 0) {
        return error_set(err, EINVAL, "Image not in Bochs format: '%s'", name);
    }
    if (strncmp((const char *)h + OFFSET_TYPE, type, sizeof(type)) != 0 ||
        strncmp((const char *)h + OFFSET_SUBTYPE, subtype, sizeof(subtype)) != 0) {
        return error_set(err, ENOTSUP,
                         "Image '%s' of Bochs is not of the type '%s' and '%s', the only "
                         "one supported",
                         name, type, subtype);
    }
    if (version != VERSION_1 && version != VERSION_2) {
        return error_set(err, ENOTSUP,
                         "Image '%s' has version 0x%08" PRIx32 ", expected 0x%08x or 0x%08x", name,
                         version, (unsigned)VERSION_1, (unsigned)VERSION_2);
    }
    return 0;
}

static int check_extent(const struct block_node *node, uint32_t extent, uint32_t bitmap,
                        struct error *err)
{
    const char *name = block_node_display_name(node);
    uint64_t least = div_round_up(extent / SECTOR, 8);

    if (extent < SECTOR || extent > EXTENT_MAX || !is_power_of_2(extent)) {
        return error_set(err, EINVAL,
                         "Extent size of image '%s' must be a power of two from %d to %llu: "
                         "%" PRIu32,
                         name, SECTOR, EXTENT_MAX, extent);
    }
    if (bitmap < least || bitmap > BITMAP_MAX) {
        return error_set(err, EINVAL,
                         "Bitmap size of image '%s' must be from %" PRIu64 ", one bit for each "
                         "sector of an extent, to %llu: %" PRIu32,
                         name, least, BITMAP_MAX, bitmap);
    }
    return 0;
}

static int check_catalog(const struct block_node *node, uint32_t entries, uint64_t needed,
                         struct error *err)
{
    const struct bochs *d = node->opaque;
    const char *name = block_node_display_name(node);

    if (entries > CATALOG_MAX) {
        return error_set(err, EFBIG,
                         "Catalog size of image '%s' is too large: %" PRIu32 " entries, at most %u",
                         name, entries, CATALOG_MAX);
    }
    if (entries < needed) {
        return error_set(err, EINVAL,
                         "Catalog size of image '%s' is too small for this disk size: %" PRIu32
                         " entries, expected %" PRIu64,
                         name, entries, needed);
    }
    if (d->header_size < HEADER_SIZE ||
        !range_fits(d->header_size, (uint64_t)entries * 4, block_edge_size(node->file))) {
        return error_set(err, EINVAL,
                         "Catalog of image '%s' is not between the header and the end of "
                         "the file: offset %" PRIu32 ", %" PRIu32 " entries",
                         name, d->header_size, entries);
    }
    return 0;
}

static int parse_bochs_header(struct block_node *node, const uint8_t *h, struct error *err)
{
    struct bochs *d = node->opaque;
    bool first = load_le32(h + OFFSET_VERSION) == VERSION_1;
    uint64_t disk = load_le64(h + (first ? OFFSET_DISK_1 : OFFSET_DISK_2));
    uint32_t extent = load_le32(h + OFFSET_EXTENT), bitmap = load_le32(h + OFFSET_BITMAP);
    uint64_t needed;
    int r;

    if ((r = check_bochs_kind(node, h, err)) < 0 ||
        (r = check_extent(node, extent, bitmap, err)) < 0) {
        return r;
    }
    disk = round_down(disk, SECTOR); /* Bochs counts sectors, too */
    needed = div_round_up(disk, extent);
    d->header_size = load_le32(h + OFFSET_HEADER_SIZE);
    d->catalog_size = load_le32(h + OFFSET_CATALOG);
    r = check_catalog(node, d->catalog_size, needed, err);
    if (r < 0) {
        return r;
    }
    d->extent_size = extent;
    d->bitmap_size = round_up(bitmap, SECTOR);
    d->data_offset = d->header_size + (uint64_t)d->catalog_size * 4;
    d->used = (uint32_t)needed;
    block_node_set_size(node, disk);
    return 0;
}

/*
 * The offset of an extent, whose entry is not ABSENT. No overflow: 2^32 extents of at most 9 MiB.
 */
static uint64_t extent_offset(const struct bochs *d, uint32_t entry)
{
    return d->data_offset + entry * (d->bitmap_size + d->extent_size);
}

static int co_load_catalog(struct block_node *node, struct error *err)
{
    struct bochs *d = node->opaque;
    const char *name = block_node_display_name(node);
    int r;

    d->catalog = calloc(MAX(d->used, 1u), sizeof(*d->catalog));
    if (!d->catalog) {
        return error_out_of_memory(err);
    }
    r = block_co_pread(node->file, d->header_size, d->catalog, d->used * sizeof(*d->catalog));
    if (r < 0) {
        return error_set_errno(err, -r, "Could not read the catalog of '%s'", name);
    }
    for (uint32_t i = 0; i < d->used; i++) {
        uint32_t entry = d->catalog[i] = load_le32(&d->catalog[i]);

        if (entry != ABSENT && !range_fits(extent_offset(d, entry), d->bitmap_size + d->extent_size,
                                           block_edge_size(node->file))) {
            return error_set(err, EINVAL,
                             "Extent %" PRIu32 " of image '%s' is not within the file: offset "
                             "%" PRIu64 ", length %" PRIu64 ", file size %" PRIu64,
                             i, name, extent_offset(d, entry), d->bitmap_size + d->extent_size,
                             block_edge_size(node->file));
        }
    }
    return 0;
}

static int co_load_bochs(struct block_node *node, struct error *err)
{
    uint8_t header[HEADER_SIZE];
    int r;

    if (block_edge_size(node->file) < HEADER_SIZE) {
        return error_set(err, EINVAL, "Image not in Bochs format: '%s' has %" PRIu64 " bytes",
                         block_node_display_name(node), block_edge_size(node->file));
    }
    r = block_co_pread(node->file, 0, header, sizeof(header));
    if (r < 0) {
        return error_set_errno(err, -r, "Could not read the header of '%s'",
                               block_node_display_name(node));
    }
    r = parse_bochs_header(node, header, err);
    if (r < 0) {
        return r;
    }
    return co_load_catalog(node, err);
}

static void bochs_co_close(struct block_node *node)
{
    struct bochs *d = node->opaque;

    free(d->catalog);
}

static int bochs_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    bool refused = !node->read_only && !node->auto_read_only;
    int r;

    node->read_only = true; /* before the child is opened, which then is read-only as well */
    r = block_co_open_child(node, opts, "file", BLOCK_ROLE_DATA | BLOCK_ROLE_METADATA, false, NULL,
                            err);
    if (r < 0) {
        return r;
    }
    if (refused) {
        return error_set(err, EACCES, "Image is read-only: '%s' has the format bochs",
                         block_node_display_name(node));
    }
    r = co_load_bochs(node, err);
    if (r < 0) {
        bochs_co_close(node);
        return r;
    }
    node->limits.request_alignment = SECTOR;
    node->limits.memory_alignment = node->file->node->limits.memory_alignment;
    return 0;
}

static int bochs_probe(const uint8_t *head, size_t size)
{
    size_t length = strlen(magic);

    return size >= length && memcmp(head, magic, length) == 0 ? 100 : 0;
}

/* --- reading */

static bool test_bit(const uint8_t *bits, uint64_t i)
{
    return bits[i / 8] >> i % 8 & 1;
}

/* The run of absent extents at `offset`, at most `length` bytes of it. */
static void find_absent(const struct bochs *d, uint64_t offset, uint64_t length,
                        struct bochs_run *ret_run)
{
    uint64_t i = offset / d->extent_size, end = round_down(offset, d->extent_size);

    while (end < offset + length && d->catalog[i] == ABSENT) {
        end += d->extent_size;
        i++;
    }
    *ret_run = (struct bochs_run){.length = MIN(length, end - offset)};
}

/* The run at `offset`, at most `length` bytes of it, which is not 0. 0 or -errno. */
static int co_find_run(struct block_node *node, uint64_t offset, uint64_t length,
                       struct bochs_run *ret_run)
{
    const struct bochs *d = node->opaque;
    uint32_t entry = d->catalog[offset / d->extent_size];
    uint64_t within = offset & (d->extent_size - 1);
    uint64_t count = MIN(length, d->extent_size - within) / SECTOR, n = 1;
    unsigned skip = within / SECTOR % 8;
    uint8_t bits[BITMAP_PIECE];
    int r;

    if (entry == ABSENT) {
        find_absent(d, offset, length, ret_run);
        return 0;
    }
    count = MIN(count, sizeof(bits) * 8 - skip);
    r = block_co_pread(node->file, extent_offset(d, entry) + within / SECTOR / 8, bits,
                       div_round_up(skip + count, 8));
    if (r < 0) {
        return r;
    }
    ret_run->present = test_bit(bits, skip);
    while (n < count && test_bit(bits, skip + n) == ret_run->present) {
        n++;
    }
    ret_run->length = n * SECTOR;
    ret_run->host = extent_offset(d, entry) + d->bitmap_size + within;
    return 0;
}

static int bochs_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    struct bochs_run run;

    if (flags & BLOCK_REQ_PREFETCH) {
        return 0;
    }
    for (uint64_t done = 0; done < iov.size; done += run.length) {
        IOV_PART_AUTO(part);
        int r = co_find_run(node, offset + done, iov.size - done, &run);

        if (r == 0 && !run.present) {
            iov_fill(iov, done, 0, run.length);
        } else if (r == 0 && (r = iov_part_set(&part, iov, done, run.length)) == 0) {
            r = block_co_preadv(node->file, run.host, part.iov, 0);
        }
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

/* Unlike reads, status queries need not be aligned to sectors. */
static int bochs_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                           struct block_status *ret_status)
{
    uint64_t lead = offset % SECTOR;
    struct bochs_run run;
    int r = co_find_run(node, offset - lead, round_up(lead + length, SECTOR), &run);

    if (r < 0) {
        return r;
    }
    ret_status->flags = BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_ZERO;
    ret_status->length = MIN(run.length - lead, length);
    if (run.present) {
        ret_status->flags = BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_DATA | BLOCK_STATUS_OFFSET;
        ret_status->map = run.host + lead;
        ret_status->file = node->file->node;
    }
    return 0;
}

static const struct block_driver bochs_driver = {
    .name = "bochs",
    .help = "format: growing images of Bochs, for reading",
    .options = &block_format_options_type,
    .instance_size = sizeof(struct bochs),
    .is_format = true,
    .probe = bochs_probe,
    .co_open = bochs_co_open,
    .co_close = bochs_co_close,
    .co_preadv = bochs_co_preadv,
    .co_status = bochs_co_status,
};

void bochs_register_driver(void)
{
    block_register_driver(&bochs_driver);
}

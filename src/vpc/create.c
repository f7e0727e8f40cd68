/* SPDX-License-Identifier: Apache-2.0 */
/* Making VHD images. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "blockmap/create.h"
#include "schema/define.h"
#include "vpc/header.h"

/* Seconds from the epoch to the beginning of 2000, from which the format counts. */
#define YEAR_2000 946684800
#define HEADER_OFFSET VPC_FOOTER_SIZE
#define TABLE_OFFSET (VPC_FOOTER_SIZE + VPC_HEADER_SIZE)

const struct block_option_desc vpc_create_options[] = {
    {"force_size", "bool (on/off)",
     "Force disk size calculation to use the actual size specified, rather than using the nearest "
     "CHS-based calculation"},
    {"subformat", "str",
     "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed} "},
    {NULL, NULL, NULL},
};

ENUM(subformat_type, "BlockdevVpcSubformat", "dynamic", "fixed");
const struct schema_type vpc_create_type = OBJECT_INIT(
    "BlockdevCreateOptionsVpc", REQ("file", block_ref_type),
    REQ("size", schema_size, .unit = "bytes"), OPT("subformat", subformat_type, .dflt = "dynamic"),
    OPT("force-size", schema_bool, .dflt = "false",
        .help = "the disk has this size, and not that of the nearest geometry"));

struct vpc_create {
    bool fixed, force_size;
    /* bytes */
    uint64_t disk_size;
    uint16_t cylinders;
    uint8_t heads, sectors;
};

/* --- the disk's geometry ---------------------------------------------------------------------- */

/* "CHS Calculation" of the specification. */
static void calculate_geometry(uint64_t total, struct vpc_create *c)
{
    uint64_t tracks;

    total = MIN(total, VPC_GEOMETRY_MAX / VPC_SECTOR);
    c->heads = 16;
    if (total >= 65535ULL * 16 * 63) {
        c->sectors = 255;
        c->cylinders = (uint16_t)(total / 255 / 16);
        return;
    }
    c->sectors = 17;
    tracks = total / 17;
    c->heads = (uint8_t)MIN(MAX((tracks + 1023) / 1024, 4u), 17u);
    if (tracks >= c->heads * 1024ULL || c->heads > 16) {
        c->sectors = 31;
        c->heads = 16;
        tracks = total / 31;
    }
    if (tracks >= c->heads * 1024ULL) {
        c->sectors = 63;
        c->heads = 16;
        tracks = total / 63;
    }
    c->cylinders = (uint16_t)(tracks / c->heads);
}

/* The least geometry that has room for `size` bytes; what is larger than any has its own size. */
static int plan_disk(struct vpc_create *c, uint64_t size, struct error *err)
{
    uint64_t needed = size / VPC_SECTOR, total = needed;

    if (size > VPC_SIZE_MAX) {
        return error_set(err, EFBIG, "The image size is too large for file format 'vpc'");
    }
    c->disk_size = size;
    if (c->force_size || size > VPC_GEOMETRY_MAX) {
        calculate_geometry(VPC_GEOMETRY_MAX / VPC_SECTOR, c);
        return 0;
    }
    do {
        calculate_geometry(total++, c);
        c->disk_size = (uint64_t)c->cylinders * c->heads * c->sectors * VPC_SECTOR;
    } while (c->disk_size < size);
    return 0;
}

/* --- the parts -------------------------------------------------------------------------------- */

static void fill_footer(const struct vpc_create *c, uint8_t *b)
{
    memset(b, 0, VPC_FOOTER_SIZE);
    store_signature(b, "conectix");
    store_be32(b + 8, 2);
    store_be32(b + 12, 0x00010000);
    store_be64(b + 16, c->fixed ? UINT64_MAX : HEADER_OFFSET);
    store_be32(b + 24, (uint32_t)(time(NULL) - YEAR_2000));
    /* The first is what programs know whose disks have the size that the geometry gives. */
    store_signature(b + 28, c->force_size ? "qem2" : "qemu");
    store_be16(b + 32, 5);
    store_be16(b + 34, 3);
    store_signature(b + 36, "Wi2k");
    store_be64(b + 40, c->disk_size);
    store_be64(b + 48, c->disk_size);
    store_be16(b + 56, c->cylinders);
    b[58] = c->heads;
    b[59] = c->sectors;
    store_be32(b + 60, c->fixed ? VPC_FIXED : VPC_DYNAMIC);
    blockmap_fill_uuid(b + 68);
    store_be32(b + VPC_FOOTER_CHECKSUM, vpc_checksum(b, VPC_FOOTER_SIZE, VPC_FOOTER_CHECKSUM));
}

static void fill_header(uint32_t entries, uint8_t *b)
{
    memset(b, 0, VPC_HEADER_SIZE);
    store_signature(b, "cxsparse");
    store_be64(b + 8, UINT64_MAX);
    store_be64(b + 16, TABLE_OFFSET);
    store_be32(b + 24, 0x00010000);
    store_be32(b + 28, entries);
    store_be32(b + 32, VPC_BLOCK_SIZE);
    store_be32(b + VPC_HEADER_CHECKSUM, vpc_checksum(b, VPC_HEADER_SIZE, VPC_HEADER_CHECKSUM));
}

static int co_write_dynamic(struct block_edge *file, const uint8_t *footer, uint64_t disk_size)
{
    uint32_t entries = (uint32_t)div_round_up(disk_size, VPC_BLOCK_SIZE);
    size_t table_size = round_up((uint64_t)entries * 4, VPC_SECTOR);
    size_t size = TABLE_OFFSET + table_size + VPC_FOOTER_SIZE;
    AUTO_FREE uint8_t *b = malloc(size);

    if (!b) {
        return -ENOMEM;
    }
    memcpy(b, footer, VPC_FOOTER_SIZE);
    fill_header(entries, b + HEADER_OFFSET);
    memset(b + TABLE_OFFSET, 0xff, table_size);
    memcpy(b + TABLE_OFFSET + table_size, footer, VPC_FOOTER_SIZE);
    return block_co_pwrite(file, 0, b, size, 0);
}

static int co_write_vpc(struct block_edge *file, const void *arg, struct error *err)
{
    const struct vpc_create *c = arg;
    uint8_t footer[VPC_FOOTER_SIZE];
    int r;

    fill_footer(c, footer);
    if (c->fixed) {
        r = block_co_truncate(file, c->disk_size + VPC_FOOTER_SIZE, BLOCK_PREALLOC_OFF, err);
        if (r < 0) {
            return r;
        }
        r = block_co_pwrite(file, c->disk_size, footer, VPC_FOOTER_SIZE, 0);
    } else {
        r = blockmap_co_clear_file(
            file,
            TABLE_OFFSET + VPC_FOOTER_SIZE +
                round_up(div_round_up(c->disk_size, VPC_BLOCK_SIZE) * 4, VPC_SECTOR),
            err);
        if (r < 0) {
            return r;
        }
        r = co_write_dynamic(file, footer, c->disk_size);
    }
    return r < 0 ? error_set_errno(err, -r, "Could not write the metadata of the image") : 0;
}

static int take_vpc_create(struct vpc_create *c, uint64_t size, struct options *opts,
                           struct error *err)
{
    static const char *const subformats[] = {"dynamic", "fixed", NULL};
    int subformat = 0, r;

    if ((r = blockmap_take_choice(opts, "subformat", subformats, &subformat, err)) < 0 ||
        (r = options_take_bool(opts, "force_size", false, &c->force_size, err)) < 0 ||
        (r = blockmap_take_preallocation(opts, err)) < 0 ||
        (r = options_check_empty(opts, "Format 'vpc'", err)) < 0) {
        return r;
    }
    c->fixed = subformat == 1;
    return plan_disk(c, size, err);
}

int vpc_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err)
{
    struct vpc_create c = {0};
    AUTO_OPTIONS struct options *file_options = NULL;
    int r = blockmap_take_file_options(opts, &file_options, err);

    UNLESS_FAILED(r, take_vpc_create(&c, size, opts, err));
    return r < 0 ? r
                 : blockmap_co_create_file(filename, TAKE_PTR(file_options), co_write_vpc, &c, err);
}

int vpc_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                  struct options *opts, struct error *err)
{
    struct vpc_create c = {0};
    int r = take_vpc_create(&c, size, opts, err);

    /* A command that gives a size in bytes gets that or an error; img create rounds up. */
    if (r >= 0 && c.disk_size != size) {
        r = error_set(err, EINVAL,
                      "The requested image size cannot be represented in CHS geometry");
        error_hint(err, "The size can be any multiple of 512 bytes with force-size=true.");
    }
    return r < 0 ? r : blockmap_co_format(file, co_write_vpc, &c, err);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All numbers are big-endian.
 *
 *      footer of 512 bytes                 header of 1024 bytes
 *        0  "conectix"                        0  "cxsparse"
 *        8  features                         16  offset of the table
 *       12  version 1.0                      24  version 1.0
 *       16  offset of the header             28  entries of the table
 *       24  seconds since 2000               32  bytes of a block
 *       28  program, its version, system     36  checksum
 *       40  original size                    40  UUID of the parent
 *       48  size                             56  time of the parent
 *       56  cylinders, heads, sectors        64  name of the parent, UTF-16
 *       60  type of the disk                576  8 locators of the parent: platform, room,
 *       64  checksum                             length, 0, offset
 *       68  UUID
 */
#include "vpc/header.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "blockmap/windows_path.h"

#define VERSION 0x00010000
/* A table of more entries would need blocks far below the usual 2 MiB. */
#define TABLE_MAX (16ull * 1024 * 1024)
#define BLOCK_MAX (256 * MiB)
/* The table must have an end of 31 bits. */
#define ENTRIES_MAX (INT32_MAX / 4u)

bool vpc_is_footer(const uint8_t *b)
{
    return memcmp(b, "conectix", 8) == 0;
}

uint32_t vpc_checksum(const uint8_t *b, unsigned size, unsigned field)
{
    uint32_t sum = 0;

    for (unsigned i = 0; i < size; i++) {
        sum += i >= field && i < field + 4 ? 0 : b[i];
    }
    return ~sum;
}

static int check_header_checksum(const uint8_t *b, unsigned size, unsigned field, const char *what,
                                 const char *name, struct error *err)
{
    uint32_t found = load_be32(b + field), expected = vpc_checksum(b, size, field);

    if (found != expected) {
        return error_set(err, EINVAL,
                         "Incorrect %s checksum of image '%s': 0x%08" PRIx32
                         ", expected 0x%08" PRIx32,
                         what, name, found, expected);
    }
    return 0;
}

/*
 * Virtual PC, and QEMU for guests of it, have disks of the size that the geometry gives; for others
 * the size is in its own field. The greatest geometry says that no geometry gives the size.
 */
static uint64_t disk_size_of(const uint8_t *b, enum vpc_size_rule rule)
{
    static const char by_geometry[][5] = {"vpc ", "vs  ", "qemu"};
    uint64_t geometry = (uint64_t)load_be16(b + 56) * b[58] * b[59] * VPC_SECTOR;

    if (rule == VPC_SIZE_BY_FIELD || geometry >= VPC_GEOMETRY_MAX) {
        return load_be64(b + 48);
    }
    for (size_t i = 0; i < ARRAY_SIZE(by_geometry) && rule == VPC_SIZE_BY_PROGRAM; i++) {
        if (memcmp(b + 28, by_geometry[i], 4) == 0) {
            return geometry;
        }
    }
    return rule == VPC_SIZE_BY_GEOMETRY ? geometry : load_be64(b + 48);
}

int vpc_parse_footer(const uint8_t *b, const char *name, enum vpc_size_rule rule,
                     struct vpc_footer *ret_footer, struct error *err)
{
    uint32_t type = load_be32(b + 60), version = load_be32(b + 12);
    uint64_t size = disk_size_of(b, rule);
    int r = check_header_checksum(b, VPC_FOOTER_SIZE, VPC_FOOTER_CHECKSUM, "header", name, err);

    if (r < 0) {
        return r;
    }
    if (version >> 16 != VERSION >> 16) {
        return error_set(err, ENOTSUP, "Image '%s' has version 0x%08" PRIx32 ", expected 0x%08x",
                         name, version, (unsigned)VERSION);
    }
    if (type != VPC_FIXED && type != VPC_DYNAMIC && type != VPC_DIFFERENCING) {
        return error_set(err, ENOTSUP,
                         "Image '%s' has a disk of type %" PRIu32
                         ", expected 2 (fixed), 3 (dynamic) or 4 (differencing)",
                         name, type);
    }
    if (size > VPC_SIZE_MAX) {
        return error_set(err, EFBIG,
                         "Image '%s' has a disk of %" PRIu64 " bytes, at most %llu are supported",
                         name, size, VPC_SIZE_MAX);
    }
    ret_footer->type = (enum vpc_type)type;
    ret_footer->disk_size = round_down(size, VPC_SECTOR);
    ret_footer->data_offset = load_be64(b + 16);
    memcpy(ret_footer->uuid, b + 68, VPC_UUID_SIZE);
    return 0;
}

static int check_vpc_table(const struct vpc_header *h, const char *name, uint64_t disk_size,
                           struct error *err)
{
    uint64_t needed;

    if (!is_power_of_2(h->block_size) || h->block_size < VPC_SECTOR || h->block_size > BLOCK_MAX) {
        return error_set(err, EINVAL, "Invalid block size %" PRIu32, h->block_size);
    }
    if (h->table_entries > ENTRIES_MAX) {
        return error_set(err, EINVAL, "Max Table Entries too large (%" PRId32 ")",
                         (int32_t)h->table_entries);
    }
    needed = div_round_up(disk_size, h->block_size);
    if (h->table_entries < needed) {
        return error_set(err, EINVAL,
                         "Page table of image '%s' is too small: %" PRIu32
                         " entries, expected %" PRIu64,
                         name, h->table_entries, needed);
    }
    if (needed > TABLE_MAX) {
        return error_set(err, EFBIG,
                         "Page table of image '%s' is too large: %" PRIu64
                         " entries, at most %llu are supported",
                         name, needed, TABLE_MAX);
    }
    return 0;
}

int vpc_parse_header(const uint8_t *b, const char *name, uint64_t disk_size,
                     struct vpc_header *ret_header, struct error *err)
{
    struct vpc_header *h = ret_header;
    int r;

    if (memcmp(b, "cxsparse", 8) != 0) {
        return error_set(err, EINVAL, "Invalid header magic of image '%s', expected 'cxsparse'",
                         name);
    }
    h->table_offset = load_be64(b + 16);
    h->table_entries = load_be32(b + 28);
    h->block_size = load_be32(b + 32);
    memcpy(h->parent_uuid, b + 40, VPC_UUID_SIZE);
    if (!text_from_utf16(b + 64, 256, true, h->parent_name)) {
        h->parent_name[0] = '\0';
    }
    for (unsigned i = 0; i < VPC_LOCATORS; i++) {
        const uint8_t *l = b + 576 + (size_t)i * 24;

        h->locator[i] = (struct vpc_locator){
            .platform = load_be32(l), .length = load_be32(l + 8), .offset = load_be64(l + 16)};
    }
    r = check_vpc_table(h, name, disk_size, err);
    return r < 0 ? r
                 : check_header_checksum(b, VPC_HEADER_SIZE, VPC_HEADER_CHECKSUM, "dynamic header",
                                         name, err);
}

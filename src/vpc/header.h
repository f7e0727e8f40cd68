/* SPDX-License-Identifier: Apache-2.0 */
/* The footer and the header of VHD images. Nothing here yields, except co_ functions. */
#ifndef TIDEMARK_VPC_HEADER_H
#define TIDEMARK_VPC_HEADER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "block/driver.h"

enum {
    VPC_SECTOR = 512,
    VPC_FOOTER_SIZE = 512,
    VPC_HEADER_SIZE = 1024,
    VPC_UUID_SIZE = 16,
    VPC_LOCATORS = 8,
    /* of new images */
    VPC_BLOCK_SIZE = 2 * 1024 * 1024,
};

/* The largest disk: 2040 GiB. */
#define VPC_SIZE_MAX (0xff000000ULL * VPC_SECTOR)
/* The largest disk that a geometry describes: about 127.5 GiB. */
#define VPC_GEOMETRY_MAX (65535ULL * 16 * 255 * VPC_SECTOR)

enum vpc_type { VPC_FIXED = 2, VPC_DYNAMIC = 3, VPC_DIFFERENCING = 4 };

/* Of a footer. */
struct vpc_footer {
    enum vpc_type type;
    /* bytes */
    uint64_t disk_size;
    /* of the header, in the file */
    uint64_t data_offset;
    uint8_t uuid[VPC_UUID_SIZE];
};

/* Where an image says that its parent is, in one of several forms. */
struct vpc_locator {
    uint32_t platform, length;
    uint64_t offset;
};

/* Of the header of a dynamic or differencing disk. */
struct vpc_header {
    uint64_t table_offset;
    uint32_t table_entries, block_size;
    uint8_t parent_uuid[VPC_UUID_SIZE];
    /* UTF-8, at most 256 characters */
    char parent_name[4 * 256 + 1];
    struct vpc_locator locator[VPC_LOCATORS];
};

/* Whether the 512 bytes begin as a footer does. */
bool vpc_is_footer(const uint8_t *b);
/* Which of the two sizes in a footer is the disk's. */
enum vpc_size_rule { VPC_SIZE_BY_PROGRAM, VPC_SIZE_BY_FIELD, VPC_SIZE_BY_GEOMETRY };

/* Check and parse a footer of `name`. -EINVAL, -ENOTSUP, -EFBIG with a sentence. */
int vpc_parse_footer(const uint8_t *b, const char *name, enum vpc_size_rule rule,
                     struct vpc_footer *ret_footer, struct error *err);
/* The same for the header of 1024 bytes, of a disk of `disk_size` bytes. */
int vpc_parse_header(const uint8_t *b, const char *name, uint64_t disk_size,
                     struct vpc_header *ret_header, struct error *err);
/*
 * The sum that the 32-bit field at `field` of `size` bytes must have, in a footer or a header; the
 * field itself does not count.
 */
uint32_t vpc_checksum(const uint8_t *b, unsigned size, unsigned field);
enum {
    VPC_FOOTER_CHECKSUM = 64,
    VPC_HEADER_CHECKSUM = 36,
};

extern const struct block_option_desc vpc_create_options[];
extern const struct schema_type vpc_create_type;

/* Of struct block_driver. */
int vpc_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err);
int vpc_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                  struct options *opts, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layout of VDI images. All numbers are little-endian.
 *
 *      header | table, 32 bits for each block of the disk | blocks
 *
 * An entry is the index of a block in the file, or says that there is none, which reads as zeroes.
 */
#ifndef TIDEMARK_VDI_IMAGE_H
#define TIDEMARK_VDI_IMAGE_H

#include "block/driver.h"

enum {
    VDI_SECTOR = 512,
    VDI_HEADER_SIZE = 512,
    /* of new images */
    VDI_BLOCK_SIZE = 1024 * 1024,
    VDI_TYPE_DYNAMIC = 1,
    VDI_TYPE_STATIC = 2,
    /* Has a parent, from which it differs. */
    VDI_TYPE_DIFF = 4,
    VDI_UUID_SIZE = 16,
};

#define VDI_SIGNATURE 0xbeda107fU
#define VDI_VERSION 0x00010001U
#define VDI_ABSENT 0xffffffffU
/* Was discarded. */
#define VDI_DISCARDED 0xfffffffeU
/* Blocks that a disk can have: 512 TiB less 128 MiB. */
#define VDI_BLOCKS_MAX 0x1fffff80U
/* Of a table in memory: 64 MiB. */
#define VDI_TABLE_MAX (16U * 1024 * 1024)

/* Offsets in the header. */
enum {
    VDI_AT_SIGNATURE = 0x40,
    VDI_AT_VERSION = 0x44,
    VDI_AT_HEADER_SIZE = 0x48,
    VDI_AT_TYPE = 0x4c,
    VDI_AT_TABLE = 0x154,
    VDI_AT_DATA = 0x158,
    VDI_AT_SECTOR_SIZE = 0x168,
    VDI_AT_DISK_SIZE = 0x170,
    VDI_AT_BLOCK_SIZE = 0x178,
    VDI_AT_BLOCK_EXTRA = 0x17c,
    VDI_AT_BLOCKS = 0x180,
    VDI_AT_ALLOCATED = 0x184,
    VDI_AT_UUID = 0x188,
    VDI_AT_SNAPSHOT_UUID = 0x198,
    /* of the parent: the UUID of its image, and that of its last change */
    VDI_AT_LINK_UUID = 0x1a8,
    VDI_AT_PARENT_UUID = 0x1b8,
};

extern const struct block_option_desc vdi_create_options[];
extern const struct schema_type vdi_create_type;
/* Of struct block_driver. */
int vdi_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err);
int vdi_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                  struct options *opts, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layout of expandable images of Parallels (parallels.rst). All numbers are little-endian.
 *
 *      header, 64 bytes | BAT, 32 bits for each cluster of the disk | data area: clusters
 *
 * An entry of the BAT says where a cluster is in the file: in sectors ("WithoutFreeSpace"), or in
 * clusters ("WithouFreSpacExt"). 0: there is none, which reads as zeroes. A size of clusters need
 * not be a power of two.
 *
 *      header:  0  magic, 16 bytes                 36  sectors of the disk, 64 bits
 *              16  version: 2                      44  in use
 *              20  heads, cylinders                48  sector where the data area begins
 *              28  sectors of a cluster            52  flags
 *              32  entries of the BAT              56  sector of the format extension, 64 bits
 */
#ifndef TIDEMARK_PARALLELS_IMAGE_H
#define TIDEMARK_PARALLELS_IMAGE_H

#include "blockmap/blockmap.h"

enum {
    PARALLELS_SECTOR = 512,
    PARALLELS_HEADER_SIZE = 64,
    PARALLELS_MAGIC_SIZE = 16,
    PARALLELS_VERSION = 2,
    /* of new images, in bytes */
    PARALLELS_CLUSTER_DEFAULT = 1024 * 1024,
    /* Sectors of a cluster, at most: those that QEMU opens. */
    PARALLELS_TRACKS_MAX = 4186127,
    /* Entries that a BAT can have; and of one in memory: 64 MiB. */
    PARALLELS_ENTRIES_MAX = 0x1fffffff,
    PARALLELS_TABLE_MAX = 16 * 1024 * 1024,
};

/* Offsets in the header. */
enum {
    PARALLELS_AT_VERSION = 16,
    PARALLELS_AT_HEADS = 20,
    PARALLELS_AT_CYLINDERS = 24,
    PARALLELS_AT_TRACKS = 28,
    PARALLELS_AT_ENTRIES = 32,
    PARALLELS_AT_SECTORS = 36,
    PARALLELS_AT_IN_USE = 44,
    PARALLELS_AT_DATA = 48,
    PARALLELS_AT_FLAGS = 52,
    PARALLELS_AT_EXTENSION = 56,
};

extern const char parallels_magic[], parallels_magic_extended[];

/* Of the field "in use": opened for writing; and closed by a program that knows the extension. */
#define PARALLELS_IN_USE 0x746f6e59U
#define PARALLELS_CLOSED 0x312e3276U
/* Of the flags: nothing was written to the image yet. */
#define PARALLELS_F_EMPTY 1U

struct parallels {
    struct blockmap map;
    /*
     * Requests of guests: shared, and exclusive where a cluster is taken out of the BAT, so that
     * no request is under way to a place that becomes free. Taken before map.lock.
     */
    struct range_lock requests;
    bool has_requests;
    /* Bytes of what an entry of the BAT counts, and of a cluster; not powers of two. */
    uint64_t unit, cluster_size;
    /* Entries of the BAT that the file has. */
    uint32_t entries;
    /* Owned; NULL: opened to be shown, and too large. Changed with map.lock held, atomically. */
    uint32_t *bat;
    /* Where the BAT ends: nothing of the disk is before. */
    uint64_t bat_end;
    /* As in the header. With map.lock held. */
    uint32_t in_use, data_sector, flags;
    uint64_t extension;
    /* The extension is valid: it has to be kept, and to be up to date. */
    bool keeps_extension;
    /* What it has besides bits: it was read without an error, and the checksum. */
    bool is_extension_read;
    uint8_t extension_sum[16];

    /*
     * Places in the file: clusters from `origin` on, where the first may be. A bit for each of
     * those before `end`: it is in use. NULL: there would be too many; then all are, and new ones
     * come at `end`. With map.lock held.
     */
    uint64_t origin, end, capacity;
    uint8_t *used;
    /* No place before this one is free. */
    uint64_t first_free;
    /* From here on the file reads as zeroes where nothing was put. */
    uint64_t zero_from;
    /* Entries were taken out of the BAT, and that may not be stable. */
    bool has_unlinked;
    struct blockmap_room room;
    /* It was not closed in order, or a scan has found errors: repair before the first write. */
    bool needs_repair;
    /* The reason why the image is not written was logged. */
    bool is_reported;
};

extern const struct block_option_desc parallels_create_options[];
extern const struct schema_type parallels_create_type;

/* header.c */
/* Read the header and the BAT of a file that is open, and check them. -errno. Yields. */
int parallels_co_load(struct block_node *node, struct error *err);
/* Write the fields that change: in use, data_sector, flags, extension. -errno. Yields. */
int parallels_co_write_fields(struct block_node *node);

/* bat.c */
/* The end of a BAT, and the least beginning of the data area that goes with it. Do not yield. */
uint64_t parallels_bat_end(uint64_t entries);
uint64_t parallels_least_data(const struct parallels *p);
/* Whether the field `data_sector` can be right. Does not yield. */
bool parallels_is_data_valid(const struct block_node *node);
/* Where the cluster of an entry is, UINT64_MAX: nowhere. Does not yield. */
uint64_t parallels_place(const struct parallels *p, uint32_t entry);
/* Whether it can be one of the image, at least with its first bytes. Does not yield. */
bool parallels_is_place(const struct block_node *node, uint64_t place);
/*
 * Find out which places are in use. Sets needs_repair if an entry leads to no place or to one of
 * another entry. -ENOMEM. Does not yield.
 */
int parallels_find_places(struct block_node *node);
/* Mark bytes of the file as used. -ENOMEM. Does not yield. */
int parallels_use(struct parallels *p, uint64_t offset, uint64_t length);
/* The end of what the image has in the file, in bytes. Does not yield. */
uint64_t parallels_data_end(const struct parallels *p);
/* Write an entry, and change it in memory. With map.lock held. -errno. Yields. */
int parallels_co_set_entry_locked(struct block_node *node, uint64_t index, uint32_t entry);
/* Take a whole cluster out of the BAT, if it has one: it reads as zeroes. -errno. Yields. */
int parallels_co_unlink(struct block_node *node, uint64_t offset);
/* Of struct blockmap_ops. */
int parallels_co_find(struct block_node *node, uint64_t offset, uint64_t length,
                      struct blockmap_run *ret_run);
int parallels_co_reserve_locked(struct block_node *node, uint64_t offset, uint64_t length,
                                struct blockmap_place *ret_place);
void parallels_co_give_back_locked(struct block_node *node, const struct blockmap_place *place);
int parallels_co_link_locked(struct block_node *node, uint64_t offset,
                             const struct blockmap_place *place);

/* check.c */
/* Of struct block_driver. */
int parallels_co_check(struct block_node *node, unsigned fix, struct block_check_result *ret_result,
                       struct error *err);
/*
 * What has to be repaired before the image is written. `in_request`: for a guest's write, on any
 * reactor. With map.lock held. -errno. Yields.
 */
int parallels_co_repair_locked(struct block_node *node, bool in_request, struct error *err);

/* extension.c */
/*
 * Read the format extension, if the image has one that is valid: mark its places as used, and with
 * `load` make its dirty bitmaps bitmaps of the node. What is wrong with it is logged. -ENOMEM.
 * Yields.
 */
int parallels_co_read_extension(struct block_node *node, bool load, struct error *err);

/* create.c: of struct block_driver. */
int parallels_co_create(const char *filename, uint64_t size, struct options *opts,
                        struct error *err);
int parallels_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                        struct options *opts, struct error *err);

#endif

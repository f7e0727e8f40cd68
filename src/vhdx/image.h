/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the driver share. `co_` functions yield, others do not. All numbers in the
 * file are little-endian.
 *
 *         0   file type       192 KiB   region table      1 MiB   log, table of blocks (BAT),
 *      64 KiB header          256 KiB   its copy                  metadata, blocks: each aligned
 *     128 KiB header                                              to 1 MiB
 *
 * The header with the greater sequence number counts. Where it has a log GUID the log may have
 * changes of the metadata that the file does not have yet.
 */
#ifndef TIDEMARK_VHDX_IMAGE_H
#define TIDEMARK_VHDX_IMAGE_H

#include "base/error.h"
#include "blockmap/blockmap.h"
#include "blockmap/other_files.h"

enum {
    VHDX_HEADER_SIZE = 4096,
    VHDX_HEADER_1 = 64 * 1024,
    VHDX_HEADER_2 = 128 * 1024,
    VHDX_REGIONS_1 = 192 * 1024,
    VHDX_REGIONS_2 = 256 * 1024,
    VHDX_REGIONS_SIZE = 64 * 1024,
    VHDX_UNIT = 1024 * 1024,
    VHDX_LOG_SECTOR = 4096,
    VHDX_METADATA_TABLE_SIZE = 64 * 1024,
};

#define VHDX_SIZE_MAX (64 * TiB)
/* Entries of the BAT: 64 MiB of memory. */
#define VHDX_ENTRIES_MAX (8ull * 1024 * 1024)

/* The state of a block, in the lowest 3 bits of its entry. */
enum vhdx_state {
    VHDX_NOT_PRESENT = 0,
    VHDX_UNDEFINED = 1,
    VHDX_ZERO = 2,
    VHDX_UNMAPPED = 3,
    VHDX_FULLY_PRESENT = 6,
    VHDX_PARTIALLY_PRESENT = 7
};
#define VHDX_STATE_MASK 7u

struct vhdx_guid {
    uint8_t bytes[16];
};

extern const struct vhdx_guid vhdx_guid_bat, vhdx_guid_metadata;
extern const struct vhdx_guid vhdx_guid_file_parameters, vhdx_guid_disk_size, vhdx_guid_disk_id,
    vhdx_guid_logical_sector, vhdx_guid_physical_sector, vhdx_guid_locator;

/* Whether 16 bytes of the file are a GUID. */
static inline bool vhdx_guid_equals(const uint8_t *bytes, const struct vhdx_guid *guid)
{
    return __builtin_memcmp(bytes, guid->bytes, sizeof(guid->bytes)) == 0;
}

/* The CRC-32C (RFC 3720) of a buffer whose 4 bytes at `field` count as zeroes. */
uint32_t vhdx_checksum(const uint8_t *b, size_t size, size_t field);

/* --- header.c --------------------------------------------------------------------------------- */

struct vhdx_header {
    /* Of the header in the file. */
    uint64_t offset, sequence;
    struct vhdx_guid file_write, data_write, log;
    uint64_t log_offset;
    uint32_t log_length;
};

struct vhdx_region {
    uint64_t offset;
    uint32_t length;
};

/* A change of the file that the log has; in the order in which they are made. */
struct vhdx_change {
    uint64_t offset, length;
    /* owned; NULL: zeroes */
    uint8_t *data;
};

struct vhdx {
    struct blockmap map;
    struct vhdx_header header;
    struct vhdx_region bat, metadata;
    uint64_t disk_size;
    uint32_t block_size, sector_size;
    /* Blocks of the disk, and entries of the BAT for each group that ends with one of a bitmap. */
    uint32_t blocks, chunk_ratio;
    /* owned; of blocks only */
    uint64_t *table;
    /* owned; of differencing disks: for each group the place of its bitmap, or 0 */
    uint64_t *bitmaps;
    /* Where the next block goes; guarded by map.lock. */
    uint64_t free_offset;
    struct blockmap_room room;
    /* Of the file, when it was opened: what comes behind is ours, and zeroes. */
    uint64_t first_size;

    /* --- the parent of a differencing disk --- */

    bool has_parent, has_locator;
    /* Its GUID of data writes is one of these. */
    bool has_linkage[2];
    struct vhdx_guid linkage[2];
    /* owned; NULL: the image does not say */
    char *parent_path;

    /* --- the log --- */

    /* The log was made in the file when it was opened. */
    bool was_replayed;

    /* What it has; owned. Of an image that is written: none, they were made. */
    struct vhdx_change *changes;
    size_t change_count;
    /* Writing, under map.lock: offset in the log and sequence number of the next entry. */
    uint64_t log_at, log_sequence;
    /* Offset of the entry before; the next one says that both are to be replayed. */
    uint64_t log_tail;
    bool log_is_active;
};

/* Read and check the header that counts. Errors with a sentence. */
int vhdx_co_read_header(struct block_node *node, struct error *err);
/*
 * Write the header of node->opaque in the place of the older one, and make it stable. On success it
 * is the one that counts.
 */
int vhdx_co_write_header(struct block_edge *file, struct vhdx_header *header);
/* The bytes of a header; `h` has VHDX_HEADER_SIZE. */
void vhdx_fill_header(const struct vhdx_header *header, uint8_t *h);
/* Read the region table, with the changes of the log. */
int vhdx_co_read_regions(struct block_node *node, struct error *err);

/* --- metadata.c ------------------------------------------------------------------------------- */

/* Read the metadata region, with the changes of the log. */
int vhdx_co_read_metadata(struct block_node *node, struct error *err);

/* --- parent.c --------------------------------------------------------------------------------- */

/* Read the locator of the parent, `length` bytes at `offset` of the file. */
int vhdx_co_read_locator(struct block_node *node, uint64_t offset, uint32_t length,
                         struct error *err);
/* Open the parent: the option `backing`, or the one that the image names, if that is allowed. */
int vhdx_co_open_parent(struct block_node *node, struct options *opts, enum other_files allowed,
                        struct error *err);

/* --- log.c ------------------------------------------------------------------------------------ */

/* Read the changes that the log has, if it has any. */
int vhdx_co_read_log(struct block_node *node, struct error *err);
/* Make the changes in the file, and empty the log. */
int vhdx_co_replay_log(struct block_node *node, struct error *err);
/* Change `size` bytes that were read at `offset` of the file. */
void vhdx_apply_changes(const struct vhdx *d, uint64_t offset, uint8_t *buf, size_t size);
/* Whether a change concerns one of these bytes. */
bool vhdx_is_changed(const struct vhdx *d, uint64_t offset, uint64_t length);
void vhdx_release_changes(struct vhdx *d);
/* As blockmap_co_read_exactly() of "file", with the changes of the log. */
int vhdx_co_read(struct block_node *node, uint64_t offset, void *buf, size_t size, const char *what,
                 struct error *err);

/* --- log_write.c ------------------------------------------------------------------------------ */

/* Before the first write: the header says that the file was changed, and where the log is. */
int vhdx_co_begin_log_locked(struct block_node *node);
/*
 * Write 4 KiB of metadata at `offset`, a multiple of that, by way of the log. What was written to
 * the file before is stable, too.
 */
int vhdx_co_log_locked(struct block_node *node, uint64_t offset, const uint8_t *data);
/* Nothing is to be replayed any more. */
int vhdx_co_end_log(struct block_node *node);

/* --- create.c --------------------------------------------------------------------------------- */

extern const struct block_option_desc vhdx_create_options[];
extern const struct schema_type vhdx_create_type;
/* Of struct block_driver. */
int vhdx_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err);
int vhdx_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                   struct options *opts, struct error *err);

/* The entry of the BAT for a block. */
static inline uint64_t vhdx_bat_index(uint32_t chunk_ratio, uint64_t block)
{
    return block + block / chunk_ratio;
}

#endif

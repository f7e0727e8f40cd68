/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the driver share. `co_` functions yield, others do not. */
#ifndef TIDEMARK_VMDK_IMAGE_H
#define TIDEMARK_VMDK_IMAGE_H

#include <pthread.h>

#include "base/error.h"
#include "blockmap/blockmap.h"

enum {
    VMDK_SECTOR = 512,
    VMDK_HEADER_SIZE = 512,
    /* Of a descriptor, in bytes. */
    VMDK_DESCRIPTOR_MAX = 1024 * 1024,
    VMDK_EXTENTS_MAX = 4096,
    VMDK_FILENAME_MAX = 1024,
    /* Entries of a grain table. */
    VMDK_TABLE_MAX = 512,
    /* What stands before the data of a compressed grain: sector of the disk, length. */
    VMDK_MARKER_SIZE = 12,
};

#define VMDK_NO_PARENT UINT32_MAX

/* --- descriptors (descriptor.c) --------------------------------------------------------------- */

enum vmdk_extent_type { VMDK_FLAT, VMDK_SPARSE, VMDK_ZERO };

/* A line of the descriptor. */
struct vmdk_extent_line {
    enum vmdk_extent_type type;
    /* "FLAT" and so on, as written */
    char type_name[16];
    bool read_only;
    /* bytes */
    uint64_t size, offset;
    /* empty for ZERO */
    char filename[VMDK_FILENAME_MAX];
};

struct vmdk_descriptor {
    uint32_t cid, parent_cid;
    char create_type[32];
    /* empty: none */
    char parent_name[VMDK_FILENAME_MAX];
    /* Where the 8 digits of the CID are in the text; 0: not in this form. */
    size_t cid_at;
    /* owned */
    struct vmdk_extent_line *extents;
    unsigned extent_count;
};

/* Whether the text begins as a descriptor does. */
bool vmdk_is_descriptor(const uint8_t *head, size_t size);
/*
 * Parse a text of `size` bytes, followed by a zero, of the image `name`. -EINVAL, -ENOTSUP, -ENOMEM
 * with a sentence. vmdk_descriptor_release() in any case.
 */
int vmdk_parse_descriptor(const char *text, size_t size, const char *name,
                          struct vmdk_descriptor *d, struct error *err);
void vmdk_descriptor_release(struct vmdk_descriptor *d);

/* --- extents ---------------------------------------------------------------------------------- */

struct vmdk_cached_table;

struct vmdk_extent {
    enum vmdk_extent_type type;
    char type_name[16];
    /* NULL: ZERO */
    struct block_edge *edge;
    /* Bytes of the disk. */
    uint64_t start, size;
    /* Of FLAT: where the data begin in the file. */
    uint64_t flat_offset;

    /* --- of SPARSE --- */

    bool compressed, has_markers, has_zero_grains;
    /* bytes */
    uint64_t grain_size;
    uint32_t table_entries;
    /* Of the descriptor inside, in bytes; 0: none. */
    uint64_t descriptor_offset, descriptor_size;
    /* Sectors of the grain tables; owned. And of their copies; NULL: there are none. */
    uint32_t *directory, *copies;
    uint32_t directory_entries;
    /* Where the next grain goes; guarded by map.lock. */
    uint64_t free_offset;
    struct blockmap_room room;
    /* Of the file, when it was opened: what comes behind is ours, and zeroes. */
    uint64_t first_size;

    /* Guards what follows. Not held over a yield. */
    pthread_mutex_t cache_lock;
    bool has_cache_lock;
    /* Counts changes of tables; a table that was read before a change is not put into the cache. */
    uint64_t generation;
    /* owned; by sector */
    struct vmdk_cached_table *cache;
    /* The latest grain that was decompressed; host offset, 0: none. Owned. */
    uint64_t inflated_host;
    uint8_t *inflated;
};

struct vmdk {
    struct blockmap map;
    struct vmdk_descriptor descriptor;
    /* The descriptor is inside the file "file", at this offset. */
    uint64_t descriptor_offset;
    /* owned */
    struct vmdk_extent *extents;
    unsigned extent_count;
    /* Of all extents. */
    uint64_t directory_entries;
};

/* extent.c */

/*
 * Read and check the header of a sparse extent, and its grain directory. `e` has its edge.
 * vmdk_extent_release() in any case. Errors with a sentence.
 */
int vmdk_co_open_sparse(struct block_node *node, struct vmdk_extent *e, struct error *err);
void vmdk_extent_release(struct vmdk_extent *e);
/* Forget what another process may have changed. Drained. */
void vmdk_extent_reload(struct vmdk_extent *e);

/* tables.c */

/* Make the cache of grain tables, which vmdk_extent_release() frees. -ENOMEM */
int vmdk_make_table_cache(struct vmdk_extent *e);
/* Under cache_lock. */
void vmdk_forget_tables_locked(struct vmdk_extent *e);
/* The entry of the grain at `within` of the extent. -EIO */
int vmdk_co_get_entry(struct vmdk_extent *e, uint64_t within, uint32_t *ret_entry);
/* Write it, and its copy. Under map.lock. -ENOTSUP: the extent has no table there. */
int vmdk_co_set_entry(struct vmdk_extent *e, uint64_t within, uint32_t entry);
/* The run at `within` of a sparse extent, at most `length` bytes. */
int vmdk_co_find_grains(struct vmdk_extent *e, uint64_t within, uint64_t length,
                        struct blockmap_run *ret_run);
/* Check all entries. Adds what is wrong to the result. */
int vmdk_co_check_extent(struct block_node *node, struct vmdk_extent *e,
                         struct block_check_result *result);

/* compressed.c */

/* Read a part of the compressed grain at `host`, from byte `within` of it. */
int vmdk_co_read_grain(struct vmdk_extent *e, uint64_t host, uint64_t within, struct iov iov);
/*
 * Write to an extent of compressed grains: each grain can be written once. Parts of grains that are
 * not written are zeroes, or the backing file's. -EIO: a grain has contents already.
 */
int vmdk_co_write_grains(struct block_node *node, struct vmdk_extent *e, uint64_t offset,
                         struct iov iov);

/* create.c */

extern const struct block_option_desc vmdk_create_options[];
extern const struct schema_type vmdk_create_type;
/* Of struct block_driver. */
int vmdk_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err);
int vmdk_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                   struct options *opts, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading the qcow2 image of a backup without a node, by its tables: for chains with thousands of
 * images. After QEMU's interop/qcow2; what no image of a backup has is refused: a data file,
 * encryption, snapshots' tables and extended L2 entries are not followed. The reader compares
 * what it gets with checksums, so an entry that is damaged needs no further checks here.
 *
 * Nothing yields; reading may block. Any thread.
 */
#ifndef TIDEMARK_BACKUP_LAYER_IMAGE_H
#define TIDEMARK_BACKUP_LAYER_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "backup/stored_node.h"
#include "base/error.h"

/* What the header says. */
struct layer_image {
    uint64_t disk_size; /* bytes */
    uint64_t l1_offset; /* in the file */
    uint32_t l1_size;   /* entries */
    unsigned cluster_bits;
    unsigned compression;
};

/*
 * Whether an image is one that a backup may have: without a data file, encryption and the like.
 * *ret_cluster_bits is BACKUP_CLUSTER_BITS or, in one without a backing file,
 * BACKUP_FULL_CLUSTER_BITS. -EINVAL, or -EBADMSG: it was changed.
 */
int layer_image_check(const struct stored_image *image, unsigned *ret_cluster_bits,
                      struct error *err);
/* The same, of a file that is open; *ret_image says where the tables are. */
int layer_image_open(struct stored *file, const char *shown, struct layer_image *ret_image,
                     struct error *err);
/*
 * The bytes of the file, in whole units of 4 KiB, that only the compressed contents of a cluster of
 * the image occupy; *ret_size is 0 if there are none. Errors as layer_image_read().
 */
int layer_image_find_compressed(const struct layer_image *image, struct stored *file,
                                uint64_t cluster, uint64_t *ret_offset, uint64_t *ret_size);

/*
 * Of an image whose clusters are larger than what is read: clusters that were decompressed last, 2
 * MiB at most. NULL: no memory. Clearing and freeing allow NULL.
 */
struct layer_image_cache;
struct layer_image_cache *layer_image_cache_new(void);
void layer_image_cache_clear(struct layer_image_cache *c);
void layer_image_cache_free(struct layer_image_cache *c);

/*
 * Read clusters of BACKUP_CLUSTER_SIZE, whatever the image has. What has no data in the image, or
 * is past the end of the disk, becomes zeroes. `cache` is the image's own, or NULL.
 * -EBADMSG: the tables or compressed data are damaged, or a sealed file was changed; -EIO and other
 * errors of read(2); -ENOMEM.
 */
int layer_image_read(const struct layer_image *image, struct layer_image_cache *cache,
                     struct stored *file, uint64_t first, size_t count, uint8_t *buf);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The image of a backup as a node, whether it is sealed or not: for new images, and for reading.
 * Main reactor; `co_` functions yield.
 */
#ifndef TIDEMARK_BACKUP_STORED_NODE_H
#define TIDEMARK_BACKUP_STORED_NODE_H

#include "backup/stored.h"
#include "base/error.h"
#include "block/block.h"

/* The driver of sealed files, which users can't open. */
void stored_node_register_driver(void);

struct stored_image {
    const char *shown; /* for messages */
    int fd;            /* borrowed; may be closed when the image is open */
    const struct backup_key *seal;
    /* Of a new image: */
    uint64_t size;
    const char *backing; /* NULL: none, and clusters of BACKUP_FULL_CLUSTER_SIZE */
};

/*
 * Make a qcow2 image in an empty file, and open it for writing. The backing file is never opened:
 * it is not read, however long the chain, and whatever the name may be. No flush syncs an image
 * that was opened for writing: the caller syncs the file when the image is inactive.
 */
int stored_node_co_create(const struct stored_image *image, struct block_node **ret_node,
                          struct error *err);
/* Open an image, to write to it. */
int stored_node_co_reopen(const struct stored_image *image, struct block_node **ret_node,
                          struct error *err);
/* Open an image read-only, as a qcow2 image without its backing file. */
int stored_node_co_open(const struct stored_image *image, struct block_node **ret_node,
                        struct error *err);

#endif

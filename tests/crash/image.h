/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of an image as record disks, and the image on top of them. There is a set that a
 * workload uses ("live"), and one for looking at what a crash left ("crashed").
 */
#ifndef TIDEMARK_TESTS_IMAGE_H
#define TIDEMARK_TESTS_IMAGE_H

#include "base/error.h"
#include "block/driver.h"
#include "config.h"
#include "record_disk.h"

enum image_file { IMAGE_FILE, IMAGE_DATA_FILE, IMAGE_BASE_FILE };

struct image_disks {
    const char *name; /* begins the names of the nodes */
    struct block_node *nodes[RECORD_DISKS];
};

/* Main reactor, in a coroutine; all yield. */
int image_co_open_disks(struct image_disks *d, const char *name, struct error *err);
void image_co_close_disks(struct image_disks *d);

/* New files in the disks, for a disk of `size` bytes. */
int image_co_create(const struct image_disks *d, const struct crash_config *c, uint64_t size,
                    struct error *err);

#define IMAGE_WRITABLE 1u
#define IMAGE_BASE 2u    /* the backing file instead */
#define IMAGE_NO_BASE 4u /* without its backing file */

/* Open the image; its own reference is the caller's. */
int image_co_open(const struct image_disks *d, const struct crash_config *c, unsigned how,
                  struct block_node **ret, struct error *err);
/*
 * As `img commit`: what the image stores goes to its backing file, stably, then the image is
 * emptied. Nobody has it open.
 */
int image_co_commit(const struct image_disks *d, const struct crash_config *c, struct error *err);

#endif

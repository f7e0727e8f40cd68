/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of an image, or of all images of a chain, as record disks, and the image on top of
 * them. There is a set that a workload uses ("live"), and one for looking at what a crash left
 * ("crashed").
 */
#ifndef TIDEMARK_TESTS_IMAGE_H
#define TIDEMARK_TESTS_IMAGE_H

#include "base/error.h"
#include "block/driver.h"
#include "config.h"
#include "record_disk.h"

enum image_file { IMAGE_FILE, IMAGE_DATA_FILE, IMAGE_BASE_FILE };

/* A chain has its images on disk IMAGE_BASE_FILE and those behind it: at first, on this number. */
#define CHAIN_IMAGES 3u

struct image_disks {
    const char *name; /* begins the names of the nodes */
    struct block_node *nodes[RECORD_DISKS];
    unsigned key; /* the passphrase that it is opened with, if it is encrypted; see keys.h */
    unsigned top; /* the image: IMAGE_FILE, or that on top of a chain */
};

/* Main reactor, in a coroutine; all yield. */
int image_co_open_disks(struct image_disks *d, const char *name, struct error *err);
void image_co_close_disks(struct image_disks *d);

/* "image", "base" ...: for names of nodes, and by which images record their backing files. */
const char *image_disk_name(unsigned disk);

/* New files in the disks, for a disk of `size` bytes. */
int image_co_create(const struct image_disks *d, const struct crash_config *c, uint64_t size,
                    struct error *err);

#define IMAGE_WRITABLE 1u
#define IMAGE_BASE 2u    /* the backing file instead */
#define IMAGE_NO_BASE 4u /* without its backing file */

/*
 * The disk of the backing file that the header of an image of a chain names now; RECORD_DISKS:
 * none. -EILSEQ: there is no such file.
 */
int image_backing_disk(const struct image_disks *d, unsigned disk, unsigned *ret_disk,
                       struct error *err);
/* What the header says. Version 2 has no mark. Other formats than qcow2: version 0. */
uint32_t image_version(const struct image_disks *d, unsigned disk);
bool image_is_marked_dirty(const struct image_disks *d, unsigned disk);
/* Options of an image, as JSON, without braces: driver, file, what the kind of images wants. */
void image_format_options(const struct image_disks *d, const struct crash_config *c, unsigned disk,
                          char *buf, size_t size);

/* Open the image, of a chain with those that headers name; its own reference is the caller's. */
int image_co_open(const struct image_disks *d, const struct crash_config *c, unsigned how,
                  struct block_node **ret, struct error *err);
/*
 * As `img commit`: what the image stores goes to its backing file, stably, then the image is
 * emptied. Nobody has it open.
 */
int image_co_commit(const struct image_disks *d, const struct crash_config *c, struct error *err);

#endif

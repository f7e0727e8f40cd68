/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the fuzz targets of qcow2 share: an image that holds anything, on a file in memory, and a
 * mutator that knows what tables are made of. A target is a function that does something with the
 * image.
 *
 * The last byte of the input chooses among what a target can do. An image that says it has an
 * external data file finds one, also in memory. Run with -close_fd_mask=2: complaints about images
 * are expected.
 */
#ifndef TIDEMARK_TESTS_FUZZ_QCOW2_IMAGE_H
#define TIDEMARK_TESTS_FUZZ_QCOW2_IMAGE_H

#include "block/driver.h"

/* The target: in a coroutine, once for each input. `how` is its last byte. */
void fuzz_co_image(unsigned how);

/*
 * The image, opened with BLOCK_OPEN_... `flags`, without its backing file. NULL if it is refused.
 */
struct block_node *fuzz_co_open(unsigned flags);
/* To the image's guest, for reading or also for writing and resizing; NULL if it is refused. */
struct block_root *fuzz_co_root(struct block_node *node, bool writable);
/* Map and read samples of the whole disk. */
void fuzz_co_read_disk(struct block_edge *edge);
/* Write, zero and discard here and there. */
void fuzz_co_write_disk(struct block_edge *edge);
/* From here on the file does not grow for this input. */
void fuzz_fill_file(void);
/* Check, and repair if `fix` says so, in an open of its own. */
void fuzz_co_check(unsigned fix);

#endif

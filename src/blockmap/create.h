/* SPDX-License-Identifier: Apache-2.0 */
/* What drivers share that make images. `co_` functions yield, others do not. Main reactor. */
#ifndef TIDEMARK_BLOCKMAP_CREATE_H
#define TIDEMARK_BLOCKMAP_CREATE_H

#include "block/driver.h"

/* Write a new image into a file, which may be resized. 0 or -errno with a sentence. */
typedef int blockmap_co_write_fn(struct block_edge *file, const void *arg, struct error *err);

/* Take the options for making the file itself. *ret_file is the caller's. -EINVAL, -ENOMEM */
int blockmap_take_file_options(struct options *opts, struct options **ret_file, struct error *err);
/*
 * Take a choice of `names`, which end with NULL; *value is the default, and keeps it. -EINVAL in
 * the words of QEMU's tools.
 */
int blockmap_take_choice(struct options *opts, const char *key, const char *const *names,
                         int *value, struct error *err);
/*
 * Take "preallocation" where an image has no space to preallocate when its file is made. As in
 * QEMU's tools, the modes of files are accepted, and have no effect. -EINVAL, -ENOTSUP
 */
int blockmap_take_preallocation(struct options *opts, struct error *err);
/*
 * Make the file (`file_options` is consumed), and let `co_write` write the image. As
 * block_co_create_file().
 */
int blockmap_co_create_file(const char *filename, struct options *file_options,
                            blockmap_co_write_fn *co_write, const void *arg, struct error *err);
/* The same in a node that exists, with the control lock paused. */
int blockmap_co_format(struct block_node *file, blockmap_co_write_fn *co_write, const void *arg,
                       struct error *err);
/*
 * Make the file `size` bytes of zeroes. A device keeps its size, and has zeroes there; one that is
 * too short is an error. -errno with a sentence.
 */
int blockmap_co_clear_file(struct block_edge *file, uint64_t size, struct error *err);
/* A random UUID of 16 bytes (RFC 4122, version 4). */
void blockmap_fill_uuid(uint8_t *uuid);

#endif

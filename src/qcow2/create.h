/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_CREATE_H
#define TIDEMARK_QCOW2_CREATE_H

#include "block/driver.h"

/* block_driver.create_options: those that qcow2_co_create() takes. */
extern const struct block_option_desc qcow2_create_options[];

/* Qcow2CompressionType */
extern const struct schema_type qcow2_compression_type;
/* block_driver.create_type */
extern const struct schema_type qcow2_create_type, qcow2_amend_type;

/*
 * block_driver.co_create: make an image of `size` bytes in the file `filename`, which is created or
 * overwritten. Takes all its options from `opts`. Yields.
 */
int qcow2_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err);

/* block_driver.co_format. Yields. */
int qcow2_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                    struct options *opts, struct error *err);

#endif

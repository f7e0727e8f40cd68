/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the driver `luks` share. */
#ifndef TIDEMARK_LUKS_DISK_H
#define TIDEMARK_LUKS_DISK_H

#include "block/driver.h"
#include "luks/volume.h"

extern const struct block_option_desc luks_create_options[];

/* See struct block_driver. `header` is the node for a detached header, or NULL. */
int luks_co_create_file(const char *filename, uint64_t size, struct options *opts,
                        struct error *err);
int luks_co_format_nodes(struct block_node *file, struct block_node *header, uint64_t size,
                         struct options *opts, struct error *err);

/* Access to a header at the beginning of a node, by an edge. */
struct luks_io luks_io_of_edge(struct block_edge *edge);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* The layers of a disk that an NBD server offers, for map --layers and rebuild-chain. */
#ifndef TIDEMARK_CLI_IMG_LAYERS_H
#define TIDEMARK_CLI_IMG_LAYERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct layer_extent {
    uint64_t start, length; /* bytes */
    /* As nbd_client_co_merged_status() reports them: enum nbd_merged_flags, and the depth. */
    uint64_t flags;
};

/* All extents of a disk, in their order; neighbours differ. Start with {0}. */
struct layer_map {
    struct layer_extent *list; /* owned */
    size_t count, capacity;
    uint64_t size; /* of the disk, in bytes */
};

/* Release what it owns, and empty it. */
void layer_map_clear(struct layer_map *map);

/*
 * Ask the server at `uri` for all extents of its export. `bitmap`: with the dirty bits of that one;
 * NULL: with none. `exact_depth`: with the number of each layer, if the server has it. -EINVAL:
 * `uri` is no address of an NBD server; -ENOENT: no such bitmap; errors of connecting, of a
 * request; -ENOMEM. Yields.
 */
int layer_map_co_read(struct layer_map *map, const char *uri, const char *bitmap, bool exact_depth,
                      struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The map of a chain: for every cluster of the disk, which layer has it. Layers are merged two and
 * two, then what comes of that, so that a map takes N * log(layers) steps for N runs in all layers.
 * Nothing here yields; any thread.
 */
#ifndef TIDEMARK_BACKUP_CHAIN_MAP_H
#define TIDEMARK_BACKUP_CHAIN_MAP_H

#include "backup/chain.h"

/*
 * What a chain says about the clusters from `first` up to the next piece; the last piece is at the
 * end of the disk.
 */
struct chain_map_piece {
    uint64_t first;
    uint64_t digest; /* as in struct chain_extent */
    uint32_t layer;  /* index + 1; 0: none */
    uint32_t kind;   /* enum sums_kind */
};

struct chain_map {
    size_t count; /* without the last one */
    struct chain_map_piece list[];
};

/* Of layers, sizes and `below` of a chain; malloc'ed. NULL: no memory. */
struct chain_map *chain_map_new(const struct chain *c);
/* Number of the piece that has a cluster, which is on the disk. */
size_t chain_map_find(const struct chain_map *map, uint64_t cluster);

#endif

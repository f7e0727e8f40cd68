/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small number, the kind, for each of very many clusters. Where a group of neighbours is of one
 * kind, it takes 4 bytes; another group takes 64 bytes more. So a map of a disk of 10 TiB takes 5
 * MiB, and each scattered piece 64 bytes. Nothing here yields; no locks.
 */
#ifndef TIDEMARK_BACKUP_KIND_MAP_H
#define TIDEMARK_BACKUP_KIND_MAP_H

#include <stdint.h>
#include <stddef.h>

#define KIND_MAP_KINDS 8u

struct kind_map {
    uint64_t count;
    uint32_t *groups; /* a kind, or KIND_MAP_KINDS + the number of a leaf */
    uint8_t **slabs;  /* of leaves */
    size_t slab_count;
    uint32_t leaf_count; /* that were ever used */
    uint32_t free_leaf;  /* UINT32_MAX: none */
};

/* For `count` clusters, all of kind 0. -ENOMEM. To be cleared, also on failure. */
int kind_map_init(struct kind_map *ret_map, uint64_t count);
/* Release what it holds, and make it empty. */
void kind_map_clear(struct kind_map *m);

/* The kind of a cluster, below KIND_MAP_KINDS. */
unsigned kind_map_get(const struct kind_map *m, uint64_t index);
/* Make `count` clusters from `first` on be of one kind. -ENOMEM: perhaps only a part of them is. */
int kind_map_set(struct kind_map *m, uint64_t first, uint64_t count, unsigned kind);
/* The end of the run of clusters that are of the kind of the one at `first`; at most `end`. */
uint64_t kind_map_run_end(const struct kind_map *m, uint64_t first, uint64_t end);

#endif

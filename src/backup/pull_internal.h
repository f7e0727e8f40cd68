/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the two halves of a pull: what to fetch (pull_plan.c), and fetching it (pull.c). */
#ifndef TIDEMARK_BACKUP_PULL_INTERNAL_H
#define TIDEMARK_BACKUP_PULL_INTERNAL_H

#include "backup/manifest.h"
#include "backup/pull.h"
#include "backup/sums.h"

#define PULL_CHUNK_CLUSTERS 8u

enum pull_kind {
    PULL_SKIP, /* not part of the backup */
    PULL_DATA,
    PULL_ZERO, /* reads as zeroes, and the backup says so */
};

/*
 * What to look at, and what was found. `kinds` has a byte for each cluster of `runs`, in their order; a run's `digest`
 * is the index of its first cluster's.
 */
struct pull_plan {
    struct sums_runs runs;
    uint8_t *kinds;
    uint64_t data_clusters;
};

/* Clusters of the same kind that lie together; data at most PULL_CHUNK_CLUSTERS. */
struct pull_chunk {
    uint64_t first; /* cluster on the disk */
    uint64_t count;
    uint64_t kind_index; /* of the first, in plan->kinds */
    uint64_t slot;       /* of the first one's digest */
    enum pull_kind kind;
};

/* Iterates over what is not PULL_SKIP, ascending. Starts as zeroes. */
struct pull_cursor {
    size_t run;
    uint64_t in_run;
    uint64_t slot;
};

/* What to look at: the whole disk, or what the bitmap marks; on a connection of its own. Yields. Errors name the export. */
int pull_co_plan_areas(const struct pull_config *config, struct pull_plan *ret, struct error *err);
/* Which of it is zero, by base:allocation. As above. */
int pull_co_plan_kinds(const struct pull_config *config, struct nbd_client *client,
                       struct pull_plan *plan, struct error *err);
void pull_plan_clear(struct pull_plan *plan);

/* False at the end. Does not yield. */
bool pull_plan_next(const struct pull_plan *plan, struct pull_cursor *cursor,
                    struct pull_chunk *ret);

/* The runs of the checksum file, from the kinds found at last. -ENOMEM. */
int pull_plan_to_sums(const struct pull_plan *plan, struct sums_runs *ret);

/* Bytes of [first, first + count) clusters that lie within the disk. */
static inline uint64_t pull_bytes(uint64_t disk_size, uint64_t first, uint64_t count)
{
    uint64_t start = first * BACKUP_CLUSTER_SIZE;
    uint64_t end = (first + count) * BACKUP_CLUSTER_SIZE;

    return (end < disk_size ? end : disk_size) - start;
}

#endif

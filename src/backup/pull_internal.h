/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared by the parts of a pull: the plan of what to fetch (pull_plan.c), comparing with the parent
 * without fetching (pull_ahead.c), and fetching (pull.c).
 */
#ifndef TIDEMARK_BACKUP_PULL_INTERNAL_H
#define TIDEMARK_BACKUP_PULL_INTERNAL_H

#include "backup/chain.h"
#include "backup/kind_map.h"
#include "backup/manifest.h"
#include "backup/pull.h"
#include "backup/sums.h"
#include "backup/writeback.h"
#include "base/pacer.h"
#include "base/progress.h"
#include "co/sync.h"

enum pull_kind {
    PULL_SKIP,     /* zero on the disk, and not part of the backup */
    PULL_UNMARKED, /* not zero there, but the bitmap says: as in the parent */
    PULL_DATA,
    PULL_ZERO, /* recorded as zeroes */
    PULL_SAME, /* was compared, and the parent has the same: not part of the backup */
};

/*
 * The areas to fetch, and what was found there. `kinds` has the enum pull_kind of each cluster of
 * `runs`, in their order; a run's `digest` is the index of its first cluster.
 */
struct pull_plan {
    struct sums_runs runs;
    /* If the disk has grown: where data is read; `runs` are the whole disk then. */
    struct sums_runs marked;
    struct kind_map kinds;
    uint64_t data_clusters;
};

/* What the parent has, for each cluster of a chunk. */
struct pull_parent {
    uint8_t is_data[PULL_CHUNK_CLUSTERS]; /* else it is zero there */
    uint8_t digests[PULL_CHUNK_CLUSTERS * SUMS_DIGEST_SIZE];
};

/* Adjacent clusters of the same kind (see is_hole); of data at most PULL_CHUNK_CLUSTERS. */
struct pull_chunk {
    uint64_t first; /* cluster on the disk */
    uint64_t count;
    uint64_t kind_index; /* index of the first one in plan->kinds */
    uint64_t slot;       /* index of the first one's digest */
    enum pull_kind kind;
    struct pull_parent parent; /* of data, if it is to be compared */
    /*
     * Of data in a full backup, whose chunks are whole clusters of the image: which clusters are
     * zero by the plan. They are not read, and have no digest.
     */
    bool is_hole[PULL_CHUNK_CLUSTERS];
};

/* Iterates over clusters that are to be fetched or recorded, ascending. Starts as zeroes. */
struct pull_cursor {
    size_t run;
    uint64_t in_run;
    uint64_t slot;
};

/*
 * Find the areas: the whole disk, or what the bitmap marks. 0 or -errno; errors name the input.
 * Yields.
 */
int pull_co_plan_areas(const struct pull_config *config, struct pull_plan *ret_plan,
                       struct error *err);
/* Find out which clusters of the plan are zero. As above. */
int pull_co_plan_kinds(const struct pull_config *config, struct pull_plan *plan, struct error *err);
/* Release what the plan holds. Does not yield. */
void pull_plan_clear(struct pull_plan *plan);

/*
 * The next chunk; false at the end. `group`: clusters of the plan in one of the image; a plan of
 * the whole disk if that is not 1. Does not yield.
 */
bool pull_plan_next(const struct pull_plan *plan, unsigned group, struct pull_cursor *cursor,
                    struct pull_chunk *ret_chunk);

/* How many digests a chunk has: clusters that are no holes. Does not yield. */
uint64_t pull_chunk_digests(const struct pull_chunk *chunk);

/* The runs of the checksum file, from the final kinds. 0 or -ENOMEM. Does not yield. */
int pull_plan_to_sums(const struct pull_plan *plan, struct sums_runs *ret_runs);

/* --- a pull (pull.c) --- */

struct pull {
    const struct pull_config *config;
    struct stored *sums; /* the checksum file */
    struct pull_plan plan;
    struct pull_cursor cursor;
    struct block_node *node;
    struct block_root *root;
    struct progress progress;
    uint64_t moved;
    uint64_t stored;            /* clusters that differ from the parent */
    struct pacer pacer;         /* of reads */
    struct writeback writeback; /* of the image */
    int64_t watched_ns;
    struct error *err; /* gets the first failure */
    int status;
    struct co_group group;
};

/* --- pace (pull_pace.c) --- */

#define PULL_STOPPED "The backup was stopped"

/*
 * Before each chunk: false if the pull has to end, by a stop, a failure, or what config->watch()
 * says. Does not yield.
 */
bool pull_may_continue(struct pull *p);
/* Wait for the turn of a read, under a limit of the rate; a stop ends the wait. Yields. */
void pull_co_await_turn(struct pull *p, uint64_t size);

/* --- comparing ahead (pull_ahead.c) --- */

/*
 * Where the input tells digests of data that has a parent: find out which clusters are the same
 * there, and release them. What is not known afterwards has to be fetched. A failure is in
 * p->status. Yields.
 */
void pull_co_compare_ahead(struct pull *p);

/* --- comparing with the parent (pull_compare.c) --- */

/* Record zeroes of the plan where the parent has data. 0 or -ENOMEM. Does not yield. */
int pull_compare_zeroes(struct chain *parent, struct pull_plan *plan);
/* Fill chunk->parent; chunks ascend. Errors of read(2). Does not yield. */
int pull_compare_look_up(struct chain *parent, struct pull_chunk *chunk);
/* Turn the kinds of clusters that are the same into PULL_SAME. Does not yield. */
void pull_compare_kinds(const struct pull_chunk *chunk, const uint8_t *digests, uint8_t *kinds);
/*
 * Move the digests of what has stayed together, in the checksum file without its runs. Errors
 * as those of stored_read() and stored_write(). Does not yield.
 */
int pull_compare_close_gaps(const struct pull_plan *plan, struct stored *file);

/* Bytes of [first, first + count) clusters that lie within the disk. */
static inline uint64_t pull_bytes(uint64_t disk_size, uint64_t first, uint64_t count)
{
    uint64_t start = first * BACKUP_CLUSTER_SIZE;
    uint64_t end = (first + count) * BACKUP_CLUSTER_SIZE;

    return (end < disk_size ? end : disk_size) - start;
}

#endif

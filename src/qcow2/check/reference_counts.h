/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many references lead to each cluster of a file. An area in which all numbers are equal takes
 * no memory, so the memory grows with what the file contains, not with its size.
 *
 * A tree of nodes with 512 pointers each, over chunks of 32,768 clusters. A chunk has one of these
 * states. It moves down the list as its numbers grow, and never up except where BITS says so:
 *
 *   EVEN   each cluster has `base`               no memory
 *   BITS   each cluster has `base` or base + 1   4 KiB; when all bits are set, EVEN with base + 1
 *   BYTES  numbers up to 255                     32 KiB
 *   WORDS  numbers up to 2^32 - 1                128 KiB
 *
 * One user at a time. None of these functions yields.
 */
#ifndef TIDEMARK_QCOW2_CHECK_REFERENCE_COUNTS_H
#define TIDEMARK_QCOW2_CHECK_REFERENCE_COUNTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct reference_counts;

/*
 * Counts for cluster indexes up to `clusters`, all of them 0. No count exceeds `max` (limited to
 * 2^32 - 1), and the chunks and nodes take at most `memory` bytes. The caller frees the result by
 * reference_counts_free(). NULL if out of memory.
 */
struct reference_counts *reference_counts_new(uint64_t clusters, uint64_t max, uint64_t memory);
/* NULL is allowed. */
void reference_counts_free(struct reference_counts *c);

/*
 * Add 1 to the counts of `n` > 0 clusters from index `first`. *ret_done is the number of clusters
 * that were counted: all `n` if the result is 0. -ERANGE: the next cluster has `max` already;
 * -ENOMEM: there is no memory for its count.
 */
int reference_counts_add(struct reference_counts *c, uint64_t first, uint64_t n,
                         uint64_t *ret_done);
/* The same, but adds `times` > 0. -ERANGE: the next count would exceed `max`, and is unchanged. */
int reference_counts_add_times(struct reference_counts *c, uint64_t first, uint64_t n,
                               uint32_t times, uint64_t *ret_done);

/* The count of one cluster. */
uint32_t reference_counts_get(const struct reference_counts *c, uint64_t cluster);
/*
 * The length of a run of clusters from `first` that have the same count: at least 1, at most `n` >
 * 0. The run may end before the count changes. *ret_count is that count.
 */
uint64_t reference_counts_run(const struct reference_counts *c, uint64_t first, uint64_t n,
                              uint32_t *ret_count);
/* Whether any cluster has a count above 1. */
bool reference_counts_any_shared(const struct reference_counts *c);

#endif

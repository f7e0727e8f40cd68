/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A number for each cluster of a file: how often it is referenced. Areas where all numbers are the same take no memory, so it takes
 * what the file's contents are worth, not what its size is.
 *
 * A tree of nodes of 512 pointers over chunks of 32,768 clusters. A chunk is in one of these states, and only goes down:
 *
 *   EVEN   each cluster has `base`                   no memory
 *   BITS   each has `base`, or one more              4 KiB; back to EVEN, one higher, when all bits are set
 *   BYTES  numbers up to 255                         32 KiB
 *   WORDS  numbers up to 2^32 - 1                    128 KiB
 */
#ifndef TIDEMARK_QCOW2_CHECK_REFERENCE_COUNTS_H
#define TIDEMARK_QCOW2_CHECK_REFERENCE_COUNTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct counts;

/* Zero for clusters up to `clusters`. `max`: the largest number (at most 2^32 - 1); `memory`: bytes that may be taken. NULL: no memory. */
struct counts *counts_new(uint64_t clusters, uint64_t max, uint64_t memory);
void counts_free(struct counts *c); /* NULL is fine */

/*
 * Count `n` > 0 clusters from `first` once more. *ret_done clusters were: all of them if it returns 0; -ERANGE: the next one has the
 * largest number already; -ENOMEM.
 */
int counts_add(struct counts *c, uint64_t first, uint64_t n, uint64_t *ret_done);
/* The same, `times` (> 0) at once. -ERANGE: the next one would get more than the largest number; it keeps what it has. */
int counts_add_times(struct counts *c, uint64_t first, uint64_t n, uint32_t times,
                     uint64_t *ret_done);

uint32_t counts_get(const struct counts *c, uint64_t cluster);
/* How many of `n` > 0 clusters from `first` on are known to have the same number, at least one; *ret: that number. */
uint64_t counts_run(const struct counts *c, uint64_t first, uint64_t n, uint32_t *ret);
/* Whether some cluster has more than one. */
bool counts_any_shared(const struct counts *c);

#endif

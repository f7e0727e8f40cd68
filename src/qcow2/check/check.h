/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking an image, and building its refcounts again.
 *
 * All `co_` functions yield. The node is drained: nobody else uses the image meanwhile.
 */
#ifndef TIDEMARK_QCOW2_CHECK_CHECK_H
#define TIDEMARK_QCOW2_CHECK_CHECK_H

#include <stdint.h>

struct block_check_result;
struct block_node;
struct error;
struct qcow2;
struct reference_counts;

/*
 * The driver's co_check (see struct block_driver): compare the refcounts with the references that
 * the metadata makes, and repair what `fix` (BLOCK_CHECK_FIX_ bits) names. Findings are printed to
 * standard error, in the words of qemu-img, and counted in *ret_result. Returns 0 if the check came
 * to its end, whatever it found; -ENOMEM if the counts of references do not fit into their memory;
 * the error of a write.
 */
int qcow2_co_check(struct block_node *node, unsigned fix, struct block_check_result *ret_result,
                   struct error *err);

/*
 * Count the references to each cluster of the file, except those to the refcount table and blocks,
 * up to `refcount_max` each. *ret_counts becomes the caller's, who frees it by
 * reference_counts_free(); *ret_clusters is the number of clusters of the file. -EIO if the
 * metadata has errors or a cluster has more references.
 */
int qcow2_co_count_references(struct qcow2 *q, uint64_t refcount_max,
                              struct reference_counts **ret_counts, uint64_t *ret_clusters,
                              struct error *err);

/*
 * Replace all refcounts by `counts`, the references to each of the `clusters` clusters of the file.
 * The old refcount table and blocks become free, or leaked if `counts` has them. The new ones go
 * into gaps of the file; where there is none, behind its end, but not below cluster index `beyond`:
 * clusters between the end of the file and that index may be referenced, and get the refcount 1.
 *
 * On failure the old refcounts stay, unless it is unknown which ones the header names: then the
 * image takes no more writes. -ERANGE: a count does not fit into the refcount width; -EFBIG: the
 * file is too large for any refcount table.
 */
int qcow2_co_rebuild_refcounts(struct qcow2 *q, const struct reference_counts *counts,
                               uint64_t clusters, uint64_t beyond, struct error *err);

#endif

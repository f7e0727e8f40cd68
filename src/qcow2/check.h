/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_CHECK_H
#define TIDEMARK_QCOW2_CHECK_H

#include "qcow2/state.h"

/*
 * Count the references to each cluster of the file, all but those to the refcount table and blocks themselves. *ret is malloc'ed and has
 * *ret_clusters elements. An image with errors in its metadata is refused with -EIO.
 */
int qcow2_co_count_references(struct qcow2 *q, uint32_t **ret, uint64_t *ret_clusters,
                              struct error *err);

#endif

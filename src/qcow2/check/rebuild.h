/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_CHECK_REBUILD_H
#define TIDEMARK_QCOW2_CHECK_REBUILD_H

#include "qcow2/check/reference_counts.h"
#include "qcow2/image.h"

/*
 * Replace all refcounts by `counts`, the references per cluster of the file, which has `clusters` of them. What the old refcount table and
 * blocks take is free then, or leaked if they were counted. The new ones lie in gaps of the file, or behind its end where there is none;
 * but not below cluster index `beyond`, up to which something may be referenced there. Nobody else uses the image meanwhile. -ERANGE if a
 * count does not fit into the refcount width, -EFBIG if the file is too large for any refcount table.
 */
int qcow2_co_rebuild_refcounts(struct qcow2 *q, const struct counts *counts, uint64_t clusters,
                               uint64_t beyond, struct error *err);

#endif

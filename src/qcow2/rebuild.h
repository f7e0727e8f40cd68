/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_REBUILD_H
#define TIDEMARK_QCOW2_REBUILD_H

#include "qcow2/state.h"

/*
 * Replace all refcounts by `counts` (references per cluster of the file, those of the old refcount table and blocks not among
 * them). The new ones lie at cluster index `first`, `clusters` or more, and beyond. Nobody else uses the image meanwhile. -ERANGE if a count does not fit into the refcount width.
 */
int qcow2_co_rebuild_refcounts(struct qcow2 *q, const uint32_t *counts, uint64_t clusters,
                               uint64_t first, struct error *err);

#endif

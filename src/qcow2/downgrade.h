/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_DOWNGRADE_H
#define TIDEMARK_QCOW2_DOWNGRADE_H

#include "qcow2/image.h"

/*
 * Make the image one of version 2. -ENOTSUP, with nothing changed, if it has something that
 * version 2 can't hold. The node is drained and committed, and its refcounts have 16 bits. Reports
 * progress in entries of L1 tables. Yields.
 */
int qcow2_co_downgrade(struct qcow2 *q, block_progress_fn *progress, void *progress_arg,
                       struct error *err);

#endif

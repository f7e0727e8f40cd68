/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_DOWNGRADE_H
#define TIDEMARK_QCOW2_DOWNGRADE_H

#include "qcow2/image.h"

/*
 * Make it an image of version 2; -ENOTSUP, with nothing changed, if it has what that can't hold. The node is drained and
 * committed, its refcounts have 16 bits.
 */
int qcow2_co_downgrade(struct qcow2 *q, block_progress_fn *progress, void *progress_arg,
                       struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_AMEND_H
#define TIDEMARK_QCOW2_AMEND_H

#include "qcow2/state.h"

/* block_driver.co_amend: compat, lazy_refcounts, refcount_bits, backing_file, backing_fmt. The node is drained. */
int qcow2_co_amend(struct block_node *node, struct options *opts, block_progress_fn *progress,
                   void *progress_arg, struct error *err);

#endif

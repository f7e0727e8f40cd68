/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_AMEND_H
#define TIDEMARK_QCOW2_AMEND_H

#include "qcow2/image.h"

extern const struct block_option_desc qcow2_amend_options[];

/* block_driver.co_amend. The node is drained. */
int qcow2_co_amend(struct block_node *node, struct options *opts, block_progress_fn *progress,
                   void *progress_arg, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_AMEND_H
#define TIDEMARK_QCOW2_AMEND_H

#include "qcow2/image.h"

/* block_driver.amend_options. */
extern const struct block_option_desc qcow2_amend_options[];

/* block_driver.co_amend: takes all its options from `opts`. The node is drained. Yields. */
int qcow2_co_amend(struct block_node *node, struct options *opts, bool force,
                   block_progress_fn *progress, void *progress_arg, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_DATA_STATUS_RUNS_H
#define TIDEMARK_QCOW2_DATA_STATUS_RUNS_H

#include "qcow2/image.h"

/*
 * The status of many areas from one walk through the L2 entries; see co_status_runs of struct
 * block_driver. -ENOTSUP if the file has to be asked for holes. -EIO if metadata is corrupt or
 * can't be read. Any reactor, no lock; yields.
 */
int qcow2_co_status_runs(struct block_node *node, bool contents, uint64_t offset, uint64_t length,
                         struct block_run *ret_runs, unsigned max, unsigned *ret_count);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QMP_SET_ACTIVE_H
#define TIDEMARK_QMP_SET_ACTIVE_H

#include <stdbool.h>

#include "base/error.h"

/*
 * Take a node (NULL: all) over from another process, or hand it over (block/hand_over.h): the
 * command blockdev-set-active. The control lock is held, and released for a while. Errors of
 * block_co_hand_over_prepare() and of the steps after it; -ENOENT. Yields.
 */
int qmp_co_set_active(const char *node_name, bool active, struct error *err);

#endif

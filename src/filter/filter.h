/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The filter drivers:
 *
 *   copy-before-write   keeps the contents of the moment it was inserted readable while the guest goes on writing
 *   snapshot-access     a node that shows those contents
 *   blklogwrites        logs writes, flushes and discards in the format of dm-log-writes
 *   blkdebug            makes I/O fail as told
 */
#ifndef TIDEMARK_FILTER_FILTER_H
#define TIDEMARK_FILTER_FILTER_H

#include "block/driver.h"

extern const struct block_driver copy_before_write_driver;
extern const struct block_driver snapshot_access_driver;
extern const struct block_driver write_log_driver;
extern const struct block_driver fault_driver;

/* Put them into the table of drivers. Once, at start; does not yield. */
void filter_register_drivers(void);

/*
 * Announce that something happens in a format ("l2_load", ...) whose file is `node`: rules of a blkdebug node that is
 * reached through filters from there act on it. Any thread; does not yield.
 */
void fault_node_event(struct block_node *node, const char *name);

#endif

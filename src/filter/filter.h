/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The filter drivers:
 *
 *   copy-before-write   keeps the contents of the moment it was inserted readable while the guest goes on writing
 *   snapshot-access     a node that shows those contents
 *   blklogwrites        logs writes, flushes and discards in the format of dm-log-writes
 *   blkdebug            makes I/O fail as told
 *   copy-on-read        keeps what is read from backing files in the image itself
 *   compress            has the format below store compressed what is written
 *   quorum              several children of the same contents, which have to agree
 */
#ifndef TIDEMARK_FILTER_FILTER_H
#define TIDEMARK_FILTER_FILTER_H

#include "block/driver.h"

/* Those that others in this layer look for. */
extern const struct block_driver fault_driver, snapshot_access_driver;

/*
 * Put all filters into the table of drivers. Once, at start; does not yield. Generated: tools/driver-table finds every
 * `const struct block_driver` of this folder.
 */
void filter_register_drivers(void);

/*
 * Breakpoints of the blkdebug node that events of `node` come to: itself, or below by `file` and through filters. -ENOTSUP if
 * there is none, -ENOENT for an unknown event or tag. Main reactor; none of these yields. `tag` NULL, except in the first: any.
 */
int fault_break(struct block_node *node, const char *event, const char *tag);
int fault_resume(struct block_node *node, const char *tag);
int fault_remove_break(struct block_node *node, const char *tag);
bool fault_is_held(struct block_node *node, const char *tag);

/* Called when a request stops at a breakpoint, and when it goes on: any thread, must not call back. Set once, at start. */
typedef void fault_watch(const char *tag, bool held);
void fault_set_watch(fault_watch *fn);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The filter drivers, a file each, whose head describes it. What a filter leaves NULL in its struct
 * block_driver is passed on (block/pass_through.c).
 */
#ifndef TIDEMARK_FILTER_FILTER_H
#define TIDEMARK_FILTER_FILTER_H

#include "block/driver.h"

/* Drivers that other files of this layer look for. */
extern const struct block_driver copy_before_write_driver, fault_driver, mirror_top_driver,
    snapshot_access_driver;

/*
 * Put all filters into the table of drivers. Once, at start; does not yield. Generated:
 * tools/driver-table finds every `const struct block_driver` of this folder.
 */
void filter_register_drivers(void);

/*
 * For a job that copies by reads of BLOCK_REQ_PREFETCH through a copy-on-read node: other reads
 * copy nothing from now on, so that no guest sees an error of the copy. What guests write from now
 * on is set in `written`, which lives as long as the node; NULL: nowhere. Main reactor, while the
 * node is drained; does not yield.
 */
struct dirty_bitmap;
void copy_on_read_serve_job(struct block_node *node, struct dirty_bitmap *written);
/* Let such reads end with -ECANCELED after the part that is in flight. Does not yield. */
void copy_on_read_cancel(struct block_node *node);

/*
 * Breakpoints of the blkdebug node that gets the events of `node`: itself, or a node below by
 * `file` and through filters. -ENOTSUP: there is none; -ENOENT: unknown event or tag. `tag` NULL
 * means any, except in the first function. Main reactor; none of these functions yields.
 */
int fault_break(struct block_node *node, const char *event, const char *tag);
int fault_resume(struct block_node *node, const char *tag);
int fault_remove_break(struct block_node *node, const char *tag);
bool fault_is_held(struct block_node *node, const char *tag);

/*
 * Called when a request stops at a breakpoint, and when it continues: on any thread; must not call
 * back. Set once, at start.
 */
typedef void fault_watch(const char *tag, bool held);
void fault_set_watch(fault_watch *fn);

/*
 * Called when the two nodes of a blkverify node disagree, or those of a quorum with `blkverify`,
 * with a sentence: on any thread. If it returns, the request fails. Set once, at start.
 */
typedef void verify_watch(const char *sentence);
void verify_set_watch(verify_watch *fn);
/* Call the watch; without one the sentence is logged. Returns -EIO, or does not return. */
__attribute__((format(printf, 1, 2))) int verify_disagree(const char *fmt, ...);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commits: dirty metadata is written in the order that image.h draws, and freed clusters become
 * free.
 *
 * All `co_` functions yield. Those that are not `_locked` take q->lock and commit.mutex themselves,
 * so the caller holds neither. Any reactor, except where said.
 */
#ifndef TIDEMARK_QCOW2_TABLE_COMMIT_H
#define TIDEMARK_QCOW2_TABLE_COMMIT_H

#include "qcow2/image.h"

/*
 * Make all writes that were acknowledged before the call stable (R4). Concurrent callers share
 * commits. On failure all that was dirty still is.
 */
int qcow2_co_commit(struct qcow2 *q);

/*
 * qcow2_co_commit() for a guest's flush: with lazy refcounts, refcounts may stay dirty under the
 * dirty bit.
 */
int qcow2_co_commit_guest(struct qcow2 *q);

/*
 * Commit everything, and clear the dirty bit that lazy refcounts have set. The node is drained.
 */
int qcow2_co_write_lazy_refcounts(struct qcow2 *q, struct error *err);

/* Whether nothing was written to the image's files since open, and nothing is dirty. */
bool qcow2_co_is_untouched(struct qcow2 *q);

/*
 * Commit if much metadata is dirty, or many bytes wait to be freed. Called after metadata changed.
 */
int qcow2_co_commit_if_much_dirty(struct qcow2 *q);

/*
 * Whether `result` says that there was no room: in the file, on its file system or device, or in
 * the user's quota. Does not yield.
 */
static inline bool qcow2_is_no_room(int result)
{
    return result == -ENOSPC || result == -EDQUOT || result == -EFBIG;
}

/*
 * An operation failed with `result`, and has undone its allocations. True if it is worth trying
 * again: there was no room, and since then a commit has freed clusters, other than the places of
 * tables that moved. Results >= 0 return false at once.
 */
bool qcow2_co_make_room(struct qcow2 *q, int result);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cutting off the free end of the file, after the disk has shrunk. Refcounts say which clusters are
 * free, and those of a damaged image may be wrong: what is cut off is lost, so they are compared
 * with the references before.
 *
 * The node is drained. Both functions yield.
 */
#ifndef TIDEMARK_QCOW2_CUT_H
#define TIDEMARK_QCOW2_CUT_H

#include "qcow2/image.h"

/*
 * Before anything changes: whether the refcount structures count themselves. If not, the image is
 * corrupt (table/verdict.h), and the result is -EIO with a sentence.
 */
int qcow2_co_check_refcount_blocks(struct qcow2 *q, struct error *err);

/*
 * Cut off the clusters at the end of the file that have no refcount, and nothing refers to; nothing
 * is dirty. That the file can't be cut is no error, as the clusters are free in any case. -EIO with
 * a verdict if one of them is in use.
 */
int qcow2_co_cut_file(struct qcow2 *q);

#endif

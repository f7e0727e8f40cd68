/* SPDX-License-Identifier: Apache-2.0 */
/* Opening an image: of struct block_driver, and what a reopen does again. */
#ifndef TIDEMARK_QCOW2_OPEN_H
#define TIDEMARK_QCOW2_OPEN_H

#include "block/driver.h"

struct qcow2;

/* See block/driver.h. Yields. */
int qcow2_co_open(struct block_node *node, struct options *opts, struct error *err);
/* See block/driver.h: another process has the image, and had it. The second function yields. */
void qcow2_handed_over(struct block_node *node);
int qcow2_co_reload(struct block_node *node, struct error *err);
int qcow2_co_exchange_image(struct block_node *node, struct error *err);
/* Release what the image has in memory; its children stay open. Does not yield. */
void qcow2_release_image(struct qcow2 *q);

/*
 * Change what a writable open has to change on disk first: repair, clear unknown autoclear bits.
 * Yields.
 */
int qcow2_co_prepare_writable(struct qcow2 *q, struct error *err);
/* Begin and stop to drop slices of the caches that are not used (cache-clean-interval). */
void qcow2_cache_cleaner_start(struct qcow2 *q);
void qcow2_cache_cleaner_stop(struct qcow2 *q);

#endif

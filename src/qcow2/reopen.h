/* SPDX-License-Identifier: Apache-2.0 */
/* Reopening an image: the functions of struct block_driver. */
#ifndef TIDEMARK_QCOW2_REOPEN_H
#define TIDEMARK_QCOW2_REOPEN_H

#include "block/driver.h"

/* The options that can change while the image is open. */
extern const char *const qcow2_reopen_options[];
/* See block/driver.h. */
int qcow2_co_reopen_prepare(struct block_node *node, struct options *opts, struct error *err);
int qcow2_co_reopen_finish(struct block_node *node, struct error *err);
void qcow2_co_reopen_commit(struct block_node *node);
void qcow2_co_reopen_abort(struct block_node *node);

#endif

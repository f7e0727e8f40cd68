/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_SNAPSHOT_TABLE_H
#define TIDEMARK_QCOW2_SNAPSHOT_TABLE_H

#include "qcow2/snapshot.h"

/* Also takes it off its list; NULL is fine. */
void qcow2_snapshot_free(struct qcow2_snapshot *s);

/*
 * Write q->snapshots as a new table and switch the header to it, together with everything else that the header's fields say
 * by then (R3). The old table is freed by the next commits. On failure the header's fields are as before.
 */
int qcow2_co_switch_snapshots(struct qcow2 *q, struct error *err);

#endif

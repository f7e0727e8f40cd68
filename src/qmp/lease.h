/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Leases of views of a point in time (docs/fleecing.md): a view goes with the last client of its
 * export (x-lease), or with the monitor connection that has taken a lease of the view. Main
 * reactor; nothing here yields.
 */
#ifndef TIDEMARK_QMP_LEASE_H
#define TIDEMARK_QMP_LEASE_H

#include "qmp/table.h"

/*
 * Begin to delete the export, the snapshot-access node, the copy-before-write filter below it and
 * its target with the file, as far as nobody else uses them; the users of the filter are moved to
 * the disk. Errors are logged.
 */
void qmp_end_lease(const char *export_id);

/*
 * Likewise for all views that a session has leased by x-tidemark-lease, with their exports: `call`
 * is that of the session, which ends.
 */
void qmp_end_leases(const struct qmp_call *call);

#endif

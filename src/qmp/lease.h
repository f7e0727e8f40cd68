/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of a lease: an exported view of a point in time whose last client has gone
 * (docs/fleecing.md).
 */
#ifndef TIDEMARK_QMP_LEASE_H
#define TIDEMARK_QMP_LEASE_H

/*
 * Begin to delete the export, the snapshot-access node, the copy-before-write filter below it and
 * its target with the file, as far as nobody else uses them; the users of the filter are moved to
 * the disk. Errors are logged. Main reactor; does not yield.
 */
void qmp_end_lease(const char *export_id);

#endif

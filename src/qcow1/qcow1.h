/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The first version of the format qcow, of QEMU from 2004 on ("The QCOW Image Format" by Mark
 * McLoughlin): an overlay with two levels of tables, without refcounts and snapshots.
 */
#ifndef TIDEMARK_QCOW1_QCOW1_H
#define TIDEMARK_QCOW1_QCOW1_H

/* Register the driver "qcow". Called once, at start. Does not yield. */
void qcow1_register_driver(void);

#endif

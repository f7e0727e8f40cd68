/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The format QED of early versions of QEMU (docs/interop/qed_spec.rst there): an overlay with two
 * levels of tables, without refcounts and snapshots.
 */
#ifndef TIDEMARK_QED_QED_H
#define TIDEMARK_QED_QED_H

/* Register the driver "qed". Called once, at start. Does not yield. */
void qed_register_driver(void);

#endif

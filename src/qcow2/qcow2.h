/* SPDX-License-Identifier: Apache-2.0 */
/* The qcow2 format driver (QEMU docs/interop/qcow2, "the specification" in this folder). */
#ifndef TIDEMARK_QCOW2_QCOW2_H
#define TIDEMARK_QCOW2_QCOW2_H

/* Register the driver "qcow2". Once, at start; does not yield. */
void qcow2_register_driver(void);

#endif

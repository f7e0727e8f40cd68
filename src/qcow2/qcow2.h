/* SPDX-License-Identifier: Apache-2.0 */
/* The qcow2 format driver (QEMU docs/interop/qcow2, "the specification" in this folder). */
#ifndef TIDEMARK_QCOW2_QCOW2_H
#define TIDEMARK_QCOW2_QCOW2_H

/* Add the driver "qcow2" to the table. Once, at start. */
void qcow2_register_driver(void);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* The qcow2 format driver (QEMU docs/interop/qcow2, "the specification" in this folder). */
#ifndef TIDEMARK_QCOW2_QCOW2_H
#define TIDEMARK_QCOW2_QCOW2_H

/* Register the driver "qcow2". Once, at start; does not yield. */
void qcow2_register_driver(void);

/*
 * The default of the option durable-bitmaps is `off`, as in QEMU's programs, instead of `power`.
 * Before images are opened; does not yield.
 */
void qcow2_durable_bitmaps_off_by_default(void);

/*
 * Refuse images with the legacy encryption "aes", as QEMU's system emulator does: only tools that
 * convert them read them. Once, at start; does not yield.
 */
void qcow2_refuse_legacy_encryption(void);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The format VDI of VirtualBox, version 1.1 (VirtualBox' developers describe it in "All about
 * VDIs"): dynamic and static disks.
 */
#ifndef TIDEMARK_VDI_VDI_H
#define TIDEMARK_VDI_VDI_H

/* Register the driver "vdi". Called once, at start. Does not yield. */
void vdi_register_driver(void);

#endif

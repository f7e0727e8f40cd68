/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The format VHDX of Hyper-V ([MS-VHDX], "Virtual Hard Disk v2 File Format"): fixed and dynamic
 * disks, without parents.
 */
#ifndef TIDEMARK_VHDX_VHDX_H
#define TIDEMARK_VHDX_VHDX_H

/* Register the driver "vhdx". Called once, at start. Does not yield. */
void vhdx_register_driver(void);

#endif

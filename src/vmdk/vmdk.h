/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The format VMDK of VMware ("Virtual Disk Format 5.0"): images of one file with grains
 * (monolithicSparse, streamOptimized), and descriptors with extents in other files.
 */
#ifndef TIDEMARK_VMDK_VMDK_H
#define TIDEMARK_VMDK_VMDK_H

/* Register the driver "vmdk". Called once, at start. Does not yield. */
void vmdk_register_driver(void);

#endif

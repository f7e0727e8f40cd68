/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The format VHD of Virtual PC and Hyper-V ("Virtual Hard Disk Image Format Specification",
 * version 1.0), which QEMU calls vpc: fixed and dynamic disks, and differencing ones for reading.
 */
#ifndef TIDEMARK_VPC_VPC_H
#define TIDEMARK_VPC_VPC_H

/* Register the driver "vpc". Called once, at start. Does not yield. */
void vpc_register_driver(void);

#endif

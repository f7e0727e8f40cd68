/* SPDX-License-Identifier: Apache-2.0 */
/* The format `luks`: encrypted disks (LUKS On-Disk Format Specification, version 1). */
#ifndef TIDEMARK_LUKS_LUKS_H
#define TIDEMARK_LUKS_LUKS_H

/* Register the driver "luks". Called once, at start. Does not yield. */
void luks_register_driver(void);

#endif

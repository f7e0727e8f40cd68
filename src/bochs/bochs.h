/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The format "growing" of the emulator Bochs, read-only (Bochs' documentation for developers,
 * "Harddisk Images based on redologs").
 */
#ifndef TIDEMARK_BOCHS_BOCHS_H
#define TIDEMARK_BOCHS_BOCHS_H

/* Register the driver "bochs". Called once, at start. Does not yield. */
void bochs_register_driver(void);

#endif

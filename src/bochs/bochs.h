/* SPDX-License-Identifier: Apache-2.0 */
/* The format "growing" of the emulator Bochs, for reading (Bochs' documentation for developers, "Harddisk Images based on redologs"). */
#ifndef TIDEMARK_BOCHS_BOCHS_H
#define TIDEMARK_BOCHS_BOCHS_H

/* Add the driver "bochs" to the table. Once, at start. */
void bochs_register_driver(void);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Expandable images of Parallels and Virtuozzo (docs/interop/parallels.rst of QEMU). */
#ifndef TIDEMARK_PARALLELS_PARALLELS_H
#define TIDEMARK_PARALLELS_PARALLELS_H

/* Register the driver `parallels`. Once, before images are opened. Does not yield. */
void parallels_register_driver(void);

#endif

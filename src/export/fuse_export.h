/* SPDX-License-Identifier: Apache-2.0 */
/* Exports of type "fuse": a node as a regular file (fuse/fuse.h). */
#ifndef TIDEMARK_EXPORT_FUSE_EXPORT_H
#define TIDEMARK_EXPORT_FUSE_EXPORT_H

/*
 * Add the export type "fuse" to the table. Once, at start; does not yield. Its options: mountpoint
 * (a regular file), growable (bool), allow-other ("on", "off", "auto").
 */
void export_fuse_register_type(void);

#endif

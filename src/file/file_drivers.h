/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The leaf drivers `file`, `host_device`, `null-co` and `null-aio`, and the format `raw`.
 */
#ifndef TIDEMARK_FILE_FILE_DRIVERS_H
#define TIDEMARK_FILE_FILE_DRIVERS_H

/* Add all drivers of this layer to the table. Once, at start. Does not yield. */
void file_register_drivers(void);

#endif

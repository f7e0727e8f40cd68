/* SPDX-License-Identifier: Apache-2.0 */
/* The protocols of local files and devices, and the format raw. */
#ifndef TIDEMARK_FILE_FILE_DRIVERS_H
#define TIDEMARK_FILE_FILE_DRIVERS_H

/*
 * Register the protocols `file`, `host_device`, `host_cdrom`, `null-co` and `null-aio`, the format
 * `raw`, and formats that are refused. Called once, at start. Does not yield.
 */
void file_register_drivers(void);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* The drivers of this layer. */
#ifndef TIDEMARK_FILE_DRIVERS_H
#define TIDEMARK_FILE_DRIVERS_H

#include "block/driver.h"

extern const struct block_driver file_driver, host_device_driver; /* drivers.c */
extern const struct block_driver null_co_driver, null_aio_driver; /* null.c */
extern const struct block_driver raw_driver;                      /* raw.c */

/* foreign.c: formats that are recognised and refused. */
void foreign_register_drivers(void);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* The drivers of this layer, for file_register_drivers(). */
#ifndef TIDEMARK_FILE_DRIVERS_H
#define TIDEMARK_FILE_DRIVERS_H

#include "block/driver.h"

/* drivers.c */
extern const struct block_driver file_driver, host_device_driver;

/* null.c */
extern const struct block_driver null_co_driver, null_aio_driver;

/* raw.c */
extern const struct block_driver raw_driver;

/* foreign.c: register the formats that are recognized and refused. Does not yield. */
void foreign_register_drivers(void);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What the start of the program needs from this layer. */
#ifndef TIDEMARK_NBD_NBD_H
#define TIDEMARK_NBD_NBD_H

/* Add the block driver "nbd" to the table. Once, at start. Does not yield. */
void nbd_register_driver(void);

#endif

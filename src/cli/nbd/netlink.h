/* SPDX-License-Identifier: Apache-2.0 */
/* The commands of Linux's NBD client (linux/nbd-netlink.h). Those with `co_` yield. */
#ifndef TIDEMARK_CLI_NBD_NETLINK_H
#define TIDEMARK_CLI_NBD_NETLINK_H

#include <stdint.h>

#include "base/error.h"

/*
 * Have the kernel serve /dev/nbd`index` from a connection that has done its handshake. It keeps the
 * socket; the caller's descriptor `fd` may be closed. `flags`: enum nbd_transmission_flags.
 * -ENOENT: the kernel has no NBD client; -EBUSY: the device is in use; or another -errno.
 */
int nbd_netlink_co_connect(uint32_t index, int fd, uint64_t size, uint32_t block_size,
                           uint16_t flags, struct error *err);
/* Disconnect a device: the kernel says goodbye to the server. -EINVAL: it is not connected. */
int nbd_netlink_co_disconnect(uint32_t index, struct error *err);

#endif

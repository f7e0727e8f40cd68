/* SPDX-License-Identifier: Apache-2.0 */
/* A client of the process's NBD server, for fuzz targets. */
#ifndef TIDEMARK_TESTS_NBD_PEER_H
#define TIDEMARK_TESTS_NBD_PEER_H

#include <stddef.h>
#include <stdint.h>

#include "base/strbuf.h"

/* Add an option to what the client sends. */
void nbd_peer_put_option(struct strbuf *out, uint32_t option, const void *data, size_t size);

/* Send all, reading and forgetting what comes back, as long as the server takes it. */
void nbd_peer_co_send(int fd, const void *data, size_t size);

typedef void nbd_peer_co_talk_fn(void *arg, int fd);

/* Connect, `talk`, hang up after the server's last word, and wait until the server is done. */
void nbd_peer_co_run(nbd_peer_co_talk_fn *talk, void *arg);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_EXPORT_INTERNAL_H
#define TIDEMARK_EXPORT_INTERNAL_H

#include "nbd/server.h"

/* The server to export to; NULL while there is none, or it is stopping. */
struct nbd_server *export_nbd_server(void);

#endif

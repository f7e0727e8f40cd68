/* SPDX-License-Identifier: Apache-2.0 */
/* Internet addresses by name. */
#ifndef TIDEMARK_BASE_INET_H
#define TIDEMARK_BASE_INET_H

#include <netdb.h>

/*
 * As getaddrinfo(3), with one difference: a port number above 65535 is EAI_SERVICE. getaddrinfo()
 * takes it modulo 65536, and a server would listen where nobody expects it. Blocks; does not yield.
 */
int inet_lookup(const char *host, const char *port, const struct addrinfo *hints,
                struct addrinfo **ret_list);

#endif

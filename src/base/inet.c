/* SPDX-License-Identifier: Apache-2.0 */
#include "base/inet.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Whether a port is a number that is too large; the name of a service is none. */
static bool is_beyond_range(const char *port)
{
    return port[strspn(port, "0123456789")] == '\0' && strtoul(port, NULL, 10) > UINT16_MAX;
}

int inet_lookup(const char *host, const char *port, const struct addrinfo *hints,
                struct addrinfo **ret_list)
{
    return is_beyond_range(port) ? EAI_SERVICE : getaddrinfo(host, port, hints, ret_list);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses of sockets: QEMU's qapi/sockets.json. */
#include "block/socket_address.h"
#include "schema/define.h"

ENUM(address_type, "SocketAddressType", "inet", "unix", "vsock", "fd");
OBJECT(inet_address, "InetSocketAddress", REQ("host", schema_str), REQ("port", schema_str),
       OPT("numeric", schema_bool), OPT("to", schema_uint16), OPT("ipv4", schema_bool),
       OPT("ipv6", schema_bool), OPT("keep-alive", schema_bool), OPT("mptcp", schema_bool));
OBJECT(unix_address, "UnixSocketAddress", REQ("path", schema_str), OPT("abstract", schema_bool),
       OPT("tight", schema_bool));
OBJECT(vsock_address, "VsockSocketAddress", REQ("cid", schema_str), REQ("port", schema_str));
OBJECT(fd_address, "FdSocketAddress", REQ("str", schema_str));
const struct schema_type socket_address_type = {
    .kind = SCHEMA_OBJECT,
    .name = "SocketAddress",
    .members = MEMBERS(REQ("type", address_type)),
    .tag = "type",
    .variants = (const struct schema_variant[]){{"inet", &inet_address},
                                                {"unix", &unix_address},
                                                {"vsock", &vsock_address},
                                                {"fd", &fd_address},
                                                {NULL, NULL}},
};

OBJECT(inet_wrapper, "InetSocketAddressWrapper", REQ("data", inet_address));
OBJECT(unix_wrapper, "UnixSocketAddressWrapper", REQ("data", unix_address));
OBJECT(vsock_wrapper, "VsockSocketAddressWrapper", REQ("data", vsock_address));
OBJECT(fd_wrapper, "FdSocketAddressWrapper", REQ("data", fd_address));
const struct schema_type socket_address_legacy_type = {
    .kind = SCHEMA_OBJECT,
    .name = "SocketAddressLegacy",
    .members = MEMBERS(REQ("type", address_type)),
    .tag = "type",
    .variants = (const struct schema_variant[]){{"inet", &inet_wrapper},
                                                {"unix", &unix_wrapper},
                                                {"vsock", &vsock_wrapper},
                                                {"fd", &fd_wrapper},
                                                {NULL, NULL}},
};

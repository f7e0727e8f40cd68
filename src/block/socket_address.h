/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Addresses of stream sockets: QEMU's SocketAddress. To parse, to listen on, to connect to. Main
 * reactor; only functions with `co_` in their name yield.
 */
#ifndef TIDEMARK_BLOCK_SOCKET_ADDRESS_H
#define TIDEMARK_BLOCK_SOCKET_ADDRESS_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/error.h"
#include "block/options.h"
#include "schema/schema.h"

enum socket_family { SOCKET_FAMILY_ANY, SOCKET_FAMILY_YES, SOCKET_FAMILY_NO };

/*
 * Strings are owned. It is a unix socket if `path` is set, a descriptor if `fd` is, a vsock if
 * `cid` is, and an internet address otherwise. All zero: port 0 of all local addresses.
 */
struct socket_address {
    char *path;
    bool abstract; /* `path` is a name in the abstract namespace */
    bool padded;   /* which is padded to the full size of an address: tight=off */
    char *fd;      /* name or number: passed_socket() */
    char *cid;     /* "" : any */
    char *host;    /* NULL or "": all */
    char *port;    /* of host or cid; NULL or "": 0 */
    unsigned to;   /* when listening: the last port to try, after `port`; 0: only that one */
    enum socket_family ipv4, ipv6;
    bool numeric;    /* host and port are not looked up */
    bool keep_alive; /* the kernel checks that the other end is there */
    bool watched;    /* and a connection is lost when it has answered nothing for two minutes */
    bool mptcp;
};

/* SocketAddress, and SocketAddressLegacy, whose members are wrapped in "data". */
extern const struct schema_type socket_address_type, socket_address_legacy_type;

/* Release what it owns, and empty it. */
void socket_address_clear(struct socket_address *a);

/* Copy strings. -ENOMEM: *ret_copy is empty. */
int socket_address_copy(const struct socket_address *a, struct socket_address *ret_copy);

/*
 * From a flat SocketAddress whose types have been checked. -EINVAL: a number is malformed; both
 * families are disabled; -ENOMEM. On failure nothing is owned.
 */
int socket_address_from_json(struct json_object *json, struct socket_address *ret_address,
                             struct error *err);
/*
 * Take a flat SocketAddress out of options, which are those of the parent's option `name`. -EINVAL:
 * a member is missing, malformed, or unknown; -ENOMEM. On failure nothing is owned.
 */
int socket_address_take(struct options *opts, const char *name, struct socket_address *ret_address,
                        struct error *err);
/* A flat SocketAddress; a new reference. */
struct json_object *socket_address_to_json(const struct socket_address *a);

/* Whether the address names a file, which listening makes. */
bool socket_address_is_file(const struct socket_address *a);

/*
 * Listen. *ret_fd: a non-blocking socket, which the caller owns. A socket file that nobody serves
 * is replaced. A descriptor has to listen already. Errors of bind(2) and of name resolution name
 * the address.
 */
int socket_address_co_listen(const struct socket_address *a, int backlog, int *ret_fd,
                             struct error *err);

/*
 * Connect, to the first of the addresses of a host that answers, for at most `timeout_ns` each (<
 * 0: no limit). `buffer`: bytes that the socket holds in each direction; 0: as the system has it.
 * *ret_fd: a non-blocking socket, which the caller owns; if the address is a descriptor, that one.
 */
int socket_address_co_connect(const struct socket_address *a, int buffer, int64_t timeout_ns,
                              int *ret_fd, struct error *err);

/*
 * Whoever waits for connections that are being made has given them up: those of this process end
 * with -ECANCELED. Any thread; does not yield.
 */
void socket_address_give_up_dials(void);

/* As `watched` above, for a socket of TCP that was accepted; others stay as they are. */
void socket_watch_peer(int fd);

/*
 * An address of a socket as text, as query-chardev shows it: "unix:PATH", "tcp:HOST:PORT",
 * "vsock:CID:PORT". `peer`: the address of the other end. Owned by the caller; NULL without memory.
 */
char *socket_address_of_fd(int fd, bool peer);

#endif

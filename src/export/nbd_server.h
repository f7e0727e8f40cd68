/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one NBD server of the process, and exports of type "nbd".
 *
 * Everything here runs on the main reactor. `export_co_` functions run in a coroutine and yield;
 * the others do not yield.
 */
#ifndef TIDEMARK_EXPORT_NBD_SERVER_H
#define TIDEMARK_EXPORT_NBD_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct nbd_server;
struct socket_address;

/*
 * Add the export type "nbd" to the table. Once, at start. Its options: name (what clients ask for;
 * default: the node name), description, allocation-depth (bool), x-merged (bool: the contexts
 * "x-tidemark:merged..." are offered), x-lease (bool; docs/fleecing.md), bitmaps (a list of names,
 * or of objects with the members node and name). A bitmap without a node is searched for in the
 * exported node, then down its backing chain. On a read-only export an enabled bitmap is refused
 * (-EINVAL) if its node can still be written: clients of such an export were promised contents that
 * stay.
 */
void export_nbd_register_type(void);

/* The default of x-merged: true, unless this says otherwise. Programs that act as QEMU's do so. */
void export_nbd_offer_merged(bool offer);

enum {
    /* Defaults, where the user does not say. */
    EXPORT_NBD_MAX_CONNECTIONS = 100,
    EXPORT_NBD_HANDSHAKE_SECONDS = 10,
};

/* Strings are copied. */
struct export_nbd_server_config {
    /* Where to listen. A socket file that no process serves is replaced. */
    const struct socket_address *address;
    /* -1, or a listening socket to use instead. The server owns it on success. */
    int listen_fd;
    /* Further clients wait in the backlog; 0: no limit. */
    unsigned max_connections;
    /* As struct nbd_server_config has it. */
    unsigned max_per_address;
    /* Let no client in before export_nbd_server_let_in(). */
    bool hold;
    /* A handshake that takes longer is dropped; 0: no limit. */
    unsigned handshake_max_seconds;
    /* Id of the credentials that all clients have to use TLS with; NULL: no TLS. */
    const char *tls_creds;
    /* Id of the authorization that clients have to pass, with tls_creds; NULL: none. */
    const char *tls_authz;
    /*
     * A client that had chosen an export is gone; `left` connections remain. May be NULL; must not
     * yield.
     */
    void (*on_disconnect)(void *arg, size_t left);
    void *arg;
};

/* No address, which has to be set unless there is a socket; default limits. */
#define EXPORT_NBD_SERVER_CONFIG_INIT                                                              \
    ((struct export_nbd_server_config){.listen_fd = -1,                                            \
                                       .max_connections = EXPORT_NBD_MAX_CONNECTIONS,              \
                                       .handshake_max_seconds = EXPORT_NBD_HANDSHAKE_SECONDS})

/*
 * Listen. -EBUSY: "NBD server already running". Errors of bind(2) name the address. -ENOENT,
 * -EINVAL: of the TLS objects.
 */
int export_co_nbd_server_start(const struct export_nbd_server_config *config, struct error *err);

/* A server that was started with `hold` has its exports now: let clients in. */
void export_nbd_server_let_in(void);

/*
 * Stop listening, disconnect all clients, delete all NBD exports (each with its event), and wait
 * for all of that. -ENOENT: "NBD server not running".
 */
int export_co_nbd_server_stop(struct error *err);
/*
 * As export_co_nbd_server_stop(), but wait at most `timeout_ns` (< 0: no limit). -ETIMEDOUT: the
 * stop goes on in the background.
 */
int export_co_nbd_server_stop_within(int64_t timeout_ns, struct error *err);

/*
 * Let no new client in, and remove the socket. Those that are connected stay. The second function
 * does not yield: it blocks while a file system hangs, and is for programs that end then.
 */
void export_co_nbd_server_stop_accepting(void);
void export_nbd_server_end_accepting(void);

/*
 * The server's socket file stays when the server stops: QEMU's system emulator leaves it, where its
 * storage daemon does not.
 */
void export_nbd_server_keep_file(void);

/* Also while the server stops. */
bool export_nbd_server_is_running(void);
/* Whether it knows who its clients are: their certificates, or the names of their keys. */
bool export_nbd_server_identifies_clients(void);
/* The TCP port that the server listens on; 0: a unix socket, or no server. */
unsigned export_nbd_server_port(void);
/* Connections now, in any phase. */
size_t export_nbd_server_connections(void);

/* The server to export to; NULL while there is none, or it starts or stops. For the type "nbd". */
struct nbd_server *export_nbd_server(void);

#endif

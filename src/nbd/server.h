/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NBD server: clients, their handshake, their requests. Which nodes are exported, under which
 * rules, is the business of the export layer.
 *
 * A client is accepted on the main reactor, negotiates on one for handshakes, and then moves to an
 * I/O reactor for the rest of its life. Everything in this header runs on the main reactor. `co_`
 * functions yield; the others do not.
 *
 *   accept -> HANDSHAKE (own reactor, timed) -> TRANSMISSION (I/O reactor) -> closed (main)
 *             server.c, negotiate.c              connection.c, request.c, reply.c
 */
#ifndef TIDEMARK_NBD_SERVER_H
#define TIDEMARK_NBD_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "block/bitmaps.h"
#include "block/block.h"

struct reactor;
struct latency_set;
struct tls_authz;
struct tls_creds;
struct nbd_server;
struct nbd_export;

/* --- the server ----------------------------------------------------------------------------- */

/* Seconds after which a request is reported as slow, unless nbd_set_slow_limit() is called. */
#define NBD_SLOW_SECONDS 10

/*
 * Report requests that take longer than this many nanoseconds by a warning; 0: report none. Of all
 * servers of the process. Any thread.
 */
void nbd_set_slow_limit(int64_t ns);

struct nbd_server_config {
    /* Further clients wait in the backlog; 0: no limit. */
    unsigned max_connections;
    /*
     * Further clients of one IPv4 address, of one IPv6 network (/64) or of one virtual machine
     * (vsock) are disconnected at once; 0: no limit. Unix sockets have no addresses.
     */
    unsigned max_per_address;
    /* A handshake that takes longer is dropped; 0: no limit. */
    unsigned handshake_seconds;
    /* Clients have to use TLS with these; NULL: they cannot. They outlive the server. */
    const struct tls_creds *tls_creds;
    /* With tls_creds: clients have to be allowed by this; NULL: all are. It outlives the server. */
    const struct tls_authz *tls_authz;
    /*
     * A client that had chosen an export is gone; `left` clients remain. May be NULL; must not
     * yield.
     */
    void (*on_disconnect)(void *arg, size_t left);
    void *arg;
};

/* A server that does not listen yet. -ENOMEM. */
int nbd_server_new(const struct nbd_server_config *config, struct nbd_server **ret_server,
                   struct error *err);

/*
 * Accept clients from a listening socket (non-blocking) until the server stops. The server owns the
 * socket on success. -ENOMEM, -EAGAIN: there is no coroutine for it.
 */
int nbd_server_co_listen(struct nbd_server *s, int fd, struct error *err);

/*
 * Serve a connected socket (non-blocking). The server owns it in any case. -EUSERS: its address has
 * as many clients as it may have; -EAGAIN, -ENOMEM.
 */
int nbd_server_add_client(struct nbd_server *s, int fd);

/* `held`: let no client in; new ones wait in the backlog. Else go on. */
void nbd_server_hold(struct nbd_server *s, bool held);
/* Stop listening. Those that are connected stay. */
void nbd_server_stop_accepting(struct nbd_server *s);
/*
 * Stop listening, disconnect all clients, and wait until they are gone. The exports have to be
 * freed next.
 */
void nbd_server_co_disconnect_all(struct nbd_server *s);
/* After nbd_server_co_disconnect_all(), when all exports are freed. NULL is fine. */
void nbd_server_free(struct nbd_server *s);

/* Clients now, in any phase. */
size_t nbd_server_client_count(const struct nbd_server *s);

/* --- exports -------------------------------------------------------------------------------- */

/* What clients can ask for. Strings and arrays are copied; root and bitmaps outlive the export. */
struct nbd_export_config {
    const char *name;
    /* NULL: none. */
    const char *description;
    struct block_root *root;
    bool writable;
    /* Every write is on stable storage before it is answered. */
    bool writethrough;
    /* Offer the context "qemu:allocation-depth". */
    bool allocation_depth;
    /* Offer "x-tidemark:merged", and "x-tidemark:merged:NAME" for each bitmap. */
    bool merged;
    struct block_bitmap *const *bitmaps;
    /* For each bitmap a root on its node, by the drains of which readers are held back. */
    struct block_root *const *bitmap_roots;
    size_t bitmap_count;
    /* Further clients are refused; 0: no limit. */
    unsigned max_clients;
    /* Only clients that this allows see and use the export; NULL: all. It outlives the export. */
    struct tls_authz *authz;
    /* Clients that ask for the name "" get this export, unless another one is called so. */
    bool is_default;
    /* NULL: connections are spread over the processors. */
    struct reactor *reactor;
    /* Counts the latencies of requests, besides the counters; NULL: nothing does. Outlives it. */
    struct latency_set *latencies;
    /* Called when its last client has gone while it is published; must not yield. NULL: not. */
    void (*on_unused)(void *arg);
    /*
     * A request failed in the node: "read", "write", "write-zeroes", "discard", "flush"; a positive
     * errno. On the thread of the connection; must not yield. NULL: not.
     */
    void (*on_error)(void *arg, const char *request, uint64_t offset, uint64_t length, int error);
    void *arg;
};

/*
 * Make an export that clients do not find yet. Its name is taken from now on. -EEXIST: another
 * export has the name, or is the default as well. -EINVAL: a string is too long, or a bitmap is
 * given twice. -ENOMEM.
 */
int nbd_export_new(struct nbd_server *s, const struct nbd_export_config *config,
                   struct nbd_export **ret_export, struct error *err);
/* Clients find the export from now on. */
void nbd_export_publish(struct nbd_export *e);
/* New clients do not find the export from now on, and its name is free. */
void nbd_export_unpublish(struct nbd_export *e);
/* Unpublish, disconnect its clients, and wait until their requests have ended. */
void nbd_export_co_disconnect(struct nbd_export *e);
/* Release an export that has no clients. */
void nbd_export_free(struct nbd_export *e);
/*
 * The node has another size. Clients that connect from now on see it. The protocol has no notice
 * for those that are connected: they may use what was added, and requests for what is gone are
 * refused as beyond the end.
 */
void nbd_export_set_size(struct nbd_export *e, uint64_t size);
/* Clients that have chosen the export, and are connected. */
size_t nbd_export_client_count(const struct nbd_export *e);

#endif

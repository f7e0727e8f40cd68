/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NBD server: clients, their handshake, their requests. Which nodes are exported, under which
 * rules, is the business of the export layer.
 *
 * A client is accepted and negotiates on the main reactor, and then moves to an I/O reactor for the
 * rest of its life. Everything in this header runs on the main reactor; `co_` functions yield.
 *
 *   accept -> HANDSHAKE (main reactor; timed) -> TRANSMISSION (I/O reactor) -> closed (main reactor)
 *                  server.c  negotiate.c           connection.c request.c reply.c
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
struct tls_authz;
struct tls_creds;
struct nbd_server;
struct nbd_export;

struct nbd_server_config {
    unsigned max_connections;   /* further clients wait in the backlog; 0: no limit */
    unsigned handshake_seconds; /* longer ones are dropped; 0: no limit */
    /*
     * Clients have to use TLS with these; NULL: they can't. `authz`: and be let in by this; NULL:
     * all are. Outlive the server.
     */
    const struct tls_creds *tls_creds;
    const struct tls_authz *tls_authz;
    /*
     * A client that got as far as an export is gone; `left` clients remain. May be NULL; must not
     * yield.
     */
    void (*on_disconnect)(void *arg, size_t left);
    void *arg;
};

/* -ENOMEM. */
int nbd_server_new(const struct nbd_server_config *config, struct nbd_server **ret,
                   struct error *err);

/*
 * Accept clients from this listening socket (non-blocking) until the server stops. It is owned on
 * success.
 */
int nbd_server_listen(struct nbd_server *s, int fd, struct error *err);

/* Serve a connected socket (non-blocking), which is owned in any case. -EAGAIN, -ENOMEM. */
int nbd_server_add_client(struct nbd_server *s, int fd);

/* Let nobody in, who waits in the backlog then; or go on. Does not yield. */
void nbd_server_hold(struct nbd_server *s, bool held);
/* Stop listening; those who are connected stay. Does not yield. */
void nbd_server_stop_accepting(struct nbd_server *s);
/*
 * Stop listening, disconnect everybody, wait until all are gone. No exports may be left afterwards.
 */
void nbd_server_co_disconnect_all(struct nbd_server *s);
/* After nbd_server_co_disconnect_all() and when all exports are freed. */
void nbd_server_free(struct nbd_server *s);

/* Clients now, in any phase. */
size_t nbd_server_client_count(const struct nbd_server *s);
unsigned nbd_server_max_connections(const struct nbd_server *s);

/* What clients can ask for. Strings and the arrays are copied; root and bitmaps must outlive it. */
struct nbd_export_config {
    const char *name;
    const char *description; /* NULL: none */
    struct block_root *root;
    bool writable;
    bool writethrough;
    bool allocation_depth;
    struct block_bitmap *const *bitmaps;
    struct block_root *const
        *bitmap_roots; /* for each, one on its node: drains of that hold readers up */
    size_t bitmap_count;
    struct reactor *reactor; /* NULL: spread */
};

/*
 * Make one, which clients don't find yet; its name is taken from now on. -EEXIST if another has the
 * name, -EINVAL if name or description are too long, -ENOMEM.
 */
int nbd_export_new(struct nbd_server *s, const struct nbd_export_config *config,
                   struct nbd_export **ret, struct error *err);
/* Clients find it from now on. */
void nbd_export_publish(struct nbd_export *e);
/* New clients don't find it any more, and its name is free. */
void nbd_export_unpublish(struct nbd_export *e);
/* Disconnect its clients, and wait until their requests have finished. Unpublishes. */
void nbd_export_co_disconnect(struct nbd_export *e);
/* Release one that has no clients. Unpublishes. */
void nbd_export_free(struct nbd_export *e);
size_t nbd_export_client_count(const struct nbd_export *e);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exports: a node offered to the outside under an id, and the one NBD server of the process.
 *
 * Everything here runs on the main reactor only; `export_co_...` functions in a coroutine there, and
 * may yield. Strings handed in are copied. After a failure nothing is left behind: no root on the
 * node, no busy bitmap, no socket.
 *
 *   (none) -- export_co_prepare --> PREPARED -- export_publish --> RUNNING
 *     ^                                 |                             |  export_co_del, server stopped
 *     +------ export_co_discard --------+                             v
 *     +------ BLOCK_EXPORT_DELETED, once its clients are gone -- SHUTTING DOWN
 *
 * Until it is published no client sees an export, so that it can be discarded at once, with nothing in flight.
 */
#ifndef TIDEMARK_EXPORT_EXPORT_H
#define TIDEMARK_EXPORT_EXPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "block/block.h"

struct reactor;
struct export;
struct user_object;

/* --- the NBD server -------------------------------------------------------------------------- */

#define EXPORT_NBD_MAX_CONNECTIONS 100u /* where the user says nothing */
#define EXPORT_NBD_HANDSHAKE_SECONDS 10u

struct export_nbd_server_config {
    const char
        *unix_path;   /* socket to make; NULL: TCP. A socket file that nobody serves is replaced. */
    const char *host; /* TCP: name or address to bind; NULL or "": all */
    const char *port; /* TCP: number or service; NULL: 10809; "0": any free one */
    int listen_fd; /* -1, or a listening socket to use instead (owned by the server on success) */
    unsigned max_connections;       /* further ones wait in the backlog; 0: no limit */
    bool hold;                      /* let nobody in before export_nbd_server_let_in() */
    unsigned handshake_max_seconds; /* a handshake that takes longer is dropped; 0: no limit */
    const char
        *tls_creds; /* id of credentials that all clients have to use TLS with; NULL: no TLS */
    const char *tls_authz; /* id of what they have to be let in by, with tls_creds; NULL: nothing */
    /* A client that got as far as an export is gone, `left` connections remain. May be NULL; must not yield. */
    void (*on_disconnect)(void *arg, size_t left);
    void *arg; /* for that */
};

/* No address, default limits. */
#define EXPORT_NBD_SERVER_CONFIG_INIT                                                              \
    ((struct export_nbd_server_config){.listen_fd = -1,                                            \
                                       .max_connections = EXPORT_NBD_MAX_CONNECTIONS,              \
                                       .handshake_max_seconds = EXPORT_NBD_HANDSHAKE_SECONDS})

/* Listen. -EBUSY "NBD server already running"; errors of bind(2) name the address; -ENOENT, -EINVAL of TLS objects. */
int export_co_nbd_server_start(const struct export_nbd_server_config *config, struct error *err);

/*
 * Stop listening, disconnect all clients, delete all NBD exports (each with its event), and wait for
 * all that. -ENOENT "NBD server not running".
 */
int export_co_nbd_server_stop(struct error *err);
/* For a server that was started with `hold`: its exports are there. */
void export_nbd_server_let_in(void);
/* As export_co_nbd_server_stop(), but don't wait longer than this (< 0: for ever): -ETIMEDOUT, and it goes on by itself. */
int export_co_nbd_server_stop_within(int64_t timeout_ns, struct error *err);

/* No new clients from now on: the socket is gone, those who are connected stay. Does not yield. */
void export_nbd_server_stop_accepting(void);

bool export_nbd_server_is_running(void);
/* The TCP port that it listens on (0: a unix socket, or none), and its clients now. */
unsigned export_nbd_server_port(void);
size_t export_nbd_server_connections(void);

/* --- exports --------------------------------------------------------------------------------- */

/* A dirty bitmap to offer as the metadata context "qemu:dirty-bitmap:<name>". */
struct export_bitmap {
    const char
        *node_name; /* its owner; NULL: search the exported node, then down its backing chain */
    const char *name;
};

struct export_config {
    const char *type; /* "nbd" */
    const char *id;
    const char *node_name;
    const char *name;        /* what clients ask for, at most 4096 bytes; NULL: the node name */
    const char *description; /* shown to clients that list; at most 4096 bytes; NULL: none */
    bool writable;
    bool writethrough;     /* every write is stable before it is answered */
    bool allocation_depth; /* offer the context "qemu:allocation-depth" */
    const struct export_bitmap *bitmaps;
    size_t bitmap_count;
    struct reactor
        *reactor; /* serve all its connections there; NULL: spread them over processors */
    /* What keeps `reactor`, or NULL: the export gives the reference back when it is gone. After a failure it is the caller's. */
    struct user_object *reactor_object;
    bool
        shared_writers; /* let other users write the node meanwhile; true is what QMP exports want */
};

#define EXPORT_CONFIG_INIT ((struct export_config){.type = "nbd", .shared_writers = true})

/*
 * Export a node. Takes a root on it and marks the bitmaps busy for the life of the export.
 * Errors: -EEXIST (id or name in use), -ENOENT (no such node or bitmap), -EINVAL (form of id or name,
 * type unknown, no NBD server running), -EROFS/-EPERM (writable on a read-only node, permissions).
 * On a read-only export an enabled bitmap is refused (-EINVAL) if the node that owns it can still be
 * written: clients of such an export are promised a view that stays.
 */
int export_co_add(const struct export_config *config, struct error *err);

/* Likewise in two steps. Its id and name are taken from now on; errors as above. */
int export_co_prepare(const struct export_config *config, struct export **ret, struct error *err);
/* Let clients in. Does not yield. */
void export_publish(struct export *e);
/* Undo the prepare: when this returns its root, bitmaps and names are free. */
void export_co_discard(struct export *e);

enum export_del_mode {
    EXPORT_DEL_SAFE, /* refused (-EBUSY) while clients are connected */
    EXPORT_DEL_HARD, /* clients are disconnected; requests in flight finish first */
};

/*
 * Take an export away: no new clients from now on. It is gone, and its root released, when the
 * callback set with export_set_event_fn() tells so. `wait`: also wait here for that. -ENOENT names the
 * id; an export that is shutting down already is an error (-EBUSY), too.
 */
int export_co_del(const char *id, enum export_del_mode mode, bool wait, struct error *err);

/* Delete all exports, hard, and wait until they are gone. For the end of the process. */
void export_co_del_all(void);

/*
 * Put the node `node` (of the same size) under a live export, drained meanwhile: clients notice
 * nothing. On failure nothing changes. Bitmaps of the export stay those it was made with.
 */
int export_co_replace_node(const char *id, struct block_node *node, struct error *err);

/* What query-block-exports tells, and more. Strings are borrowed until the next change. */
struct export_info {
    const char *id;
    const char *type; /* "nbd" */
    const char *name; /* NBD export name */
    struct block_node *node;
    bool shutting_down;
    bool writable;
    size_t connections;
};

/* Fill *ret; false if there is no export of that id. Does not yield. */
bool export_find(const char *id, struct export_info *ret);

/* Visit all exports, oldest first, until `fn` returns false. fn must not yield. */
void export_foreach(bool (*fn)(const struct export_info *info, void *arg), void *arg);

/* --- events ---------------------------------------------------------------------------------- */

enum export_event {
    EXPORT_EVENT_DELETED, /* QMP: BLOCK_EXPORT_DELETED; `id` names it */
};

/* Called on the main reactor, maybe in a coroutine; must not yield. NULL: nobody listens. */
void export_set_event_fn(void (*fn)(enum export_event event, const char *id, void *arg), void *arg);

#endif

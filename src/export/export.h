/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exports: a node offered to the outside under an id, by one of the registered types
 * (export/export_type.h).
 *
 * Everything here runs on the main reactor. `export_co_` functions run in a coroutine and yield;
 * the others do not yield. Strings and options are copied. After a failure nothing is left behind:
 * no root on the node, no busy bitmap, no name.
 *
 *   (none) -- export_co_prepare --> PREPARED -- export_publish --> RUNNING
 *     ^                                 |                             |  export_co_del
 *     +------ export_co_discard --------+                             v
 *     +------ BLOCK_EXPORT_DELETED, once its clients are gone -- SHUTTING DOWN
 *
 * No client sees an export before it is published. So one that is only prepared has nothing in
 * flight, and a discard takes effect at once.
 */
#ifndef TIDEMARK_EXPORT_EXPORT_H
#define TIDEMARK_EXPORT_EXPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/counters.h"
#include "base/error.h"
#include "block/block.h"
#include "schema/schema.h"

struct latency_set;
struct reactor;
struct export;
struct user_object;

/* BlockExportOptions: a union over the types that are registered. BlockExportType: their names. */
extern const struct schema_type export_options_type, export_type_names_type;

struct export_config {
    /* Name of the type: "nbd". */
    const char *type;
    /* A letter, then letters, digits, '-', '.', '_'; at most 255 bytes. */
    const char *id;
    const char *node_name;
    bool writable;
    /* Every write is on stable storage before it is answered. */
    bool writethrough;
    /* The node may be handed over to another process, or is (block/hand_over.h). */
    bool allow_inactive;
    /* Other users may write the node meanwhile. QMP's exports allow that. */
    bool shared_writers;
    /* The reactor that serves all its clients; NULL: the type spreads them over processors. */
    struct reactor *reactor;
    /*
     * The object that keeps `reactor`; NULL: none. The export owns the caller's reference on
     * success and gives it back when it is gone. After a failure it is still the caller's.
     */
    struct user_object *reactor_object;
    /* Options of the type; NULL: none. Borrowed, and not changed. */
    const struct options *options;
};

#define EXPORT_CONFIG_INIT ((struct export_config){.shared_writers = true})

/*
 * Export a node: take a root on it, prepare, publish. -EEXIST: the id, or a name that the type
 * takes, is in use. -ENOENT: no such node, or what an option names is not there. -EINVAL: malformed
 * id, unknown type, wrong options, a server that has to run does not. -EROFS: writable, but the
 * node is read-only. -EPERM: permissions conflict with those of another user. -ENOMEM.
 */
int export_co_add(const struct export_config *config, struct error *err);

/* The first step of export_co_add(), with its errors. The id is taken from now on. */
int export_co_prepare(const struct export_config *config, struct export **ret_export,
                      struct error *err);
/* The second step: let clients in. */
void export_publish(struct export *e);
/* Undo the first step. When this returns, the root, the id and all names are free. */
void export_co_discard(struct export *e);

enum export_del_mode {
    /* Refused (-EBUSY) while clients are connected. */
    EXPORT_DEL_SAFE,
    /* Clients are disconnected; their requests in flight end first. */
    EXPORT_DEL_HARD,
};

/*
 * Delete an export: it lets no new client in from now on. When it is gone and its root released,
 * the callback of export_set_event_fn() is called. `wait`: return after that. -ENOENT: no such id.
 * -EBUSY: the export is shutting down already, or has clients in mode SAFE.
 */
int export_co_del(const char *id, enum export_del_mode mode, bool wait, struct error *err);

/* Begin to delete all exports, hard. Clients are being disconnected. Does not yield. */
void export_begin_del_all(void);

/* Delete all exports of a type (NULL: of every type), hard, and wait until they are gone. */
void export_co_del_all(const char *type);

/*
 * Put the node `node` (of the same size) under a live export, drained meanwhile. Clients do not
 * notice. Bitmaps of the export stay those that it was made with. -ENOENT: no such id. -EBUSY: the
 * export is shutting down. Others as those of block_co_root_replace(). On failure nothing changes.
 */
int export_co_replace_node(const char *id, struct block_node *node, struct error *err);

/* What is known of an export. Strings and node are borrowed until the next change. */
struct export_info {
    const char *id;
    const char *type;
    struct block_node *node;
    bool shutting_down;
    bool writable;
    size_t clients;
    /* Histograms that a user asked for (base/latency.h). */
    struct latency_set *latencies;
    /* Tables of what it counts, and of what each client of it counts; NULL: nothing. */
    const struct stat_desc *stats, *client_stats;
    /* What the metrics of `stats` are named by. */
    const char *stats_group;
};

/* Fill *ret_info. False if there is no export of that id. */
bool export_find(const char *id, struct export_info *ret_info);

/* Visit all exports, oldest first, until `fn` returns false. `fn` must not yield. */
void export_foreach(bool (*fn)(const struct export_info *info, void *arg), void *arg);

/* Most values that a table of an export has. */
#define EXPORT_STATS_WIDTH_MAX 256

/* Fill the values of export_info.stats. There is an export of that id, and it has a table. */
void export_read_stats(const char *id, uint64_t *ret_values);

/* A client of an export. Borrowed for the time of the call. */
struct export_client {
    /* "192.0.2.1:4711", "unix:PID". */
    const char *peer;
    /* A number that is not used again. */
    uint64_t serial;
    /* As export_info.client_stats has them. */
    const uint64_t *values;
};
typedef void export_client_fn(const struct export_client *client, void *arg);

/* Visit the clients of the export of that id, which has a table for them. `fn` must not yield. */
void export_foreach_client(const char *id, export_client_fn *fn, void *arg);

enum export_event {
    /* QMP: BLOCK_EXPORT_DELETED; `id` names the export. */
    EXPORT_EVENT_DELETED,
    /* The export was a lease (docs/fleecing.md), and its last client has gone. */
    EXPORT_EVENT_LEASE_ENDED,
};

/* A request of a client failed in the node, or below. */
struct export_io_error {
    const char *id;      /* of the export, which may have ended */
    const char *request; /* "read", "write", "write-zeroes", "discard", "flush" */
    bool is_write;       /* all but reads */
    uint64_t offset, length;
    int error; /* positive errno */
    /* Requests of the export that have failed so far, this one included. */
    uint64_t count;
};

/*
 * Set the one listener to failed requests; NULL: none. It is called on the main reactor, with the
 * latest one if there were several since, and must not yield.
 */
void export_set_io_error_fn(void (*fn)(const struct export_io_error *e));

/* Set the one listener; NULL: none. It is called on the main reactor, and must not yield. */
void export_set_event_fn(void (*fn)(enum export_event event, const char *id, void *arg), void *arg);

#endif

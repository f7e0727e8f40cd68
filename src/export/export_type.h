/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a type of exports provides ("nbd"; later others): a table of operations. export.c calls them
 * and knows no more of a type. It owns the id, the roots on the nodes, and the order of the steps:
 *
 *   parse --> co_prepare --> publish --> stop_accepting --> co_disconnect --> co_free
 *     |            |                                                           ^
 *     +------------+----------- failed, or taken back by a transaction --------+
 *
 * All operations run on the main reactor. Those that start with `co_` run in a coroutine and may
 * yield; the others must not. An operation without "may be NULL" has to be there. `state` is what
 * parse() returned.
 */
#ifndef TIDEMARK_EXPORT_EXPORT_TYPE_H
#define TIDEMARK_EXPORT_EXPORT_TYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "export/export.h"
#include "schema/schema.h"

/* What export.c has made ready when it calls co_prepare(). Valid until co_free(). */
struct export_access {
    struct export *export;
    /* On the exported node, with the permissions that were asked for. I/O goes through its edge. */
    struct block_root *root;
    /* Where to do the I/O; NULL: the type chooses. */
    struct reactor *reactor;
    /* For latencies that a user asks for: of reads, writes and flushes. */
    struct latency_set *latencies;
    bool writable;
    /* Every write has to be on stable storage before it is answered. */
    bool writethrough;
};

/*
 * A request failed, `error` is a positive errno; see struct export_io_error. Any thread, while the
 * request is in flight; does not yield.
 */
void export_note_io_error(struct export *e, const char *request, uint64_t offset, uint64_t length,
                          int error);

/* The export was a lease, and its last client has gone. Does not yield. */
void export_lease_ended(struct export *e);

struct export_type {
    /* The value of "type" in QMP and on command lines. */
    const char *name;
    /* For messages, before the id in quotes: "NBD export". */
    const char *title;
    /* What it is for: one line without a full stop. */
    const char *help;
    /* The type's own options: a BlockExportOptions... of QEMU's schema. */
    const struct schema_type *options;
    /* Its node may be handed over to another process: only reads succeed then. */
    bool may_be_inactive;

    /*
     * Make a state from the type's own options. Those that it knows are taken out of `opts`; an
     * option that is left is refused by the caller. Has no effect outside of the state. 0 or
     * -errno with `err` set; then nothing is left to be freed.
     */
    int (*parse)(const struct export_config *config, struct options *opts, void **ret_state,
                 struct error *err);
    /*
     * Change the permissions for the root: *perm has CONSISTENT_READ, and WRITE if the export is
     * writable; *shared has all that the configuration allows others. May be NULL.
     */
    void (*adjust_permissions)(const void *state, unsigned *perm, unsigned *shared);
    /*
     * Take everything that can fail: names, memory, threads, further nodes (export_co_attach()).
     * No client is let in yet. Nodes may be drained meanwhile, so no I/O. 0 or -errno with `err`
     * set; co_free() follows then, too.
     */
    int (*co_prepare)(void *state, const struct export_access *access, struct error *err);
    /* Let clients in. Cannot fail: a transaction may have committed other actions already. */
    void (*publish)(void *state);
    /* No new clients from now on. Those that are connected stay. */
    void (*stop_accepting)(void *state);
    /*
     * Disconnect all clients, and wait until their requests have ended and no other thread uses
     * the state. After stop_accepting().
     */
    void (*co_disconnect)(void *state);
    /* Release the state, at any point before publish() or after co_disconnect(). */
    void (*co_free)(void *state);

    /* Clients now: while there are any, a deletion in mode "safe" is refused. */
    size_t (*client_count)(const void *state);

    /*
     * What an export of the type counts, and one client of it; NULL: nothing. At most
     * EXPORT_STATS_WIDTH_MAX values. query-blockstats reports rows of these names: read_requests,
     * read_bytes, read_failed, read_invalid, the same of write, zeroes, trim and flush, and the
     * histograms read_latency, write_latency, zap_latency, flush_latency.
     */
    const struct stat_desc *stats, *client_stats;
    /* What the metrics of that table are named by; one for each table: "export". */
    const char *stats_group;
    /* Fill a value for each place in `stats`. The export is prepared. */
    void (*read_stats)(const void *state, uint64_t *ret_values);
    /* Call `fn` for each client. */
    void (*foreach_client)(const void *state, export_client_fn *fn, void *arg);

    /* Notices: each may come as soon as parse() has returned, and until co_disconnect() has. */

    /*
     * The exported node has `size` bytes now, and is drained. May be NULL for a type whose
     * adjust_permissions() does not share RESIZE.
     */
    void (*resized)(void *state, uint64_t size);
    /*
     * For a type with work of its own that does not pass the gate, such as polling of queues.
     * Requests that the type makes are held up by the gate anyway. Each may be NULL. Between
     * drain_begin() and drain_end() the type begins nothing new; the drain waits while drain_busy()
     * returns true.
     */
    void (*drain_begin)(void *state);
    bool (*drain_busy)(void *state);
    void (*drain_end)(void *state);
};

enum { EXPORT_TYPES_MAX = 8 };

/* Add a type. Once, at start; it lives as long as the process. Does not yield. */
void export_register_type(const struct export_type *type);

/* The types, by the order of their registration; NULL past the last. Does not yield. */
const struct export_type *export_type_at(size_t index);

/*
 * Attach to one more node, such as the owner of a bitmap, from co_prepare(). The root is released
 * with the export, after co_free(). Errors as those of block_co_root_new(), or -ENOMEM. Yields.
 */
int export_co_attach(struct export *e, struct block_node *node, unsigned perm, unsigned shared,
                     struct block_root **ret_root, struct error *err);

/* What messages and busy bitmaps call the export: "NBD export 'disk'". Borrowed. Does not yield. */
const char *export_user(const struct export *e);

#endif

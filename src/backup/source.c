/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "backup/fleece.h"
#include "base/cleanup.h"
#include "loop/loop.h"

#define EXPORT_GONE_TRIES 3000
#define EXPORT_GONE_POLL_NS 10000000

/* Add a member to `o`, and return `o`, so that calls can be nested. Objects are consumed. */
static struct json_object *with(struct json_object *o, const char *key, struct json_object *value)
{
    json_object_object_add(o, key, value);
    return o;
}

static struct json_object *with_string(struct json_object *o, const char *key, const char *value)
{
    return with(o, key, json_object_new_string(value));
}

static struct json_object *object(void)
{
    return json_object_new_object();
}

static struct json_object *bitmap_ref(const struct source *s, const char *name)
{
    return with_string(with_string(object(), "node", s->node), "name", name);
}

void source_init(struct source *s, struct qmp_client *qmp, const char *node, const char *repository)
{
    *s = (struct source){.qmp = qmp, .node = node};
    snprintf(s->repository, sizeof(s->repository), "%s", repository);
    snprintf(s->prefix, sizeof(s->prefix), SOURCE_PREFIX "%s", s->repository);
    snprintf(s->cbw, sizeof(s->cbw), SOURCE_PREFIX "%s-cbw", s->repository);
    snprintf(s->snap, sizeof(s->snap), SOURCE_PREFIX "%s-snap", s->repository);
    snprintf(s->temp, sizeof(s->temp), SOURCE_PREFIX "%s-temp", s->repository);
}

/* --- transactions --- */

static void add_action(struct json_object *actions, const char *type, struct json_object *data)
{
    json_object_array_add(actions, with(with_string(object(), "type", type), "data", data));
}

static void add_bitmap_action(struct json_object *actions, const char *type, const struct source *s,
                              const char *name)
{
    add_action(actions, type, bitmap_ref(s, name));
}

static void add_replace(struct json_object *actions, const char *id, const char *node)
{
    add_action(actions, "blockdev-replace",
               with_string(with_string(object(), "export", id), "node-name", node));
}

static void add_node_del(struct json_object *actions, const char *name)
{
    add_action(actions, "blockdev-del", with_string(object(), "node-name", name));
}

/* `actions` is consumed. */
static int co_transact(struct source *s, struct json_object *actions, struct error *err)
{
    if (json_object_array_length(actions) == 0) {
        json_object_put(actions);
        return 0;
    }
    return qmp_client_co_execute(s->qmp, "transaction", with(object(), "actions", actions), NULL,
                                 err);
}

/* --- the NBD server --- */

static int take_address(const struct source *s, struct json_object *o,
                        struct socket_address *ret_address)
{
    struct json_object *address, *v;
    const char *path = NULL, *host = NULL, *port = NULL;

    if (!json_object_object_get_ex(o, "address", &address)) {
        return -ENOENT;
    }
    if (json_object_object_get_ex(address, "path", &v)) {
        path = json_object_get_string(v);
    }
    if (json_object_object_get_ex(address, "host", &v)) {
        host = json_object_get_string(v);
    }
    if (json_object_object_get_ex(address, "port", &v)) {
        port = json_object_get_string(v);
    }
    if (path) {
        ret_address->path = source_daemon_path(s->qmp, path);
        return ret_address->path ? 0 : -ENOMEM;
    }
    if (!host || !port) {
        return -ENOENT;
    }
    /* A server that listens on all addresses is reached at this one. */
    ret_address->host = strdup(host[0] && strcmp(host, "0.0.0.0") != 0 ? host : "127.0.0.1");
    ret_address->port = strdup(port);
    return ret_address->host && ret_address->port ? 0 : -ENOMEM;
}

/* The address on which the daemon's NBD server listens. -ENOENT: the daemon has none. */
static int co_query_server(struct source *s, struct socket_address *ret_address)
{
    struct json_object *server = NULL;
    int r = qmp_client_co_execute(s->qmp, "query-nbd-server", NULL, &server, NULL);

    UNLESS_FAILED(r, take_address(s, server, ret_address));
    if (r < 0) {
        socket_address_clear(ret_address);
    }
    json_object_put(server);
    return r;
}

/* --- settling --- */

/*
 * Delete the export, and wait until it is gone: its clients have to leave and its requests to end.
 */
static int co_delete_export(struct source *s, struct error *err)
{
    struct json_object *args = with_string(with_string(object(), "id", s->prefix), "mode", "hard");
    int r;

    /* This fails if the export is shutting down already; the wait below decides. */
    qmp_client_co_execute(s->qmp, "block-export-del", args, NULL, NULL);
    for (int i = 0; i < EXPORT_GONE_TRIES; i++) {
        SOURCE_STATE_AUTO(state);

        r = source_co_inspect(s, &state, err);
        if (r < 0 || !state.has_export) {
            return r;
        }
        loop_co_sleep(EXPORT_GONE_POLL_NS);
    }
    return error_set(err, ETIMEDOUT, "The daemon does not end export '%s'", s->prefix);
}

static int co_delete_view(struct source *s, struct error *err)
{
    struct json_object *args = with_string(object(), "node-name", s->snap);

    return qmp_client_co_execute(s->qmp, "blockdev-del", args, NULL, err);
}

/* The bitmap `last` stays and records; see source_co_settle(). */
static void settle_bitmaps(struct source *s, const struct source_state *state, const char *last,
                           struct json_object *actions)
{
    const struct source_bitmap *kept = last ? source_find_bitmap(state, last) : NULL;
    struct json_object *recorded = json_object_new_array();

    for (size_t i = 0; i < state->bitmap_count; i++) {
        const struct source_bitmap *b = &state->bitmaps[i];

        if (b != kept && b->recording && !b->inconsistent) {
            json_object_array_add(recorded, json_object_new_string(b->name));
        }
    }
    if (kept && !kept->inconsistent && !kept->recording && json_object_array_length(recorded)) {
        struct json_object *merge =
            with(with_string(with_string(object(), "node", s->node), "target", kept->name),
                 "bitmaps", json_object_get(recorded));

        add_bitmap_action(actions, "block-dirty-bitmap-enable", s, kept->name);
        add_action(actions, "block-dirty-bitmap-merge", merge);
    }
    json_object_put(recorded);
    for (size_t i = 0; i < state->bitmap_count; i++) {
        if (&state->bitmaps[i] != kept) {
            add_bitmap_action(actions, "block-dirty-bitmap-remove", s, state->bitmaps[i].name);
        }
    }
}

/* Stop the NBD server if a run, of any repository, had started it, and nobody uses it. */
static void co_stop_own_server(struct source *s)
{
    struct socket_address address = {0};
    struct json_object *exports = NULL;
    int lock AUTO_CLOSE = -1;

    if (co_query_server(s, &address) == 0 && address.path && fleece_is_socket(address.path)) {
        lock = fleece_lock_socket(address.path, true);
    }
    if (lock >= 0 &&
        qmp_client_co_execute(s->qmp, "query-block-exports", NULL, &exports, NULL) == 0 &&
        json_object_is_type(exports, json_type_array) && json_object_array_length(exports) == 0 &&
        qmp_client_co_execute(s->qmp, "nbd-server-stop", NULL, NULL, NULL) == 0) {
        fleece_remove_of_file(address.path);
    }
    json_object_put(exports);
    socket_address_clear(&address);
}

/* Remove the export and the view, which have to go first; *state is the state after that. */
static int co_end_view(struct source *s, struct source_state *state, struct error *err)
{
    int r = source_co_inspect(s, state, err);

    if (r == 0 && state->has_export) {
        r = co_delete_export(s, err);
        if (r == 0) {
            source_state_clear(state);
            r = source_co_inspect(s, state, err);
        }
    }
    /*
     * In a transaction of its own: as long as the view exists, only the filter may write to the
     * node.
     */
    if (r == 0 && state->has_snap) {
        r = co_delete_view(s, err);
    }
    return r;
}

static void add_take_down(struct source *s, const struct source_state *state,
                          struct json_object *actions)
{
    for (size_t i = 0; i < state->moved_count; i++) {
        add_replace(actions, state->moved_exports[i], s->node);
    }
    if (state->has_cbw) {
        add_node_del(actions, s->cbw);
    }
    if (state->has_temp) {
        add_node_del(actions, s->temp);
    }
}

static int co_end_run(struct source *s, struct json_object *actions, struct error *err)
{
    int r = co_transact(s, actions, err);

    if (r < 0) {
        error_prepend(err, "Could not put node '%s' back in order: ", s->node);
        return r;
    }
    co_stop_own_server(s);
    return 0;
}

int source_co_take_down(struct source *s, struct error *err)
{
    SOURCE_STATE_AUTO(state);
    struct json_object *actions;
    int r = co_end_view(s, &state, err);

    if (r < 0) {
        return r;
    }
    actions = json_object_new_array();
    add_take_down(s, &state, actions);
    return co_end_run(s, actions, err);
}

int source_co_settle(struct source *s, const char *last, struct error *err)
{
    SOURCE_STATE_AUTO(state);
    struct json_object *actions;
    int r = co_end_view(s, &state, err);

    if (r < 0) {
        return r;
    }
    actions = json_object_new_array();
    add_take_down(s, &state, actions);
    settle_bitmaps(s, &state, last, actions);
    return co_end_run(s, actions, err);
}

/* --- the checkpoint --- */

static struct json_object *temp_node(const struct source *s, const struct source_checkpoint *c)
{
    struct json_object *file =
        with_string(with_string(object(), "driver", "file"), "filename", c->temp_path);
    struct json_object *image = with_string(
        with_string(object(), "driver", c->temp_is_qcow2 ? "qcow2" : "raw"), "node-name", s->temp);

    with_string(file, "discard", "unmap");
    /*
     * The temporary image is not needed after the daemon's end: closing it need not wait for a
     * sync.
     */
    with(image, "cache", with(object(), "no-flush", json_object_new_boolean(true)));
    return with(with_string(image, "discard", "unmap"), "file", file);
}

/* A failing copy ends the backup, never the guest's write. */
static struct json_object *cbw_node(const struct source *s, const struct source_checkpoint *c)
{
    struct json_object *o = with_string(object(), "driver", "copy-before-write");

    with_string(o, "node-name", s->cbw);
    with_string(o, "file", s->node);
    with_string(o, "target", s->temp);
    with_string(o, "on-cbw-error", "break-snapshot");
    if (c->timeout_s) {
        with(o, "cbw-timeout", json_object_new_int64(c->timeout_s));
    }
    return c->frozen ? with(o, "bitmap", bitmap_ref(s, c->frozen)) : o;
}

static struct json_object *snap_node(const struct source *s)
{
    struct json_object *o = with_string(object(), "driver", "snapshot-access");

    return with_string(with_string(o, "node-name", s->snap), "file", s->cbw);
}

static struct json_object *new_source_bitmap(const struct source *s,
                                             const struct source_state *state, const char *name)
{
    struct json_object *o = bitmap_ref(s, name);

    with(o, "granularity", json_object_new_int(BACKUP_CLUSTER_SIZE));
    return with(o, "persistent", json_object_new_boolean(state->stores_bitmaps));
}

int source_co_checkpoint(struct source *s, const struct source_state *state,
                         const struct source_checkpoint *c, struct backup_moment *begin,
                         struct backup_moment *end, struct error *err)
{
    struct json_object *actions = json_object_new_array();
    int r;

    if (c->frozen) {
        add_bitmap_action(actions, "block-dirty-bitmap-disable", s, c->frozen);
    }
    if (c->started) {
        add_action(actions, "block-dirty-bitmap-add", new_source_bitmap(s, state, c->started));
    }
    add_action(actions, "blockdev-add", temp_node(s, c));
    add_action(actions, "blockdev-add", cbw_node(s, c));
    for (size_t i = 0; i < state->export_count; i++) {
        add_replace(actions, state->exports[i], s->cbw);
    }
    add_action(actions, "blockdev-add", snap_node(s));
    backup_moment_now(begin);
    r = co_transact(s, actions, err);
    backup_moment_now(end);
    if (r < 0) {
        error_prepend(err, "Could not make a checkpoint of node '%s': ", s->node);
    }
    return r;
}

static int co_start_source_server(struct source *s, const char *socket,
                                  struct socket_address *ret_address, struct error *err)
{
    struct json_object *addr;
    int r;

    if (strlen(socket) >= sizeof(((struct sockaddr_un *)NULL)->sun_path)) {
        error_set(err, ENAMETOOLONG,
                  "The daemon has no NBD server, and the path '%s' is too long for a socket",
                  socket);
        error_hint(err, "Name a directory with a shorter path with --fleece-dir.");
        return -ENAMETOOLONG;
    }
    addr =
        with(with_string(object(), "type", "unix"), "data", with_string(object(), "path", socket));
    r = qmp_client_co_execute(s->qmp, "nbd-server-start", with(object(), "addr", addr), NULL, err);
    if (r < 0) {
        error_hint(err, "If it has an NBD server, name its address with --nbd.");
        return r;
    }
    ret_address->path = strdup(socket);
    return ret_address->path ? 0 : error_out_of_memory(err);
}

int source_co_nbd_address(struct source *s, const char *uri, const char *own_socket,
                          struct socket_address *ret_address, struct error *err)
{
    char *export_name AUTO_FREE = NULL;

    if (uri) {
        return nbd_address_parse(uri, ret_address, &export_name, err);
    }
    return co_query_server(s, ret_address) == 0
               ? 0
               : co_start_source_server(s, own_socket, ret_address, err);
}

int source_co_export(struct source *s, const char *frozen, struct error *err)
{
    struct json_object *args = with_string(object(), "type", "nbd");

    with_string(args, "id", s->prefix);
    with_string(args, "node-name", s->snap);
    with_string(args, "name", s->prefix);
    /* Discards release what has been fetched, so they have to pass. */
    with(args, "writable", json_object_new_boolean(true));
    if (frozen) {
        struct json_object *bitmaps = json_object_new_array();

        json_object_array_add(bitmaps, bitmap_ref(s, frozen));
        with(args, "bitmaps", bitmaps);
    }
    return qmp_client_co_execute(s->qmp, "block-export-add", args, NULL, err);
}

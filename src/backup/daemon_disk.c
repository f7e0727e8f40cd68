/* SPDX-License-Identifier: Apache-2.0 */
/* The method for `tidemark daemon`; see the header. */
#include "backup/daemon_disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/files.h"
#include "backup/fleece.h"
#include "loop/loop.h"

/* Attempts to end a run; fewer if nothing changes meanwhile. */
#define END_TRIES 50
#define END_TRIES_UNCHANGED 5
#define END_RETRY_NS 100000000LL

/* --- transactions --- */

static void add_replace(struct json_object *actions, const char *id, const char *node)
{
    daemon_add_action(
        actions, "blockdev-replace",
        qmp_with_string(qmp_with_string(qmp_object(), "export", id), "node-name", node));
}

static void add_node_del(struct json_object *actions, const char *name)
{
    daemon_add_action(actions, "blockdev-del", qmp_with_string(qmp_object(), "node-name", name));
}

/* --- the NBD server --- */

static int take_address(const struct daemon_disk *s, struct json_object *o,
                        struct socket_address *ret_address)
{
    struct json_object *address, *v;
    const char *path = NULL, *host = NULL, *port = NULL, *directory = NULL;

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
    if (json_object_object_get_ex(o, "directory", &v)) {
        directory = json_object_get_string(v);
    }
    if (path && path[0] != '/' && qmp_client_host(s->qmp) && directory) {
        ret_address->path = files_join(directory, path);
        return ret_address->path ? 0 : -ENOMEM;
    }
    if (path) {
        ret_address->path = source_daemon_path(s->qmp, path);
        return ret_address->path ? 0 : -ENOMEM;
    }
    if (!host || !port) {
        return -ENOENT;
    }
    /* A server that listens on all addresses is reached at the daemon's. */
    if (!host[0] || strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0) {
        host = qmp_client_host(s->qmp);
        host = host ? host : "127.0.0.1";
    }
    ret_address->host = strdup(host);
    ret_address->port = strdup(port);
    return ret_address->host && ret_address->port ? 0 : -ENOMEM;
}

/* The address on which the daemon's NBD server listens. -ENOENT: the daemon has none. */
static int co_query_server(struct daemon_disk *s, struct socket_address *ret_address)
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

static int co_delete_view(struct daemon_disk *s, struct error *err)
{
    struct json_object *args = qmp_with_string(qmp_object(), "node-name", s->snap);

    return qmp_client_co_execute(s->qmp, "blockdev-del", args, NULL, err);
}

/* Stop the NBD server if a run, of any repository, had started it, and nobody uses it. */
static void co_stop_own_server(struct daemon_disk *s)
{
    struct socket_address address = {0};

    if (co_query_server(s, &address) == 0 && address.path && fleece_is_socket(address.path)) {
        daemon_co_stop_server(s->qmp, address.path);
    }
    socket_address_clear(&address);
}

/* Remove the export and the view, which have to go first; *state is the state after that. */
static int co_end_view(struct daemon_disk *s, struct daemon_state *state, struct error *err)
{
    int r = daemon_disk_co_inspect(s, state, err);

    if (r == 0 && state->has_export) {
        r = daemon_co_delete_export(s, err);
        if (r == 0) {
            daemon_state_clear(state);
            r = daemon_disk_co_inspect(s, state, err);
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

static void add_take_down(struct daemon_disk *s, const struct daemon_state *state,
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

static int co_end_run(struct daemon_disk *s, struct json_object *actions, struct error *err)
{
    int r = daemon_co_transact(s->qmp, actions, err);

    if (r < 0) {
        error_prepend(err, "Could not put node '%s' back in order: ", s->node);
        return r;
    }
    co_stop_own_server(s);
    return 0;
}

/* `settle`: put the bitmaps in order for `last`, too. *ret_state is what was there. */
static int co_end_once(struct daemon_disk *s, bool settle, const char *last,
                       struct daemon_state *ret_state, struct error *err)
{
    struct json_object *actions;
    int r = co_end_view(s, ret_state, err);

    if (r < 0) {
        return r;
    }
    actions = json_object_new_array();
    add_take_down(s, ret_state, actions);
    if (settle) {
        daemon_settle_bitmaps(s, ret_state, last, actions);
    }
    return co_end_run(s, actions, err);
}

static bool is_equal_state(const struct daemon_state *a, const struct daemon_state *b)
{
    return a->has_export == b->has_export && a->has_snap == b->has_snap &&
           a->has_cbw == b->has_cbw && a->has_temp == b->has_temp;
}

/*
 * The daemon ends a run that was killed by itself, because of its lease: that may be under way, and
 * take things away between a query and a command.
 */
static int co_end_tidemark(struct daemon_disk *s, bool settle, const char *last, struct error *err)
{
    for (int i = 0;; i++) {
        DAEMON_STATE_AUTO(before);
        DAEMON_STATE_AUTO(after);
        ERROR_AUTO(attempt);
        int r = co_end_once(s, settle, last, &before, &attempt);

        if (r == 0) {
            return 0;
        }
        if (i == END_TRIES || daemon_disk_co_inspect(s, &after, NULL) < 0 ||
            (i >= END_TRIES_UNCHANGED && is_equal_state(&before, &after))) {
            error_move(err, &attempt);
            return r;
        }
        loop_co_sleep(END_RETRY_NS);
    }
}

static int co_take_down_tidemark(struct daemon_disk *s, struct error *err)
{
    return co_end_tidemark(s, false, NULL, err);
}

static int co_settle_tidemark(struct daemon_disk *s, const char *last, struct error *err)
{
    return co_end_tidemark(s, true, last, err);
}

/* --- the checkpoint --- */

static struct json_object *temp_node(const struct daemon_disk *s, const struct daemon_checkpoint *c)
{
    struct json_object *file =
        qmp_with_string(qmp_with_string(qmp_object(), "driver", "file"), "filename", c->temp_path);
    struct json_object *image =
        qmp_with_string(qmp_with_string(qmp_object(), "driver", c->temp_is_qcow2 ? "qcow2" : "raw"),
                        "node-name", s->temp);

    qmp_with_string(file, "discard", "unmap");
    if (c->temp_size) {
        qmp_with(file, "x-temporary", json_object_new_uint64(c->temp_size));
    }
    /*
     * The temporary image is not needed after the daemon's end: closing it need not wait for a
     * sync.
     */
    qmp_with(image, "cache", qmp_with(qmp_object(), "no-flush", json_object_new_boolean(true)));
    return qmp_with(qmp_with_string(image, "discard", "unmap"), "file", file);
}

/* A failing copy ends the backup, never the guest's write. */
static struct json_object *cbw_node(const struct daemon_disk *s, const struct daemon_checkpoint *c)
{
    struct json_object *o = qmp_with_string(qmp_object(), "driver", "copy-before-write");

    qmp_with_string(o, "node-name", s->cbw);
    qmp_with_string(o, "file", s->node);
    qmp_with_string(o, "target", s->temp);
    qmp_with_string(o, "on-cbw-error", "break-snapshot");
    if (c->timeout_s) {
        qmp_with(o, "cbw-timeout", json_object_new_int64(c->timeout_s));
    }
    return c->frozen && !c->whole ? qmp_with(o, "bitmap", daemon_bitmap_ref(s, c->frozen)) : o;
}

static struct json_object *snap_node(const struct daemon_disk *s)
{
    struct json_object *o = qmp_with_string(qmp_object(), "driver", "snapshot-access");

    return qmp_with_string(qmp_with_string(o, "node-name", s->snap), "file", s->cbw);
}

static void add_checkpoint(struct json_object *actions, const struct daemon_checkpoint *c)
{
    const struct daemon_disk *s = c->disk;

    if (c->frozen) {
        daemon_add_bitmap_action(actions, "block-dirty-bitmap-disable", s, c->frozen);
    }
    if (c->started) {
        daemon_add_action(actions, "block-dirty-bitmap-add",
                          daemon_new_bitmap(s, c->state, c->started));
    }
    daemon_add_action(actions, "blockdev-add", temp_node(s, c));
    daemon_add_action(actions, "blockdev-add", cbw_node(s, c));
    for (size_t i = 0; i < c->state->export_count; i++) {
        add_replace(actions, c->state->exports[i], s->cbw);
    }
    daemon_add_action(actions, "blockdev-add", snap_node(s));
}

/*
 * The view, the filter and the temporary image are to go with this connection. A daemon that does
 * not know that leaves them to the guard and the next run.
 */
static void co_lease_view(struct daemon_disk *s)
{
    struct json_object *args = qmp_with_string(qmp_object(), "node-name", s->snap);

    qmp_client_co_execute(s->qmp, "x-tidemark-lease", args, NULL, NULL);
}

static int co_checkpoint_tidemark(const struct daemon_checkpoint *list, size_t count,
                                  struct backup_moment *begin, struct backup_moment *end,
                                  struct error *err)
{
    struct json_object *actions = json_object_new_array();
    int r;

    for (size_t i = 0; i < count; i++) {
        add_checkpoint(actions, &list[i]);
        co_lease_view(list[i].disk);
    }
    backup_moment_now(begin);
    r = daemon_co_transact(list[0].disk->qmp, actions, err);
    backup_moment_now(end);
    return r;
}

static int co_nbd_address_tidemark(struct daemon_disk *s, const char *own_socket,
                                   struct socket_address *ret_address, struct error *err)
{
    if (co_query_server(s, ret_address) == 0) {
        return 0;
    }
    if (!own_socket) {
        error_set(err, ENOTCONN, "The daemon at '%s' has no NBD server", qmp_client_path(s->qmp));
        error_hint(err, "Start one with --nbd-server, or name another one with --nbd.");
        return -ENOTCONN;
    }
    return daemon_co_start_server(s, own_socket, ret_address, err);
}

const struct daemon_method tidemark_method = {
    .co_take_down = co_take_down_tidemark,
    .co_settle = co_settle_tidemark,
    .co_checkpoint = co_checkpoint_tidemark,
    .co_nbd_address = co_nbd_address_tidemark,
    .co_export = daemon_co_export_view,
};

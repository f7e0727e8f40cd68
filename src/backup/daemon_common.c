/* SPDX-License-Identifier: Apache-2.0 */
/* What the methods for `tidemark daemon` and QEMU share. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "backup/daemon_disk.h"
#include "backup/fleece.h"
#include "base/cleanup.h"
#include "loop/loop.h"

#define EXPORT_GONE_TRIES 3000
#define EXPORT_GONE_POLL_NS 10000000

void daemon_disk_init(struct daemon_disk *s, struct qmp_client *qmp, const char *node,
                      const char *repository)
{
    *s = (struct daemon_disk){.qmp = qmp, .node = node};
    snprintf(s->repository, sizeof(s->repository), "%s", repository);
    snprintf(s->prefix, sizeof(s->prefix), SOURCE_PREFIX "%s", s->repository);
    snprintf(s->cbw, sizeof(s->cbw), SOURCE_PREFIX "%s-cbw", s->repository);
    snprintf(s->snap, sizeof(s->snap), SOURCE_PREFIX "%s-snap", s->repository);
    snprintf(s->temp, sizeof(s->temp), SOURCE_PREFIX "%s-temp", s->repository);
    snprintf(s->file, sizeof(s->file), SOURCE_PREFIX "%s-file", s->repository);
}

/* --- arguments --- */

struct json_object *qmp_with(struct json_object *o, const char *key, struct json_object *value)
{
    json_object_object_add(o, key, value);
    return o;
}

struct json_object *qmp_with_string(struct json_object *o, const char *key, const char *value)
{
    return qmp_with(o, key, json_object_new_string(value));
}

struct json_object *daemon_bitmap_ref(const struct daemon_disk *s, const char *name)
{
    return qmp_with_string(qmp_with_string(qmp_object(), "node", s->node), "name", name);
}

struct json_object *daemon_new_bitmap(const struct daemon_disk *s, const struct daemon_state *state,
                                      const char *name)
{
    struct json_object *o = daemon_bitmap_ref(s, name);

    qmp_with(o, "granularity", json_object_new_int(BACKUP_CLUSTER_SIZE));
    return qmp_with(o, "persistent", json_object_new_boolean(state->stores_bitmaps));
}

struct json_object *daemon_export_arguments(const struct daemon_disk *s, const char *node)
{
    struct json_object *o = qmp_with_string(qmp_object(), "type", "nbd");

    qmp_with_string(qmp_with_string(o, "id", s->prefix), "name", s->prefix);
    return qmp_with_string(o, "node-name", node);
}

/* --- transactions --- */

void daemon_add_action(struct json_object *actions, const char *type, struct json_object *data)
{
    json_object_array_add(actions,
                          qmp_with(qmp_with_string(qmp_object(), "type", type), "data", data));
}

void daemon_add_bitmap_action(struct json_object *actions, const char *type,
                              const struct daemon_disk *s, const char *name)
{
    daemon_add_action(actions, type, daemon_bitmap_ref(s, name));
}

void daemon_settle_bitmaps(struct daemon_disk *s, const struct daemon_state *state,
                           const char *last, struct json_object *actions)
{
    const struct source_bitmap *kept = last ? daemon_find_bitmap(state, last) : NULL;
    struct json_object *recorded = json_object_new_array();

    for (size_t i = 0; i < state->bitmap_count; i++) {
        const struct source_bitmap *b = &state->bitmaps[i];

        if (b != kept && b->recording && !b->inconsistent) {
            json_object_array_add(recorded, json_object_new_string(b->name));
        }
    }
    if (kept && !kept->inconsistent && !kept->recording && json_object_array_length(recorded)) {
        struct json_object *merge = qmp_with(
            qmp_with_string(qmp_with_string(qmp_object(), "node", s->node), "target", kept->name),
            "bitmaps", json_object_get(recorded));

        daemon_add_bitmap_action(actions, "block-dirty-bitmap-enable", s, kept->name);
        daemon_add_action(actions, "block-dirty-bitmap-merge", merge);
    }
    json_object_put(recorded);
    for (size_t i = 0; i < state->bitmap_count; i++) {
        if (&state->bitmaps[i] != kept) {
            daemon_add_bitmap_action(actions, "block-dirty-bitmap-remove", s,
                                     state->bitmaps[i].name);
        }
    }
}

int daemon_co_transact(struct qmp_client *qmp, struct json_object *actions, struct error *err)
{
    if (json_object_array_length(actions) == 0) {
        json_object_put(actions);
        return 0;
    }
    return qmp_client_co_execute(qmp, "transaction", qmp_with(qmp_object(), "actions", actions),
                                 NULL, err);
}

/* --- exports and servers --- */

int daemon_co_export_view(struct daemon_disk *s, const char *frozen, struct error *err)
{
    struct json_object *args = daemon_export_arguments(s, s->snap);

    /* Discards release what has been fetched, so they have to pass. */
    qmp_with(args, "writable", json_object_new_boolean(true));
    if (frozen) {
        struct json_object *bitmaps = json_object_new_array();

        json_object_array_add(bitmaps, daemon_bitmap_ref(s, frozen));
        qmp_with(args, "bitmaps", bitmaps);
    }
    return qmp_client_co_execute(s->qmp, "block-export-add", args, NULL, err);
}

int daemon_co_delete_export(struct daemon_disk *s, struct error *err)
{
    struct json_object *args =
        qmp_with_string(qmp_with_string(qmp_object(), "id", s->prefix), "mode", "hard");
    int r;

    /* This fails if the export is shutting down already; the wait below decides. */
    qmp_client_co_execute(s->qmp, "block-export-del", args, NULL, NULL);
    for (int i = 0; i < EXPORT_GONE_TRIES; i++) {
        DAEMON_STATE_AUTO(state);

        r = daemon_disk_co_inspect(s, &state, err);
        if (r < 0 || !state.has_export) {
            return r;
        }
        loop_co_sleep(EXPORT_GONE_POLL_NS);
    }
    return error_set(err, ETIMEDOUT, "The daemon does not end export '%s'", s->prefix);
}

int daemon_co_start_server(struct daemon_disk *s, const char *socket,
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
    addr = qmp_with(qmp_with_string(qmp_object(), "type", "unix"), "data",
                    qmp_with_string(qmp_object(), "path", socket));
    r = qmp_client_co_execute(s->qmp, "nbd-server-start", qmp_with(qmp_object(), "addr", addr),
                              NULL, err);
    if (r < 0) {
        error_hint(err, "If it has an NBD server, name its address with --nbd.");
        return r;
    }
    ret_address->path = strdup(socket);
    return ret_address->path ? 0 : error_out_of_memory(err);
}

void daemon_co_stop_server(struct qmp_client *qmp, const char *socket)
{
    int lock AUTO_CLOSE = fleece_lock_socket(socket, true);
    struct json_object *exports = NULL;

    if (lock >= 0 && qmp_client_co_execute(qmp, "query-block-exports", NULL, &exports, NULL) == 0 &&
        json_object_is_type(exports, json_type_array) && json_object_array_length(exports) == 0 &&
        qmp_client_co_execute(qmp, "nbd-server-stop", NULL, NULL, NULL) == 0) {
        fleece_remove_of_file(socket);
    }
    json_object_put(exports);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* How a run with either method for QEMU ends. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backup/daemon_disk.h"
#include "base/cleanup.h"
#include "base/time_units.h"
#include "base/unix_socket.h"
#include "loop/loop.h"

#define JOB_GONE_TRIES 3000
#define NODE_FREE_TRIES 100
#define POLL_NS (10 * NS_PER_MS)

/* Whether the job of a run exists. */
static int co_find_job(struct daemon_disk *s, bool *ret_found, struct error *err)
{
    struct json_object *jobs = NULL;
    int r = qmp_client_co_execute(s->qmp, "query-jobs", NULL, &jobs, err);

    *ret_found = false;
    for (size_t i = 0; i < source_length(jobs); i++) {
        if (strcmp(source_string(json_object_array_get_idx(jobs, i), "id"), s->prefix) == 0) {
            *ret_found = true;
        }
    }
    json_object_put(jobs);
    return r;
}

/* Cancel the job, and wait until it is gone: requests in flight have to end. */
static int co_end_job(struct daemon_disk *s, struct error *err)
{
    for (int i = 0; i < JOB_GONE_TRIES; i++) {
        struct json_object *args;
        bool found;
        int r = co_find_job(s, &found, err);

        if (r < 0 || !found) {
            return r;
        }
        if (i == 0) {
            args = qmp_with(qmp_with_string(qmp_object(), "device", s->prefix), "force",
                            json_object_new_boolean(true));
            qmp_client_co_execute(s->qmp, "block-job-cancel", args, NULL, NULL);
        } else {
            loop_co_sleep(POLL_NS);
        }
    }
    return error_set(err, ETIMEDOUT, "The job '%s' does not end", s->prefix);
}

/* The export and the job may hold it for a moment after they are gone. */
int qemu_co_delete_temp(struct daemon_disk *s, struct error *err)
{
    int r = -EIO;

    for (int i = 1; r == -EIO && i <= NODE_FREE_TRIES; i++) {
        struct json_object *args = qmp_with_string(qmp_object(), "node-name", s->temp);

        r = qmp_client_co_execute(s->qmp, "blockdev-del", args, NULL,
                                  i == NODE_FREE_TRIES ? err : NULL);
        if (r == -EIO && i < NODE_FREE_TRIES) {
            loop_co_sleep(POLL_NS);
        }
    }
    return r;
}

/* Set the drive of a guest's device, whose id or path is `qdev`. */
static int co_set_drive(struct qmp_client *qmp, const char *qdev, const char *node,
                        struct error *err)
{
    struct json_object *args = qmp_with_string(qmp_object(), "property", "drive");
    char *path AUTO_FREE = NULL;

    if (asprintf(&path, "%s%s", qdev[0] == '/' ? "" : "/machine/peripheral/", qdev) < 0) {
        path = NULL;
        json_object_put(args);
        return error_out_of_memory(err);
    }
    qmp_with_string(qmp_with_string(args, "path", path), "value", node);
    return qmp_client_co_execute(qmp, "qom-set", args, NULL, err);
}

/* Move the devices that use node `from` to node `to`. *ret_count: how many there are. */
int qemu_co_move_devices(struct qmp_client *qmp, const char *from, const char *to,
                         size_t *ret_count, struct error *err)
{
    struct json_object *devices = NULL, *inserted;
    int r = qmp_client_co_execute(qmp, "query-block", NULL, &devices, err);

    *ret_count = 0;
    for (size_t i = 0; r == 0 && i < source_length(devices); i++) {
        struct json_object *d = json_object_array_get_idx(devices, i);
        const char *qdev = source_string(d, "qdev");

        if (qdev[0] && json_object_object_get_ex(d, "inserted", &inserted) &&
            strcmp(source_string(inserted, "node-name"), from) == 0) {
            ++*ret_count;
            r = to ? co_set_drive(qmp, qdev, to, err) : 0;
        }
    }
    json_object_put(devices);
    return r;
}

static int co_delete_node(struct daemon_disk *s, const char *name, struct error *err)
{
    return qmp_client_co_execute(s->qmp, "blockdev-del",
                                 qmp_with_string(qmp_object(), "node-name", name), NULL, err);
}

/* Remove view and filter, and move devices back to the disk. */
static int co_end_filter(struct daemon_disk *s, struct error *err)
{
    DAEMON_STATE_AUTO(state);
    size_t count;
    int r = daemon_disk_co_inspect(s, &state, err);

    /* As long as the view exists, only the filter may write to the node. */
    if (r == 0 && state.has_snap) {
        r = co_delete_node(s, s->snap, err);
    }
    if (r == 0 && state.has_cbw) {
        r = qemu_co_move_devices(s->qmp, s->cbw, s->node, &count, err);
        UNLESS_FAILED(r, co_delete_node(s, s->cbw, err));
    }
    return r;
}

/* End all but the bitmaps; *state is the state before. */
static int co_end_qemu_run(struct daemon_disk *s, struct daemon_state *state, struct error *err)
{
    int r = daemon_disk_co_inspect(s, state, err);

    if (r == 0 && state->has_export) {
        r = daemon_co_delete_export(s, err);
    }
    UNLESS_FAILED(r, co_end_job(s, err));
    /* That of a job has ended with it. */
    if (r == 0 && state->has_cbw) {
        r = co_end_filter(s, err);
    }
    if (r == 0 && state->has_temp) {
        r = qemu_co_delete_temp(s, err);
    }
    return r;
}

/* Whether somebody listens at a socket. */
static bool is_served(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct stat st;

    if (strlen(path) >= sizeof(addr.sun_path) || stat(path, &st) < 0 || !S_ISSOCK(st.st_mode)) {
        return false;
    }
    memcpy(addr.sun_path, path, strlen(path) + 1);
    return !unix_socket_is_stale(&addr);
}

/* A server on another socket is not a run's, and stays. */
static void co_stop_servers(struct daemon_disk *s, const struct daemon_state *state)
{
    for (size_t i = 0; i < state->socket_count; i++) {
        if (is_served(state->sockets[i])) {
            daemon_co_stop_server(s->qmp, state->sockets[i]);
        }
    }
}

int qemu_co_take_down(struct daemon_disk *s, struct error *err)
{
    DAEMON_STATE_AUTO(state);
    int r = co_end_qemu_run(s, &state, err);

    if (r == 0) {
        co_stop_servers(s, &state);
    }
    return r;
}

int qemu_co_settle(struct daemon_disk *s, const char *last, struct error *err)
{
    DAEMON_STATE_AUTO(before);
    DAEMON_STATE_AUTO(state);
    struct json_object *actions;
    int r = co_end_qemu_run(s, &before, err);

    /* Again: bitmaps that were exported are not busy any more. */
    UNLESS_FAILED(r, daemon_disk_co_inspect(s, &state, err));
    if (r < 0) {
        return r;
    }
    actions = json_object_new_array();
    daemon_settle_bitmaps(s, &state, last, actions);
    r = daemon_co_transact(s->qmp, actions, err);
    if (r < 0) {
        error_prepend(err, "Could not put node '%s' back in order: ", s->node);
        return r;
    }
    co_stop_servers(s, &before);
    return 0;
}

/* QEMU does not report its NBD server: one that another run has started is found by its socket. */
int qemu_co_nbd_address(struct daemon_disk *s, const char *own_socket,
                        struct socket_address *ret_address, struct error *err)
{
    DAEMON_STATE_AUTO(state);
    int r = daemon_disk_co_inspect(s, &state, err);

    for (size_t i = 0; r == 0 && i < state.socket_count; i++) {
        if (is_served(state.sockets[i])) {
            ret_address->path = strdup(state.sockets[i]);
            return ret_address->path ? 0 : error_out_of_memory(err);
        }
    }
    return r < 0 ? r : daemon_co_start_server(s, own_socket, ret_address, err);
}

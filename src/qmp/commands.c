/* SPDX-License-Identifier: Apache-2.0 */
/* The commands that neither query nodes nor are actions of transactions. */
#include "qmp/commands.h"

#include <errno.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "block/control_lock.h"
#include "block/socket_address.h"
#include "export/export.h"
#include "export/nbd_server.h"
#include "job/job.h"
#include "qmp/command_lock.h"
#include "qmp/transaction.h"

/* --- the session ------------------------------------------------------------------------------ */

int qmp_co_capabilities(struct qmp_call *call, struct json_object *args,
                        struct json_object **ret_value, struct error *err)
{
    struct json_object *enable = qmp_get(args, "enable");

    if (call->negotiated) {
        return error_set_class(err, ERROR_CLASS_COMMAND_NOT_FOUND, EINVAL,
                               "Capabilities negotiation is already complete, command ignored");
    }
    /* The only capability that passes the check is oob. */
    call->oob = enable && json_object_array_length(enable) > 0;
    call->negotiated = true;
    return 0;
}

int qmp_co_query_version(struct qmp_call *call, struct json_object *args,
                         struct json_object **ret_value, struct error *err)
{
    *ret_value = qmp_version_json();
    return 0;
}

int qmp_co_quit(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,
                struct error *err)
{
    block_control_unlock();
    job_co_cancel_all();
    block_co_control_lock();
    call->quit_after_reply = true;
    return 0;
}

int qmp_co_x_tidemark_give_up(struct qmp_call *call, struct json_object *args,
                              struct json_object **ret_value, struct error *err)
{
    return call->give_up ? call->give_up(call, qmp_get(args, "id"), err)
                         : error_set(err, ENOTSUP, "Only a monitor can give up its commands");
}

/* --- NBD server, exports ---------------------------------------------------------------------- */

/*
 * Where the server listens, for query-nbd-server: a flat address, owned; NULL if the server was
 * given a descriptor.
 */
static struct json_object *server_address;
/* What a relative path in that is relative to, owned; NULL: not known. */
static char *server_directory;

static void note_address(const struct socket_address *address)
{
    char port[16];

    json_object_put(server_address);
    server_address = NULL;
    free(server_directory);
    server_directory = getcwd(NULL, 0);
    if (address->fd) {
        return;
    }
    server_address = socket_address_to_json(address);
    if (export_nbd_server_port() > 0) {
        snprintf(port, sizeof(port), "%u", export_nbd_server_port());
        qmp_put_str(server_address, "port", port);
    }
}

int qmp_co_start_nbd_server(struct json_object *args, struct error *err)
{
    struct export_nbd_server_config config = EXPORT_NBD_SERVER_CONFIG_INIT;
    struct socket_address address CLEANUP(socket_address_clear) = {0};
    int r;

    if (export_nbd_server_is_running()) {
        return error_set(err, EBUSY, "NBD server already running");
    }
    r = socket_address_from_json(qmp_get(args, "addr"), &address, err);
    if (r < 0) {
        return r;
    }
    config.address = &address;
    config.tls_creds = qmp_get_str(args, "tls-creds");
    config.tls_authz = qmp_get_str(args, "tls-authz");
    config.max_connections =
        (unsigned)qmp_get_uint(args, "max-connections", config.max_connections);
    config.max_per_address = (unsigned)qmp_get_uint(args, "x-max-connections-per-address", 0);
    config.handshake_max_seconds =
        (unsigned)qmp_get_uint(args, "handshake-max-seconds", config.handshake_max_seconds);
    r = export_co_nbd_server_start(&config, err);
    if (r >= 0) {
        note_address(&address);
    }
    return r;
}

int qmp_co_nbd_server_start(struct qmp_call *call, struct json_object *args,
                            struct json_object **ret_value, struct error *err)
{
    struct json_object *addr = qmp_get(args, "addr");
    int started, r;

    /* {"type": T, "data": {...}}: remove the wrapper. */
    json_object_object_add(args, "addr", json_object_get(qmp_get(addr, "data")));
    /* The name of a host, or a path, may take any time: other commands go on meanwhile. */
    block_control_unlock();
    started = qmp_co_start_nbd_server(args, err);
    r = error_first(started, qmp_co_lock_again(err));
    if (started == 0 && r < 0) {
        /* The daemon ends, and may have looked for a server before there was one. */
        export_co_nbd_server_stop_accepting();
    }
    return r;
}

/* The older form of block-export-add: the export's name is its id as well. */
int qmp_co_nbd_server_add(struct qmp_call *call, struct json_object *args,
                          struct json_object **ret_value, struct error *err)
{
    const char *device = qmp_get_str(args, "device");
    const char *name = qmp_get_str(args, "name");
    struct json_object *bitmap = qmp_get(args, "bitmap");
    struct block_node *node = block_node_lookup(device, err);

    if (!node) {
        return -ENOENT;
    }
    /* As in QEMU, what can only be read is then exported for reading. */
    if (block_node_is_read_only(node)) {
        json_object_object_del(args, "writable");
    }
    if (bitmap) {
        struct json_object *list = json_object_new_array();

        json_object_array_add(list, json_object_get(bitmap));
        json_object_object_add(args, "bitmaps", list);
    }
    qmp_put_str(args, "id", name ? name : device);
    qmp_put_str(args, "name", name ? name : device);
    qmp_put_str(args, "type", "nbd");
    qmp_put_str(args, "node-name", device);
    json_object_object_del(args, "device");
    json_object_object_del(args, "bitmap");
    return qmp_co_run_action(&qmp_action_export_add, args, err);
}

int qmp_co_nbd_server_remove(struct qmp_call *call, struct json_object *args,
                             struct json_object **ret_value, struct error *err)
{
    qmp_put_str(args, "id", qmp_get_str(args, "name"));
    return qmp_co_block_export_del(call, args, ret_value, err);
}

/* How long nbd-server-stop waits: a backend that hangs must not block the monitor. */
#define STOP_WAIT_NS 5000000000LL

int qmp_co_nbd_server_stop(struct qmp_call *call, struct json_object *args,
                           struct json_object **ret_value, struct error *err)
{
    return export_co_nbd_server_stop_within(STOP_WAIT_NS, err);
}

int qmp_co_query_nbd_server(struct qmp_call *call, struct json_object *args,
                            struct json_object **ret_value, struct error *err)
{
    struct json_object *o = json_object_new_object();
    bool running = export_nbd_server_is_running();

    qmp_put_bool(o, "running", running);
    if (running && server_address) {
        json_object_object_add(o, "address", json_object_get(server_address));
        if (server_directory) {
            qmp_put_str(o, "directory", server_directory);
        }
    }
    *ret_value = o;
    return 0;
}

static bool add_export(const struct export_info *info, void *array)
{
    struct json_object *o = json_object_new_object();

    qmp_put_new(o, "node-name", json_object_new_string(block_node_name(info->node)));
    qmp_put_new(o, "shutting-down", json_object_new_boolean(info->shutting_down));
    qmp_put_new(o, "type", json_object_new_string(info->type));
    qmp_put_new(o, "id", json_object_new_string(info->id));
    json_object_array_add(array, o);
    return true;
}

/* The newest first, as QEMU lists them. */
int qmp_co_query_block_exports(struct qmp_call *call, struct json_object *args,
                               struct json_object **ret_value, struct error *err)
{
    struct json_object *array = json_object_new_array();
    struct qmp_list list;

    export_foreach(add_export, array);
    qmp_list_begin(&list, call);
    for (size_t i = json_object_array_length(array); i > 0; i--) {
        qmp_list_add(&list, json_object_get(json_object_array_get_idx(array, i - 1)));
    }
    json_object_put(array);
    *ret_value = qmp_list_end(&list);
    return *ret_value ? 0 : error_out_of_memory(err);
}

/* --- actions by themselves -------------------------------------------------------------------- */

#define COMMAND_OF_ACTION(command, action)                                                         \
    int command(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,   \
                struct error *err)                                                                 \
    {                                                                                              \
        return qmp_co_run_action(&action, args, err);                                              \
    }

COMMAND_OF_ACTION(qmp_co_block_export_add, qmp_action_export_add)
COMMAND_OF_ACTION(qmp_co_blockdev_add, qmp_action_blockdev_add)
COMMAND_OF_ACTION(qmp_co_blockdev_backup, qmp_action_blockdev_backup)
COMMAND_OF_ACTION(qmp_co_drive_backup, qmp_action_drive_backup)
COMMAND_OF_ACTION(qmp_co_blockdev_del, qmp_action_blockdev_del)
COMMAND_OF_ACTION(qmp_co_blockdev_replace, qmp_action_blockdev_replace)
COMMAND_OF_ACTION(qmp_co_blockdev_snapshot, qmp_action_snapshot)
COMMAND_OF_ACTION(qmp_co_blockdev_snapshot_sync, qmp_action_snapshot_sync)
COMMAND_OF_ACTION(qmp_co_snapshot_internal, qmp_action_snapshot_internal)
COMMAND_OF_ACTION(qmp_co_bitmap_add, qmp_action_bitmap_add)
COMMAND_OF_ACTION(qmp_co_bitmap_remove, qmp_action_bitmap_remove)
COMMAND_OF_ACTION(qmp_co_bitmap_clear, qmp_action_bitmap_clear)
COMMAND_OF_ACTION(qmp_co_bitmap_enable, qmp_action_bitmap_enable)
COMMAND_OF_ACTION(qmp_co_bitmap_disable, qmp_action_bitmap_disable)
COMMAND_OF_ACTION(qmp_co_bitmap_merge, qmp_action_bitmap_merge)

/* SPDX-License-Identifier: Apache-2.0 */
/* query-block and query-blockstats: disks, and the nodes below them. */
#include "cli/machine/commands.h"

#include <errno.h>

#include "cli/machine/device.h"
#include "cli/machine/disk.h"
#include "qmp/latency.h"

/* A disk that neither -drive named nor a device uses is nobody's business. */
static bool is_shown(const struct machine_disk *disk)
{
    return disk->name || disk->user;
}

/* The node as the disk uses it. */
static struct json_object *co_inserted_json(const struct machine_disk *disk)
{
    struct block_node *node = block_node_skip_implicit(machine_disk_node(disk));
    struct json_object *o = qmp_co_disk_json(node), *cache;

    if (json_object_object_get_ex(o, "cache", &cache)) {
        qmp_put_bool(cache, "writeback", !disk->writethrough);
    }
    machine_disk_put_limits(disk, o);
    return o;
}

static struct json_object *co_disk_json(const struct machine_disk *disk)
{
    const struct machine_device *user = disk->user;
    struct json_object *o = json_object_new_object();

    if (user && disk->stops_on_error) {
        qmp_put_str(o, "io-status", "ok");
    }
    qmp_put_str(o, "device", disk->name ?: "");
    qmp_put_bool(o, "locked", false);
    qmp_put_bool(o, "removable", !user || machine_device_is_removable(user));
    if (machine_disk_node(disk)) {
        json_object_object_add(o, "inserted", co_inserted_json(disk));
    }
    if (user) {
        qmp_put_str(o, "qdev", machine_device_path(user));
        if (machine_device_has_tray(user)) {
            qmp_put_bool(o, "tray_open", machine_device_tray_is_open(user));
        }
    }
    qmp_put_str(o, "type", "unknown");
    return o;
}

int machine_co_query_block(struct qmp_call *call, struct json_object *args,
                           struct json_object **ret_value, struct error *err)
{
    struct machine_disk *disk = NULL;

    *ret_value = json_object_new_array();
    while ((disk = machine_disk_next(disk))) {
        if (is_shown(disk)) {
            json_object_array_add(*ret_value, co_disk_json(disk));
        }
    }
    return 0;
}

int machine_co_latency_histogram_set(struct qmp_call *call, struct json_object *args,
                                     struct json_object **ret_value, struct error *err)
{
    struct machine_device *device = machine_device_lookup(qmp_get_str(args, "id"), err);

    return device ? qmp_set_latencies(&machine_device_disk(device)->accounting.latencies, args, err)
                  : -ENOENT;
}

/* --- query-blockstats ------------------------------------------------------------------------- */

/* The figures of the disk in the place of those of its node. */
static struct json_object *disk_stats_json(struct machine_disk *disk)
{
    struct block_node *node = machine_disk_node(disk);
    struct json_object *o =
        node ? qmp_node_stats_json(block_node_skip_implicit(node)) : json_object_new_object();

    qmp_put_str(o, "device", disk->name ?: "");
    if (disk->user) {
        qmp_put_str(o, "qdev", machine_device_path(disk->user));
    }
    json_object_object_add(o, "stats", accounting_json(&disk->accounting));
    return o;
}

int machine_co_query_blockstats(struct qmp_call *call, struct json_object *args,
                                struct json_object **ret_value, struct error *err)
{
    struct machine_disk *disk = NULL;

    if (qmp_get_bool(args, "query-nodes", false)) {
        return qmp_co_query_blockstats(call, args, ret_value, err);
    }
    *ret_value = json_object_new_array();
    while ((disk = machine_disk_next(disk))) {
        if (is_shown(disk)) {
            json_object_array_add(*ret_value, disk_stats_json(disk));
        }
    }
    return 0;
}

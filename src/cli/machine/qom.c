/* SPDX-License-Identifier: Apache-2.0 */
/* qom-get and qom-set of the drive of a device, and of the properties of objects. */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "cli/machine/commands.h"
#include "cli/machine/device.h"
#include "cli/machine/disk.h"
#include "qmp/transaction.h"

struct drive_state {
    struct machine_disk *disk;
    struct block_node *was; /* referenced */
};

static struct machine_disk *disk_of(struct json_object *args, struct error *err)
{
    struct machine_device *device = machine_device_lookup(qmp_get_str(args, "path"), err);

    return device ? machine_device_disk(device) : NULL;
}

/* The node that the value names; NULL: none, or the value is no name. */
static struct block_node *node_of(struct json_object *args)
{
    struct json_object *value = qmp_get(args, "value");

    return json_object_is_type(value, json_type_string)
               ? block_node_find(json_object_get_string(value))
               : NULL;
}

static void drive_concerns(void *state, struct json_object *args, struct qmp_concern *concern)
{
    const struct machine_disk *disk = disk_of(args, NULL);

    qmp_concern_add(concern, disk ? machine_disk_node(disk) : NULL);
    qmp_concern_add(concern, node_of(args));
}

static int co_drive_prepare(void *state, struct json_object *args, struct error *err)
{
    struct drive_state *s = state;
    struct json_object *value = qmp_get(args, "value");
    struct block_node *node = node_of(args);

    s->disk = disk_of(args, err);
    if (!s->disk) {
        return -ENOENT;
    }
    if (!json_object_is_type(value, json_type_string)) {
        return error_set(err, EINVAL, "Invalid parameter type for 'drive', expected: string");
    }
    if (!node) {
        return error_set(err, ENOENT, "Cannot find device='' nor node-name='%s'",
                         json_object_get_string(value));
    }
    if (!machine_disk_node(s->disk)) {
        return error_set(err, EINVAL, "Device '%s' has no medium", qmp_get_str(args, "path"));
    }
    s->was = block_node_ref(machine_disk_node(s->disk));
    return block_co_root_replace(s->disk->device.root, node, err);
}

/* This cannot fail: see blockdev-replace. */
static void co_drive_abort(void *state)
{
    struct drive_state *s = state;
    ERROR_AUTO(err);

    if (block_co_root_replace(s->disk->device.root, s->was, &err) < 0) {
        log_error("a device cannot be put back on node '%s': %s", block_node_name(s->was),
                  error_message(&err));
    }
}

static void co_drive_clean(void *state)
{
    block_co_unref(((struct drive_state *)state)->was);
}

static const struct qmp_action set_drive = {
    .name = "qom-set",
    .state_size = sizeof(struct drive_state),
    .concerns = drive_concerns,
    .co_prepare = co_drive_prepare,
    .co_abort = co_drive_abort,
    .co_clean = co_drive_clean,
};

int machine_co_qom_set(struct qmp_call *call, struct json_object *args,
                       struct json_object **ret_value, struct error *err)
{
    const char *property = qmp_get_str(args, "property");

    if (!machine_device_lookup(qmp_get_str(args, "path"), NULL)) {
        return qmp_co_qom_set(call, args, ret_value, err);
    }
    if (strcmp(property, "drive") != 0) {
        return error_set(err, ENOENT, "Property '%s' not found", property);
    }
    return qmp_co_run_action(&set_drive, args, err);
}

/* As QEMU's: the name of the drive, or else that of the node. */
int machine_co_qom_get(struct qmp_call *call, struct json_object *args,
                       struct json_object **ret_value, struct error *err)
{
    struct machine_device *device = machine_device_lookup(qmp_get_str(args, "path"), NULL);
    const struct machine_disk *disk = device ? machine_device_disk(device) : NULL;
    const struct block_node *node = disk ? machine_disk_node(disk) : NULL;

    if (!disk || strcmp(qmp_get_str(args, "property"), "drive") != 0) {
        return qmp_co_qom_get(call, args, ret_value, err);
    }
    *ret_value = json_object_new_string(disk->name ?: node ? block_node_name(node) : "");
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Media that come and go: eject, trays, and exports that end with the medium. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "cli/machine/commands.h"
#include "cli/machine/device.h"
#include "cli/machine/disk.h"
#include "export/export.h"

/* --- finding ---------------------------------------------------------------------------------- */

/* The disk that the arguments `device` (a name of -drive) or `id` (of a guest device) name. */
static struct machine_disk *lookup_disk(struct json_object *args, struct error *err)
{
    const char *name = qmp_get_str(args, "device"), *id = qmp_get_str(args, "id");
    struct machine_device *device;
    struct machine_disk *disk;

    if (!name == !id) {
        error_set(err, EINVAL, "Need exactly one of 'device' and 'id'");
        return NULL;
    }
    if (id) {
        device = machine_device_lookup(id, err);
        return device ? machine_device_disk(device) : NULL;
    }
    disk = machine_disk_find(name);
    if (!disk) {
        error_set_class(err, ERROR_CLASS_DEVICE_NOT_FOUND, ENOENT, "Device '%s' not found", name);
    }
    return disk;
}

/* The name of a disk in messages. */
static const char *name_of(const struct machine_disk *disk)
{
    return disk->name ?: disk->user ? machine_device_path(disk->user) : "";
}

/* --- exports of nbd-server-add that end with the medium --------------------------------------- */

struct ejected_export {
    struct list link; /* in `on_eject` */
    char *id;         /* owned */
    const struct machine_disk *disk;
};

static struct list on_eject = LIST_INIT(on_eject);

int machine_co_nbd_server_add(struct qmp_call *call, struct json_object *args,
                              struct json_object **ret_value, struct error *err)
{
    const struct machine_disk *disk = machine_disk_find(qmp_get_str(args, "device"));
    AUTO_FREE char *id = strdup(qmp_get_str(args, "name") ?: qmp_get_str(args, "device"));
    struct ejected_export *e = calloc(1, sizeof(*e));
    int r = id && e ? qmp_co_nbd_server_add(call, args, ret_value, err) : error_out_of_memory(err);

    if (r < 0 || !disk) {
        free(e);
        return r;
    }
    *e = (struct ejected_export){.id = TAKE_PTR(id), .disk = disk};
    list_append(&on_eject, &e->link);
    return r;
}

static void co_end_exports_of(const struct machine_disk *disk)
{
    struct ejected_export *e, *next;

    LIST_FOREACH_SAFE (e, next, &on_eject, link) {
        if (e->disk == disk) {
            (void)export_co_del(e->id, EXPORT_DEL_HARD, true, NULL);
            list_remove(&e->link);
            free(e->id);
            free(e);
        }
    }
}

/* --- trays ------------------------------------------------------------------------------------ */

static int open_tray(struct machine_disk *disk, struct error *err)
{
    if (disk->user && !machine_device_is_removable(disk->user)) {
        return error_set(err, EINVAL, "Device '%s' is not removable", name_of(disk));
    }
    if (disk->user && machine_device_has_tray(disk->user)) {
        machine_device_move_tray(disk->user, true);
    }
    return 0;
}

int machine_co_open_tray(struct qmp_call *call, struct json_object *args,
                         struct json_object **ret_value, struct error *err)
{
    struct machine_disk *disk = lookup_disk(args, err);

    return disk ? open_tray(disk, err) : -ENOENT;
}

static int close_tray(struct machine_disk *disk, struct error *err)
{
    if (disk->user && !machine_device_is_removable(disk->user)) {
        return error_set(err, EINVAL, "Device '%s' is not removable", name_of(disk));
    }
    if (disk->user && machine_device_has_tray(disk->user)) {
        machine_device_move_tray(disk->user, false);
    }
    return 0;
}

int machine_co_close_tray(struct qmp_call *call, struct json_object *args,
                          struct json_object **ret_value, struct error *err)
{
    struct machine_disk *disk = lookup_disk(args, err);

    return disk ? close_tray(disk, err) : -ENOENT;
}

/* --- media ------------------------------------------------------------------------------------ */

/* Whether a medium may go in or out. */
static int check_tray(const struct machine_disk *disk, struct error *err)
{
    if (disk->user && !machine_device_is_removable(disk->user)) {
        return error_set(err, EINVAL, "Device '%s' is not removable", name_of(disk));
    }
    if (disk->user && machine_device_has_tray(disk->user) &&
        !machine_device_tray_is_open(disk->user)) {
        return error_set(err, EINVAL, "Tray of device '%s' is not open", name_of(disk));
    }
    return 0;
}

static int co_take_out(struct machine_disk *disk, struct error *err)
{
    int r = check_tray(disk, err);

    if (r >= 0) {
        co_end_exports_of(disk);
        machine_disk_co_remove(disk);
    }
    return r;
}

int machine_co_remove_medium(struct qmp_call *call, struct json_object *args,
                             struct json_object **ret_value, struct error *err)
{
    struct machine_disk *disk = lookup_disk(args, err);

    return disk ? co_take_out(disk, err) : -ENOENT;
}

static int co_put_in(struct machine_disk *disk, struct block_node *node, struct error *err)
{
    int r = check_tray(disk, err);

    if (r >= 0 && machine_disk_node(disk)) {
        r = error_set(err, EBUSY, "There already is a medium in device '%s'", name_of(disk));
    }
    return r < 0 ? r : machine_disk_co_insert(disk, node, err);
}

int machine_co_insert_medium(struct qmp_call *call, struct json_object *args,
                             struct json_object **ret_value, struct error *err)
{
    const char *name = qmp_get_str(args, "node-name");
    struct machine_disk *disk = lookup_disk(args, err);
    struct block_node *node = disk ? block_node_find(name) : NULL;

    if (!disk) {
        return -ENOENT;
    }
    if (!node || strcmp(block_node_name(node), name) != 0) {
        return error_set(err, ENOENT, "Node '%s' not found", name);
    }
    if (*block_node_device_name(node)) {
        return error_set(err, EBUSY, "Node '%s' is already in use", name);
    }
    return co_put_in(disk, node, err);
}

int machine_co_eject(struct qmp_call *call, struct json_object *args,
                     struct json_object **ret_value, struct error *err)
{
    struct machine_disk *disk = lookup_disk(args, err);
    int r = disk ? open_tray(disk, err) : -ENOENT;

    return r < 0 ? r : co_take_out(disk, err);
}

/* --- change ----------------------------------------------------------------------------------- */

static int co_open_medium(const struct machine_disk *disk, struct json_object *args,
                          struct block_node **ret_node, struct error *err)
{
    const char *mode = qmp_get_str(args, "read-only-mode") ?: "retain";
    const struct block_node *old = machine_disk_node(disk);
    bool read_only =
        strcmp(mode, "read-only") == 0 ||
        (strcmp(mode, "retain") == 0 && (old ? block_node_is_read_only(old) : disk->read_only));
    struct options *extra = options_new();

    if (!extra) {
        return error_out_of_memory(err);
    }
    options_set_bool(extra, "read-only", read_only);
    return block_co_open_filename(qmp_get_str(args, "filename"), qmp_get_str(args, "format"), extra,
                                  (read_only ? 0 : BLOCK_OPEN_RDWR) | BLOCK_OPEN_PROBE, ret_node,
                                  err);
}

int machine_co_change_medium(struct qmp_call *call, struct json_object *args,
                             struct json_object **ret_value, struct error *err)
{
    struct machine_disk *disk = lookup_disk(args, err);
    struct block_node *node = NULL;
    int r = disk ? co_open_medium(disk, args, &node, err) : -ENOENT;

    UNLESS_FAILED(r, open_tray(disk, err));
    UNLESS_FAILED(r, co_take_out(disk, err));
    UNLESS_FAILED(r, co_put_in(disk, node, err));
    UNLESS_FAILED(r, close_tray(disk, err));
    block_co_unref(node);
    return r;
}

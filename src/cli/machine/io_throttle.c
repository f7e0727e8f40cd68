/* SPDX-License-Identifier: Apache-2.0 */
/* block_set_io_throttle. */
#include <errno.h>

#include "cli/machine/commands.h"
#include "cli/machine/device.h"
#include "cli/machine/disk.h"
#include "cli/machine/limits.h"
#include "qmp/answer.h"

/* By the name of -drive, or of the guest device that is on it. */
static struct machine_disk *find_limited(const char *device, const char *id, struct error *err)
{
    struct machine_disk *disk = NULL;
    struct machine_device *user;

    if (!device == !id) {
        error_set(err, EINVAL, "Need exactly one of 'device' and 'id'");
    } else if (device) {
        disk = machine_disk_find(device);
        if (!disk) {
            error_set_class(err, ERROR_CLASS_DEVICE_NOT_FOUND, ENOENT, "Device '%s' not found",
                            device);
        }
    } else {
        user = machine_device_lookup(id, err);
        disk = user ? machine_device_disk(user) : NULL;
    }
    return disk;
}

int machine_co_set_io_throttle(struct qmp_call *call, struct json_object *args,
                               struct json_object **ret_value, struct error *err)
{
    const char *device = qmp_get_str(args, "device"), *id = qmp_get_str(args, "id");
    struct machine_disk *disk = find_limited(device, id, err);
    struct json_object *limits;
    int r;

    if (!disk) {
        return -ENOENT;
    }
    if (!machine_disk_node(disk)) {
        return error_set(err, ENOMEDIUM, "Device '%s' has no medium", device ?: id);
    }
    limits = machine_limits_of_arguments(args);
    r = machine_disk_co_set_limits(disk, limits, qmp_get_str(args, "group"), device ?: id, err);
    json_object_put(limits);
    return r;
}

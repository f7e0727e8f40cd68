/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest devices: what -device and device_add make. Without a guest, a device that has a drive is a
 * user of the drive's node, with the permissions that such a device needs, and a place for a medium
 * that may be removable. Controllers are only known by name. Main reactor only; `co_` functions
 * yield.
 */
#ifndef TIDEMARK_CLI_MACHINE_DEVICE_H
#define TIDEMARK_CLI_MACHINE_DEVICE_H

#include <stdbool.h>

#include "block/block.h"
#include "block/options.h"

struct machine_device;
struct machine_disk;

/*
 * Make the device that `opts` (consumed) describes: driver, id, drive, and properties of the type.
 * -EINVAL: unknown type or property, no drive where one is needed; -EBUSY: another device is on the
 * drive; errors of permissions.
 */
int machine_co_add_device(struct options *opts, struct error *err);
/*
 * Make a device of a type on a disk, as -drive with if= does, in a place as machine_bus_take() has
 * it. -EINVAL: the drive is empty; errors of permissions.
 */
int machine_co_add_device_on(const char *type, const char *bus, uint64_t unit,
                             struct machine_disk *disk, struct error *err);
/*
 * device_del: by id or path. A device on a PCI bus goes when the machine is reset, since no guest
 * lets it go. Its drive goes with it. Class DeviceNotFound.
 */
int machine_co_del_device(const char *id, struct error *err);
/* Remove the devices that wait for a reset. */
void machine_co_reset_devices(void);
/* Remove all devices at the end of the machine. */
void machine_devices_co_free(void);

/* By id, or path in the tree of objects; NULL, with an error, if there is none with a drive. */
struct machine_device *machine_device_lookup(const char *id, struct error *err);
struct machine_disk *machine_device_disk(const struct machine_device *device);
/* The id, or the path if it has none, as queries show it. */
const char *machine_device_path(const struct machine_device *device);
/* Its id; "" if it has none. */
const char *machine_device_id(const struct machine_device *device);
/* Whether media come and go, by a tray or not; whether the tray is open. */
bool machine_device_is_removable(const struct machine_device *device);
bool machine_device_has_tray(const struct machine_device *device);
bool machine_device_tray_is_open(const struct machine_device *device);
/* Set the tray, and send the event if that moves it. */
void machine_device_move_tray(struct machine_device *device, bool open);

/* Print the types, one a line, as `-device help` does. */
void machine_print_device_types(void);

#endif

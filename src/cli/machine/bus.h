/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Buses of the machine, and of its controllers, and the places that devices have on them. No guest
 * looks at them: they decide which devices can be made. Main reactor only; nothing here yields.
 */
#ifndef TIDEMARK_CLI_MACHINE_BUS_H
#define TIDEMARK_CLI_MACHINE_BUS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/list.h"

struct machine_bus;

/* A device's place; {0}: none. */
struct machine_place {
    struct list link; /* of the bus */
    const struct machine_bus *bus;
    int unit;
};

/* The number of a unit that nobody chose. */
#define MACHINE_UNIT_FREE UINT64_MAX

/*
 * Take a place for a device of the type `device` on a bus of `type`: on that with the name `bus`,
 * or (NULL) on the first one that is not full; on `unit`, or on the first free one. The caller
 * keeps *place where it is, and leaves it in the end. -ENOENT: there is no such bus. -EINVAL: it
 * has another type, or no such unit. -EBUSY: the unit has a device.
 */
int machine_bus_take(const char *device, const char *type, const char *bus, uint64_t unit,
                     struct machine_place *place, struct error *err);
/* Whether places on buses of this type have numbers that can be chosen. */
bool machine_bus_has_units(const char *type);
/* Leave the place; {0} is fine. */
void machine_bus_leave(struct machine_place *place);

/*
 * Add the bus of a controller or PCI bridge with the name `id`; NULL: it has none, and the name of
 * the bus is that of its type with a number. `type` is static. -ENOMEM.
 */
int machine_bus_add(const char *type, const char *id, struct machine_bus **ret_bus,
                    struct error *err);
/* Remove it: the devices on it stay, on none. NULL is fine. */
void machine_bus_remove(struct machine_bus *bus);

#endif

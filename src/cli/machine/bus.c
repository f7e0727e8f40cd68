/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/bus.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

struct machine_bus {
    struct list link; /* in `buses` */
    const char *type;
    const char *units_name; /* of their numbers; NULL: places have no numbers */
    int units;
    bool passed_when_full;
    char name[64];
    struct list places;
};

/* Those of the machine; the list is filled from here at the first use. */
static struct machine_bus own_buses[] = {
    {.type = "IDE", .units_name = "IDE", .units = 2, .passed_when_full = true, .name = "ide.0"},
    {.type = "IDE", .units_name = "IDE", .units = 2, .passed_when_full = true, .name = "ide.1"},
    {.type = "floppy-bus", .units_name = "floppy", .units = 2, .name = "floppy-bus.0"},
    {.type = "PCI", .name = "pci.0"},
    {.type = "PCI", .name = "pcie.0"},
    {.type = "virtio-bus", .name = "virtio-bus"},
};

static struct list buses = LIST_INIT(buses);

static void add_own_buses(void)
{
    if (!list_is_empty(&buses)) {
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(own_buses); i++) {
        list_init(&own_buses[i].places);
        list_append(&buses, &own_buses[i].link);
    }
}

static bool is_unit_taken(const struct machine_bus *bus, int unit)
{
    const struct machine_place *place;

    LIST_FOREACH (place, &bus->places, link) {
        if (place->unit == unit) {
            return true;
        }
    }
    return false;
}

static int first_free_unit(const struct machine_bus *bus)
{
    int unit = 0;

    while (unit < bus->units && is_unit_taken(bus, unit)) {
        unit++;
    }
    return unit;
}

static struct machine_bus *bus_by_name(const char *name)
{
    struct machine_bus *bus;

    LIST_FOREACH (bus, &buses, link) {
        if (strcmp(bus->name, name) == 0) {
            return bus;
        }
    }
    return NULL;
}

static struct machine_bus *bus_by_type(const char *type)
{
    struct machine_bus *bus;

    LIST_FOREACH (bus, &buses, link) {
        if (strcmp(bus->type, type) == 0 &&
            !(bus->passed_when_full && first_free_unit(bus) == bus->units)) {
            return bus;
        }
    }
    return NULL;
}

static int choose_bus(const char *device, const char *type, const char *name,
                      struct machine_bus **ret_bus, struct error *err)
{
    struct machine_bus *bus = name ? bus_by_name(name) : bus_by_type(type);

    if (!bus) {
        return name ? error_set(err, ENOENT, "Bus '%s' not found", name)
                    : error_set(err, ENOENT, "No '%s' bus found for device '%s'", type, device);
    }
    if (strcmp(bus->type, type) != 0) {
        return error_set(err, EINVAL, "Device '%s' can't go on %s bus", device, bus->type);
    }
    *ret_bus = bus;
    return 0;
}

/* The number of the unit that is asked for; a bus without numbers has room for all. */
static int choose_free_unit(const struct machine_bus *bus, uint64_t wanted, int *ret_unit,
                            struct error *err)
{
    int unit = wanted == MACHINE_UNIT_FREE ? first_free_unit(bus) : (int)MIN(wanted, INT32_MAX);

    if (bus->units > 0 && unit >= bus->units) {
        return error_set(err, EINVAL, "Can't create %s unit %d, bus supports only %d units",
                         bus->units_name, unit, bus->units);
    }
    if (bus->units > 0 && is_unit_taken(bus, unit)) {
        return error_set(err, EBUSY, "%c%s unit %d is in use", toupper(bus->units_name[0]),
                         bus->units_name + 1, unit);
    }
    *ret_unit = unit;
    return 0;
}

int machine_bus_take(const char *device, const char *type, const char *name, uint64_t unit,
                     struct machine_place *place, struct error *err)
{
    struct machine_bus *bus = NULL;
    int number = 0, r;

    add_own_buses();
    r = choose_bus(device, type, name, &bus, err);
    UNLESS_FAILED(r, choose_free_unit(bus, unit, &number, err));
    if (r >= 0) {
        *place = (struct machine_place){.bus = bus, .unit = number};
        list_append(&bus->places, &place->link);
    }
    return r;
}

bool machine_bus_has_units(const char *type)
{
    for (size_t i = 0; i < ARRAY_SIZE(own_buses); i++) {
        if (strcmp(own_buses[i].type, type) == 0) {
            return own_buses[i].units > 0;
        }
    }
    return false;
}

void machine_bus_leave(struct machine_place *place)
{
    if (place->bus) {
        list_remove(&place->link);
        place->bus = NULL;
    }
}

int machine_bus_add(const char *type, const char *id, struct machine_bus **ret_bus,
                    struct error *err)
{
    static unsigned nameless;
    struct machine_bus *bus = calloc(1, sizeof(*bus));

    if (!bus) {
        return error_out_of_memory(err);
    }
    add_own_buses();
    bus->type = type;
    list_init(&bus->places);
    if (id) { /* a bridge gives its own name to its bus */
        snprintf(bus->name, sizeof(bus->name), "%.60s%s", id, strcmp(type, "PCI") == 0 ? "" : ".0");
    } else {
        snprintf(bus->name, sizeof(bus->name), "%s.%u",
                 strcmp(type, "PCI") == 0 ? "bridge" : "scsi", nameless++);
    }
    list_append(&buses, &bus->link);
    *ret_bus = bus;
    return 0;
}

void machine_bus_remove(struct machine_bus *bus)
{
    if (!bus) {
        return;
    }
    while (!list_is_empty(&bus->places)) {
        machine_bus_leave(LIST_FIRST(&bus->places, struct machine_place, link));
    }
    list_remove(&bus->link);
    free(bus);
}

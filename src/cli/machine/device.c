/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "block/user_object.h"
#include "cli/machine/bus.h"
#include "cli/machine/disk.h"
#include "job/job.h"
#include "qmp/answer.h"
#include "qmp/events.h"

enum type_flags {
    HAS_DRIVE = 1 << 0,
    REMOVABLE = 1 << 1, /* media come and go */
    TRAY = 1 << 2,
    READ_ONLY = 1 << 3,    /* never writes */
    RESIZABLE = 1 << 4,    /* notices another size */
    ON_PCI = 1 << 5,       /* can't be unplugged without a guest */
    WRITES = 1 << 6,       /* refuses a read-only drive */
    BEHIND_PROXY = 1 << 7, /* the part that uses the drive is a child, "virtio-backend" */
};

/* As the drive says. */
#define WRITE_CACHE_AUTO 2

#define TYPE_VIRTIO_BLK (HAS_DRIVE | RESIZABLE | BEHIND_PROXY)

/* By name, or alias. */
static const struct device_type {
    const char *name, *alias, *bus;
    const char *provides; /* the type of the bus that it makes; NULL: none */
    unsigned flags;
} types[] = {
    {"floppy", NULL, "floppy-bus", NULL, HAS_DRIVE | REMOVABLE},
    {"ide-cd", NULL, "IDE", NULL, HAS_DRIVE | REMOVABLE | TRAY | READ_ONLY},
    {"ide-hd", NULL, "IDE", NULL, HAS_DRIVE | RESIZABLE | WRITES},
    {"lsi53c895a", "lsi", "PCI", "SCSI", ON_PCI},
    {"pci-bridge", NULL, "PCI", "PCI", ON_PCI},
    {"pcie-root-port", NULL, "PCI", "PCI", ON_PCI},
    {"scsi-cd", NULL, "SCSI", NULL, HAS_DRIVE | REMOVABLE | TRAY | READ_ONLY},
    {"scsi-hd", NULL, "SCSI", NULL, HAS_DRIVE | RESIZABLE},
    {"virtio-blk-device", NULL, "virtio-bus", NULL, HAS_DRIVE | RESIZABLE},
    {"virtio-blk-pci", "virtio-blk", "PCI", NULL, TYPE_VIRTIO_BLK | ON_PCI},
    {"virtio-scsi-device", NULL, "virtio-bus", "SCSI", 0},
    {"virtio-scsi-pci", "virtio-scsi", "PCI", "SCSI", ON_PCI},
};

/*
 * Properties that say how a guest sees the device or its bus. Without a guest they have no effect.
 */
static const char *const guest_properties[] = {
    "addr",
    "backend_defaults",
    "bootindex",
    "channel",
    "chassis",
    "chassis_nr",
    "discard_granularity",
    "disable-legacy",
    "disable-modern",
    "lun",
    "logical_block_size",
    "min_io_size",
    "multifunction",
    "num-queues",
    "opt_io_size",
    "physical_block_size",
    "port",
    "queue-size",
    "scsi-id",
    "serial",
    "slot",
    "device_id",
    "wwn",
};

struct machine_device {
    struct list link; /* in `devices` */
    const struct device_type *type;
    char *id;                  /* owned; NULL: it has none */
    char *path;                /* owned; in the tree of objects, of the part that uses the drive */
    struct machine_disk *disk; /* NULL: it has no drive */
    bool share_writes;         /* share-rw */
    int write_cache;           /* off, on, as the drive says */
    bool tray_open;
    bool leaving; /* waits for a reset */
    struct machine_place place;
    struct machine_bus *bus;      /* the bus that it makes; NULL: none */
    struct user_object *iothread; /* referenced; NULL: none */
};

static struct list devices = LIST_INIT(devices);

static const struct device_type *find_device_type(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        if (strcmp(types[i].name, name) == 0 ||
            (types[i].alias && strcmp(types[i].alias, name) == 0)) {
            return &types[i];
        }
    }
    return NULL;
}

void machine_print_device_types(void)
{
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        printf("name \"%s\", bus %s", types[i].name, types[i].bus);
        if (types[i].alias) {
            printf(", alias \"%s\"", types[i].alias);
        }
        printf("\n");
    }
}

/* --- properties ------------------------------------------------------------------------------- */

const char *machine_device_id(const struct machine_device *device)
{
    return device->id ?: "";
}

const char *machine_device_path(const struct machine_device *device)
{
    return device->id && !(device->type->flags & BEHIND_PROXY) ? device->id : device->path;
}

struct machine_disk *machine_device_disk(const struct machine_device *device)
{
    return device->disk;
}

bool machine_device_is_removable(const struct machine_device *device)
{
    return device->type->flags & REMOVABLE;
}

bool machine_device_has_tray(const struct machine_device *device)
{
    return device->type->flags & TRAY;
}

bool machine_device_tray_is_open(const struct machine_device *device)
{
    return device->tray_open;
}

void machine_device_move_tray(struct machine_device *device, bool open)
{
    struct json_object *data;

    if (device->tray_open == open) {
        return;
    }
    device->tray_open = open;
    data = json_object_new_object();
    qmp_put_str(data, "device", device->disk->name ?: "");
    qmp_put_bool(data, "tray-open", open);
    qmp_put_str(data, "id", machine_device_path(device));
    qmp_emit("DEVICE_TRAY_MOVED", data);
}

/* What a disk that `device` is on has to know of it. */
static struct machine_disk_use use_of(const struct machine_device *device)
{
    struct machine_disk_use use = {
        .name = machine_device_path(device),
        .reads_only = device->type->flags & READ_ONLY,
        .shared = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED,
    };

    if (device->type->flags & RESIZABLE) {
        use.shared |= BLOCK_PERM_RESIZE;
    }
    if (device->share_writes) {
        use.shared |= BLOCK_PERM_WRITE;
    }
    return use;
}

/* QEMU finds an object by the end of its path, too, if that is some of its parts. */
static bool ends_path(const char *path, const char *part)
{
    size_t path_len = strlen(path), len = strlen(part);

    return strchr(part, '/') && len < path_len && path[path_len - len - 1] == '/' &&
           strcmp(path + path_len - len, part) == 0;
}

struct machine_device *machine_device_lookup(const char *id, struct error *err)
{
    struct machine_device *d;

    LIST_FOREACH (d, &devices, link) {
        if ((d->id && strcmp(d->id, id) == 0) || strcmp(d->path, id) == 0 ||
            ends_path(d->path, id)) {
            if (!d->disk) {
                error_set(err, EINVAL, "Device does not have a block device backend");
                return NULL;
            }
            return d;
        }
    }
    error_set_class(err, ERROR_CLASS_DEVICE_NOT_FOUND, ENOENT, "Device '%s' not found", id);
    return NULL;
}

/* --- adding ----------------------------------------------------------------------------------- */

static struct machine_device *new_device(const struct device_type *type, const char *id, bool user)
{
    static unsigned anonymous, unattached;
    struct machine_device *d = calloc(1, sizeof(*d));
    const char *below = type->flags & BEHIND_PROXY ? "/virtio-backend" : "";
    int r;

    if (!d) {
        return NULL;
    }
    list_init(&d->link);
    d->type = type;
    d->write_cache = WRITE_CACHE_AUTO;
    d->id = id ? strdup(id) : NULL;
    r = id     ? asprintf(&d->path, "/machine/peripheral/%s%s", id, below)
        : user ? asprintf(&d->path, "/machine/peripheral-anon/device[%u]%s", anonymous++, below)
               : asprintf(&d->path, "/machine/unattached/device[%u]%s", unattached++, below);
    if (r < 0 || (id && !d->id)) {
        d->path = r < 0 ? NULL : d->path;
        free(d->path);
        free(d->id);
        free(d);
        return NULL;
    }
    list_append(&devices, &d->link);
    return d;
}

/* The first job with the node that is not cancelled; NULL: there is none. */
static struct job *find_running_job(const struct block_node *node)
{
    struct job *job = NULL;

    do {
        job = job_next(job);
    } while (job && (job_is_cancelled(job) || !job_is_joined(job, node)));
    return job;
}

/* A drive of -drive goes with its device, and jobs on it have no disk any more. */
static void co_cancel_jobs_of(const struct machine_disk *disk)
{
    const struct block_node *node = machine_disk_node(disk);
    int r = 0;

    while (disk->name && node && r >= 0) {
        struct job *job = find_running_job(node);

        r = job ? job_co_cancel(job, true, NULL) : -ENOENT;
    }
}

static void co_free_device(struct machine_device *d)
{
    struct machine_disk *disk = d->disk;

    if (disk) {
        disk->user = NULL;
        machine_disk_co_free(disk);
    }
    list_remove(&d->link);
    if (d->iothread) {
        user_object_unref(d->iothread);
    }
    machine_bus_leave(&d->place);
    machine_bus_remove(d->bus);
    free(d->path);
    free(d->id);
    free(d);
}

/* Put a device on its disk. */
static int co_attach(struct machine_device *d, struct machine_disk *disk, struct error *err)
{
    const struct block_node *node = machine_disk_node(disk);
    int r;

    if (!node && !(d->type->flags & REMOVABLE)) {
        return error_set(err, EINVAL, "Device needs media, but drive is empty");
    }
    if (node && (d->type->flags & WRITES) && block_node_is_read_only(node)) {
        return error_set(err, EINVAL, "Block node is read-only");
    }
    disk->user = d;
    disk->use = use_of(d);
    r = machine_disk_co_set_perm(disk, err);
    if (r < 0) {
        disk->user = NULL;
        return r;
    }
    d->disk = disk;
    if (d->write_cache < WRITE_CACHE_AUTO) {
        disk->writethrough = !d->write_cache;
    }
    return 0;
}

/* The disk that the property `drive` names: of -drive, or a new one on a node. */
static int co_find_drive(struct machine_device *d, const char *name, struct machine_disk **ret_disk,
                         bool *ret_new, struct error *err)
{
    struct machine_disk *disk = machine_disk_find(name);
    struct block_node *node;
    int r;

    *ret_new = !disk;
    if (disk && disk->user) {
        return error_set(err, EBUSY,
                         disk->connected
                             ? "Drive '%s' is already in use because it has been automatically "
                               "connected to another device (did you need 'if=none' in the drive "
                               "options?)"
                             : "Drive '%s' is already in use by another device",
                         name);
    }
    if (disk) {
        *ret_disk = disk;
        return 0;
    }
    node = block_node_find(name);
    if (!node) {
        return error_set(err, ENOENT, "Property '%s.drive' can't find value '%s'",
                         d->type->flags & BEHIND_PROXY ? "virtio-blk-device" : d->type->name, name);
    }
    r = machine_disk_new(NULL, &disk, err);
    if (r < 0) {
        return r;
    }
    disk->user = d;
    disk->use = use_of(d);
    r = machine_disk_co_insert(disk, node, err);
    disk->user = NULL;
    if (r < 0) {
        machine_disk_co_free(disk);
        return r;
    }
    *ret_disk = disk;
    return 0;
}

static int co_attach_drive(struct machine_device *d, const char *name, struct error *err)
{
    struct machine_disk *disk = NULL;
    bool is_new = true;
    int r;

    if (name && *name) {
        r = co_find_drive(d, name, &disk, &is_new, err);
    } else if (d->type->flags & REMOVABLE) {
        r = machine_disk_new(NULL, &disk, err);
    } else {
        r = error_set(err, EINVAL,
                      strcmp(d->type->bus, "IDE") == 0 ? "No drive specified"
                                                       : "drive property not set");
    }
    UNLESS_FAILED(r, co_attach(d, disk, err));
    if (r < 0 && is_new) {
        machine_disk_co_free(disk);
    }
    return r;
}

/* A floppy has a kind of drive, which has no effect without a guest, and one size of block. */
static int check_floppy(struct options *opts, struct error *err)
{
    static const char *const kinds[] = {"144", "288", "120", "none", "auto", NULL};
    uint64_t physical = 512, logical = 512;
    int kind, r = options_take_enum(opts, "drive-type", kinds, 0, &kind, err);

    UNLESS_FAILED(r, options_take_enum(opts, "fallback", kinds, 0, &kind, err));
    UNLESS_FAILED(r, options_take_size(opts, "physical_block_size", 512, &physical, err));
    UNLESS_FAILED(r, options_take_size(opts, "logical_block_size", 512, &logical, err));
    if (r >= 0 && logical > physical) {
        return error_set(err, EINVAL, "logical_block_size > physical_block_size not supported");
    }
    if (r >= 0 && (logical != 512 || physical != 512)) {
        return error_set(err, EINVAL, "Physical and logical block size must be 512 for floppy");
    }
    return r;
}

/* Put the device on a bus, by the properties `bus` and `unit`, and make the bus that it has. */
static int take_place(struct machine_device *d, struct options *opts, struct error *err)
{
    AUTO_FREE char *bus = NULL;
    uint64_t unit = MACHINE_UNIT_FREE;
    int r = options_take_str(opts, "bus", &bus, err);

    if (machine_bus_has_units(d->type->bus)) {
        UNLESS_FAILED(r,
                      options_take_uint(opts, "unit", MACHINE_UNIT_FREE, UINT32_MAX, &unit, err));
    }
    UNLESS_FAILED(r, machine_bus_take(d->type->name, d->type->bus, bus, unit, &d->place, err));
    if (d->type->provides) {
        UNLESS_FAILED(r, machine_bus_add(d->type->provides, d->id, &d->bus, err));
    }
    return r;
}

/* Take the properties that have no effect without a guest, and the thread. */
static int take_properties(struct machine_device *d, struct options *opts, struct error *err)
{
    static const char *const on_off[] = {"off", "on", "auto", NULL};
    AUTO_FREE char *iothread = NULL;
    int r;

    r = strcmp(d->type->name, "floppy") == 0 ? check_floppy(opts, err) : 0;
    for (size_t i = 0; i < ARRAY_SIZE(guest_properties); i++) {
        options_drop(opts, guest_properties[i]);
    }
    UNLESS_FAILED(r, options_take_bool(opts, "share-rw", false, &d->share_writes, err));
    UNLESS_FAILED(
        r, options_take_enum(opts, "write-cache", on_off, WRITE_CACHE_AUTO, &d->write_cache, err));
    UNLESS_FAILED(r, options_take_str(opts, "iothread", &iothread, err));
    if (r < 0) {
        return r;
    }
    if (iothread && *iothread && !(d->iothread = user_object_ref(iothread))) {
        return error_set(err, ENOENT, "Device '%s' not found", iothread);
    }
    if (!options_is_empty(opts)) {
        struct json_object *left = options_to_json(opts);
        struct json_object_iterator it = json_object_iter_begin(left);

        r = error_set(err, EINVAL, "Property '%s.%s' not found", d->type->name,
                      json_object_iter_peek_name(&it));
        json_object_put(left);
    }
    return r;
}

static bool is_device_id_taken(const char *id)
{
    struct machine_device *d;

    LIST_FOREACH (d, &devices, link) {
        if (d->id && strcmp(d->id, id) == 0) {
            return true;
        }
    }
    return false;
}

int machine_co_add_device(struct options *opts_, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_;
    AUTO_FREE char *name = NULL, *id = NULL, *drive = NULL;
    const struct device_type *type;
    struct machine_device *d;
    int r = options_take_str(opts, "driver", &name, err);

    UNLESS_FAILED(r, options_take_str(opts, "id", &id, err));
    UNLESS_FAILED(r, options_take_str(opts, "drive", &drive, err));
    UNLESS_FAILED(r, id ? options_check_identifier("id", id, err) : 0);
    if (r < 0) {
        return r;
    }
    if (!name) {
        return error_set(err, EINVAL, "Parameter 'driver' is missing");
    }
    type = find_device_type(name);
    if (!type) {
        return error_set(err, EINVAL, "'%s' is not a valid device model name", name);
    }
    if (id && is_device_id_taken(id)) {
        return error_set(err, EEXIST, "Duplicate ID '%s' for device", id);
    }
    d = new_device(type, id, true);
    if (!d) {
        return error_out_of_memory(err);
    }
    r = take_place(d, opts, err);
    UNLESS_FAILED(r, take_properties(d, opts, err));
    if (type->flags & HAS_DRIVE) {
        UNLESS_FAILED(r, co_attach_drive(d, drive, err));
    }
    if (r < 0) {
        d->disk = NULL;
        co_free_device(d);
    }
    return r;
}

int machine_co_add_device_on(const char *type, const char *bus, uint64_t unit,
                             struct machine_disk *disk, struct error *err)
{
    const struct device_type *t = find_device_type(type);
    struct machine_device *d = new_device(t, NULL, t->flags & BEHIND_PROXY);
    int r =
        d ? machine_bus_take(t->name, t->bus, bus, unit, &d->place, err) : error_out_of_memory(err);

    UNLESS_FAILED(r, co_attach(d, disk, err));
    disk->connected = r >= 0;
    if (r < 0 && d) {
        co_free_device(d);
    }
    return r;
}

/* --- removing --------------------------------------------------------------------------------- */

static void co_unplug(struct machine_device *d)
{
    struct json_object *data;

    /* The part that used the drive went first. */
    if (d->type->flags & BEHIND_PROXY) {
        data = json_object_new_object();
        qmp_put_str(data, "path", d->path);
        qmp_emit("DEVICE_DELETED", data);
        d->path[strlen(d->path) - strlen("/virtio-backend")] = '\0';
    }
    data = json_object_new_object();
    qmp_put_str(data, "device", d->id);
    qmp_put_str(data, "path", d->path);
    if (d->disk) {
        co_cancel_jobs_of(d->disk);
    }
    co_free_device(d);
    qmp_emit("DEVICE_DELETED", data);
}

int machine_co_del_device(const char *id, struct error *err)
{
    struct machine_device *d;

    LIST_FOREACH (d, &devices, link) {
        if ((d->id && strcmp(d->id, id) == 0) || strcmp(d->path, id) == 0) {
            if (d->leaving) {
                return error_set(err, EBUSY, "Device %s is already in the process of unplug", id);
            }
            if (d->type->flags & ON_PCI) {
                d->leaving = true;
            } else {
                co_unplug(d);
            }
            return 0;
        }
    }
    return error_set_class(err, ERROR_CLASS_DEVICE_NOT_FOUND, ENOENT, "Device '%s' not found", id);
}

void machine_co_reset_devices(void)
{
    struct machine_device *d, *next;

    LIST_FOREACH_SAFE (d, next, &devices, link) {
        if (d->leaving) {
            co_unplug(d);
        }
    }
}

void machine_devices_co_free(void)
{
    while (!list_is_empty(&devices)) {
        co_free_device(LIST_FIRST(&devices, struct machine_device, link));
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks of the machine: users of nodes, each with a medium or none, and with the name that -drive
 * gave it. A guest device (device.h) may be on a disk; its permissions are in force then.
 *
 * QEMU calls a disk of this kind a block backend. Main reactor only; `co_` functions yield.
 */
#ifndef TIDEMARK_CLI_MACHINE_DISK_H
#define TIDEMARK_CLI_MACHINE_DISK_H

#include <stdbool.h>

#include "block/block.h"
#include "block/device.h"
#include "cli/io/session.h"
#include "cli/machine/accounting.h"

struct machine_device;

/* How a guest device uses the disk that the device is on. */
struct machine_disk_use {
    const char *name; /* the device's id, or its path if it has none; borrowed */
    bool reads_only;
    unsigned shared; /* what the device lets others do: enum block_perm */
};

struct machine_disk {
    struct list link;            /* in the list of disks */
    char *name;                  /* owned; NULL: the disk has none */
    struct block_device device;  /* known by that name; `root` is the medium */
    struct machine_device *user; /* the guest device on it; NULL: none */
    bool written;                /* the monitor's qemu-io has written, or is about to */
    struct machine_disk_use use; /* by `user` */
    bool read_only;              /* of a medium that is inserted without saying */
    bool writethrough;           /* cache.writeback=off */
    bool is_cdrom;               /* media=cdrom */
    bool connected;              /* -drive made the device, not -device */
    bool stops_on_error;         /* werror or rerror say that the guest stops */
    struct accounting accounting;
    struct machine_limits *limits; /* of its requests; NULL: none */
    struct io io;                  /* requests of qemu-io; `disk` is filled while one begins */
};

/*
 * Make a disk without a medium. `name`: NULL, or copied. -EEXIST: a node or another disk has the
 * name.
 */
int machine_disk_new(const char *name, struct machine_disk **ret_disk, struct error *err);
/*
 * Remove the medium, if there is one, and free the disk, which no device is on. NULL is fine.
 */
void machine_disk_co_free(struct machine_disk *disk);
/* From now on only the device on the disk knows it: another drive may have its name. */
void machine_disk_forget_name(struct machine_disk *disk);
/* Free all disks at the end of the machine. */
void machine_disks_co_free(void);

/*
 * Limit the disk: `limits` is a ThrottleLimits of QEMU's schema; without a limit in it the disk
 * leaves its group, and what waits is carried out. `group`: the disks and the object that have this
 * name share their limits; NULL: as it is, or else `name`. -EINVAL: wrong values. Yields.
 */
int machine_disk_co_set_limits(struct machine_disk *disk, struct json_object *limits,
                               const char *group, const char *name, struct error *err);
/* Let what waits pass, and leave the group. Yields. */
void machine_disk_co_drop_limits(struct machine_disk *disk);
/* From now on, until it is called with false, no request waits for a limit. Does not yield. */
void machine_disk_hurry(struct machine_disk *disk, bool hurry);
/* Put the limits, and the name of the group, into a BlockDeviceInfo. Does not yield. */
void machine_disk_put_limits(const struct machine_disk *disk, struct json_object *info);

/* The node of the disk; NULL: it has no medium. */
struct block_node *machine_disk_node(const struct machine_disk *disk);
/* Put a node in: the disk takes a reference. Errors of block_co_root_new(). */
int machine_disk_co_insert(struct machine_disk *disk, struct block_node *node, struct error *err);
/* Take the medium out, after its requests have ended. */
void machine_disk_co_remove(struct machine_disk *disk);
/*
 * Put the permissions of the device that is on the disk in force, or those of a disk without one.
 * Errors of block_co_root_set_perm().
 */
int machine_disk_co_set_perm(struct machine_disk *disk, struct error *err);
/*
 * Disks that are made from now on are not used by their guest devices, which share all, until
 * machine_disks_co_start(). Does not yield.
 */
void machine_disks_wait_for_start(void);
/*
 * The guest devices, and the monitor's qemu-io, use their disks no longer, which may be handed over
 * to another machine. Errors of block_co_root_set_perm(). Yields.
 */
int machine_disks_co_pause(struct error *err);
/* The guest devices use their disks. After an error, of another user, none of them does. Yields. */
int machine_disks_co_start(struct error *err);

/* io.co_reopen of disks and nodes: reopen.c. */
io_co_reopen_fn machine_co_reopen;

/* By the name of -drive; NULL: there is none. */
struct machine_disk *machine_disk_find(const char *name);
/* Iterate, oldest first: NULL begins, NULL ends. */
struct machine_disk *machine_disk_next(struct machine_disk *disk);

#endif

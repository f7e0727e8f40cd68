/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/disk.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "filter/filter.h"

static struct list disks = LIST_INIT(disks);

int machine_disk_new(const char *name, struct machine_disk **ret_disk, struct error *err)
{
    struct machine_disk *disk = calloc(1, sizeof(*disk));
    int r = 0;

    if (!disk || (name && !(disk->name = strdup(name)))) {
        free(disk);
        return error_out_of_memory(err);
    }
    list_init(&disk->link);
    list_init(&disk->device.link);
    if (name) {
        disk->device.name = disk->name;
        r = block_device_add(&disk->device, err);
    }
    if (r < 0) {
        free(disk->name);
        free(disk);
        return r;
    }
    co_group_init(&disk->io.in_flight);
    accounting_init(&disk->accounting);
    disk->io.account = accounting_hook;
    disk->io.account_arg = &disk->accounting;
    disk->io.co_reopen = machine_co_reopen;
    list_append(&disks, &disk->link);
    *ret_disk = disk;
    return 0;
}

void machine_disk_forget_name(struct machine_disk *disk)
{
    if (disk->name) {
        block_device_remove(&disk->device);
        disk->device.name = NULL;
        free(disk->name);
        disk->name = NULL;
    }
}

void machine_disk_co_free(struct machine_disk *disk)
{
    if (!disk) {
        return;
    }
    machine_disk_co_remove(disk);
    machine_disk_co_drop_limits(disk);
    machine_disk_forget_name(disk);
    list_remove(&disk->link);
    co_group_destroy(&disk->io.in_flight);
    accounting_clear(&disk->accounting);
    free(disk);
}

void machine_disks_co_free(void)
{
    while (!list_is_empty(&disks)) {
        machine_disk_co_free(LIST_FIRST(&disks, struct machine_disk, link));
    }
}

struct block_node *machine_disk_node(const struct machine_disk *disk)
{
    return disk->device.root ? block_root_node(disk->device.root) : NULL;
}

/* The guest devices do not use their disks yet: the machine waits for another one's state. */
static bool incoming;

/*
 * What the disk does with its node, and what it lets others do. Without a guest device nobody
 * writes but by the monitor's qemu-io, from its first write on.
 */
static void permissions(const struct machine_disk *disk, const struct block_node *node,
                        unsigned *ret_perm, unsigned *ret_shared)
{
    *ret_perm = BLOCK_PERM_CONSISTENT_READ;
    if (!block_node_is_read_only(node) && ((disk->user && !incoming) || disk->written)) {
        *ret_perm |= BLOCK_PERM_WRITE;
    }
    *ret_shared = BLOCK_PERM_ALL | BLOCK_SHARE_HAND_OVER;
    if (!incoming) {
        *ret_shared = disk->user ? disk->use.shared : BLOCK_PERM_ALL;
    }
    if (disk->user && disk->use.reads_only) {
        *ret_perm &= ~(unsigned)BLOCK_PERM_WRITE;
    }
}

int machine_disk_co_set_perm(struct machine_disk *disk, struct error *err)
{
    unsigned perm, shared;

    if (!disk->device.root) {
        return 0;
    }
    permissions(disk, machine_disk_node(disk), &perm, &shared);
    return block_co_root_set_perm(disk->device.root, perm, shared, err);
}

void machine_disks_wait_for_start(void)
{
    incoming = true;
}

int machine_disks_co_pause(struct error *err)
{
    struct machine_disk *disk;
    int r = 0;

    incoming = true;
    LIST_FOREACH (disk, &disks, link) {
        disk->written = false;
        UNLESS_FAILED(r, machine_disk_co_set_perm(disk, err));
    }
    return r;
}

int machine_disks_co_start(struct error *err)
{
    struct machine_disk *disk;
    bool waited = incoming;
    int r = 0;

    incoming = false;
    LIST_FOREACH (disk, &disks, link) {
        r = r < 0 || !waited ? r : machine_disk_co_set_perm(disk, err);
    }
    if (r < 0) { /* what they had before was possible */
        incoming = true;
        LIST_FOREACH (disk, &disks, link) {
            (void)machine_disk_co_set_perm(disk, NULL);
        }
    }
    return r;
}

int machine_disk_co_insert(struct machine_disk *disk, struct block_node *node, struct error *err)
{
    const char *user = disk->name ?: disk->user ? disk->use.name : "";
    unsigned perm, shared;
    int r;

    permissions(disk, node, &perm, &shared);
    r = block_co_root_new(node, disk->name ?: user, perm, shared, &disk->device.root, err);
    if (r == 0 && disk->user) {
        block_root_belongs_to_device(disk->device.root);
    }
    return r;
}

void machine_disk_co_remove(struct machine_disk *disk)
{
    struct block_root *root = disk->device.root;

    if (!root) {
        return;
    }
    /* Resume requests held at breakpoints: otherwise this would wait for them forever. */
    (void)fault_remove_break(block_root_node(root), NULL);
    machine_disk_hurry(disk, true);
    co_group_wait(&disk->io.in_flight);
    machine_disk_hurry(disk, false);
    disk->device.root = NULL;
    block_co_root_release(root);
}

struct machine_disk *machine_disk_find(const char *name)
{
    struct machine_disk *disk;

    LIST_FOREACH (disk, &disks, link) {
        if (disk->name && strcmp(disk->name, name) == 0) {
            return disk;
        }
    }
    return NULL;
}

struct machine_disk *machine_disk_next(struct machine_disk *disk)
{
    struct list *next = disk ? disk->link.next : disks.next;

    return next == &disks ? NULL : container_of(next, struct machine_disk, link);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/vm_snapshot.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/bitmaps.h"
#include "block/control.h"
#include "block/hand_over.h"
#include "cli/machine/call.h"
#include "cli/machine/clock.h"
#include "cli/machine/run_state.h"
#include "cli/machine/disk.h"
#include "cli/snapshot.h"
#include "job/job.h"
#include "qmp/commands.h"

/* --- the images ------------------------------------------------------------------------------- */

/* Referenced. Those of disks come first: the first image gets the VM state. */
struct images {
    struct block_node **node;
    size_t count;
};

static void images_co_release(struct images *images)
{
    for (size_t i = 0; i < images->count; i++) {
        block_co_unref(images->node[i]);
    }
    free(images->node);
}

static int images_add(struct images *images, struct block_node *node, struct error *err)
{
    struct block_node **more;

    for (size_t i = 0; i < images->count; i++) {
        if (images->node[i] == node) {
            return 0;
        }
    }
    more = realloc(images->node, (images->count + 1) * sizeof(struct block_node *));
    if (!more) {
        return error_out_of_memory(err);
    }
    images->node = more;
    more[images->count++] = block_node_ref(node);
    return 0;
}

static bool has_root(const struct block_node *node)
{
    struct block_edge *edge = NULL;

    while ((edge = block_node_next_parent(node, edge))) {
        if (!block_edge_parent(edge)) {
            return true;
        }
    }
    return false;
}

static bool belongs_to_machine(const struct block_node *node)
{
    return !block_node_is_read_only(node) &&
           (has_root(node) ||
            (block_node_is_monitor_owned(node) && !block_node_next_parent(node, NULL)));
}

static int images_find(struct images *images, struct error *err)
{
    struct machine_disk *disk = NULL;
    struct block_node *node = NULL;
    int r = 0;

    while (r >= 0 && (disk = machine_disk_next(disk))) {
        if (machine_disk_node(disk) && belongs_to_machine(machine_disk_node(disk))) {
            r = images_add(images, machine_disk_node(disk), err);
        }
    }
    while (r >= 0 && (node = block_node_next(node))) {
        r = belongs_to_machine(node) ? images_add(images, node, err) : 0;
    }
    return r;
}

/* --- their snapshots -------------------------------------------------------------------------- */

/* The first snapshot of that name. 1, 0 if there is none, or -errno. */
static int co_find_by_name(struct block_node *node, const char *name,
                           struct block_snapshot_info *ret_info)
{
    AUTO_FREE struct block_snapshot_info *list = NULL;
    size_t count = 0;
    int r = block_co_snapshot_list(node, &list, &count, NULL);

    for (size_t i = 0; i < count && r == 0; i++) {
        if (strcmp(list[i].name, name) == 0) {
            *ret_info = list[i];
            r = 1;
        }
    }
    return r;
}

static bool co_can_have_snapshots(struct block_node *node)
{
    struct block_snapshot_info unused;

    return !block_node_is_handed_over(node) && co_find_by_name(node, "", &unused) >= 0;
}

/* All of them have to be able to. */
static int co_find_all_images(struct images *images, struct error *err)
{
    int r = images_find(images, err);

    for (size_t i = 0; i < images->count && r >= 0; i++) {
        if (!co_can_have_snapshots(images->node[i])) {
            r = error_set(err, ENOTSUP, "Device '%s' is writable but does not support snapshots",
                          block_node_device_or_name(images->node[i]));
        }
    }
    return r;
}

static int refuse_without_image(struct error *err)
{
    return error_set(err, ENOTSUP, "no block device can store vmstate for snapshot");
}

static int co_delete_of(const struct images *images, const char *name, struct error *err)
{
    int r = 0;

    for (size_t i = 0; i < images->count && r >= 0; i++) {
        struct block_snapshot_info found;

        r = co_find_by_name(images->node[i], name, &found);
        if (r > 0 && (r = block_co_snapshot_delete(images->node[i], found.id, err)) < 0) {
            error_prepend(err, "Could not delete snapshot '%s' on '%s': ", name,
                          block_node_device_or_name(images->node[i]));
        }
    }
    return r;
}

int machine_co_delete_vm(const char *name, struct error *err)
{
    CLEANUP(images_co_release) struct images images = {0};
    int r = co_find_all_images(&images, err);

    return UNLESS_FAILED(r, co_delete_of(&images, name, err));
}

/* --- the VM state ----------------------------------------------------------------------------- */

static const char vm_mark[512] = "a machine of Tidemark, without a guest\n";

/*
 * Write the mark as the VM state, or read it. A disk that has the image is the guest's, and writes
 * as such; others let the machine write.
 */
static int co_move_vm_state(struct block_node *node, char *mark, bool write, struct error *err)
{
    unsigned perm = BLOCK_PERM_CONSISTENT_READ | (write ? BLOCK_PERM_WRITE : 0);
    struct machine_disk *disk = NULL;
    struct block_root *own = NULL;
    struct block_edge *edge;
    struct iovec vec;
    struct iov iov = iov_from_buf(&vec, mark, sizeof(vm_mark));
    int r = 0;

    do {
        disk = machine_disk_next(disk);
    } while (disk && machine_disk_node(disk) != node);
    if (disk) {
        disk->written |= write;
        r = machine_disk_co_set_perm(disk, err);
    } else {
        r = block_co_root_new(node, "savevm", perm, BLOCK_PERM_ALL, &own, err);
    }
    if (r < 0) {
        return r;
    }
    edge = block_root_edge(disk ? disk->device.root : own);
    r = write ? block_co_pwritev_vmstate(edge, 0, iov) : block_co_preadv_vmstate(edge, 0, iov);
    if (own) {
        block_co_root_release(own);
    }
    return r < 0
               ? error_set_errno(err, -r, "Error while %s VM state", write ? "writing" : "loading")
               : 0;
}

/* --- saving ----------------------------------------------------------------------------------- */

static void name_by_time(char *name, size_t size)
{
    time_t now = time(NULL);
    struct tm tm;

    if (!localtime_r(&now, &tm) || strftime(name, size, "vm-%Y%m%d%H%M%S", &tm) == 0) {
        snprintf(name, size, "vm");
    }
}

static int co_save_images(const struct images *images, const char *name, struct error *err)
{
    struct block_snapshot_vm vm = {.state_size = sizeof(vm_mark),
                                   .clock_nsec = (uint64_t)machine_clock_uptime_ns()};
    char mark[sizeof(vm_mark)];
    int r;

    memcpy(mark, vm_mark, sizeof(mark));
    r = co_move_vm_state(images->node[0], mark, true, err);
    for (size_t i = 0; i < images->count && r >= 0; i++) {
        r = block_co_snapshot_create_vm(images->node[i], name, &vm, err);
        if (r < 0) {
            error_prepend(err, "Could not create snapshot '%s' on '%s': ", name,
                          block_node_device_or_name(images->node[i]));
            (void)co_delete_of(images, name, NULL);
        }
        vm.state_size = 0;
    }
    return r;
}

/* Run a step while the machine is stopped. */
static int co_while_stopped(int (*co_step)(const struct images *images, const char *name,
                                           struct error *err),
                            const struct images *images, const char *name, struct error *err)
{
    bool runs = machine_is_running();
    int r = runs ? machine_co_qmp("stop", json_object_new_object(), NULL, err) : 0;

    UNLESS_FAILED(r, co_step(images, name, err));
    if (runs) {
        r = error_first(r,
                        machine_co_qmp("cont", json_object_new_object(), NULL, r < 0 ? NULL : err));
    }
    return r;
}

int machine_co_save_vm(const char *name, struct error *err)
{
    CLEANUP(images_co_release) struct images images = {0};
    char made[32];
    int r = co_find_all_images(&images, err);

    if (r >= 0 && images.count == 0) {
        r = refuse_without_image(err);
    }
    if (name) {
        UNLESS_FAILED(r, co_delete_of(&images, name, err));
    } else {
        name_by_time(made, sizeof(made));
        name = made;
    }
    return UNLESS_FAILED(r, co_while_stopped(co_save_images, &images, name, err));
}

/* --- loading ---------------------------------------------------------------------------------- */

/*
 * The node whose contents change. What filters above know of the contents would be wrong: bitmaps.
 * All images of a chain change together.
 */
static int find_changed(struct block_node *node, struct block_node **ret_node, struct error *err)
{
    struct block_node *image = block_node_skip_filters(node);

    for (; node != image; node = block_node_filter_or_backing(node)) {
        if (block_bitmap_next(node, NULL)) {
            return error_set(err, EBUSY, "Node '%s' has bitmaps of what is below the filter",
                             block_node_name(node));
        }
    }
    *ret_node = image;
    return job_check_node(image, err);
}

static int co_load_images(const struct images *images, const char *name, struct error *err)
{
    struct machine_disk *disk = NULL;
    int r = 0;

    while ((disk = machine_disk_next(disk))) {
        co_group_wait(&disk->io.in_flight);
    }
    for (size_t i = 0; i < images->count && r >= 0; i++) {
        struct block_snapshot_info found = {0};
        struct block_node *node = images->node[i];

        r = find_changed(images->node[i], &node, err);
        UNLESS_FAILED(r, co_find_by_name(node, name, &found));
        if (r > 0 && (r = block_co_snapshot_apply(node, found.id, err)) < 0) {
            error_prepend(err, "Could not load snapshot '%s' on '%s': ", name,
                          block_node_device_or_name(images->node[i]));
        }
    }
    return r;
}

static int co_load_all(const struct images *images, const char *name, struct error *err)
{
    char mark[sizeof(vm_mark)];
    int r = co_load_images(images, name, err);

    UNLESS_FAILED(r, co_move_vm_state(images->node[0], mark, false, err));
    if (r >= 0 && memcmp(mark, vm_mark, sizeof(mark)) != 0) {
        r = error_set(err, EINVAL, "Error while loading VM state: of another machine");
    }
    return r;
}

/* All images have the snapshot, and the first one the VM state. */
static int co_check_loadable(const struct images *images, const char *name, struct error *err)
{
    for (size_t i = 0; i < images->count; i++) {
        struct block_snapshot_info found = {0};
        int r = co_find_by_name(images->node[i], name, &found);

        if (r == 0) {
            r = error_set(err, ENOENT, "Snapshot '%s' does not exist in one or more devices", name);
        } else if (r > 0 && i == 0 && found.vm_state_size == 0) {
            r = error_set(err, EINVAL,
                          "This is a disk-only snapshot. Revert to it  offline using qemu-img");
        }
        if (r < 0) {
            return r;
        }
    }
    return images->count > 0 ? 0 : refuse_without_image(err);
}

int machine_co_load_vm(const char *name, struct error *err)
{
    CLEANUP(images_co_release) struct images images = {0};
    int r = co_find_all_images(&images, err);

    UNLESS_FAILED(r, co_check_loadable(&images, name, err));
    return UNLESS_FAILED(r, co_while_stopped(co_load_all, &images, name, err));
}

/* --- listing ---------------------------------------------------------------------------------- */

static const char *entry_str(struct json_object *list, size_t i, const char *key)
{
    return qmp_get_str(json_object_array_get_idx(list, i), key);
}

static bool co_all_have(const struct images *images, const char *name)
{
    struct block_snapshot_info unused;
    bool all = true;

    for (size_t i = 0; i < images->count && all; i++) {
        all = co_find_by_name(images->node[i], name, &unused) > 0;
    }
    return all;
}

/* Append the snapshots of one image that all have, or those that only some have. */
static bool co_append_table(const struct images *images, size_t which, bool in_all,
                            struct strbuf *text)
{
    struct json_object *list = cli_co_snapshots(images->node[which]);
    bool any = false;

    for (size_t i = 0; list && i < json_object_array_length(list); i++) {
        if (co_all_have(images, entry_str(list, i, "name")) != in_all) {
            continue;
        }
        if (!any && !in_all) {
            strbuf_printf(text, "\nList of partial (non-loadable) snapshots on '%s':\n",
                          block_node_device_or_name(images->node[which]));
        }
        if (!any) {
            cli_format_snapshot_head(text);
        }
        any = true;
        cli_format_snapshot(text, json_object_array_get_idx(list, i), in_all ? "--" : NULL);
    }
    json_object_put(list);
    return any;
}

int machine_co_list_vm(struct strbuf *text, struct error *err)
{
    CLEANUP(images_co_release) struct images images = {0};
    int r = images_find(&images, err);
    bool any;

    if (r < 0) {
        return r;
    }
    if (images.count == 0 || !co_can_have_snapshots(images.node[0])) {
        return refuse_without_image(err);
    }
    strbuf_puts(text, "List of snapshots present on all disks:\n");
    any = co_append_table(&images, 0, true, text);
    if (!any) {
        strbuf_puts(text, "None\n");
    }
    for (size_t i = 0; i < images.count; i++) {
        any |= co_append_table(&images, i, false, text);
    }
    if (!any) {
        strbuf_reset(text);
        strbuf_puts(text, "There is no snapshot available.\n");
    }
    return 0;
}

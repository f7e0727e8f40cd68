/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The method for QEMU and qemu-storage-daemon; see the header.
 */
#include <errno.h>
#include <string.h>

#include "backup/daemon_disk.h"
#include "backup/fleece.h"

/* --- the checkpoint --- */

static int co_add_temp(const struct daemon_checkpoint *c, struct error *err)
{
    const struct daemon_disk *s = c->disk;
    struct json_object *file = qmp_with_string(qmp_object(), "driver", "file"), *image;

    qmp_with_string(qmp_with_string(file, "node-name", s->file), "filename", c->temp_path);
    image = qmp_with_string(qmp_with_string(qmp_object(), "driver", "qcow2"), "node-name", s->temp);
    qmp_with(image, "cache", qmp_with(qmp_object(), "no-flush", json_object_new_boolean(true)));
    qmp_with_string(qmp_with(image, "file", file), "backing", s->node);
    return qmp_client_co_execute(s->qmp, "blockdev-add", image, NULL, err);
}

static void add_qemu_checkpoint(struct json_object *actions, const struct daemon_checkpoint *c)
{
    const struct daemon_disk *s = c->disk;
    struct json_object *job = qmp_with_string(qmp_object(), "job-id", s->prefix);

    if (c->frozen) {
        daemon_add_bitmap_action(actions, "block-dirty-bitmap-disable", s, c->frozen);
    }
    if (c->started) {
        daemon_add_action(actions, "block-dirty-bitmap-add",
                          daemon_new_bitmap(s, c->state, c->started));
    }
    qmp_with_string(qmp_with_string(job, "device", s->node), "target", s->temp);
    qmp_with_string(qmp_with_string(job, "sync", "none"), "filter-node-name", s->cbw);
    daemon_add_action(actions, "blockdev-backup", job);
}

static int co_checkpoint_qemu(const struct daemon_checkpoint *list, size_t count,
                              struct backup_moment *begin, struct backup_moment *end,
                              struct error *err)
{
    struct json_object *actions;
    size_t added = 0;
    int r = 0;

    while (r == 0 && added < count) {
        r = co_add_temp(&list[added], err);
        added += r == 0;
    }
    if (r == 0) {
        actions = json_object_new_array();
        for (size_t i = 0; i < count; i++) {
            add_qemu_checkpoint(actions, &list[i]);
        }
        backup_moment_now(begin);
        r = daemon_co_transact(list[0].disk->qmp, actions, err);
        backup_moment_now(end);
    }
    for (size_t i = 0; r < 0 && i < added; i++) {
        qemu_co_delete_temp(list[i].disk, NULL);
    }
    return r;
}

/* --- the view --- */

static int co_export_qemu(struct daemon_disk *s, const char *frozen, struct error *err)
{
    struct json_object *args = daemon_export_arguments(s, s->temp);

    if (frozen) {
        struct json_object *bitmaps = json_object_new_array();

        /* It is found in the backing file. */
        json_object_array_add(bitmaps, json_object_new_string(frozen));
        qmp_with(args, "bitmaps", bitmaps);
    }
    return qmp_client_co_execute(s->qmp, "block-export-add", args, NULL, err);
}

const struct daemon_method qemu_method = {
    .needs_qcow2 = true,
    .temp_can_hurt = true,
    .co_take_down = qemu_co_take_down,
    .co_settle = qemu_co_settle,
    .co_checkpoint = co_checkpoint_qemu,
    .co_nbd_address = qemu_co_nbd_address,
    .co_export = co_export_qemu,
};

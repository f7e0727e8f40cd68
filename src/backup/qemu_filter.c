/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The method for QEMU where a write of the guest may wait for old data only so long, by QEMU's own
 * filters; see the header. QEMU has no transaction for it, so the order of the steps is what makes
 * the bitmaps right: a bitmap may mark too much, never too little.
 *
 *     1  the new bitmap begins        it also marks what is written until 3
 *     2  the filter is made           nobody uses it yet
 *     3  the device moves to it       the point in time
 *     4  the view is made
 *     5  the old bitmap is frozen     it also marks what is written from 3 on: read from the view,
 *                                     that is old data
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/daemon_disk.h"
#include "base/cleanup.h"

/* --- the checkpoint --- */

static int co_add_temp_and_filter(const struct daemon_checkpoint *c, struct error *err)
{
    const struct daemon_disk *s = c->disk;
    struct json_object *file = qmp_with_string(qmp_object(), "driver", "file");
    struct json_object *image = qmp_object(), *filter = qmp_object();
    int r;

    qmp_with_string(qmp_with_string(file, "node-name", s->file), "filename", c->temp_path);
    qmp_with_string(file, "discard", "unmap");
    qmp_with_string(image, "driver", c->temp_is_qcow2 ? "qcow2" : "raw");
    qmp_with_string(qmp_with_string(image, "node-name", s->temp), "discard", "unmap");
    qmp_with(image, "cache", qmp_with(qmp_object(), "no-flush", json_object_new_boolean(true)));
    r = qmp_client_co_execute(s->qmp, "blockdev-add", qmp_with(image, "file", file), NULL, err);
    qmp_with_string(qmp_with_string(filter, "driver", "copy-before-write"), "node-name", s->cbw);
    qmp_with_string(qmp_with_string(filter, "file", s->node), "target", s->temp);
    qmp_with_string(filter, "on-cbw-error", "break-snapshot");
    if (c->timeout_s) {
        qmp_with(filter, "cbw-timeout", json_object_new_int64(c->timeout_s));
    }
    if (r < 0) {
        json_object_put(filter);
        return r;
    }
    return qmp_client_co_execute(s->qmp, "blockdev-add", filter, NULL, err);
}

static int co_add_view(struct daemon_disk *s, struct error *err)
{
    struct json_object *view = qmp_with_string(qmp_object(), "driver", "snapshot-access");

    qmp_with_string(qmp_with_string(view, "node-name", s->snap), "file", s->cbw);
    return qmp_client_co_execute(s->qmp, "blockdev-add", view, NULL, err);
}

/* A device that is moved while another one goes on writing would have another point in time. */
static int co_check_device(struct daemon_disk *s, struct error *err)
{
    size_t count;
    int r = qemu_co_move_devices(s->qmp, s->node, NULL, &count, err);

    return r < 0 || count == 1
               ? r
               : error_set(err, ENOTSUP,
                           "'--cbw-timeout' needs a disk that is used by one device of the guest; "
                           "'%s' is used by %zu",
                           s->node, count);
}

static int co_insert_filter(const struct daemon_checkpoint *c, struct backup_moment *begin,
                            struct backup_moment *end, struct error *err)
{
    struct daemon_disk *s = c->disk;
    size_t count;
    int r;

    if (c->started) {
        r = qmp_client_co_execute(s->qmp, "block-dirty-bitmap-add",
                                  daemon_new_bitmap(s, c->state, c->started), NULL, err);
        if (r < 0) {
            return r;
        }
    }
    r = co_add_temp_and_filter(c, err);
    backup_moment_now(begin);
    UNLESS_FAILED(r, qemu_co_move_devices(s->qmp, s->node, s->cbw, &count, err));
    backup_moment_now(end);
    UNLESS_FAILED(r, co_add_view(s, err));
    if (r == 0 && c->frozen) {
        r = qmp_client_co_execute(s->qmp, "block-dirty-bitmap-disable",
                                  daemon_bitmap_ref(s, c->frozen), NULL, err);
    }
    return r;
}

static int co_checkpoint_filter(const struct daemon_checkpoint *list, size_t count,
                                struct backup_moment *begin, struct backup_moment *end,
                                struct error *err)
{
    struct daemon_disk *s = list[0].disk;
    int r;

    if (count > 1) {
        return error_set(err, ENOTSUP,
                         "'--cbw-timeout' is not supported for a set of disks of QEMU, which can't "
                         "insert several filters at one moment");
    }
    r = co_check_device(s, err);
    if (r < 0) {
        return r;
    }
    r = co_insert_filter(&list[0], begin, end, err);
    if (r < 0) {
        qemu_co_take_down(s, NULL);
        if (list[0].started) {
            qmp_client_co_execute(s->qmp, "block-dirty-bitmap-remove",
                                  daemon_bitmap_ref(s, list[0].started), NULL, NULL);
        }
    }
    return r;
}

const struct daemon_method qemu_filter_method = {
    .co_take_down = qemu_co_take_down,
    .co_settle = qemu_co_settle,
    .co_checkpoint = co_checkpoint_filter,
    .co_nbd_address = qemu_co_nbd_address,
    .co_export = daemon_co_export_view,
};

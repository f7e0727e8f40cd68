/* SPDX-License-Identifier: Apache-2.0 */
/* BLOCK_IO_ERROR: a request of an export's client failed in the node. */
#include <errno.h>
#include <string.h>

#include "export/export.h"
#include "qmp/answer.h"
#include "qmp/events.h"

/* QEMU reports guest devices; an export has no path in a tree of devices, so its id is there. */
static void on_io_error(const struct export_io_error *e)
{
    struct json_object *data = json_object_new_object();
    struct export_info info;

    qmp_put_str(data, "qom-path", e->id);
    qmp_put_str(data, "device", "");
    qmp_put_str(data, "node-name", export_find(e->id, &info) ? block_node_name(info.node) : NULL);
    qmp_put_str(data, "operation", e->is_write ? "write" : "read");
    qmp_put_str(data, "action", "report");
    qmp_put_bool(data, "nospace", e->error == ENOSPC);
    qmp_put_str(data, "reason", strerror(e->error));
    qmp_put_str(data, "x-request", e->request);
    qmp_put_uint(data, "x-offset", e->offset);
    qmp_put_uint(data, "x-length", e->length);
    qmp_put_uint(data, "x-errno", (uint64_t)e->error);
    qmp_put_uint(data, "x-count", e->count);
    qmp_emit("BLOCK_IO_ERROR", data);
}

void qmp_subscribe_io_errors(void)
{
    export_set_io_error_fn(on_io_error);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/qmp_client.h"
#include "backup/restore_internal.h"
#include "base/cleanup.h"

static int co_refuse_taken_name(struct qmp_client *qmp, const char *node, struct error *err)
{
    struct json_object *nodes = NULL, *arguments = json_object_new_object();
    int r;

    json_object_object_add(arguments, "flat", json_object_new_boolean(true));
    r = qmp_client_co_execute(qmp, "query-named-block-nodes", arguments, &nodes, err);
    for (size_t i = 0; r == 0 && i < json_object_array_length(nodes); i++) {
        struct json_object *name;

        if (json_object_object_get_ex(json_object_array_get_idx(nodes, i), "node-name", &name) &&
            strcmp(json_object_get_string(name), node) == 0) {
            r = error_set(err, EEXIST, "The daemon has a node '%s' already", node);
        }
    }
    json_object_put(nodes);
    return r;
}

int restore_co_check_node(const struct restore_options *o, const struct target *target,
                          struct error *err)
{
    AUTO_QMP struct qmp_client *qmp = NULL;
    int r;

    if (target->kind == TARGET_NBD) {
        return error_set(err, EINVAL,
                         "What is restored to an NBD export does not become a node of a daemon");
    }
    r = qmp_client_co_connect(o->qmp_socket, NULL, o->stop, &qmp, err);
    if (r == 0 && qmp_client_host(qmp)) {
        r = error_set(err, EINVAL, "'%s' is on another machine, which does not have the target",
                      o->qmp_socket);
    }
    UNLESS_FAILED(r, co_refuse_taken_name(qmp, o->node, err));
    return r;
}

static struct json_object *node_arguments(const struct restore_options *o,
                                          const struct target *target, const char *path)
{
    struct json_object *node = json_object_new_object(), *file = json_object_new_object();

    json_object_object_add(
        file, "driver",
        json_object_new_string(target->kind == TARGET_DEVICE ? "host_device" : "file"));
    json_object_object_add(file, "filename", json_object_new_string(path));
    json_object_object_add(node, "driver", json_object_new_string(o->format));
    json_object_object_add(node, "node-name", json_object_new_string(o->node));
    json_object_object_add(node, "discard", json_object_new_string("unmap"));
    json_object_object_add(node, "file", file);
    return node;
}

int restore_co_add_node(const struct restore_options *o, const struct target *target,
                        struct error *err)
{
    AUTO_QMP struct qmp_client *qmp = NULL;
    char *path AUTO_FREE = realpath(o->target, NULL);
    struct ucred peer;
    int r = path ? qmp_client_co_connect(o->qmp_socket, NULL, o->stop, &qmp, err)
                 : error_set_errno(err, errno, "Could not find '%s'", o->target);

    if (r == 0) {
        peer = qmp_client_peer(qmp);
        if (target->kind == TARGET_FILE && target->old < 0 && peer.uid != (uid_t)-1 &&
            peer.uid != geteuid()) {
            /* Where this is not permitted, the daemon says whether it can open the file. */
            (void)!fchown(target->fd, peer.uid, peer.gid);
        }
        r = qmp_client_co_execute(qmp, "blockdev-add", node_arguments(o, target, path), NULL, err);
    }
    if (r < 0) {
        error_prepend(err, "The disk is restored, but the daemon could not add it: ");
    }
    return r;
}

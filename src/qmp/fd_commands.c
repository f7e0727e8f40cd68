/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors that clients pass with a message (SCM_RIGHTS): names and sets for them. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "block/control_lock.h"
#include "block/passed_fd.h"
#include "loop/loop.h"
#include "qmp/commands.h"
#include "qmp/define.h"
#include "qmp/types.h"

/* A part of QEMU's qapi/misc.json. */
const struct schema_type qmp_type_fd_name =
    OBJECT_INIT("q_obj_getfd-arg", REQ("fdname", schema_str));
const struct schema_type qmp_type_add_fd =
    OBJECT_INIT("q_obj_add-fd-arg", OPT("fdset-id", schema_int), OPT("opaque", schema_str));
const struct schema_type qmp_type_add_fd_info =
    OBJECT_INIT("AddfdInfo", REQ("fdset-id", schema_int), REQ("fd", schema_int));
const struct schema_type qmp_type_remove_fd =
    OBJECT_INIT("q_obj_remove-fd-arg", REQ("fdset-id", schema_int), OPT("fd", schema_int));
OBJECT(fdset_fd_info, "FdsetFdInfo", REQ("fd", schema_int), OPT("opaque", schema_str));
ARRAY(fdset_fd_infos, fdset_fd_info);
OBJECT(fdset_info, "FdsetInfo", REQ("fdset-id", schema_int), REQ("fds", fdset_fd_infos));
const struct schema_type qmp_type_fdset_infos = ARRAY_INIT("qmp_type_fdset_infos", fdset_info);

/* The passed descriptor, which is the caller's then; -EINVAL: there is none. */
static int take_passed(struct qmp_call *call, struct error *err)
{
    int fd = call->passed_fd;

    call->passed_fd = -1;
    return fd < 0 ? error_set(err, EINVAL, "No file descriptor supplied via SCM_RIGHTS") : fd;
}

struct closing {
    const int *fds;
    int count;
};

static int close_passed(void *arg)
{
    const struct closing *c = arg;

    for (int i = 0; i < c->count; i++) {
        close(c->fds[i]);
    }
    return 0;
}

/* What nobody uses any more; its file system may hang: other commands go on meanwhile. */
static void co_close_passed(const int *fds, int count)
{
    struct closing c = {fds, count};
    bool held = block_control_pause();

    loop_co_offload(close_passed, &c);
    block_co_control_resume(held);
}

/* --- names ------------------------------------------------------------------------------------ */

int qmp_co_getfd(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,
                 struct error *err)
{
    const char *name = qmp_get_str(args, "fdname");
    int fd = take_passed(call, err), old = -ENOENT, r;

    if (fd < 0) {
        return fd;
    }
    if (name[0] >= '0' && name[0] <= '9') {
        r = error_set(err, EINVAL, "Parameter 'fdname' expects a name not starting with a digit");
    } else {
        old = call->fd_names ? fd_names_take(call->fd_names, name) : -ENOENT;
        r = call->fd_names ? fd_names_put(call->fd_names, name, fd, err)
                           : error_set(err, ENOTSUP, "This monitor keeps no descriptors");
    }
    if (r < 0) {
        co_close_passed(&fd, 1);
    }
    if (old >= 0) {
        co_close_passed(&old, 1);
    }
    return r;
}

int qmp_co_closefd(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,
                   struct error *err)
{
    const char *name = qmp_get_str(args, "fdname");
    int fd = call->fd_names ? fd_names_take(call->fd_names, name) : -ENOENT;

    if (fd < 0) {
        return error_set(err, ENOENT, "File descriptor named '%s' not found", name);
    }
    co_close_passed(&fd, 1);
    return 0;
}

/* --- sets ------------------------------------------------------------------------------------- */

int qmp_co_add_fd(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,
                  struct error *err)
{
    struct json_object *id_json = qmp_get(args, "fdset-id");
    int64_t id = id_json ? json_object_get_int64(id_json) : 0;
    int fd = take_passed(call, err), r;

    if (fd < 0) {
        return fd;
    }
    r = fdset_add(fd, id_json ? &id : NULL, qmp_get_str(args, "opaque"), &id, err);
    if (r < 0) {
        co_close_passed(&fd, 1);
        return r;
    }
    *ret_value = json_object_new_object();
    qmp_put_uint(*ret_value, "fdset-id", (uint64_t)id);
    qmp_put_uint(*ret_value, "fd", (uint64_t)fd);
    return 0;
}

int qmp_co_remove_fd(struct qmp_call *call, struct json_object *args,
                     struct json_object **ret_value, struct error *err)
{
    struct json_object *fd_json = qmp_get(args, "fd");
    int64_t fd = fd_json ? json_object_get_int64(fd_json) : 0;

    int *fds;
    int count = fdset_take(json_object_get_int64(qmp_get(args, "fdset-id")), fd_json ? &fd : NULL,
                           &fds, err);

    if (count < 0) {
        return count;
    }
    co_close_passed(fds, count);
    free(fds);
    return 0;
}

static void add_set(int64_t id, void *list)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "fds", json_object_new_array());
    qmp_put_uint(o, "fdset-id", (uint64_t)id);
    json_object_array_add(list, o);
}

/* Add a descriptor to the set that came last. */
static void add_fd(int fd, const char *opaque, void *list)
{
    struct json_object *set = json_object_array_get_idx(list, json_object_array_length(list) - 1);
    struct json_object *o = json_object_new_object();

    qmp_put_uint(o, "fd", (uint64_t)fd);
    qmp_put_str(o, "opaque", opaque);
    json_object_array_add(qmp_get(set, "fds"), o);
}

int qmp_co_query_fdsets(struct qmp_call *call, struct json_object *args,
                        struct json_object **ret_value, struct error *err)
{
    struct fdset_visitor visitor = {add_set, add_fd, NULL};

    *ret_value = visitor.arg = json_object_new_array();
    fdset_visit(&visitor);
    return 0;
}

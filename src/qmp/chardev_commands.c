/* SPDX-License-Identifier: Apache-2.0 */
/* Commands about chardevs: a part of QEMU's qapi/char.json. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base64.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "block/control_lock.h"
#include "chardev/chardev.h"
#include "qmp/command_lock.h"
#include "qmp/commands.h"
#include "qmp/define.h"
#include "qmp/types.h"

/* --- types ------------------------------------------------------------------------------------ */

const struct schema_type qmp_type_chardev_add = OBJECT_INIT(
    "q_obj_chardev-add-arg", REQ("id", schema_str), REQ("backend", chardev_backend_type));
const struct schema_type qmp_type_chardev_return =
    OBJECT_INIT("ChardevReturn", OPT("pty", schema_str));
const struct schema_type qmp_type_chardev_id =
    OBJECT_INIT("q_obj_chardev-remove-arg", REQ("id", schema_str));
OBJECT(chardev_info, "ChardevInfo", REQ("label", schema_str), REQ("filename", schema_str),
       REQ("frontend-open", schema_bool));
const struct schema_type qmp_type_chardev_infos =
    ARRAY_INIT("qmp_type_chardev_infos", chardev_info);
OBJECT(backend_info, "ChardevBackendInfo", REQ("name", schema_str));
const struct schema_type qmp_type_chardev_backend_infos =
    ARRAY_INIT("qmp_type_chardev_backend_infos", backend_info);
ENUM(data_format, "DataFormat", "utf8", "base64");
const struct schema_type qmp_type_ringbuf_read =
    OBJECT_INIT("q_obj_ringbuf-read-arg", REQ("device", schema_str), REQ("size", schema_int),
                OPT("format", data_format));
const struct schema_type qmp_type_ringbuf_write =
    OBJECT_INIT("q_obj_ringbuf-write-arg", REQ("device", schema_str), REQ("data", schema_str),
                OPT("format", data_format));

/* --- adding and removing ---------------------------------------------------------------------- */

/* Opening may take any time: other commands go on meanwhile. */
static int co_open(const char *id, struct json_object *backend, struct json_object **ret_value,
                   struct error *err)
{
    struct chardev *c = NULL;
    int r;

    block_control_unlock();
    r = chardev_co_new(id, backend, &c, err);
    r = error_first(r, qmp_co_lock_again(err));
    if (r < 0) {
        error_prepend(err, "Failed to add chardev '%s': ", id);
        return r;
    }
    *ret_value = json_object_new_object();
    qmp_put_str(*ret_value, "pty", chardev_pty(c));
    return 0;
}

static int check_backend(struct json_object *backend, struct error *err)
{
    struct json_object *data = qmp_get(backend, "data");

    return strcmp(qmp_get_str(backend, "type"), "socket") == 0 && qmp_get_bool(data, "wait", false)
               ? error_set(err, ENOTSUP, "'wait' is for the command line: a command does not wait")
               : 0;
}

int qmp_co_chardev_add(struct qmp_call *call, struct json_object *args,
                       struct json_object **ret_value, struct error *err)
{
    const char *id = qmp_get_str(args, "id");
    int r = check_backend(qmp_get(args, "backend"), err);

    if (r < 0) {
        return r;
    }
    if (chardev_find(id)) {
        return error_set(err, EEXIST, "Chardev with id '%s' already exists", id);
    }
    return co_open(id, qmp_get(args, "backend"), ret_value, err);
}

int qmp_co_chardev_change(struct qmp_call *call, struct json_object *args,
                          struct json_object **ret_value, struct error *err)
{
    const char *id = qmp_get_str(args, "id");
    struct chardev *c = chardev_find(id);
    int r = check_backend(qmp_get(args, "backend"), err);

    if (r < 0) {
        return r;
    }
    if (!c) {
        return error_set(err, ENOENT, "Chardev '%s' does not exist", id);
    }
    if (chardev_has_user(c)) {
        return error_set(err, EBUSY, "Chardev user does not support chardev hotswap");
    }
    if (chardev_is_opening(c)) {
        return error_set(err, EBUSY, "Chardev '%s' is busy", id);
    }
    chardev_co_remove(c);
    return co_open(id, qmp_get(args, "backend"), ret_value, err);
}

int qmp_co_chardev_remove(struct qmp_call *call, struct json_object *args,
                          struct json_object **ret_value, struct error *err)
{
    const char *id = qmp_get_str(args, "id");
    struct chardev *c = chardev_find(id);

    if (!c) {
        return error_set(err, ENOENT, "Chardev '%s' not found", id);
    }
    if (chardev_has_user(c) || chardev_is_opening(c)) {
        return error_set(err, EBUSY, "Chardev '%s' is busy", id);
    }
    chardev_co_remove(c);
    return 0;
}

/* Only serial lines have a break; none of the types here is one. */
int qmp_co_chardev_send_break(struct qmp_call *call, struct json_object *args,
                              struct json_object **ret_value, struct error *err)
{
    const char *id = qmp_get_str(args, "id");

    return chardev_find(id) ? 0 : error_set(err, ENOENT, "Chardev '%s' not found", id);
}

/* --- queries ---------------------------------------------------------------------------------- */

int qmp_co_query_chardev(struct qmp_call *call, struct json_object *args,
                         struct json_object **ret_value, struct error *err)
{
    struct chardev *c = NULL;

    *ret_value = json_object_new_array();
    while ((c = chardev_next(c))) {
        struct json_object *o = json_object_new_object();
        AUTO_FREE char *filename = chardev_filename(c);

        qmp_put_bool(o, "frontend-open", chardev_has_user(c));
        qmp_put_str(o, "filename", filename ?: "");
        qmp_put_str(o, "label", chardev_id(c));
        json_object_array_add(*ret_value, o);
    }
    return 0;
}

int qmp_co_query_chardev_backends(struct qmp_call *call, struct json_object *args,
                                  struct json_object **ret_value, struct error *err)
{
    *ret_value = json_object_new_array();
    for (const char *const *name = chardev_type_names(); *name; name++) {
        struct json_object *o = json_object_new_object();

        qmp_put_str(o, "name", *name);
        json_object_array_add(*ret_value, o);
    }
    return 0;
}

/* --- ring buffers ----------------------------------------------------------------------------- */

/* The ring buffer of this id; NULL with `err` set: there is none. */
static struct chardev *find_ringbuf(struct json_object *args, struct error *err)
{
    const char *id = qmp_get_str(args, "device");
    struct chardev *c = chardev_find(id);

    if (!c) {
        error_set(err, ENOENT, "Device '%s' not found", id);
    } else if (!chardev_is_ringbuf(c)) {
        error_set(err, EINVAL, "%s is not a ringbuf device", id);
        c = NULL;
    }
    return c;
}

static bool is_base64(struct json_object *args)
{
    const char *format = qmp_get_str(args, "format");

    return format && strcmp(format, "base64") == 0;
}

int qmp_co_ringbuf_write(struct qmp_call *call, struct json_object *args,
                         struct json_object **ret_value, struct error *err)
{
    AUTO_FREE char *data = strdup(qmp_get_str(args, "data"));
    struct chardev *c = find_ringbuf(args, err);
    size_t size;
    int r = 0;

    if (!c) {
        return -EINVAL;
    }
    if (!data) {
        return error_out_of_memory(err);
    }
    size = strlen(data);
    if (is_base64(args)) {
        r = base64_decode(data, &size, err);
    }
    if (r >= 0) {
        chardev_ringbuf_write(c, data, size);
    }
    return r;
}

int qmp_co_ringbuf_read(struct qmp_call *call, struct json_object *args,
                        struct json_object **ret_value, struct error *err)
{
    int64_t limit = json_object_get_int64(qmp_get(args, "size"));
    AUTO_FREE char *data = NULL;
    struct chardev *c = find_ringbuf(args, err);
    size_t size;

    if (!c) {
        return -EINVAL;
    }
    if (limit <= 0) {
        return error_set(err, EINVAL, "size must be greater than zero");
    }
    size = MIN((size_t)limit, chardev_ringbuf_size(c));
    data = malloc(size);
    if (!data) {
        return error_out_of_memory(err);
    }
    size = chardev_ringbuf_read(c, data, size);
    if (is_base64(args)) {
        AUTO_FREE char *text = base64_encode(data, size);

        *ret_value = text ? json_object_new_string(text) : NULL;
        return text ? 0 : error_out_of_memory(err);
    }
    /* What is no UTF-8 becomes U+FFFD when it is sent. */
    *ret_value = json_object_new_string_len(data, (int)size);
    return 0;
}

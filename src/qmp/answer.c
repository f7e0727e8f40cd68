/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/answer.h"

#include "base/json_write.h"
#include "qmp/table.h"

void qmp_put_str(struct json_object *to, const char *name, const char *value)
{
    if (value) {
        json_object_object_add(to, name, json_object_new_string(value));
    }
}

void qmp_put_uint(struct json_object *to, const char *name, uint64_t value)
{
    json_object_object_add(to, name, json_object_new_uint64(value));
}

void qmp_put_bool(struct json_object *to, const char *name, bool value)
{
    json_object_object_add(to, name, json_object_new_boolean(value));
}

void qmp_put_new(struct json_object *to, const char *name, struct json_object *value)
{
    json_object_object_add_ex(to, name, value,
                              JSON_C_OBJECT_ADD_KEY_IS_NEW | JSON_C_OBJECT_ADD_CONSTANT_KEY);
}

void qmp_list_begin(struct qmp_list *list, const struct qmp_call *call)
{
    *list = (struct qmp_list){.text = STRBUF_INIT};
    list->array = call->takes_text ? NULL : json_object_new_array();
    strbuf_puts(&list->text, "[");
}

void qmp_list_add(struct qmp_list *list, struct json_object *element)
{
    if (list->array) {
        json_object_array_add(list->array, element);
        return;
    }
    if (list->text.len > 1) {
        strbuf_puts(&list->text, ", ");
    }
    json_write(&list->text, element, false);
    json_object_put(element);
}

struct json_object *qmp_list_end(struct qmp_list *list)
{
    struct json_object *value = list->array;

    if (!value) {
        strbuf_puts(&list->text, "]");
        value = json_text_new(&list->text);
    }
    strbuf_clear(&list->text);
    return value;
}

struct json_object *qmp_version_json(void)
{
    struct json_object *version = json_object_new_object(), *qemu = json_object_new_object();

    qmp_put_uint(qemu, "micro", QMP_QEMU_MICRO);
    qmp_put_uint(qemu, "minor", QMP_QEMU_MINOR);
    qmp_put_uint(qemu, "major", QMP_QEMU_MAJOR);
    json_object_object_add(version, "qemu", qemu);
    qmp_put_str(version, "package", "Tidemark " TIDEMARK_VERSION);
    return version;
}

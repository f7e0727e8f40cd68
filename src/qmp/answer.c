/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/answer.h"

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

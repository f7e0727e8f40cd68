/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/schema.h"

struct json_object *qmp_get(struct json_object *args, const char *name)
{
    struct json_object *value;

    return json_object_object_get_ex(args, name, &value) ? value : NULL;
}

const char *qmp_get_str(struct json_object *args, const char *name)
{
    struct json_object *value = qmp_get(args, name);

    return json_object_is_type(value, json_type_string) ? json_object_get_string(value) : NULL;
}

bool qmp_get_bool(struct json_object *args, const char *name, bool dflt)
{
    struct json_object *value = qmp_get(args, name);

    return value ? json_object_get_boolean(value) : dflt;
}

uint64_t qmp_get_uint(struct json_object *args, const char *name, uint64_t dflt)
{
    struct json_object *value = qmp_get(args, name);

    return value ? json_object_get_uint64(value) : dflt;
}

int qmp_args_of_options(const struct schema_type *type, const struct options *opts,
                        struct json_object **ret_args, struct error *err)
{
    struct json_object *args = options_to_json(opts);
    int r = args ? schema_check(type, args, options_are_text(opts) ? SCHEMA_CHECK_KEYVAL : 0, err)
                 : error_out_of_memory(err);

    if (r < 0) {
        json_object_put(args);
        return r;
    }
    *ret_args = args;
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/named.h"

#include "base/checked.h"
#include "export/export.h"

/* The parser limits the depth. */
bool qmp_foreach_string(struct json_object *value, qmp_string_fn *fn, void *arg)
{
    bool more = true;

    if (json_object_is_type(value, json_type_string)) {
        return fn(json_object_get_string(value), arg);
    }
    if (json_object_is_type(value, json_type_array)) {
        for (size_t i = 0; more && i < json_object_array_length(value); i++) {
            more = qmp_foreach_string(json_object_array_get_idx(value, i), fn, arg);
        }
    } else if (json_object_is_type(value, json_type_object)) {
        json_object_object_foreach(value, key, member)
        {
            (void)key;
            more = more && qmp_foreach_string(member, fn, arg);
        }
    }
    return more;
}

struct block_node *qmp_node_of_export(const char *id)
{
    struct export_info info;

    return export_find(id, &info) ? info.node : NULL;
}

struct named {
    block_node_fn *fn;
    void *arg;
};

static bool call_for_string(const char *string, void *arg)
{
    struct block_node *nodes[] = {block_node_find(string), qmp_node_of_export(string)};
    struct named *named = arg;

    for (size_t i = 0; i < ARRAY_SIZE(nodes); i++) {
        if (nodes[i]) {
            named->fn(nodes[i], named->arg);
        }
    }
    return true;
}

void qmp_foreach_named_node(struct json_object *data, block_node_fn *fn, void *arg)
{
    struct named named = {fn, arg};

    qmp_foreach_string(data, call_for_string, &named);
}

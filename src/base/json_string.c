/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json_string.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "base/error.h"

static void erase_string(struct json_object *string, void *arg)
{
    (void)arg;
    explicit_bzero((char *)(uintptr_t)json_object_get_string(string),
                   (size_t)json_object_get_string_len(string));
}

struct json_object *json_string_new(const char *text, size_t size)
{
    struct json_object *string =
        size <= INT32_MAX ? json_object_new_string_len(text, (int)size) : NULL;

    if (string) {
        json_object_set_userdata(string, NULL, erase_string);
    }
    return string;
}

/* Both add a copy of `value` to `to`. */
static int copy_member(struct json_object *to, const char *key, struct json_object *value)
{
    struct json_object *copy;
    int r = json_copy(value, &copy);

    if (r == 0 && json_object_object_add(to, key, copy) < 0) {
        json_object_put(copy);
        r = -ENOMEM;
    }
    return r;
}

static int copy_element(struct json_object *to, struct json_object *value)
{
    struct json_object *copy;
    int r = json_copy(value, &copy);

    if (r == 0 && json_object_array_add(to, copy) < 0) {
        json_object_put(copy);
        r = -ENOMEM;
    }
    return r;
}

static int copy_members(struct json_object *to, struct json_object *value)
{
    int r = to ? 0 : -ENOMEM;

    json_object_object_foreach(value, key, member)
    {
        UNLESS_FAILED(r, copy_member(to, key, member));
    }
    return r;
}

static int copy_elements(struct json_object *to, struct json_object *value)
{
    int r = to ? 0 : -ENOMEM;

    for (size_t i = 0; i < json_object_array_length(value) && r == 0; i++) {
        r = copy_element(to, json_object_array_get_idx(value, i));
    }
    return r;
}

int json_copy(struct json_object *value, struct json_object **ret_copy)
{
    struct json_object *copy = NULL;
    int r = 0;

    switch (json_object_get_type(value)) {
    case json_type_null:
        break;
    case json_type_object:
        copy = json_object_new_object();
        r = copy_members(copy, value);
        break;
    case json_type_array:
        copy = json_object_new_array();
        r = copy_elements(copy, value);
        break;
    case json_type_string:
        copy = json_string_new(json_object_get_string(value),
                               (size_t)json_object_get_string_len(value));
        r = copy ? 0 : -ENOMEM;
        break;
    default:
        r = json_object_deep_copy(value, &copy, NULL) < 0 ? -ENOMEM : 0;
        break;
    }
    if (r < 0) {
        json_object_put(copy);
        return r;
    }
    *ret_copy = copy;
    return 0;
}

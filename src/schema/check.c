/* SPDX-License-Identifier: Apache-2.0 */
/* The check of arguments against their type. */

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "base/strbuf.h"
#include "schema/schema.h"

/*
 * Most levels of arrays and objects. Types refer to themselves, as that of nodes does to its
 * children, and each level takes up to 6 KiB of a stack with the address sanitizer. Options of
 * nodes have half as many (block/options_parse.c).
 */
#define DEPTH_MAX 64

struct checker {
    unsigned flags;
    int depth;          /* of the value that is checked */
    struct strbuf path; /* of the value that is checked: "addr.data" */
};

static int check_value(struct checker *c, const struct schema_type *type, const char *name,
                       struct json_object **value, struct error *err);
static int check_value_of_kind(struct checker *c, const struct schema_type *type, const char *name,
                               struct json_object **value, struct error *err);

static void truncate_path(struct checker *c, size_t len)
{
    c->path.len = len;
    if (c->path.data) {
        c->path.data[len] = '\0';
    }
}

static int wrong_json_type(struct checker *c, const char *expected, struct error *err)
{
    return error_set(err, EINVAL, "Invalid parameter type for '%s', expected: %s",
                     strbuf_str(&c->path), expected);
}

static int wrong_form(struct checker *c, const char *expected, struct error *err)
{
    return error_set(err, EINVAL, "Parameter '%s' expects %s", strbuf_str(&c->path), expected);
}

/* QEMU names the member here, without its path; elements of a list have no name. */
static int out_of_range(struct checker *c, const char *expected, struct error *err)
{
    const char *path = strbuf_str(&c->path), *dot = strrchr(path, '.');
    bool in_array = c->path.len > 0 && path[c->path.len - 1] == ']';

    return error_set(err, EINVAL, "Parameter '%s' expects %s",
                     in_array ? "null"
                     : dot    ? dot + 1
                              : path,
                     expected);
}

static int refuse_depth(struct error *err)
{
    return error_set(err, EINVAL, "Arguments are nested more than %d levels deep", DEPTH_MAX);
}

/* Names and paths become C strings: one with a NUL would be cut, and mean another object. */
static int check_text(struct json_object *value, int depth, struct error *err)
{
    if (depth > DEPTH_MAX) {
        return refuse_depth(err);
    }
    switch (json_object_get_type(value)) {
    case json_type_string:
        if (strlen(json_object_get_string(value)) != (size_t)json_object_get_string_len(value)) {
            return error_set(err, EINVAL, "A string contains a NUL character: '%s'",
                             json_object_get_string(value));
        }
        return 0;
    case json_type_array:
        for (size_t i = 0; i < json_object_array_length(value); i++) {
            int r = check_text(json_object_array_get_idx(value, i), depth + 1, err);

            if (r < 0) {
                return r;
            }
        }
        return 0;
    case json_type_object: {
        json_object_object_foreach(value, key, member)
        {
            int r = check_text(member, depth + 1, err);

            (void)key;
            if (r < 0) {
                return r;
            }
        }
        return 0;
    }
    default:
        return 0;
    }
}

/* --- text from the command line --------------------------------------------------------------- */

static bool is_text(const struct checker *c, struct json_object *value)
{
    return (c->flags & SCHEMA_CHECK_KEYVAL) && json_object_is_type(value, json_type_string);
}

static void replace(struct json_object **value, struct json_object *with)
{
    json_object_put(*value);
    *value = with;
}

static int convert_bool(struct checker *c, struct json_object **value, struct error *err)
{
    static const char *const words[] = {"off", "on", "no", "yes", "false", "true", "n", "y"};
    const char *text = json_object_get_string(*value);

    for (int i = 0; i < 8; i++) {
        if (strcmp(text, words[i]) == 0) {
            replace(value, json_object_new_boolean(i & 1));
            return 0;
        }
    }
    return wrong_form(c, "'on' or 'off'", err);
}

static bool bytes_are_plain;

void schema_take_plain_bytes(bool plain)
{
    bytes_are_plain = plain;
}

static bool takes_suffixes(const struct checker *c, const struct schema_type *type,
                           const char *text)
{
    return type->kind == SCHEMA_SIZE || (type->is_bytes && text[0] != '-' &&
                                         (!bytes_are_plain || (c->flags & SCHEMA_CHECK_SUFFIXES)));
}

static int convert_integer(struct checker *c, const struct schema_type *type,
                           struct json_object **value, struct error *err)
{
    const char *text = json_object_get_string(*value);
    uint64_t bytes;
    long long number;
    char *end;

    if (takes_suffixes(c, type, text)) {
        STRBUF_AUTO(what);

        strbuf_printf(&what, "Parameter '%s'", strbuf_str(&c->path));
        if (size_parse(text, strbuf_str(&what), &bytes, err) < 0) {
            return -EINVAL;
        }
        replace(value, json_object_new_uint64(bytes));
        return 0;
    }
    errno = 0;
    number = strtoll(text, &end, 0);
    if (errno || end == text || *end) {
        return wrong_form(c, "integer", err);
    }
    replace(value, json_object_new_int64(number));
    return 0;
}

/* {"0": a, "1": b} to [a, b]. */
static int convert_array(struct checker *c, struct json_object **value, struct error *err)
{
    struct json_object *array = json_object_new_array();
    int count = json_object_object_length(*value);

    for (int i = 0; i < count; i++) {
        struct json_object *element;
        char key[16];

        snprintf(key, sizeof(key), "%d", i);
        if (!json_object_object_get_ex(*value, key, &element)) {
            json_object_put(array);
            return error_set(err, EINVAL, "Parameter '%s.%d' missing", strbuf_str(&c->path), i);
        }
        json_object_array_add(array, json_object_get(element));
    }
    replace(value, array);
    return 0;
}

/* --- kinds ------------------------------------------------------------------------------------ */

/* The greatest number of a kind, and what messages call it. */
static uint64_t unsigned_limit(enum schema_kind kind, const char **ret_name)
{
    switch (kind) {
    case SCHEMA_UINT8:
        *ret_name = "uint8_t";
        return UINT8_MAX;
    case SCHEMA_UINT16:
        *ret_name = "uint16_t";
        return UINT16_MAX;
    case SCHEMA_UINT32:
        *ret_name = "uint32_t";
        return UINT32_MAX;
    default:
        *ret_name = "uint64";
        return UINT64_MAX;
    }
}

static int check_integer(struct checker *c, const struct schema_type *type,
                         struct json_object **value, struct error *err)
{
    const char *name;
    uint64_t limit = unsigned_limit(type->kind, &name);

    if (is_text(c, *value)) {
        int r = convert_integer(c, type, value, err);

        if (r < 0) {
            return r;
        }
    }
    if (type->kind == SCHEMA_INT || type->kind == SCHEMA_INT32) {
        if (!json_object_is_type(*value, json_type_int) ||
            (json_object_get_int64(*value) >= 0 && json_object_get_uint64(*value) > INT64_MAX)) {
            return wrong_json_type(c, "integer", err);
        }
        return type->kind == SCHEMA_INT32 &&
                       (int32_t)json_object_get_int64(*value) != json_object_get_int64(*value)
                   ? out_of_range(c, "int32_t", err)
                   : 0;
    }
    if (!json_object_is_type(*value, json_type_int)) {
        return wrong_form(c, "uint64", err);
    }
    return json_object_get_int64(*value) < 0 || json_object_get_uint64(*value) > limit
               ? out_of_range(c, name, err)
               : 0;
}

static int check_enum(const struct schema_type *type, const char *name, struct json_object *value,
                      struct error *err)
{
    const char *text = json_object_get_string(value);
    int r;

    for (const char *const *v = schema_values_of(type); *v; v++) {
        if (strcmp(text, *v) == 0) {
            return 0;
        }
    }
    r = type->refuse_value ? type->refuse_value(text, err) : 0;
    return r < 0 ? r
                 : error_set(err, EINVAL, "Parameter '%s' does not accept value '%s'", name, text);
}

static int check_array(struct checker *c, const struct schema_type *type, const char *name,
                       struct json_object *array, struct error *err)
{
    size_t len = c->path.len;

    for (size_t i = 0; i < json_object_array_length(array); i++) {
        struct json_object *was = json_object_array_get_idx(array, i), *value;
        int r;

        strbuf_printf(&c->path, c->flags & SCHEMA_CHECK_KEYVAL ? ".%zu" : "[%zu]", i);
        value = json_object_get(was);
        r = check_value(c, type->element, name, &value, err);
        if (r == 0 && value != was) {
            json_object_array_put_idx(array, i, value);
        } else {
            json_object_put(value);
        }
        if (r < 0) {
            return r;
        }
        truncate_path(c, len);
    }
    return 0;
}

static bool has_json_type(const struct schema_type *type, struct json_object *value)
{
    switch (type->kind) {
    case SCHEMA_STR:
    case SCHEMA_ENUM:
        return json_object_is_type(value, json_type_string);
    case SCHEMA_BOOL:
        return json_object_is_type(value, json_type_boolean);
    case SCHEMA_NULL:
        return json_object_is_type(value, json_type_null);
    case SCHEMA_ARRAY:
        return json_object_is_type(value, json_type_array);
    case SCHEMA_OBJECT:
        return json_object_is_type(value, json_type_object);
    default:
        return json_object_is_type(value, json_type_int);
    }
}

static int check_alternate(struct checker *c, const struct schema_type *type, const char *name,
                           struct json_object **value, struct error *err)
{
    bool in_array = c->path.len > 0 && c->path.data[c->path.len - 1] == ']';

    for (const struct schema_type *const *t = type->choice; *t; t++) {
        if (has_json_type(*t, *value)) {
            return check_value_of_kind(c, *t, name, value, err);
        }
    }
    /* QEMU names the member, and elements of a list have no name. */
    return error_set(err, EINVAL, "Invalid parameter type for '%s', expected: %s",
                     in_array ? "null" : name, type->name);
}

/* Check the members of one list, and convert them. */
static int check_members(struct checker *c, const struct schema_member *members,
                         struct json_object *object, struct error *err)
{
    size_t len = c->path.len;

    for (const struct schema_member *m = members; m && m->name; m++) {
        struct json_object *was, *value;
        int r;

        strbuf_printf(&c->path, "%s%s", len ? "." : "", m->name);
        if (!json_object_object_get_ex(object, m->name, &was)) {
            if (!m->optional) {
                return error_set(err, EINVAL, "Parameter '%s' is missing", strbuf_str(&c->path));
            }
            truncate_path(c, len);
            continue;
        }
        value = json_object_get(was);
        r = check_value(c, m->type, m->name, &value, err);
        if (r == 0 && value != was) {
            json_object_object_add(object, m->name, value);
        } else {
            json_object_put(value);
        }
        if (r < 0) {
            return r;
        }
        truncate_path(c, len);
    }
    return 0;
}

static const struct schema_type *chosen_variant(const struct schema_type *type,
                                                struct json_object *object)
{
    struct json_object *value;

    if (!type->tag || !json_object_object_get_ex(object, type->tag, &value)) {
        return NULL;
    }
    return schema_find_variant(type, json_object_get_string(value));
}

/* -EINVAL if the object has a member of neither the type nor the variants that it chooses. */
static int check_unexpected(struct checker *c, const struct schema_type *type,
                            struct json_object *object, struct error *err)
{
    json_object_object_foreach(object, key, member)
    {
        const struct schema_type *t = type;

        (void)member;
        while (t && !schema_find_member(t, key)) {
            t = chosen_variant(t, object);
        }
        if (!t) {
            const char *path = strbuf_str(&c->path);

            return error_set(err, EINVAL, "Parameter '%s%s%s' is unexpected", path,
                             *path ? "." : "", key);
        }
    }
    return 0;
}

static int check_object(struct checker *c, const struct schema_type *type,
                        struct json_object *object, struct error *err)
{
    bool open = false;

    for (const struct schema_type *t = type; t; t = chosen_variant(t, object)) {
        int r = check_members(c, t->members, object, err);

        if (r < 0) {
            return r;
        }
        open |= t->open;
    }
    return open ? check_text(object, c->depth, err) : check_unexpected(c, type, object, err);
}

/*
 * Check a value, and convert it if it is text of a command line. `name` is the member's own name,
 * which messages about enumerations show, as QEMU's do.
 */
static int check_value_of_kind(struct checker *c, const struct schema_type *type, const char *name,
                               struct json_object **value, struct error *err)
{
    int r;

    switch (type->kind) {
    case SCHEMA_STR:
    case SCHEMA_ENUM:
        if (!json_object_is_type(*value, json_type_string)) {
            return wrong_json_type(c, "string", err);
        }
        r = check_text(*value, c->depth, err);
        return r < 0 || type->kind == SCHEMA_STR ? r : check_enum(type, name, *value, err);
    case SCHEMA_BOOL:
        if (is_text(c, *value)) {
            return convert_bool(c, value, err);
        }
        return json_object_is_type(*value, json_type_boolean) ? 0
                                                              : wrong_json_type(c, "boolean", err);
    case SCHEMA_INT:
    case SCHEMA_INT32:
    case SCHEMA_UINT8:
    case SCHEMA_UINT16:
    case SCHEMA_UINT32:
    case SCHEMA_UINT64:
    case SCHEMA_SIZE:
        return check_integer(c, type, value, err);
    case SCHEMA_NUMBER:
        return json_object_is_type(*value, json_type_int) ||
                       json_object_is_type(*value, json_type_double)
                   ? 0
                   : wrong_json_type(c, "number", err);
    case SCHEMA_NULL:
        return json_object_is_type(*value, json_type_null) ? 0 : wrong_json_type(c, "null", err);
    case SCHEMA_ANY:
        return check_text(*value, c->depth, err);
    case SCHEMA_ARRAY:
        if ((c->flags & SCHEMA_CHECK_KEYVAL) && json_object_is_type(*value, json_type_object) &&
            (r = convert_array(c, value, err)) < 0) {
            return r;
        }
        return json_object_is_type(*value, json_type_array)
                   ? check_array(c, type, name, *value, err)
                   : wrong_json_type(c, "array", err);
    case SCHEMA_OBJECT:
        return json_object_is_type(*value, json_type_object) ? check_object(c, type, *value, err)
                                                             : wrong_json_type(c, "object", err);
    case SCHEMA_ALTERNATE:
        return check_alternate(c, type, name, value, err);
    }
    return error_set(err, EINVAL, "Parameter '%s' has a type of no known kind", name);
}

static int check_value(struct checker *c, const struct schema_type *type, const char *name,
                       struct json_object **value, struct error *err)
{
    int r;

    if (c->depth == DEPTH_MAX) {
        return refuse_depth(err);
    }
    c->depth++;
    r = check_value_of_kind(c, type, name, value, err);
    c->depth--;
    return r;
}

int schema_check(const struct schema_type *type, struct json_object *value, unsigned flags,
                 struct error *err)
{
    struct checker c = {.flags = flags, .path = STRBUF_INIT};
    int r = check_object(&c, type, value, err);

    strbuf_clear(&c.path);
    return r;
}

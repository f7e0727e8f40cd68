/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/schema.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "base/strbuf.h"

const struct qmp_type qmp_str = {.kind = QMP_STR, .name = "str"};
const struct qmp_type qmp_bool = {.kind = QMP_BOOL, .name = "bool"};
const struct qmp_type qmp_int = {.kind = QMP_INT, .name = "int"};
const struct qmp_type qmp_uint32 = {.kind = QMP_UINT32, .name = "int"};
const struct qmp_type qmp_size = {.kind = QMP_SIZE, .name = "int"};
const struct qmp_type qmp_number = {.kind = QMP_NUMBER, .name = "number"};
const struct qmp_type qmp_any = {.kind = QMP_ANY, .name = "any"};
const struct qmp_type qmp_empty = {.kind = QMP_OBJECT,
                                   .name = "q_empty",
                                   .members = (const struct qmp_member[]){{NULL, NULL, false}}};

struct checker {
    unsigned flags;
    struct strbuf path; /* of the value that is checked: "addr.data" */
};

static int check_value(struct checker *c, const struct qmp_type *type, const char *name,
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

/* Names and paths become C strings: one with a NUL would be cut, and mean another object. */
static int check_text(struct json_object *value, struct error *err)
{
    switch (json_object_get_type(value)) {
    case json_type_string:
        if (strlen(json_object_get_string(value)) != (size_t)json_object_get_string_len(value)) {
            return error_set(err, EINVAL, "A string contains a NUL character: '%s'",
                             json_object_get_string(value));
        }
        return 0;
    case json_type_array:
        for (size_t i = 0; i < json_object_array_length(value); i++) {
            int r = check_text(json_object_array_get_idx(value, i), err);

            if (r < 0) {
                return r;
            }
        }
        return 0;
    case json_type_object: {
        json_object_object_foreach(value, key, member)
        {
            int r = check_text(member, err);

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
    return (c->flags & QMP_CHECK_KEYVAL) && json_object_is_type(value, json_type_string);
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

static int convert_integer(struct checker *c, bool is_size, struct json_object **value,
                           struct error *err)
{
    const char *text = json_object_get_string(*value);
    uint64_t bytes;
    long long number;
    char *end;

    if (is_size) {
        if (size_parse(text, strbuf_str(&c->path), &bytes, err) < 0) {
            return -EINVAL;
        }
        replace(value, json_object_new_uint64(bytes));
        return 0;
    }
    errno = 0;
    number = strtoll(text, &end, 0);
    if (errno || end == text || *end) {
        return wrong_json_type(c, "integer", err);
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
            return error_set(err, EINVAL, "Parameter '%s.%d' is missing", strbuf_str(&c->path), i);
        }
        json_object_array_add(array, json_object_get(element));
    }
    replace(value, array);
    return 0;
}

/* --- kinds ------------------------------------------------------------------------------------ */

static int check_integer(struct checker *c, enum qmp_kind kind, struct json_object **value,
                         struct error *err)
{
    uint64_t limit = kind == QMP_UINT32 ? UINT32_MAX : UINT64_MAX;

    if (is_text(c, *value)) {
        int r = convert_integer(c, kind == QMP_SIZE, value, err);

        if (r < 0) {
            return r;
        }
    }
    if (!json_object_is_type(*value, json_type_int)) {
        return kind == QMP_INT ? wrong_json_type(c, "integer", err) : wrong_form(c, "uint64", err);
    }
    if (kind == QMP_INT) {
        return json_object_get_uint64(*value) > INT64_MAX ? wrong_form(c, "int64", err) : 0;
    }
    if (json_object_get_int64(*value) < 0 || json_object_get_uint64(*value) > limit) {
        return wrong_form(c, kind == QMP_UINT32 ? "uint32_t" : "uint64", err);
    }
    return 0;
}

static int check_enum(const struct qmp_type *type, const char *name, struct json_object *value,
                      struct error *err)
{
    const char *text = json_object_get_string(value);

    for (const char *const *v = type->values; *v; v++) {
        if (strcmp(text, *v) == 0) {
            return 0;
        }
    }
    return error_set(err, EINVAL, "Parameter '%s' does not accept value '%s'", name, text);
}

static int check_array(struct checker *c, const struct qmp_type *type, const char *name,
                       struct json_object *array, struct error *err)
{
    size_t len = c->path.len;

    for (size_t i = 0; i < json_object_array_length(array); i++) {
        struct json_object *was = json_object_array_get_idx(array, i), *value;
        int r;

        strbuf_printf(&c->path, "[%zu]", i);
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

static int check_alternate(struct checker *c, const struct qmp_type *type, const char *name,
                           struct json_object **value, struct error *err)
{
    for (const struct qmp_type *const *t = type->choice; *t; t++) {
        bool wants_object = (*t)->kind == QMP_OBJECT;

        if (json_object_is_type(*value, wants_object ? json_type_object : json_type_string)) {
            return check_value(c, *t, name, value, err);
        }
    }
    return wrong_json_type(c, type->name, err);
}

static int check_members(struct checker *c, const struct qmp_type *type, struct json_object *object,
                         struct error *err)
{
    size_t len = c->path.len;

    for (const struct qmp_member *m = type->members; m->name; m++) {
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

static bool has_member(const struct qmp_type *type, const char *name)
{
    for (const struct qmp_member *m = type ? type->members : NULL; m && m->name; m++) {
        if (strcmp(m->name, name) == 0) {
            return true;
        }
    }
    return false;
}

static const struct qmp_type *chosen_variant(const struct qmp_type *type,
                                             struct json_object *object)
{
    const char *value = type->tag ? qmp_get_str(object, type->tag) : NULL;

    for (const struct qmp_variant *v = value ? type->variants : NULL; v && v->value; v++) {
        if (strcmp(v->value, value) == 0) {
            return v->type;
        }
    }
    return NULL;
}

static int check_object(struct checker *c, const struct qmp_type *type, struct json_object *object,
                        struct error *err)
{
    const struct qmp_type *variant;
    int r = check_members(c, type, object, err);

    if (r < 0) {
        return r;
    }
    if (type->open) {
        return check_text(object, err);
    }
    variant = chosen_variant(type, object);
    if (variant && (r = check_members(c, variant, object, err)) < 0) {
        return r;
    }
    json_object_object_foreach(object, key, member)
    {
        (void)member;
        if (!has_member(type, key) && !has_member(variant, key)) {
            const char *path = strbuf_str(&c->path);

            return error_set(err, EINVAL, "Parameter '%s%s%s' is unexpected", path,
                             *path ? "." : "", key);
        }
    }
    return 0;
}

/*
 * Check a value, and convert it if it is text of a command line. `name` is the member's own name,
 * which messages about enumerations show, as QEMU's do.
 */
static int check_value(struct checker *c, const struct qmp_type *type, const char *name,
                       struct json_object **value, struct error *err)
{
    int r;

    switch (type->kind) {
    case QMP_STR:
    case QMP_ENUM:
        if (!json_object_is_type(*value, json_type_string)) {
            return wrong_json_type(c, "string", err);
        }
        r = check_text(*value, err);
        return r < 0 || type->kind == QMP_STR ? r : check_enum(type, name, *value, err);
    case QMP_BOOL:
        if (is_text(c, *value)) {
            return convert_bool(c, value, err);
        }
        return json_object_is_type(*value, json_type_boolean) ? 0
                                                              : wrong_json_type(c, "boolean", err);
    case QMP_INT:
    case QMP_UINT32:
    case QMP_SIZE:
        return check_integer(c, type->kind, value, err);
    case QMP_NUMBER:
        return json_object_is_type(*value, json_type_int) ||
                       json_object_is_type(*value, json_type_double)
                   ? 0
                   : wrong_json_type(c, "number", err);
    case QMP_ANY:
        return check_text(*value, err);
    case QMP_ARRAY:
        if ((c->flags & QMP_CHECK_KEYVAL) && json_object_is_type(*value, json_type_object) &&
            (r = convert_array(c, value, err)) < 0) {
            return r;
        }
        return json_object_is_type(*value, json_type_array)
                   ? check_array(c, type, name, *value, err)
                   : wrong_json_type(c, "array", err);
    case QMP_OBJECT:
        return json_object_is_type(*value, json_type_object) ? check_object(c, type, *value, err)
                                                             : wrong_json_type(c, "object", err);
    case QMP_ALTERNATE:
        return check_alternate(c, type, name, value, err);
    }
    return error_set(err, EINVAL, "Parameter '%s' has a type of no known kind", name);
}

int qmp_check(const struct qmp_type *type, struct json_object *value, unsigned flags,
              struct error *err)
{
    struct checker c = {.flags = flags, .path = STRBUF_INIT};
    int r = check_object(&c, type, value, err);

    strbuf_clear(&c.path);
    return r;
}

/* --- arguments -------------------------------------------------------------------------------- */

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

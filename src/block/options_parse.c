/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Option trees from text and JSON. All values pass import_value() and insert_path(), which nest
 * dotted keys, refuse keys given twice (of text the last value counts) and bound the depth.
 */
#include "block/options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_read.h"
#include "base/json_string.h"
#include "base/strbuf.h"
#include "block/options_tree.h"

#define OPTIONS_DEPTH_MAX 32
#define OPTIONS_TEXT_MAX 1048576

/* --- building --------------------------------------------------------------------------------- */

static int too_deep(struct error *err)
{
    return error_set(err, EINVAL, "Options are nested more than %d levels deep", OPTIONS_DEPTH_MAX);
}

/* Whether a key may have a value and options below it at the same time. */
static bool is_value_and_group(const char *key)
{
    return strcmp(key, "overlap-check") == 0;
}

/* Put `value` (consumed) under a key without dots; two objects are merged. */
static int insert_leaf(struct json_object *object, const char *key, struct json_object *value,
                       int depth, struct error *err)
{
    struct json_object *present;
    int r = 0;

    if (!json_object_object_get_ex(object, key, &present)) {
        return options_add(object, key, value, err);
    }
    if (options_is_object(present) && !options_is_object(value) && is_value_and_group(key) &&
        !json_object_object_get_ex(present, OPTIONS_OWN_VALUE, NULL)) {
        return options_add(present, OPTIONS_OWN_VALUE, value, err);
    }
    if (!options_is_object(present) || !options_is_object(value)) {
        json_object_put(value);
        return error_set(err, EINVAL, "Parameter '%s' is given twice", key);
    }
    json_object_object_foreach(value, sub_key, sub_value)
    {
        r = insert_leaf(present, sub_key, json_object_get(sub_value), depth + 1, err);
        if (r < 0) {
            break;
        }
    }
    json_object_put(value);
    return r;
}

/* The object under `key`, made if absent. Borrowed. */
static int enter_key(struct json_object *object, const char *key, struct json_object **ret_json,
                     struct error *err)
{
    struct json_object *child, *own = NULL;

    if (json_object_object_get_ex(object, key, &child) && !options_is_object(child) && child &&
        is_value_and_group(key)) {
        own = json_object_get(child);
        json_object_object_del(object, key);
    }
    if (json_object_object_get_ex(object, key, &child)) {
        if (!options_is_object(child)) {
            return error_set(err, EINVAL,
                             "Parameter '%s' has a value of its own and options below it", key);
        }
    } else {
        child = json_object_new_object();
        if (!child) {
            json_object_put(own);
            return options_no_memory(err);
        }
        if (options_add(object, key, child, err) < 0) {
            json_object_put(own);
            return -ENOMEM;
        }
    }
    *ret_json = child;
    return own ? options_add(child, OPTIONS_OWN_VALUE, own, err) : 0;
}

/* How many levels a key with dots makes. */
static int key_levels(const char *key)
{
    int n = 1;

    for (; *key; key++) {
        n += *key == '.' && n <= OPTIONS_DEPTH_MAX;
    }
    return n;
}

/* Put `value` (consumed) at the place that a dotted key names. `depth` is the depth of `object`. */
static int insert_path(struct json_object *object, const char *key, struct json_object *value,
                       int depth, struct error *err)
{
    char part[OPTIONS_KEY_MAX + 1];
    const char *rest = key;
    int r;

    for (;;) {
        size_t len = strcspn(rest, ".");

        if (len == 0 || len > OPTIONS_KEY_MAX) {
            r = error_set(err, EINVAL, "Invalid parameter name '%.*s'", OPTIONS_KEY_MAX, key);
            break;
        }
        if (++depth > OPTIONS_DEPTH_MAX) {
            r = too_deep(err);
            break;
        }
        memcpy(part, rest, len);
        part[len] = '\0';
        if (!rest[len]) {
            return insert_leaf(object, part, value, depth, err);
        }
        r = enter_key(object, part, &object, err);
        if (r < 0) {
            break;
        }
        rest += len + 1;
    }
    json_object_put(value);
    return r;
}

/*
 * Remove the value that a dotted key has in text: as for QEMU, the last one counts. A group stays.
 */
static void drop_earlier_value(struct json_object *object, const char *key)
{
    char part[OPTIONS_KEY_MAX + 1];
    struct json_object *child;

    for (const char *rest = key;; rest += strlen(part) + 1) {
        size_t len = strcspn(rest, ".");

        if (len == 0 || len > OPTIONS_KEY_MAX || !options_is_object(object)) {
            return;
        }
        memcpy(part, rest, len);
        part[len] = '\0';
        if (!json_object_object_get_ex(object, part, &child)) {
            return;
        }
        if (!rest[len]) {
            break;
        }
        object = child;
    }
    if (!options_is_object(child)) {
        json_object_object_del(object, part);
    }
}

static int import_value(struct json_object *value, int depth, struct json_object **ret_json,
                        struct error *err);

static int import_object(struct json_object *from, int depth, struct json_object **ret_json,
                         struct error *err)
{
    struct json_object AUTO_JSON *to = json_object_new_object();

    if (!to) {
        return options_no_memory(err);
    }
    json_object_object_foreach(from, key, value)
    {
        struct json_object *copy;
        int r = import_value(value, depth + key_levels(key), &copy, err);

        if (r >= 0) {
            r = insert_path(to, key, copy, depth, err);
        }
        if (r < 0) {
            return r;
        }
    }
    *ret_json = TAKE_PTR(to);
    return 0;
}

static int import_array(struct json_object *from, int depth, struct json_object **ret_json,
                        struct error *err)
{
    struct json_object AUTO_JSON *to = json_object_new_array();

    if (!to) {
        return options_no_memory(err);
    }
    for (size_t i = 0; i < json_object_array_length(from); i++) {
        struct json_object *copy;
        int r = import_value(json_object_array_get_idx(from, i), depth + 1, &copy, err);

        if (r < 0) {
            return r;
        }
        if (json_object_array_add(to, copy) < 0) {
            json_object_put(copy);
            return options_no_memory(err);
        }
    }
    *ret_json = TAKE_PTR(to);
    return 0;
}

/* Copy a value of a source, with dotted keys nested. JSON null is a NULL pointer. */
static int import_value(struct json_object *value, int depth, struct json_object **ret_json,
                        struct error *err)
{
    *ret_json = NULL;
    if (depth > OPTIONS_DEPTH_MAX) {
        return too_deep(err);
    }
    switch (json_object_get_type(value)) {
    case json_type_null:
        return 0;
    case json_type_object:
        return import_object(value, depth, ret_json, err);
    case json_type_array:
        return import_array(value, depth, ret_json, err);
    case json_type_string:
        if (strlen(json_object_get_string(value)) != (size_t)json_object_get_string_len(value)) {
            return error_set(err, EINVAL, "Strings in options must not contain NUL characters");
        }
        break;
    default:
        break;
    }
    return json_copy(value, ret_json) < 0 ? options_no_memory(err) : 0;
}

int options_from_json(struct json_object *object, struct options **ret_options, struct error *err)
{
    struct json_object *copy;
    int r;

    if (!options_is_object(object)) {
        return error_set(err, EINVAL, "Options must be a JSON object");
    }
    r = import_value(object, 0, &copy, err);
    if (r < 0) {
        return r;
    }
    *ret_options = options_wrap(copy);
    return *ret_options ? 0 : options_no_memory(err);
}

/* --- JSON text -------------------------------------------------------------------------------- */

static const struct json_limits json_limits = {
    .bytes = OPTIONS_TEXT_MAX,
    .tokens = OPTIONS_TEXT_MAX,
    .depth = OPTIONS_DEPTH_MAX,
    .memory = 64ul * OPTIONS_TEXT_MAX,
};

static int parse_json(const char *text, size_t size, struct options **ret_options,
                      struct error *err)
{
    struct json_object AUTO_JSON *object = NULL;
    int r = json_read_text(text, size, &json_limits, &object, err);

    return r < 0 ? r : options_from_json(object, ret_options, err);
}

/* --- key=value text --------------------------------------------------------------------------- */

/* Read a value up to a single comma or the end; ",," is a comma. Returns the rest of the text. */
static const char *read_value(const char *p, struct strbuf *value)
{
    for (;;) {
        size_t len = strcspn(p, ",");

        strbuf_append(value, p, len);
        p += len;
        if (p[0] != ',') {
            return p;
        }
        if (p[1] != ',') {
            return p + 1;
        }
        strbuf_append(value, ",", 1);
        p += 2;
    }
}

/* `strict`: an element without "=" is an error, unless it is the first one with `implied_key`. */
static int parse_pairs(const char *text, const char *implied_key, bool strict,
                       struct json_object *root, struct error *err)
{
    const char *p = text;

    while (*p) {
        STRBUF_AUTO(key);
        STRBUF_SECRET_AUTO(value);
        size_t len = strcspn(p, "=,");
        struct json_object *string;
        int r;

        if (p[len] == '=') {
            strbuf_append(&key, p, len);
            p = read_value(p + len + 1, &value);
        } else if (implied_key && p == text) {
            strbuf_puts(&key, implied_key);
            p = read_value(p, &value);
        } else if (strict) {
            return error_set(err, EINVAL, "Expected '=' after parameter '%.*s'", (int)len, p);
        } else {
            strbuf_append(&key, p, len);
            strbuf_puts(&value, "on");
            p += len + (p[len] == ',');
        }
        string = json_string_new(strbuf_str(&value), value.len);
        if (!string || key.failed || value.failed) {
            json_object_put(string);
            return options_no_memory(err);
        }
        drop_earlier_value(root, strbuf_str(&key));
        r = insert_path(root, strbuf_str(&key), string, 0, err);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static int check_text_size(size_t size, struct error *err)
{
    if (size > OPTIONS_TEXT_MAX) {
        return error_set(err, EINVAL, "Options are %zu bytes long; at most %d are accepted", size,
                         OPTIONS_TEXT_MAX);
    }
    return 0;
}

int options_parse_json(const char *text, struct options **ret_options, struct error *err)
{
    size_t size = strlen(text);
    int r = check_text_size(size, err);

    return r < 0 ? r : parse_json(text, size, ret_options, err);
}

static int parse_text(const char *text, const char *implied_key, bool strict,
                      struct options **ret_options, struct error *err)
{
    struct options *o;
    int r;

    if (text[0] == '{') {
        return options_parse_json(text, ret_options, err);
    }
    r = check_text_size(strlen(text), err);
    if (r < 0) {
        return r;
    }
    o = options_new();
    if (!options_usable(o)) {
        options_free(o);
        return options_no_memory(err);
    }
    o->is_text = true;
    r = parse_pairs(text, implied_key, strict, o->root, err);
    if (r < 0) {
        options_free(o);
        return r;
    }
    *ret_options = o;
    return 0;
}

int options_parse(const char *text, const char *implied_key, struct options **ret_options,
                  struct error *err)
{
    return parse_text(text, implied_key, false, ret_options, err);
}

int options_parse_strict(const char *text, const char *implied_key, struct options **ret_options,
                         struct error *err)
{
    return parse_text(text, implied_key, true, ret_options, err);
}

/* --- arguments of commands -------------------------------------------------------------------- */

/* -EINVAL for a key with dots, at any level. `path` is the path of the object. */
static int check_keys(struct json_object *value, const char *path, struct error *err)
{
    if (json_object_is_type(value, json_type_array)) {
        for (size_t i = 0; i < json_object_array_length(value); i++) {
            STRBUF_AUTO(element);
            int r;

            strbuf_printf(&element, "%.*s[%zu].", (int)strlen(path) - 1, path, i);
            r = check_keys(json_object_array_get_idx(value, i), strbuf_str(&element), err);
            if (r < 0) {
                return r;
            }
        }
    } else if (options_is_object(value)) {
        json_object_object_foreach(value, key, member)
        {
            STRBUF_AUTO(inner);
            int r;

            if (strchr(key, '.')) {
                return error_set(err, EINVAL, "Parameter '%s%s' is unexpected", path, key);
            }
            strbuf_printf(&inner, "%s%s.", path, key);
            r = check_keys(member, strbuf_str(&inner), err);
            if (r < 0) {
                return r;
            }
        }
    }
    return 0;
}

int options_from_arguments(struct json_object *object, struct options **ret_options,
                           struct error *err)
{
    int r = check_keys(object, "", err);

    UNLESS_FAILED(r, options_from_json(object, ret_options, err));
    if (r >= 0) {
        (*ret_options)->is_arguments = true;
        (*ret_options)->is_strict = true;
    }
    return r;
}

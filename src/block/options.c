/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An option tree is a JSON object whose keys have no dots (options_parse.c nests dotted keys of the
 * source). A tree that ran out of memory while it was built is "failed": every take reports that.
 */
#include "block/options.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/json_string.h"
#include "base/secret_memory.h"
#include "base/size.h"
#include "base/strbuf.h"
#include "block/options_tree.h"

/* --- life ------------------------------------------------------------------------------------- */

struct options *options_wrap(struct json_object *root)
{
    struct options *o = calloc(1, sizeof(*o));

    if (!o) {
        json_object_put(root);
        return NULL;
    }
    o->root = root;
    o->failed = !root;
    return o;
}

struct options *options_new(void)
{
    return options_wrap(json_object_new_object());
}

/* As options_wrap(), for the part `key` of `parent`: errors name the whole path. */
static struct options *wrap_part(const struct options *parent, const char *key,
                                 struct json_object *root)
{
    struct options *o = options_wrap(root);

    if (!o || !parent) {
        return o;
    }
    o->is_text = parent->is_text;
    o->is_arguments = parent->is_arguments;
    o->is_strict = parent->is_strict;
    if (o->is_arguments && asprintf(&o->prefix, "%s%s.", parent->prefix ?: "", key) < 0) {
        o->prefix = NULL;
        o->failed = true;
    }
    return o;
}

void options_free(struct options *o)
{
    if (o) {
        free(o->prefix);
        json_object_put(o->root);
        free(o);
    }
}

struct json_object *options_to_json(const struct options *o)
{
    struct json_object *copy = NULL;

    if (!options_usable(o) || json_copy(o->root, &copy) < 0) {
        return NULL;
    }
    return copy;
}

bool options_are_text(const struct options *o)
{
    return o->is_text;
}

bool options_are_arguments(const struct options *o)
{
    return o->is_arguments;
}

int options_from_element(const struct options *o, const char *key, size_t index,
                         struct json_object *element, struct options **ret_options,
                         struct error *err)
{
    STRBUF_AUTO(name);

    strbuf_printf(&name, "%s[%zu]", key, index);
    if (!options_is_object(element)) {
        return o->is_arguments
                   ? error_set(err, EINVAL, "Invalid parameter type for '%s%s', expected: object",
                               o->prefix ?: "", strbuf_str(&name))
                   : error_set(err, EINVAL, "Options must be a JSON object");
    }
    *ret_options = wrap_part(o, strbuf_str(&name), json_object_get(element));
    return options_usable(*ret_options) ? 0 : options_no_memory(err);
}

struct options *options_clone(const struct options *o)
{
    return options_wrap(options_to_json(o));
}

int options_add(struct json_object *object, const char *key, struct json_object *value,
                struct error *err)
{
    if (json_object_object_add(object, key, value) < 0) {
        json_object_put(value);
        return options_no_memory(err);
    }
    return 0;
}

/* --- look and set ----------------------------------------------------------------------------- */

bool options_is_empty(const struct options *o)
{
    return !o || json_object_object_length(o->root) == 0;
}

static bool get(const struct options *o, const char *key, struct json_object **ret_json)
{
    return o && json_object_object_get_ex(o->root, key, ret_json);
}

bool options_has(const struct options *o, const char *key)
{
    return get(o, key, NULL);
}

bool options_is_null(const struct options *o, const char *key)
{
    struct json_object *value;

    return get(o, key, &value) && !value;
}

bool options_is_text(const struct options *o, const char *key, const char *text)
{
    struct json_object *value;

    return get(o, key, &value) && json_object_is_type(value, json_type_string) &&
           strcmp(json_object_get_string(value), text) == 0;
}

void options_drop(struct options *o, const char *key)
{
    if (o) {
        json_object_object_del(o->root, key);
    }
}

/* `value` is consumed; NULL: out of memory, and the tree is failed. */
static void set(struct options *o, const char *key, struct json_object *value)
{
    if (!options_usable(o) || !value) {
        json_object_put(value);
        if (o) {
            o->failed = true;
        }
    } else if (options_add(o->root, key, value, NULL) < 0) {
        o->failed = true;
    }
}

void options_set_str(struct options *o, const char *key, const char *value)
{
    set(o, key, json_object_new_string(value));
}

void options_set_bool(struct options *o, const char *key, bool value)
{
    set(o, key, json_object_new_boolean(value));
}

void options_set_uint(struct options *o, const char *key, uint64_t value)
{
    set(o, key, json_object_new_uint64(value));
}

void options_set_child(struct options *o, const char *key, struct options *child)
{
    set(o, key, options_usable(child) ? json_object_get(child->root) : NULL);
    options_free(child);
}

void options_default_str(struct options *o, const char *key, const char *value)
{
    if (!options_has(o, key)) {
        options_set_str(o, key, value);
    }
}

void options_default_bool(struct options *o, const char *key, bool value)
{
    if (!options_has(o, key)) {
        options_set_bool(o, key, value);
    }
}

/* --- take ------------------------------------------------------------------------------------- */

/* 1: *ret_json is the value; 0: absent; or -ENOMEM. */
static int peek(const struct options *o, const char *key, struct json_object **ret_json,
                struct error *err)
{
    *ret_json = NULL;
    if (!options_usable(o)) {
        return options_no_memory(err);
    }
    return get(o, key, ret_json) ? 1 : 0;
}

static int wrong_type(const struct options *o, const char *key, const char *type, struct error *err)
{
    return error_set(err, EINVAL, "Invalid parameter type for '%s%s', expected: %s",
                     o->prefix ?: "", key, type);
}

/* As peek(), for a number: strict options refuse text. */
static int peek_number(const struct options *o, const char *key, struct json_object **ret_json,
                       struct error *err)
{
    int r = peek(o, key, ret_json, err);

    if (r > 0 && o->is_strict && !json_object_is_type(*ret_json, json_type_int)) {
        return wrong_type(o, key, "integer", err);
    }
    return r;
}

/* `type` is the expected type by the name of QEMU's schema. */
static int wrong_value(const struct options *o, const char *key, const char *type,
                       const char *expected, struct json_object *found, struct error *err)
{
    if (o->is_arguments) {
        return wrong_type(o, key, type, err);
    }
    return error_set(err, EINVAL, "Parameter '%s' expects %s; found %.100s", key, expected,
                     found ? json_object_to_json_string(found) : "null");
}

int options_take_str(struct options *o, const char *key, char **ret_text, struct error *err)
{
    struct json_object *value;
    char *copy = NULL;
    int r = peek(o, key, &value, err);

    if (r < 0) {
        return r;
    }
    if (r > 0) {
        if (!json_object_is_type(value, json_type_string)) {
            return wrong_value(o, key, "string", "a string", value, err);
        }
        copy = strdup(json_object_get_string(value));
        if (!copy) {
            return options_no_memory(err);
        }
        options_drop(o, key);
    }
    *ret_text = copy;
    return 0;
}

void options_wipe_str(struct options *o, const char *key)
{
    struct json_object *value;

    if (options_usable(o) && json_object_object_get_ex(o->root, key, &value) &&
        json_object_is_type(value, json_type_string)) {
        explicit_bzero((char *)(uintptr_t)json_object_get_string(value),
                       (size_t)json_object_get_string_len(value));
    }
}

int options_take_secret(struct options *o, const char *key, char **ret_text, struct error *err)
{
    struct json_object *value;
    char *copy = NULL;
    int r = peek(o, key, &value, err);

    if (r < 0) {
        return r;
    }
    if (r > 0) {
        size_t size = (size_t)json_object_get_string_len(value);

        if (!json_object_is_type(value, json_type_string)) {
            return wrong_value(o, key, "string", "a string", value, err);
        }
        copy = secret_alloc(size + 1);
        if (!copy) {
            return options_no_memory(err);
        }
        memcpy(copy, json_object_get_string(value), size);
        options_wipe_str(o, key);
        options_drop(o, key);
    }
    *ret_text = copy;
    return 0;
}

int options_take_text(struct options *o, const char *key, char **ret_text, struct error *err)
{
    struct json_object *value;
    int r = peek(o, key, &value, err);

    if (r > 0 && (json_object_is_type(value, json_type_int) ||
                  json_object_is_type(value, json_type_double))) {
        AUTO_FREE char *text = strdup(json_object_to_json_string(value));

        options_set_str(o, key, text ? text : "");
    }
    return r < 0 ? r : options_take_str(o, key, ret_text, err);
}

static int bool_of_string(const char *text)
{
    static const char *const names[][2] = {
        {"off", "on"}, {"no", "yes"}, {"false", "true"}, {"n", "y"}};

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        for (int v = 0; v < 2; v++) {
            if (strcmp(text, names[i][v]) == 0) {
                return v;
            }
        }
    }
    return -1;
}

int options_take_bool(struct options *o, const char *key, bool dflt, bool *ret_flag,
                      struct error *err)
{
    struct json_object *value;
    int v = dflt;
    int r = peek(o, key, &value, err);

    if (r < 0) {
        return r;
    }
    if (r > 0) {
        v = -1;
        if (json_object_is_type(value, json_type_boolean)) {
            v = json_object_get_boolean(value);
        } else if (o->is_strict) {
            return wrong_type(o, key, "boolean", err);
        } else if (json_object_is_type(value, json_type_string)) {
            v = bool_of_string(json_object_get_string(value));
        }
        if (v < 0) {
            return error_set(err, EINVAL, "Parameter '%s%s' expects 'on' or 'off'", o->prefix ?: "",
                             key);
        }
        options_drop(o, key);
    }
    *ret_flag = v != 0;
    return 0;
}

/* Decimal or 0x hexadecimal digits and nothing else. */
static bool uint_of_string(const char *text, uint64_t *ret_value)
{
    bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    char *end;

    if (text[0] < '0' || text[0] > '9') {
        return false;
    }
    errno = 0;
    *ret_value = strtoull(text, &end, hex ? 16 : 10);
    return errno == 0 && *end == '\0';
}

static bool uint_of_json(struct json_object *value, uint64_t *ret_value)
{
    if (!json_object_is_type(value, json_type_int) || json_object_get_int64(value) < 0) {
        return false;
    }
    *ret_value = json_object_get_uint64(value);
    return true;
}

/* -EINVAL: a number out of range, or text that is not a number. */
static int wrong_number(const struct options *o, const char *key, const char *expected,
                        struct json_object *found, struct error *err)
{
    return error_set(err, EINVAL, "Parameter '%s%s' expects %s; found %.100s", o->prefix ?: "", key,
                     expected, found ? json_object_to_json_string(found) : "null");
}

int options_take_uint(struct options *o, const char *key, uint64_t dflt, uint64_t max,
                      uint64_t *ret_value, struct error *err)
{
    struct json_object *value;
    uint64_t v = dflt;
    int r = peek_number(o, key, &value, err);

    if (r < 0) {
        return r;
    }
    if (r > 0) {
        bool fits = json_object_is_type(value, json_type_string)
                        ? uint_of_string(json_object_get_string(value), &v)
                        : uint_of_json(value, &v);

        if (!fits || v > max) {
            char expected[48];

            snprintf(expected, sizeof(expected), "a number from 0 to %llu",
                     (unsigned long long)max);
            return wrong_number(o, key, expected, value, err);
        }
        options_drop(o, key);
    }
    *ret_value = v;
    return 0;
}

int options_take_size(struct options *o, const char *key, uint64_t dflt, uint64_t *ret_value,
                      struct error *err)
{
    struct json_object *value;
    uint64_t v = dflt;
    int r = peek_number(o, key, &value, err);

    if (r < 0) {
        return r;
    }
    if (r > 0) {
        if (json_object_is_type(value, json_type_string)) {
            char what[OPTIONS_KEY_MAX + 16];

            snprintf(what, sizeof(what), "Parameter '%s'", key);
            r = size_parse(json_object_get_string(value), what, &v, err);
            if (r < 0) {
                return -EINVAL;
            }
        } else if (!uint_of_json(value, &v) || v > INT64_MAX) {
            return wrong_number(o, key, "a size in bytes", value, err);
        }
        options_drop(o, key);
    }
    *ret_value = v;
    return 0;
}

int options_take_enum(struct options *o, const char *key, const char *const *names, int dflt,
                      int *ret_value, struct error *err)
{
    struct json_object *value;
    const char *text;
    int r = peek(o, key, &value, err);

    if (r < 0) {
        return r;
    }
    if (r == 0) {
        *ret_value = dflt;
        return 0;
    }
    if (!json_object_is_type(value, json_type_string)) {
        return wrong_value(o, key, "string", "a string", value, err);
    }
    text = json_object_get_string(value);
    for (int i = 0; names[i]; i++) {
        if (strcmp(text, names[i]) == 0) {
            options_drop(o, key);
            *ret_value = i;
            return 0;
        }
    }
    return error_set(err, EINVAL, "Parameter '%s' does not accept value '%.100s'", key, text);
}

int options_take_child(struct options *o, const char *key, struct options **ret_child,
                       char **ret_node_name, struct error *err)
{
    struct json_object *value;
    struct options *child;
    int r = peek(o, key, &value, err);

    if (r < 0) {
        return r;
    }
    if (r == 0 || !value) {
        *ret_child = NULL;
        *ret_node_name = NULL;
        return 0;
    }
    if (json_object_is_type(value, json_type_string)) {
        r = options_take_str(o, key, ret_node_name, err);
        if (r >= 0) {
            *ret_child = NULL;
        }
        return r;
    }
    if (!options_is_object(value)) {
        return wrong_value(o, key,
                           strcmp(key, "backing") == 0 ? "BlockdevRefOrNull" : "BlockdevRef",
                           "a node name or options of a node", value, err);
    }
    child = wrap_part(o, key, json_object_get(value));
    if (!child) {
        return options_no_memory(err);
    }
    options_drop(o, key);
    *ret_child = child;
    *ret_node_name = NULL;
    return 0;
}

/* {"0": a, "1": b} -> [a, b]; -EINVAL if the numbers have gaps. */
static int list_of_object(const char *key, struct json_object *object,
                          struct json_object **ret_json, struct error *err)
{
    struct json_object AUTO_JSON *list = json_object_new_array();
    int count = json_object_object_length(object);

    if (!list) {
        return options_no_memory(err);
    }
    for (int i = 0; i < count; i++) {
        struct json_object *value;
        char index[16];

        snprintf(index, sizeof(index), "%d", i);
        if (!json_object_object_get_ex(object, index, &value)) {
            return error_set(err, EINVAL, "Parameter '%s' is a list and lacks '%s.%s'", key, key,
                             index);
        }
        if (json_object_array_add(list, json_object_get(value)) < 0) {
            json_object_put(value);
            return options_no_memory(err);
        }
    }
    *ret_json = TAKE_PTR(list);
    return 0;
}

int options_take_list(struct options *o, const char *key, struct json_object **ret_json,
                      struct error *err)
{
    struct json_object *value, *list = NULL;
    int r = peek(o, key, &value, err);

    if (r < 0) {
        return r;
    }
    if (r == 0) {
        *ret_json = NULL;
        return 0;
    }
    if (json_object_is_type(value, json_type_array)) {
        list = json_object_get(value);
    } else if (options_is_object(value)) {
        r = list_of_object(key, value, &list, err);
        if (r < 0) {
            return r;
        }
    } else {
        return wrong_value(o, key, "array", "a list", value, err);
    }
    options_drop(o, key);
    *ret_json = list;
    return 0;
}

int options_wrong_choice(const struct options *o, const char *key, const char *value,
                         struct error *err)
{
    return o->is_arguments
               ? error_set(err, EINVAL, "Parameter '%s' does not accept value '%s'", key, value)
               : error_set(err, EINVAL, "Unknown %s '%s'", key, value);
}

int options_missing(const struct options *o, const char *key, struct error *err)
{
    return error_set(err, EINVAL, "Parameter '%s%s' is missing", o && o->prefix ? o->prefix : "",
                     key);
}

int options_no_child(const struct options *o, const char *name, struct error *err)
{
    return o->is_arguments
               ? options_missing(o, name, err)
               : error_set(err, EINVAL, "A block device must be specified for \"%s\"", name);
}

int options_no_filename(const struct options *o, const char *driver, struct error *err)
{
    return o->is_arguments
               ? options_missing(o, "filename", err)
               : error_set(err, EINVAL, "The '%s' block driver requires a file name", driver);
}

int options_check_identifier(const char *key, const char *id, struct error *err)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                                  "-._";

    if (isalpha((unsigned char)id[0]) && !id[strspn(id, letters)]) {
        return 0;
    }
    error_set(err, EINVAL, "Parameter '%s' expects an identifier", key);
    error_hint(err, "Identifiers consist of letters, digits, '-', '.', '_', starting with a "
                    "letter.");
    return -EINVAL;
}

int options_check_empty(const struct options *o, const char *what, struct error *err)
{
    STRBUF_AUTO(path);
    struct json_object *object;

    if (!options_usable(o)) {
        return options_no_memory(err);
    }
    object = o->root;
    while (options_is_object(object) && json_object_object_length(object) > 0) {
        struct json_object_iterator it = json_object_iter_begin(object);

        strbuf_printf(&path, "%s%s", path.len ? "." : "", json_object_iter_peek_name(&it));
        object = json_object_iter_peek_value(&it);
    }
    if (path.len == 0) {
        return 0;
    }
    if (o->is_arguments) {
        return error_set(err, EINVAL, "Parameter '%s%s' is unexpected", o->prefix ?: "",
                         strbuf_str(&path));
    }
    /* QEMU has two sentences for this. */
    return error_set(err, EINVAL, "%s %s support the option '%s'", what,
                     strncmp(what, "Block protocol", 14) == 0 ? "doesn't" : "does not",
                     strbuf_str(&path));
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

/*
 * The order in which QEMU's tools print members. Scripts compare the output as text, and people
 * expect it. Members that are not listed follow in the order they have.
 */
static const char *const key_order[] = {
    "compat",
    "icount",
    "flags",
    "vm-clock-nsec",
    "image-end-offset",
    "name",
    "compressed-clusters",
    "compression-type",
    "compressed",
    "lazy-refcounts",
    "date-sec",
    "bitmaps",
    "refcount-bits",
    "total-clusters",
    "extent-size-hint",
    "corruptions",
    "data-file",
    "corruptions-fixed",
    "check-errors",
    "children",
    "backing-filename-format",
    "date-nsec",
    "granularity",
    "required",
    "leaks",
    "snapshots",
    "leaks-fixed",
    "allocated-clusters",
    "virtual-size",
    "filename",
    "cluster-size",
    "fully-allocated",
    "ivgen-alg",
    "detached-header",
    "hash-alg",
    "cipher-alg",
    "uuid",
    "format",
    "ivgen-hash-alg",
    "cipher-mode",
    "slots",
    "payload-offset",
    "master-key-iters",
    "encrypt",
    "actual-size",
    "format-specific",
    "data-file-raw",
    "full-backing-filename",
    "vm-clock-sec",
    "encrypted",
    "type",
    "backing-filename",
    "corrupt",
    "fragmented-clusters",
    "id",
    "vm-state-size",
    "info",
    "dirty-flag",
    "extended-l2",
    "data",
};

static size_t rank_of(const char *key)
{
    for (size_t i = 0; i < ARRAY_SIZE(key_order); i++) {
        if (strcmp(key, key_order[i]) == 0) {
            return i;
        }
    }
    return ARRAY_SIZE(key_order);
}

/* The names of members in that order, NULL at the end; borrowed. The caller frees the array. */
static const char **sorted_keys(struct json_object *object)
{
    size_t n = 0;
    const char **keys = calloc((size_t)json_object_object_length(object) + 1, sizeof(*keys));

    if (!keys) {
        return NULL;
    }
    json_object_object_foreach(object, key, value)
    {
        size_t at = n++;

        (void)value;
        while (at > 0 && rank_of(keys[at - 1]) > rank_of(key)) {
            keys[at] = keys[at - 1];
            at--;
        }
        keys[at] = key;
    }
    return keys;
}

static void print_value(struct json_object *value, int level);

static void print_key(const char *key)
{
    struct json_object *text = json_object_new_string(key);

    printf("%s: ", json_object_to_json_string_ext(text, JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(text);
}

static void print_object(struct json_object *object, int level)
{
    const char **keys = sorted_keys(object);

    printf("{\n");
    for (size_t i = 0; keys && keys[i]; i++) {
        printf("%*s", (level + 1) * 4, "");
        print_key(keys[i]);
        print_value(json_object_object_get(object, keys[i]), level + 1);
        printf("%s\n", keys[i + 1] ? "," : "");
    }
    printf("%*s}", level * 4, "");
    free(keys);
}

static void print_array(struct json_object *array, int level)
{
    size_t n = json_object_array_length(array);

    printf("[\n");
    for (size_t i = 0; i < n; i++) {
        printf("%*s", (level + 1) * 4, "");
        print_value(json_object_array_get_idx(array, i), level + 1);
        printf("%s\n", i + 1 < n ? "," : "");
    }
    printf("%*s]", level * 4, "");
}

static void print_value(struct json_object *value, int level)
{
    switch (json_object_get_type(value)) {
    case json_type_object:
        print_object(value, level);
        break;
    case json_type_array:
        print_array(value, level);
        break;
    default:
        printf("%s", json_object_to_json_string_ext(value, JSON_C_TO_STRING_NOSLASHESCAPE));
    }
}

void cli_print_json(struct json_object *json)
{
    print_value(json, 0);
    printf("\n");
}

/* --- for people ------------------------------------------------------------------------------- */

/* Print "key:" (or "[index]:") and the value after it, or below it if the value has members. */
static void print_branch(const char *key, size_t index, struct json_object *value, int level)
{
    enum json_type type = json_object_get_type(value);

    printf("%*s", level * 4, "");
    if (key) {
        for (const char *p = key; *p; p++) {
            putchar(*p == '-' ? ' ' : *p);
        }
        putchar(':');
    } else {
        printf("[%zu]:", index);
    }
    if (type == json_type_object || type == json_type_array) {
        printf("\n");
        cli_print_tree(value, level + 1);
    } else {
        printf(" %s\n", json_object_get_string(value));
    }
}

void cli_print_tree(struct json_object *value, int level)
{
    if (json_object_is_type(value, json_type_object)) {
        const char **keys = sorted_keys(value);

        for (size_t i = 0; keys && keys[i]; i++) {
            print_branch(keys[i], 0, json_object_object_get(value, keys[i]), level);
        }
        free(keys);
    } else {
        for (size_t i = 0; i < json_object_array_length(value); i++) {
            print_branch(NULL, i, json_object_array_get_idx(value, i), level);
        }
    }
}

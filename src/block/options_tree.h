/* SPDX-License-Identifier: Apache-2.0 */
/* What the two halves of the option trees share. Included by options*.c only. */
#ifndef TIDEMARK_BLOCK_OPTIONS_TREE_H
#define TIDEMARK_BLOCK_OPTIONS_TREE_H

#include "base/cleanup.h"
#include "base/error.h"
#include "block/options.h"

#define OPTIONS_KEY_MAX 255 /* bytes of one part of a key */

struct options {
    /* An object; no key has dots, at any level. */
    struct json_object *root;
    /* Out of memory. */
    bool failed;
    /* From key=value text: all values are strings. */
    bool is_text;
    /* Of a command: errors are worded as in QEMU's schema. */
    bool is_arguments;
    /* Values must have their types; strings are not converted. */
    bool is_strict;
    /* Owned; the path of this tree in the arguments: "file."; NULL: the top. */
    char *prefix;
};

/* For AUTO_JSON. */
static inline void options_cleanup_json(struct json_object **object)
{
    json_object_put(*object);
}
#define AUTO_JSON CLEANUP(options_cleanup_json)

/* Whether there is a tree, and memory has sufficed for it. */
static inline bool options_usable(const struct options *o)
{
    return o && !o->failed;
}

/* Whether a value is a group of options. */
static inline bool options_is_object(struct json_object *v)
{
    return json_object_is_type(v, json_type_object);
}

/* A tree of `root` (consumed; NULL makes a failed tree). NULL: no memory. */
struct options *options_wrap(struct json_object *root);

/* Report -ENOMEM. */
static inline int options_no_memory(struct error *err)
{
    return error_set(err, ENOMEM, "Out of memory for options");
}

/* Add to a JSON object, consuming `value` in any case. 0 or -ENOMEM. */
int options_add(struct json_object *object, const char *key, struct json_object *value,
                struct error *err);

#endif

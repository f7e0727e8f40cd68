/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/migrate_mapping.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "block/bitmaps.h"
#include "qmp/answer.h"
#include "qmp/schema.h"
#include "schema/define.h"

#define NODE_NAME_MAX 31

static struct json_object *mapping; /* NULL: none */

/* --- looking up ------------------------------------------------------------------------------- */

/* The first of `count` entries of a list whose member `key` is `value`. */
static struct json_object *find_alias_entry(struct json_object *list, size_t count, const char *key,
                                            const char *value)
{
    for (size_t i = 0; i < count; i++) {
        struct json_object *o = json_object_array_get_idx(list, i);

        if (strcmp(qmp_get_str(o, key), value) == 0) {
            return o;
        }
    }
    return NULL;
}

bool migrate_has_mapping(void)
{
    return mapping != NULL;
}

struct json_object *migrate_find_node(const char *name, bool by_alias)
{
    return find_alias_entry(mapping, json_object_array_length(mapping),
                            by_alias ? "alias" : "node-name", name);
}

struct json_object *migrate_find_bitmap(struct json_object *node, const char *name, bool by_alias)
{
    struct json_object *list = qmp_get(node, "bitmaps");

    return find_alias_entry(list, json_object_array_length(list), by_alias ? "alias" : "name",
                            name);
}

bool migrate_bitmap_persistent(struct json_object *bitmap, bool before)
{
    struct json_object *transform = bitmap ? qmp_get(bitmap, "transform") : NULL;

    return transform ? qmp_get_bool(transform, "persistent", before) : before;
}

/* --- checks ----------------------------------------------------------------------------------- */

static int check_length(const char *what, const char *name, size_t max, struct error *err)
{
    return strlen(name) <= max
               ? 0
               : error_set(err, EINVAL, "The %s '%s' is longer than %zu bytes", what, name, max);
}

static bool is_wellformed(const char *id)
{
    if (!isalpha((unsigned char)id[0])) {
        return false;
    }
    for (; *id; id++) {
        if (!isalnum((unsigned char)*id) && !strchr("-._", *id)) {
            return false;
        }
    }
    return true;
}

static int check_bitmap_alias(struct json_object *node, struct json_object *list, size_t index,
                              struct error *err)
{
    struct json_object *o = json_object_array_get_idx(list, index);
    const char *name = qmp_get_str(o, "name"), *alias = qmp_get_str(o, "alias");
    int r = check_length("bitmap alias", alias, MIGRATE_ALIAS_MAX, err);

    UNLESS_FAILED(r, check_length("bitmap name", name, BLOCK_BITMAP_NAME_MAX, err));
    if (r >= 0 && find_alias_entry(list, index, "name", name)) {
        r = error_set(err, EINVAL, "The bitmap '%s'/'%s' is mapped twice",
                      qmp_get_str(node, "node-name"), name);
    }
    if (r >= 0 && find_alias_entry(list, index, "alias", alias)) {
        r = error_set(err, EINVAL, "The bitmap alias '%s'/'%s' is used twice",
                      qmp_get_str(node, "alias"), alias);
    }
    return r;
}

static int check_node_alias(struct json_object *list, size_t index, struct error *err)
{
    struct json_object *o = json_object_array_get_idx(list, index);
    struct json_object *bitmaps = qmp_get(o, "bitmaps");
    const char *name = qmp_get_str(o, "node-name"), *alias = qmp_get_str(o, "alias");
    int r = is_wellformed(alias)
                ? 0
                : error_set(err, EINVAL, "The node alias '%s' is not well-formed", alias);

    UNLESS_FAILED(r, check_length("node alias", alias, MIGRATE_ALIAS_MAX, err));
    UNLESS_FAILED(r, check_length("node name", name, NODE_NAME_MAX, err));
    if (r >= 0 && find_alias_entry(list, index, "node-name", name)) {
        r = error_set(err, EINVAL, "The node name '%s' is mapped twice", name);
    }
    if (r >= 0 && find_alias_entry(list, index, "alias", alias)) {
        r = error_set(err, EINVAL, "The node alias '%s' is used twice", alias);
    }
    for (size_t i = 0; i < json_object_array_length(bitmaps) && r >= 0; i++) {
        r = check_bitmap_alias(o, bitmaps, i, err);
    }
    return r;
}

int migrate_set_mapping(struct json_object *new, struct error *err)
{
    int r = 0;

    for (size_t i = 0; i < json_object_array_length(new) && r >= 0; i++) {
        r = check_node_alias(new, i, err);
    }
    if (r < 0) {
        error_prepend(err, "Invalid mapping given for block-bitmap-mapping: ");
        return r;
    }
    migrate_free_mapping();
    mapping = json_object_get(new);
    return 0;
}

void migrate_free_mapping(void)
{
    json_object_put(mapping);
    mapping = NULL;
}

void migrate_print_mapping(struct strbuf *text)
{
    if (!mapping) {
        return;
    }
    strbuf_puts(text, "block-bitmap-mapping:\n");
    for (size_t i = 0; i < json_object_array_length(mapping); i++) {
        struct json_object *o = json_object_array_get_idx(mapping, i);
        struct json_object *bitmaps = qmp_get(o, "bitmaps");

        strbuf_printf(text, "  '%s' -> '%s'\n", qmp_get_str(o, "node-name"),
                      qmp_get_str(o, "alias"));
        for (size_t j = 0; j < json_object_array_length(bitmaps); j++) {
            struct json_object *b = json_object_array_get_idx(bitmaps, j);

            strbuf_printf(text, "    '%s' -> '%s'\n", qmp_get_str(b, "name"),
                          qmp_get_str(b, "alias"));
        }
    }
}

/* --- types ------------------------------------------------------------------------------------ */

OBJECT(transform, "BitmapMigrationBitmapAliasTransform", OPT("persistent", schema_bool));
OBJECT(bitmap_alias, "BitmapMigrationBitmapAlias", REQ("name", schema_str),
       REQ("alias", schema_str), OPT("transform", transform));
ARRAY(bitmap_aliases, bitmap_alias);
OBJECT(node_alias, "BitmapMigrationNodeAlias", REQ("node-name", schema_str),
       REQ("alias", schema_str), REQ("bitmaps", bitmap_aliases));
const struct schema_type migrate_mapping_type =
    ARRAY_INIT("BitmapMigrationNodeAliasList", node_alias);

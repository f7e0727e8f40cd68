/* SPDX-License-Identifier: Apache-2.0 */
#include "block/user_object.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "schema/define.h"

#define TYPES_MAX 16

struct user_object {
    struct list link;
    const struct user_object_type *type;
    char *id; /* owned */
    void *data;
    unsigned users;
};

static const struct user_object_type *types[TYPES_MAX];
static size_t type_count;
static struct list objects = LIST_INIT(objects);

void user_object_register_type(const struct user_object_type *type)
{
    assert(type_count < TYPES_MAX);
    types[type_count++] = type;
}

const struct user_object_type *user_object_next_type(const struct user_object_type *type)
{
    const struct user_object_type *next = NULL;

    for (size_t i = 0; i < type_count; i++) {
        if ((!type || strcmp(types[i]->name, type->name) > 0) &&
            (!next || strcmp(types[i]->name, next->name) < 0)) {
            next = types[i];
        }
    }
    return next;
}

/* --- the type of options ---------------------------------------------------------------------- */

/* The options of a type that does not describe them: it checks them itself. */
static const struct schema_type undescribed = {
    .kind = SCHEMA_OBJECT,
    .name = "UndescribedProperties",
    .members = (const struct schema_member[]){{NULL}},
    .open = true,
};

static const struct schema_variant *get_properties(void)
{
    static struct schema_variant variants[TYPES_MAX + 1];
    const struct user_object_type *type = NULL;

    for (size_t i = 0; (type = user_object_next_type(type)); i++) {
        variants[i] =
            (struct schema_variant){type->name, type->properties ? type->properties : &undescribed};
    }
    return variants;
}

static const char *const *get_type_names(void)
{
    static const char *names[TYPES_MAX + 1];
    const struct user_object_type *type = NULL;

    for (size_t i = 0; (type = user_object_next_type(type)); i++) {
        names[i] = type->name;
    }
    return names;
}

static const struct schema_type type_names = {
    .kind = SCHEMA_ENUM,
    .name = "ObjectType",
    .get_values = get_type_names,
};
const struct schema_type user_object_options_type = {
    .kind = SCHEMA_OBJECT,
    .name = "ObjectOptions",
    .members = MEMBERS(REQ("qom-type", type_names), REQ("id", schema_str)),
    .tag = "qom-type",
    .get_variants = get_properties,
};

/* Check the options, and give them their types. `opts` is replaced. */
static int check_types(struct options **opts, struct error *err)
{
    struct json_object *args = options_to_json(*opts);
    struct options *checked = NULL;
    int r = args ? schema_check(&user_object_options_type, args,
                                options_are_text(*opts) ? SCHEMA_CHECK_KEYVAL : 0, err)
                 : error_out_of_memory(err);

    UNLESS_FAILED(r, options_from_arguments(args, &checked, err));
    json_object_put(args);
    if (r >= 0) {
        options_free(*opts);
        *opts = checked;
    }
    return r;
}

/* --- objects ---------------------------------------------------------------------------------- */

static const struct user_object_type *find_type(const char *name)
{
    for (size_t i = 0; i < type_count; i++) {
        if (strcmp(types[i]->name, name) == 0) {
            return types[i];
        }
    }
    return NULL;
}

static struct user_object *find(const char *id)
{
    struct user_object *o;

    LIST_FOREACH (o, &objects, link) {
        if (strcmp(o->id, id) == 0) {
            return o;
        }
    }
    return NULL;
}

static bool is_identifier(const char *id)
{
    if (!isalpha((unsigned char)id[0])) {
        return false;
    }
    for (const char *p = id; *p; p++) {
        if (!isalnum((unsigned char)*p) && !strchr("-._", *p)) {
            return false;
        }
    }
    return true;
}

/* Take and check the type and the id. */
static int take_head(struct options *opts, const struct user_object_type **ret_type, char **ret_id,
                     struct error *err)
{
    AUTO_FREE char *type = NULL, *id = NULL;
    int r = options_take_str(opts, "qom-type", &type, err);

    if (r == 0) {
        r = options_take_str(opts, "id", &id, err);
    }
    if (r < 0) {
        return r;
    }
    if (!type || !id) {
        return error_set(err, EINVAL, "Parameter '%s' is missing", type ? "id" : "qom-type");
    }
    *ret_type = find_type(type);
    if (!*ret_type) {
        return error_set(err, EINVAL, "Parameter 'qom-type' does not accept value '%s'", type);
    }
    if (!is_identifier(id)) {
        int code = error_set(err, EINVAL, "Parameter 'id' expects an identifier");

        error_hint(err, "Identifiers consist of letters, digits, '-', '.', '_', starting with a "
                        "letter.");
        return code;
    }
    if (find(id)) {
        return error_set(err, EEXIST,
                         "attempt to add duplicate property '%s' to object (type 'container')", id);
    }
    *ret_id = TAKE_PTR(id);
    return 0;
}

/* -EINVAL if create() has left options. */
static int check_taken(const struct options *opts, struct error *err)
{
    struct json_object *left = options_to_json(opts);
    int r = 0;

    json_object_object_foreach(left, key, value)
    {
        (void)value;
        r = error_set(err, EINVAL, "Parameter '%s' is unexpected", key);
    }
    json_object_put(left);
    return r;
}

int user_object_add(struct options *opts_, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_;
    const struct user_object_type *type = NULL;
    AUTO_FREE char *id = NULL;
    struct user_object *o;
    void *data = NULL;
    int r = check_types(&opts, err);

    UNLESS_FAILED(r, take_head(opts, &type, &id, err));
    if (r < 0 || !type) {
        return r;
    }
    r = type->create(id, opts, &data, err);
    if (r < 0) {
        return r;
    }
    r = check_taken(opts, err);
    o = r < 0 ? NULL : calloc(1, sizeof(*o));
    if (!o) {
        type->destroy(data);
        return r < 0 ? r : error_out_of_memory(err);
    }
    o->type = type;
    o->id = TAKE_PTR(id);
    o->data = data;
    list_append(&objects, &o->link);
    return 0;
}

static void destroy(struct user_object *o)
{
    list_remove(&o->link);
    o->type->destroy(o->data);
    free(o->id);
    free(o);
}

int user_object_del(const char *id, struct error *err)
{
    struct user_object *o = find(id);

    if (!o) {
        return error_set(err, ENOENT, "object '%s' not found", id);
    }
    if (o->users > 0) {
        return error_set(err, EBUSY, "object '%s' is in use, can not be deleted", id);
    }
    destroy(o);
    return 0;
}

struct user_object *user_object_ref(const char *id)
{
    struct user_object *o = find(id);

    if (o) {
        o->users++;
    }
    return o;
}

void user_object_unref(struct user_object *o)
{
    if (o) {
        o->users--;
    }
}

const struct user_object_type *user_object_type_of(const struct user_object *o)
{
    return o->type;
}

void *user_object_data(const struct user_object *o)
{
    return o->data;
}

void user_objects_release(void)
{
    while (!list_is_empty(&objects)) {
        destroy(container_of(objects.prev, struct user_object, link));
    }
}

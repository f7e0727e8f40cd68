/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qom-list, qom-get, qom-set, qom-list-types, qom-list-properties: objects as a tree, and their
 * properties.
 *
 *   /            a container
 *   /objects     a container: what object-add and --object have made
 *   /objects/ID  its properties are its options
 *   /chardevs    a container: what chardev-add and --chardev have made
 *   /chardevs/ID its type, and of a socket whether it is connected
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/strbuf.h"
#include "block/user_object.h"
#include "chardev/chardev.h"
#include "qmp/commands.h"

/* A place in the tree: an object, a chardev, or the container of that name. */
struct place {
    const char *container; /* "": the root */
    struct user_object *object;
    const struct chardev *chardev;
};

static const char *const containers[] = {"objects", "chardevs"};

static struct user_object *find_qom_object(const char *id, size_t length)
{
    struct user_object *o = NULL;

    while ((o = user_object_next(o))) {
        if (strlen(user_object_id(o)) == length && strncmp(user_object_id(o), id, length) == 0) {
            return o;
        }
    }
    return NULL;
}

static const struct chardev *find_qom_chardev(const char *id, size_t length)
{
    const struct chardev *c = NULL;

    while ((c = chardev_next(c))) {
        if (!chardev_is_opening(c) && strlen(chardev_id(c)) == length &&
            strncmp(chardev_id(c), id, length) == 0) {
            return c;
        }
    }
    return NULL;
}

/* "chardev-socket". */
static const char *qom_type_of(const struct place *p)
{
    static char type[64];

    if (p->object) {
        return user_object_type_of(p->object)->name;
    }
    if (!p->chardev) {
        return "container";
    }
    snprintf(type, sizeof(type), "chardev-%s", chardev_type(p->chardev));
    return type;
}

/* --- paths ------------------------------------------------------------------------------------ */

/* Go to the child of that name. False: there is none. */
static bool enter_object(struct place *p, const char *name, size_t length)
{
    if (p->object || p->chardev) {
        return false;
    }
    for (size_t i = 0; p->container[0] == '\0' && i < ARRAY_SIZE(containers); i++) {
        if (strlen(containers[i]) == length && strncmp(containers[i], name, length) == 0) {
            p->container = containers[i];
            return true;
        }
    }
    if (strcmp(p->container, "objects") == 0) {
        p->object = find_qom_object(name, length);
    } else if (strcmp(p->container, "chardevs") == 0) {
        p->chardev = find_qom_chardev(name, length);
    }
    return p->object || p->chardev;
}

/* Follow `path`, whose parts are separated by any number of '/', from a place. */
static bool follow(struct place *p, const char *path)
{
    while (*path) {
        size_t length = strcspn(path, "/");

        if (length > 0 && !enter_object(p, path, length)) {
            return false;
        }
        path += length + (path[length] == '/');
    }
    return true;
}

/* Count the places from which a partial path leads somewhere; *ret_place is the last one. */
static unsigned count_matches(const char *path, struct place *ret_place)
{
    struct place p = {.container = ""};
    struct user_object *o = NULL;
    const struct chardev *c = NULL;
    unsigned count = 0;

    for (size_t i = 0; i <= ARRAY_SIZE(containers); i++) {
        if (follow(&p, path)) {
            *ret_place = p;
            count++;
        }
        p = (struct place){.container = i < ARRAY_SIZE(containers) ? containers[i] : ""};
    }
    while ((o = user_object_next(o))) {
        p = (struct place){.container = "objects", .object = o};
        if (follow(&p, path)) {
            *ret_place = p;
            count++;
        }
    }
    while ((c = chardev_next(c))) {
        p = (struct place){.container = "chardevs", .chardev = c};
        if (follow(&p, path)) {
            *ret_place = p;
            count++;
        }
    }
    return count;
}

static int find_place(struct json_object *args, struct place *ret_place, struct error *err)
{
    const char *path = qmp_get_str(args, "path");
    struct place p = {.container = ""};
    unsigned count;

    if (path[0] == '/') {
        count = follow(&p, path);
    } else {
        count = count_matches(path, &p);
    }
    if (count > 1) {
        return error_set(err, EINVAL, "Path '%s' is ambiguous", path);
    }
    if (count == 0) {
        return error_set_class(err, ERROR_CLASS_DEVICE_NOT_FOUND, ENOENT, "Device '%s' not found",
                               path);
    }
    *ret_place = p;
    return 0;
}

/* --- properties ------------------------------------------------------------------------------- */

static void add_property(struct json_object *list, const char *name, const char *type)
{
    struct json_object *o = json_object_new_object();

    qmp_put_str(o, "name", name);
    qmp_put_str(o, "type", type);
    json_object_array_add(list, o);
}

static void add_qom_child(struct json_object *list, const char *name, const char *type)
{
    STRBUF_AUTO(child);

    strbuf_printf(&child, "child<%s>", type);
    add_property(list, name, strbuf_str(&child));
}

/* What QEMU calls the type of a property. */
static const char *qom_property_type(const struct schema_type *type)
{
    switch (type->kind) {
    case SCHEMA_STR:
        return "string";
    case SCHEMA_BOOL:
        return "bool";
    case SCHEMA_ARRAY:
        return type->element->name;
    case SCHEMA_ENUM:
    case SCHEMA_OBJECT:
        return type->name;
    default:
        return "int";
    }
}

static struct json_object *type_properties(const struct user_object_type *type)
{
    struct json_object *list = json_object_new_array();

    add_property(list, "type", "string");
    for (const struct schema_member *m = type && type->properties ? type->properties->members
                                                                  : NULL;
         m && m->name; m++) {
        add_property(list, m->name, qom_property_type(m->type));
    }
    return list;
}

static struct json_object *children_of(const char *container)
{
    struct json_object *list = type_properties(NULL);
    const struct chardev *c = NULL;
    struct user_object *o = NULL;

    for (size_t i = 0; container[0] == '\0' && i < ARRAY_SIZE(containers); i++) {
        add_qom_child(list, containers[i], "container");
    }
    while (strcmp(container, "objects") == 0 && (o = user_object_next(o))) {
        add_qom_child(list, user_object_id(o), user_object_type_of(o)->name);
    }
    while (strcmp(container, "chardevs") == 0 && (c = chardev_next(c))) {
        if (!chardev_is_opening(c)) {
            add_qom_child(list, chardev_id(c), qom_type_of(&(struct place){.chardev = c}));
        }
    }
    return list;
}

static bool is_socket(const struct chardev *c)
{
    return strcmp(chardev_type(c), "socket") == 0;
}

static struct json_object *chardev_properties(const struct chardev *c)
{
    struct json_object *list = type_properties(NULL);

    if (is_socket(c)) {
        add_property(list, "connected", "bool");
    }
    return list;
}

int qmp_co_qom_list(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,
                    struct error *err)
{
    struct place p;
    int r = find_place(args, &p, err);

    if (r >= 0) {
        *ret_value = p.object    ? type_properties(user_object_type_of(p.object))
                     : p.chardev ? chardev_properties(p.chardev)
                                 : children_of(p.container);
    }
    return r;
}

/* The path of a child, which is the value of the property that shows it. */
static int get_child(const struct place *p, const char *name, struct json_object **ret_value,
                     struct error *err)
{
    struct place child = *p;
    STRBUF_AUTO(path);

    if (!enter_object(&child, name, strlen(name))) {
        return error_set(err, ENOENT, "Property 'container.%s' not found", name);
    }
    strbuf_printf(&path, "/%s", child.container);
    if (child.object || child.chardev) {
        strbuf_printf(&path, "/%s", name);
    }
    *ret_value = json_object_new_string(strbuf_str(&path));
    return 0;
}

static int get_of_chardev(const struct place *p, const char *name, struct json_object **ret_value,
                          struct error *err)
{
    if (!is_socket(p->chardev) || strcmp(name, "connected") != 0) {
        return error_set(err, ENOENT, "Property '%s.%s' not found", qom_type_of(p), name);
    }
    *ret_value = json_object_new_boolean(chardev_has_client(p->chardev));
    return 0;
}

int qmp_co_qom_get(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,
                   struct error *err)
{
    const char *name = qmp_get_str(args, "property");
    struct place p;
    int r = find_place(args, &p, err);

    if (r < 0) {
        return r;
    }
    if (strcmp(name, "type") == 0) {
        *ret_value = json_object_new_string(qom_type_of(&p));
        return 0;
    }
    return p.object    ? user_object_get(p.object, name, ret_value, err)
           : p.chardev ? get_of_chardev(&p, name, ret_value, err)
                       : get_child(&p, name, ret_value, err);
}

int qmp_co_qom_set(struct qmp_call *call, struct json_object *args, struct json_object **ret_value,
                   struct error *err)
{
    const char *name = qmp_get_str(args, "property"), *type;
    struct json_object *child = NULL;
    struct place p;
    int r = find_place(args, &p, err);

    if (r < 0) {
        return r;
    }
    type = qom_type_of(&p);
    if (p.object && strcmp(name, "type") != 0) {
        return user_object_set(p.object, name, qmp_get(args, "value"), err);
    }
    if (strcmp(name, "type") != 0 && (p.chardev ? get_of_chardev(&p, name, &child, err)
                                                : get_child(&p, name, &child, err)) < 0) {
        return -ENOENT;
    }
    json_object_put(child);
    return error_set(err, EACCES, "Property '%s.%s' is not writable", type, name);
}

/* --- types ------------------------------------------------------------------------------------ */

/* Those that no object has, or that have no options; from the root down. */
static const struct plain_type {
    const char *name, *parent;
    bool is_abstract, is_user_creatable;
} plain_types[] = {
    {"object", NULL, true, false},
    {"interface", NULL, true, false},
    {"user-creatable", "interface", true, false},
    {"container", "object", false, false},
    {"authz", "object", true, false},
    {"event-loop-base", "object", true, true},
    {"secret_common", "object", true, true},
    {"tls-creds", "object", true, false},
};

static const struct plain_type *find_plain_type(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(plain_types); i++) {
        if (strcmp(plain_types[i].name, name) == 0) {
            return &plain_types[i];
        }
    }
    return NULL;
}

/* Whether a type is `wanted`, or derived from it. */
static bool is_derived(const char *name, const char *parent, bool user_creatable,
                       const char *wanted)
{
    const struct plain_type *t;

    if (!wanted || strcmp(name, wanted) == 0) {
        return true;
    }
    if (user_creatable &&
        (strcmp(wanted, "user-creatable") == 0 || strcmp(wanted, "interface") == 0)) {
        return true;
    }
    for (; parent; parent = t ? t->parent : NULL) {
        if (strcmp(parent, wanted) == 0) {
            return true;
        }
        t = find_plain_type(parent);
    }
    return false;
}

static void add_qom_type(struct json_object *list, const char *name, const char *parent,
                         bool is_abstract)
{
    struct json_object *o = json_object_new_object();

    qmp_put_str(o, "name", name);
    if (is_abstract) {
        qmp_put_bool(o, "abstract", true);
    }
    qmp_put_str(o, "parent", parent);
    json_object_array_add(list, o);
}

int qmp_co_qom_list_types(struct qmp_call *call, struct json_object *args,
                          struct json_object **ret_value, struct error *err)
{
    const char *wanted = qmp_get_str(args, "implements");
    bool abstract = qmp_get_bool(args, "abstract", false);
    const struct user_object_type *type = NULL;

    *ret_value = json_object_new_array();
    for (size_t i = 0; i < ARRAY_SIZE(plain_types); i++) {
        const struct plain_type *t = &plain_types[i];

        if ((abstract || !t->is_abstract) &&
            is_derived(t->name, t->parent, t->is_user_creatable, wanted)) {
            add_qom_type(*ret_value, t->name, t->parent, t->is_abstract);
        }
    }
    while ((type = user_object_next_type(type))) {
        const char *parent = type->parent ?: "object";

        if (is_derived(type->name, parent, true, wanted)) {
            add_qom_type(*ret_value, type->name, parent, false);
        }
    }
    return 0;
}

int qmp_co_qom_list_properties(struct qmp_call *call, struct json_object *args,
                               struct json_object **ret_value, struct error *err)
{
    const char *name = qmp_get_str(args, "typename");
    const struct plain_type *plain = find_plain_type(name);
    const struct user_object_type *type = NULL;

    while ((type = user_object_next_type(type)) && strcmp(type->name, name) != 0) {
    }
    if (!type && !plain) {
        return error_set_class(err, ERROR_CLASS_DEVICE_NOT_FOUND, ENOENT, "Class '%s' not found",
                               name);
    }
    if (plain && is_derived(name, plain->parent, false, "interface")) {
        return error_set(err, EINVAL, "Parameter 'typename' expects a QOM type");
    }
    *ret_value = type_properties(type);
    return 0;
}

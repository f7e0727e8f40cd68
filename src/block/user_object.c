/* SPDX-License-Identifier: Apache-2.0 */
#include "block/user_object.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "block/control_lock.h"
#include "loop/loop.h"
#include "schema/define.h"

#define TYPES_MAX 32

struct user_object {
    struct list link;
    const struct user_object_type *type;
    char *id; /* owned */
    void *data;
    unsigned users;
    /* Owned: the options that it was made with, and what was set since; without hidden ones. */
    struct json_object *values;
};

static const struct user_object_type *types[TYPES_MAX];
static size_t type_count;
static struct list objects = LIST_INIT(objects);
/*
 * Guards changes of `objects`, and all `users`: create() of an object that reads files looks for
 * others on another thread.
 */
static pthread_mutex_t objects_lock = PTHREAD_MUTEX_INITIALIZER;

/* An object that is being made. Its id is taken, but nobody finds it. */
struct making {
    struct list link; /* in `being_made` */
    const struct user_object_type *type;
    char *id;
    struct options *opts;
    void *data;
    struct error *err;
};

static struct list being_made = LIST_INIT(being_made);

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
    .members = (const struct schema_member[]){{.name = NULL}},
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

static const char *const *get_object_type_names(void)
{
    static const char *names[TYPES_MAX + 1];
    const struct user_object_type *type = NULL;

    for (size_t i = 0; (type = user_object_next_type(type)); i++) {
        names[i] = type->name;
    }
    return names;
}

static const char *get_object_type_help(const char *name)
{
    const struct user_object_type *type = NULL;

    while ((type = user_object_next_type(type)) && strcmp(type->name, name) != 0) {
    }
    return type ? type->help : NULL;
}

static const struct schema_type type_names = {
    .kind = SCHEMA_ENUM,
    .name = "ObjectType",
    .get_values = get_object_type_names,
};
const struct schema_type user_object_options_type = {
    .kind = SCHEMA_OBJECT,
    .name = "ObjectOptions",
    .members = MEMBERS(REQ("qom-type", type_names), REQ("id", schema_str)),
    .tag = "qom-type",
    .get_variants = get_properties,
    .get_case_help = get_object_type_help,
};

static void wipe_text(struct json_object *value)
{
    if (json_object_is_type(value, json_type_string)) {
        explicit_bzero((char *)(uintptr_t)json_object_get_string(value),
                       (size_t)json_object_get_string_len(value));
    }
}

static void wipe_values(struct options *opts, const char *const *names)
{
    for (; names && *names; names++) {
        options_wipe_str(opts, *names);
    }
}

/* Before they are freed: values that no type of objects shows are passwords. */
static void wipe_hidden_values(struct options *opts)
{
    for (size_t i = 0; i < type_count; i++) {
        wipe_values(opts, types[i]->hidden);
    }
}

/* Check the options, and give them their types. `opts` is replaced. */
static int check_types(struct options **opts, struct error *err)
{
    struct json_object *args = options_to_json(*opts);
    struct options *checked = NULL;
    int r = args ? schema_check(&user_object_options_type, args,
                                options_are_text(*opts) ? SCHEMA_CHECK_KEYVAL : 0, err)
                 : error_out_of_memory(err);

    UNLESS_FAILED(r, options_from_arguments(args, &checked, err));
    json_object_put(args); /* what it has is in `checked`, too */
    if (r >= 0) {
        wipe_hidden_values(*opts);
        options_free(*opts);
        *opts = checked;
    }
    return r;
}

/* --- objects ---------------------------------------------------------------------------------- */

static const struct user_object_type *find_object_type(const char *name)
{
    for (size_t i = 0; i < type_count; i++) {
        if (strcmp(types[i]->name, name) == 0) {
            return types[i];
        }
    }
    return NULL;
}

static struct user_object *find_object(const char *id)
{
    struct user_object *o;

    LIST_FOREACH (o, &objects, link) {
        if (strcmp(o->id, id) == 0) {
            return o;
        }
    }
    return NULL;
}

static bool id_is_taken(const char *id)
{
    struct making *m;

    LIST_FOREACH (m, &being_made, link) {
        if (strcmp(m->id, id) == 0) {
            return true;
        }
    }
    return find_object(id);
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
    *ret_type = find_object_type(type);
    if (!*ret_type) {
        return error_set(err, EINVAL, "Parameter 'qom-type' does not accept value '%s'", type);
    }
    if (options_check_identifier("id", id, err) < 0) {
        return -EINVAL;
    }
    if (id_is_taken(id)) {
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

static bool is_hidden(const struct user_object_type *type, const char *name)
{
    for (const char *const *h = type->hidden; h && *h; h++) {
        if (strcmp(*h, name) == 0) {
            return true;
        }
    }
    return false;
}

/* The options without those that are not to be shown. */
static struct json_object *shown_values(const struct user_object_type *type,
                                        const struct options *opts)
{
    struct json_object *values = options_to_json(opts);

    for (const char *const *h = type->hidden; h && *h; h++) {
        wipe_text(json_object_object_get(values, *h));
        json_object_object_del(values, *h);
    }
    return values;
}

static int run_create(void *arg)
{
    struct making *m = arg;

    return m->type->create(m->id, m->opts, &m->data, m->err);
}

/* While files are read, which may hang, other commands go on. */
static int co_run_create(void *arg)
{
    struct making *m = arg;
    bool held;
    int r;

    if (!m->type->reads_files) {
        return run_create(m);
    }
    held = block_control_pause();
    r = loop_co_offload(run_create, m);
    block_co_control_resume(held);
    return r;
}

/* The object of what create() has made; takes `values`, and the id. */
static int enter_made(struct making *m, struct json_object *values, struct error *err)
{
    int r = check_taken(m->opts, err);
    struct user_object *o = r < 0 ? NULL : calloc(1, sizeof(*o));

    if (!o) {
        json_object_put(values);
        m->type->destroy(m->data);
        return r < 0 ? r : error_out_of_memory(err);
    }
    o->values = values;
    o->type = m->type;
    o->id = TAKE_PTR(m->id);
    o->data = m->data;
    pthread_mutex_lock(&objects_lock);
    list_append(&objects, &o->link);
    pthread_mutex_unlock(&objects_lock);
    return 0;
}

/* `create`: run_create() or co_run_create(). */
static int add_made_by(int (*create)(void *arg), struct options *opts_, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_;
    struct making m = {.err = err};
    struct json_object *values;
    int r = check_types(&opts, err);

    UNLESS_FAILED(r, take_head(opts, &m.type, &m.id, err));
    if (r < 0 || !m.type) {
        return r;
    }
    m.opts = opts;
    values = shown_values(m.type, opts);
    list_append(&being_made, &m.link);
    r = create(&m);
    list_remove(&m.link);
    if (r < 0) {
        json_object_put(values);
    } else {
        r = enter_made(&m, values, err);
    }
    free(m.id);
    return r;
}

int user_object_add(struct options *opts, struct error *err)
{
    return add_made_by(run_create, opts, err);
}

int user_object_co_add(struct options *opts, struct error *err)
{
    return add_made_by(co_run_create, opts, err);
}

/* -EBUSY, and it stays in the list, while somebody uses it. */
static int leave_list(struct user_object *o)
{
    int r;

    pthread_mutex_lock(&objects_lock);
    r = o->users > 0 ? -EBUSY : 0;
    if (r == 0) {
        list_remove(&o->link);
    }
    pthread_mutex_unlock(&objects_lock);
    return r;
}

static void destroy(struct user_object *o)
{
    o->type->destroy(o->data);
    json_object_put(o->values);
    free(o->id);
    free(o);
}

int user_object_del(const char *id, struct error *err)
{
    struct user_object *o = find_object(id);

    if (!o) {
        return error_set(err, ENOENT, "object '%s' not found", id);
    }
    if (leave_list(o) < 0) {
        return error_set(err, EBUSY, "object '%s' is in use, can not be deleted", id);
    }
    destroy(o);
    return 0;
}

struct user_object *user_object_ref(const char *id)
{
    struct user_object *o;

    pthread_mutex_lock(&objects_lock);
    o = find_object(id);
    if (o) {
        o->users++;
    }
    pthread_mutex_unlock(&objects_lock);
    return o;
}

void user_object_hold(struct user_object *o)
{
    pthread_mutex_lock(&objects_lock);
    o->users++;
    pthread_mutex_unlock(&objects_lock);
}

void user_object_unref(struct user_object *o)
{
    if (o) {
        pthread_mutex_lock(&objects_lock);
        o->users--;
        pthread_mutex_unlock(&objects_lock);
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

const char *user_object_id(const struct user_object *o)
{
    return o->id;
}

struct user_object *user_object_next(struct user_object *o)
{
    struct list *next = o ? o->link.next : objects.next;

    return next == &objects ? NULL : container_of(next, struct user_object, link);
}

/* --- properties ------------------------------------------------------------------------------- */

static const struct schema_member *find_property(const struct user_object *o, const char *name,
                                                 struct error *err)
{
    const struct schema_type *properties = o->type->properties;
    const struct schema_member *m = properties ? schema_find_member(properties, name) : NULL;

    if (!m) {
        error_set(err, ENOENT, "Property '%s.%s' not found", o->type->name, name);
    }
    return m;
}

/* What an option that was not given stands for. */
static struct json_object *default_value(const struct schema_member *m)
{
    switch (m->type->kind) {
    case SCHEMA_BOOL:
        return json_object_new_boolean(m->dflt && strcmp(m->dflt, "true") == 0);
    case SCHEMA_STR:
    case SCHEMA_ENUM:
        return json_object_new_string(m->dflt ?: "");
    case SCHEMA_ARRAY:
        return json_object_new_array();
    case SCHEMA_OBJECT:
        return json_object_new_object();
    default:
        return json_object_new_int64(m->dflt ? strtoll(m->dflt, NULL, 10) : 0);
    }
}

int user_object_get(struct user_object *o, const char *name, struct json_object **ret_value,
                    struct error *err)
{
    const struct schema_member *m = find_property(o, name, err);
    struct json_object *value = NULL;

    if (!m) {
        return -ENOENT;
    }
    if (is_hidden(o->type, name)) {
        return error_set(err, EACCES, "Property '%s.%s' is not readable", o->type->name, name);
    }
    if (o->type->get) {
        value = o->type->get(o->data, name);
    }
    if (!value && json_object_object_get_ex(o->values, name, &value)) {
        json_object_get(value);
    }
    *ret_value = value ? value : default_value(m);
    return 0;
}

/* The value alone has to fit; the other options stay. An object is checked by set(), as a whole. */
static int check_object_value(const struct schema_member *m, struct json_object *value,
                              struct error *err)
{
    const struct schema_member alone[] = {*m, {.name = NULL}};
    const struct schema_type type = {.kind = SCHEMA_OBJECT, .name = "property", .members = alone};
    struct json_object *args;
    int r;

    if (m->type->kind == SCHEMA_OBJECT) {
        return 0;
    }
    args = json_object_new_object();
    json_object_object_add(args, m->name, json_object_get(value));
    r = schema_check(&type, args, 0, err);
    json_object_put(args);
    return r;
}

int user_object_set(struct user_object *o, const char *name, struct json_object *value,
                    struct error *err)
{
    const struct schema_member *m = find_property(o, name, err);
    int r = m ? 0 : -ENOENT;

    if (r == 0 && !o->type->set) {
        r = -EACCES;
    }
    UNLESS_FAILED(r, check_object_value(m, value, err));
    UNLESS_FAILED(r, o->type->set(o->data, name, value, err));
    if (r == -EACCES && !error_is_set(err)) {
        return error_set(err, EACCES, "Property '%s.%s' is not writable", o->type->name, name);
    }
    if (r == 0) {
        json_object_object_add(o->values, name, json_object_get(value));
    }
    return r;
}

void user_objects_release(void)
{
    while (!list_is_empty(&objects)) {
        struct user_object *o = container_of(objects.prev, struct user_object, link);

        list_remove(&o->link);
        destroy(o);
    }
}

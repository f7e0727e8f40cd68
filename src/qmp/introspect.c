/* SPDX-License-Identifier: Apache-2.0 */
/*
 * query-qmp-schema: the table as QEMU's SchemaInfo (docs/devel/qapi-code-gen, "Client JSON Protocol
 * introspection").
 */
#include "qmp/introspect.h"

#include <stdio.h>
#include <string.h>

#include "qmp/reference.h"
#include "qmp/request_kind.h"
#include "qmp/table.h"

/* Whether members and types get their texts, too. */
static bool with_texts;

static void add_type(struct json_object *out, const struct schema_type *type);

static struct json_object *named(const char *key, const char *value)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, key, json_object_new_string(value));
    return o;
}

static void put_text(struct json_object *o, const char *key, const char *value)
{
    json_object_object_add(o, key, json_object_new_string(value));
}

/* The name of a type. An array is called "[element]", which is written to `buf`. */
static const char *type_name(const struct schema_type *type, char *buf, size_t size)
{
    if (type->kind != SCHEMA_ARRAY) {
        return type->name;
    }
    snprintf(buf, size, "[%s]", type->element->name);
    return buf;
}

static void put_type(struct json_object *o, const char *key, const struct schema_type *type)
{
    char buf[96];

    put_text(o, key, type_name(type, buf, sizeof(buf)));
}

static void put_help(struct json_object *o, const char *key, const char *text)
{
    if (with_texts && text) {
        put_text(o, key, text);
    }
}

static void put_texts(struct json_object *o, const struct schema_member *m)
{
    put_help(o, "help", m->help);
    put_help(o, "default-text", m->dflt);
    put_help(o, "unit", m->unit);
    if (with_texts && (m->min || m->max)) {
        json_object_object_add(o, "min", json_object_new_uint64(m->min));
        json_object_object_add(o, "max", json_object_new_uint64(m->max));
    }
}

static void put_features(struct json_object *o, const char *const *features)
{
    struct json_object *list;

    if (!features) {
        return;
    }
    list = json_object_new_array();
    for (; *features; features++) {
        json_object_array_add(list, json_object_new_string(*features));
    }
    json_object_object_add(o, "features", list);
}

static bool is_listed(struct json_object *out, const char *name)
{
    for (size_t i = 0; i < json_object_array_length(out); i++) {
        if (strcmp(qmp_get_str(json_object_array_get_idx(out, i), "name"), name) == 0) {
            return true;
        }
    }
    return false;
}

static struct json_object *members_json(const struct schema_type *type)
{
    struct json_object *members = json_object_new_array();

    for (const struct schema_member *m = type->members; m->name; m++) {
        struct json_object *o = named("name", m->name);

        put_type(o, "type", m->type);
        if (m->optional) {
            json_object_object_add(o, "default", NULL);
        }
        put_features(o, m->features);
        put_texts(o, m);
        json_object_array_add(members, o);
    }
    return members;
}

static const char *const *tag_values(const struct schema_type *type)
{
    return schema_values_of(schema_find_member(type, type->tag)->type);
}

/* Each value of the tag is a case, also those that add no members. */
static struct json_object *variants_json(const struct schema_type *type)
{
    struct json_object *variants = json_object_new_array();

    for (const char *const *value = tag_values(type); *value; value++) {
        const struct schema_type *variant = schema_find_variant(type, *value);
        struct json_object *o = named("case", *value);

        put_type(o, "type", variant ? variant : &schema_empty);
        put_help(o, "help", type->get_case_help ? type->get_case_help(*value) : NULL);
        json_object_array_add(variants, o);
    }
    return variants;
}

static void describe_enum(struct json_object *o, const struct schema_type *type)
{
    struct json_object *members = json_object_new_array(), *values = json_object_new_array();

    for (const char *const *v = schema_values_of(type); *v; v++) {
        json_object_array_add(members, named("name", *v));
        json_object_array_add(values, json_object_new_string(*v));
    }
    json_object_object_add(o, "members", members);
    json_object_object_add(o, "values", values);
}

static void describe_object(struct json_object *o, const struct schema_type *type)
{
    json_object_object_add(o, "members", members_json(type));
    if (type->tag) {
        put_text(o, "tag", type->tag);
        json_object_object_add(o, "variants", variants_json(type));
    }
}

static void describe_alternate(struct json_object *o, const struct schema_type *type)
{
    struct json_object *members = json_object_new_array();

    for (const struct schema_type *const *t = type->choice; *t; t++) {
        struct json_object *member = json_object_new_object();

        put_type(member, "type", *t);
        json_object_array_add(members, member);
    }
    json_object_object_add(o, "members", members);
}

static const char *meta_type(enum schema_kind kind)
{
    switch (kind) {
    case SCHEMA_ENUM:
        return "enum";
    case SCHEMA_ARRAY:
        return "array";
    case SCHEMA_OBJECT:
        return "object";
    case SCHEMA_ALTERNATE:
        return "alternate";
    default:
        return "builtin";
    }
}

static void describe_type(struct json_object *o, const struct schema_type *type)
{
    switch (type->kind) {
    case SCHEMA_STR:
        put_text(o, "json-type", "string");
        break;
    case SCHEMA_BOOL:
        put_text(o, "json-type", "boolean");
        break;
    case SCHEMA_NUMBER:
        put_text(o, "json-type", "number");
        break;
    case SCHEMA_NULL:
        put_text(o, "json-type", "null");
        break;
    case SCHEMA_ANY:
        put_text(o, "json-type", "value");
        break;
    case SCHEMA_ENUM:
        describe_enum(o, type);
        break;
    case SCHEMA_ARRAY:
        put_type(o, "element-type", type->element);
        break;
    case SCHEMA_OBJECT:
        describe_object(o, type);
        break;
    case SCHEMA_ALTERNATE:
        describe_alternate(o, type);
        break;
    default:
        put_text(o, "json-type", "int");
    }
}

/* Add the types that a type mentions. */
static void add_parts(struct json_object *out, const struct schema_type *type)
{
    for (const struct schema_member *m = type->members; m && m->name; m++) {
        add_type(out, m->type);
    }
    for (const struct schema_variant *v = schema_variants_of(type); v && v->value; v++) {
        add_type(out, v->type);
    }
    for (const struct schema_type *const *t = type->choice; t && *t; t++) {
        add_type(out, *t);
    }
    if (type->element) {
        add_type(out, type->element);
    }
    if (type->tag) {
        add_type(out, &schema_empty);
    }
}

static void add_type(struct json_object *out, const struct schema_type *type)
{
    char buf[96];
    const char *name = type_name(type, buf, sizeof(buf));
    struct json_object *o;

    if (is_listed(out, name)) {
        return;
    }
    o = named("name", name);
    put_text(o, "meta-type", meta_type(type->kind));
    put_features(o, type->features);
    put_help(o, "help", type->help);
    describe_type(o, type);
    json_object_array_add(out, o);
    add_parts(out, type);
}

struct json_object *qmp_describe(qmp_next_command_fn *next_command, qmp_next_event_fn *next_event,
                                 bool texts)
{
    struct json_object *out = json_object_new_array();
    const struct qmp_command *c = NULL;
    const struct qmp_event *e = NULL;

    with_texts = texts;
    while ((c = next_command(c))) {
        const struct qmp_reference *text = qmp_command_reference(c->name);
        struct json_object *o = named("name", c->name);

        put_text(o, "meta-type", "command");
        put_features(o, text ? text->features : NULL);
        put_help(o, "help", text ? text->help : NULL);
        put_type(o, "arg-type", c->args);
        put_type(o, "ret-type", c->result);
        if (qmp_allows_oob(c->name)) {
            json_object_object_add(o, "allow-oob", json_object_new_boolean(true));
        }
        json_object_array_add(out, o);
    }
    while ((e = next_event(e))) {
        const struct qmp_reference *text = qmp_event_reference(e->name);
        struct json_object *o = named("name", e->name);

        put_text(o, "meta-type", "event");
        put_features(o, text ? text->features : NULL);
        put_help(o, "help", text ? text->help : NULL);
        put_type(o, "arg-type", e->data);
        json_object_array_add(out, o);
    }
    while ((c = next_command(c))) {
        add_type(out, c->args);
        add_type(out, c->result);
    }
    while ((e = next_event(e))) {
        add_type(out, e->data);
    }
    return out;
}

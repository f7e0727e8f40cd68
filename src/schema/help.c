/* SPDX-License-Identifier: Apache-2.0 */
#include "schema/help.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where the texts begin. */
#define TEXT_COLUMN 36
/* Enumerations with more values are shown by their name. */
#define SHORT_ENUM 8

/* --- with texts ------------------------------------------------------------------------------- */

struct help {
    const struct schema_type *const *stop;
    struct strbuf *out;
};

/* Whether the values of an enumeration can stand in a line. */
static bool is_short(const struct schema_type *type)
{
    size_t count = 0;

    while (type->values && type->values[count]) {
        count++;
    }
    return count > 0 && count <= SHORT_ENUM;
}

static void append_value(const struct schema_type *type, struct strbuf *out)
{
    static const char *const names[] = {
        [SCHEMA_STR] = "str",       [SCHEMA_BOOL] = "on|off", [SCHEMA_INT] = "int",
        [SCHEMA_INT32] = "int",     [SCHEMA_UINT8] = "int",   [SCHEMA_UINT16] = "int",
        [SCHEMA_UINT32] = "int",    [SCHEMA_UINT64] = "int",  [SCHEMA_SIZE] = "size",
        [SCHEMA_NUMBER] = "number", [SCHEMA_NULL] = "null",   [SCHEMA_ANY] = "any",
    };

    if (type->kind == SCHEMA_ENUM && is_short(type)) {
        for (const char *const *v = type->values; *v; v++) {
            strbuf_printf(out, "%s%s", v == type->values ? "" : "|", *v);
        }
    } else if (type->kind == SCHEMA_ALTERNATE) {
        for (const struct schema_type *const *t = type->choice; *t; t++) {
            strbuf_puts(out, t == type->choice ? "" : "|");
            append_value(*t, out);
        }
    } else if (type->kind == SCHEMA_ARRAY) {
        append_value(type->element, out);
    } else if (type->kind == SCHEMA_OBJECT) {
        strbuf_puts(out, "{...}");
    } else if (type->kind == SCHEMA_ENUM) {
        strbuf_puts(out, type->name);
    } else {
        strbuf_printf(out, "%s", type->is_bytes ? "size" : names[type->kind]);
    }
}

static void append_separator(struct strbuf *out, bool *parts)
{
    strbuf_printf(out, "%s", *parts ? ", " : " (");
    *parts = true;
}

/* " (512 to 8388608 bytes, default: 512)", as far as it is known. */
static void append_facts(const struct schema_member *m, const char *condition, struct strbuf *out)
{
    bool parts = false;

    if (condition) {
        append_separator(out, &parts);
        strbuf_printf(out, "with %s", condition);
    }
    if (m->min || (m->max && m->max < INT32_MAX)) {
        append_separator(out, &parts);
        strbuf_printf(out, "%llu to %llu", (unsigned long long)m->min, (unsigned long long)m->max);
    }
    if (m->unit) {
        append_separator(out, &parts);
        strbuf_printf(out, "%s", m->unit);
    }
    if (m->dflt) {
        append_separator(out, &parts);
        strbuf_printf(out, "default: %s", m->dflt);
    } else if (!m->optional) {
        append_separator(out, &parts);
        strbuf_printf(out, "required");
    }
    strbuf_printf(out, "%s", parts ? ")" : "");
}

static void append_line(struct help *h, const char *path, const struct schema_member *m,
                        const char *condition)
{
    STRBUF_AUTO(head);
    STRBUF_AUTO(facts);

    strbuf_printf(&head, "  %s%s%s=<", path, m->name, m->type->kind == SCHEMA_ARRAY ? ".N" : "");
    append_value(m->type, &head);
    strbuf_printf(&head, ">");
    append_facts(m, condition, &facts);
    if (m->help || facts.len) {
        strbuf_printf(h->out, "%-*s %s%s%s\n", TEXT_COLUMN, strbuf_str(&head), m->help ? "- " : "-",
                      m->help ? m->help : "", strbuf_str(&facts));
    } else {
        strbuf_printf(h->out, "%s\n", strbuf_str(&head));
    }
}

static bool is_stopped(const struct help *h, const struct schema_type *type)
{
    for (const struct schema_type *const *t = h->stop; t && *t; t++) {
        if (*t == type) {
            return true;
        }
    }
    return false;
}

static void append_members(struct help *h, const struct schema_type *type, const char *path,
                           const char *condition);

/* The members of an object below a path, and those of its variants. */
static void append_inner(struct help *h, const struct schema_type *type, const char *path)
{
    append_members(h, type, path, NULL);
    for (const struct schema_variant *v = schema_variants_of(type); v && v->value; v++) {
        STRBUF_AUTO(condition);

        strbuf_printf(&condition, "%s=%s", type->tag, v->value);
        append_members(h, v->type, path, strbuf_str(&condition));
    }
}

/* The object to enter: the type, one of its alternatives, or what its elements are. */
static const struct schema_type *object_of(const struct schema_type *type)
{
    if (type->kind == SCHEMA_ARRAY) {
        return object_of(type->element);
    }
    for (const struct schema_type *const *t = type->choice; t && *t; t++) {
        if ((*t)->kind == SCHEMA_OBJECT) {
            return *t;
        }
    }
    return type->kind == SCHEMA_OBJECT ? type : NULL;
}

static void append_members(struct help *h, const struct schema_type *type, const char *path,
                           const char *condition)
{
    for (const struct schema_member *m = type->members; m && m->name; m++) {
        const struct schema_type *object = object_of(m->type);
        STRBUF_AUTO(inner);

        if (!object || is_stopped(h, object) || m->type->kind == SCHEMA_ALTERNATE || m->help) {
            append_line(h, path, m, condition);
        }
        if (object && !is_stopped(h, object)) {
            strbuf_printf(&inner, "%s%s%s.", path, m->name,
                          m->type->kind == SCHEMA_ARRAY ? ".N" : "");
            append_inner(h, object, strbuf_str(&inner));
        }
    }
}

void schema_help_members(const struct schema_type *type, const struct schema_type *const *stop,
                         struct strbuf *out)
{
    struct help h = {.stop = stop, .out = out};

    append_members(&h, type, "", NULL);
}

/* --- as QEMU's help for objects --------------------------------------------------------------- */

#define PROPERTIES_MAX 64
#define PROPERTY_SIZE 96

static int compare_text(const void *a, const void *b)
{
    return strcmp(a, b);
}

static const char *property_type(const struct schema_type *type)
{
    switch (type->kind) {
    case SCHEMA_STR:
        return "string";
    case SCHEMA_BOOL:
        return "bool";
    case SCHEMA_ARRAY:
        return type->element->name;
    default:
        return type->name;
    }
}

void schema_help_properties(const struct schema_type *type, struct strbuf *out)
{
    char lines[PROPERTIES_MAX][PROPERTY_SIZE];
    size_t count = 0;

    for (const struct schema_member *m = type->members; m->name && count < PROPERTIES_MAX; m++) {
        snprintf(lines[count++], PROPERTY_SIZE, "%s=<%s>", m->name, property_type(m->type));
    }
    qsort(lines, count, PROPERTY_SIZE, compare_text);
    for (size_t i = 0; i < count; i++) {
        strbuf_printf(out, "  %s\n", lines[i]);
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The types that all others are made of, and what others are asked. */
#include <string.h>

#include "schema/define.h"

const struct schema_type schema_str = {.kind = SCHEMA_STR, .name = "str"};
const struct schema_type schema_bool = {.kind = SCHEMA_BOOL, .name = "bool"};
const struct schema_type schema_int = {.kind = SCHEMA_INT, .name = "int"};
const struct schema_type schema_bytes = {.kind = SCHEMA_INT, .name = "int", .is_bytes = true};
const struct schema_type schema_int32 = {.kind = SCHEMA_INT32, .name = "int"};
const struct schema_type schema_uint8 = {.kind = SCHEMA_UINT8, .name = "int"};
const struct schema_type schema_uint16 = {.kind = SCHEMA_UINT16, .name = "int"};
const struct schema_type schema_uint32 = {.kind = SCHEMA_UINT32, .name = "int"};
const struct schema_type schema_uint64 = {.kind = SCHEMA_UINT64, .name = "int"};
const struct schema_type schema_size = {.kind = SCHEMA_SIZE, .name = "int"};
const struct schema_type schema_number = {.kind = SCHEMA_NUMBER, .name = "number"};
const struct schema_type schema_null = {.kind = SCHEMA_NULL, .name = "null"};
const struct schema_type schema_any = {.kind = SCHEMA_ANY, .name = "any"};
const struct schema_type schema_empty = {.kind = SCHEMA_OBJECT,
                                         .name = "q_empty",
                                         .members = (const struct schema_member[]){{.name = NULL}}};
const struct schema_type schema_strings = ARRAY_INIT("strList", schema_str);

const char *const *schema_values_of(const struct schema_type *type)
{
    return type->get_values ? type->get_values() : type->values;
}

const struct schema_variant *schema_variants_of(const struct schema_type *type)
{
    return type->get_variants ? type->get_variants() : type->variants;
}

const struct schema_type *schema_find_variant(const struct schema_type *type, const char *value)
{
    const struct schema_variant *v = schema_variants_of(type);

    while (v && v->value && strcmp(v->value, value) != 0) {
        v++;
    }
    return v && v->value ? v->type : NULL;
}

const struct schema_member *schema_find_member(const struct schema_type *type, const char *name)
{
    const struct schema_member *m = type->members;

    while (m && m->name && strcmp(m->name, name) != 0) {
        m++;
    }
    return m && m->name ? m : NULL;
}

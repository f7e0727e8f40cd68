/* SPDX-License-Identifier: Apache-2.0 */
/* Short forms to define types (schema/schema.h). */
#ifndef TIDEMARK_SCHEMA_DEFINE_H
#define TIDEMARK_SCHEMA_DEFINE_H

#include "schema/schema.h"

/* An enumeration. */
#define ENUM_INIT(type_name, ...)                                                                  \
    {                                                                                              \
        .kind = SCHEMA_ENUM, .name = type_name, .values = (const char *const[])                    \
        {                                                                                          \
            __VA_ARGS__, NULL                                                                      \
        }                                                                                          \
    }
#define ENUM(id, type_name, ...)                                                                   \
    static const struct schema_type id = ENUM_INIT(type_name, __VA_ARGS__)
/* An array. */
#define ARRAY_INIT(array_name, of)                                                                 \
    {                                                                                              \
        .kind = SCHEMA_ARRAY, .name = array_name, .element = &of                                   \
    }
#define ARRAY(id, of) static const struct schema_type id = ARRAY_INIT(#id, of)
/* An object. */
#define MEMBERS(...)                                                                               \
    (const struct schema_member[])                                                                 \
    {                                                                                              \
        __VA_ARGS__,                                                                               \
        {                                                                                          \
            .name = NULL                                                                           \
        }                                                                                          \
    }
#define OBJECT_INIT(type_name, ...)                                                                \
    {                                                                                              \
        .kind = SCHEMA_OBJECT, .name = type_name, .members = MEMBERS(__VA_ARGS__)                  \
    }
#define OBJECT(id, type_name, ...)                                                                 \
    static const struct schema_type id = OBJECT_INIT(type_name, __VA_ARGS__)
/*
 * A member of an object: required, and optional. What follows the type: `.help = "...", ...`.
 */
#define REQ(member, member_type, ...)                                                              \
    {                                                                                              \
        .name = member, .type = &member_type, __VA_ARGS__                                          \
    }
#define OPT(member, member_type, ...)                                                              \
    {                                                                                              \
        .name = member, .type = &member_type, .optional = true, __VA_ARGS__                        \
    }
/* Features of members, types and commands. */
#define FEATURES(...)                                                                              \
    .features = (const char *const[])                                                              \
    {                                                                                              \
        __VA_ARGS__, NULL                                                                          \
    }
#define UNSTABLE FEATURES("unstable")
#define DEPRECATED FEATURES("deprecated")

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Short forms to define types of QMP (qmp/schema.h) in tables. */
#ifndef TIDEMARK_QMP_DEFINE_H
#define TIDEMARK_QMP_DEFINE_H

#include "qmp/schema.h"

/* An enumeration. */
#define ENUM_INIT(type_name, ...)                                                                  \
    {                                                                                              \
        .kind = QMP_ENUM, .name = type_name, .values = (const char *const[])                       \
        {                                                                                          \
            __VA_ARGS__, NULL                                                                      \
        }                                                                                          \
    }
#define ENUM(id, type_name, ...) static const struct qmp_type id = ENUM_INIT(type_name, __VA_ARGS__)
/* An array. */
#define ARRAY_INIT(array_name, of)                                                                 \
    {                                                                                              \
        .kind = QMP_ARRAY, .name = array_name, .element = &of                                      \
    }
#define ARRAY(id, of) static const struct qmp_type id = ARRAY_INIT(#id, of)
/* An object. */
#define MEMBERS(...)                                                                               \
    (const struct qmp_member[])                                                                    \
    {                                                                                              \
        __VA_ARGS__,                                                                               \
        {                                                                                          \
            NULL, NULL, false                                                                      \
        }                                                                                          \
    }
#define OBJECT_INIT(type_name, ...)                                                                \
    {                                                                                              \
        .kind = QMP_OBJECT, .name = type_name, .members = MEMBERS(__VA_ARGS__)                     \
    }
#define OBJECT(id, type_name, ...)                                                                 \
    static const struct qmp_type id = OBJECT_INIT(type_name, __VA_ARGS__)
/* A member of an object: required, and optional. */
#define REQ(member, member_type)                                                                   \
    {                                                                                              \
        member, &member_type, false                                                                \
    }
#define OPT(member, member_type)                                                                   \
    {                                                                                              \
        member, &member_type, true                                                                 \
    }

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Types of QMP: what commands take and return, and what events carry. One table of types
 * (qmp/table.c) validates arguments, finds the command, and answers query-qmp-schema.
 *
 * The form follows QEMU's QAPI (docs/devel/qapi-code-gen): an object has members, and may be a flat
 * union: the value of its member `tag` chooses a variant, whose members belong to the same object.
 * Nothing here yields.
 */
#ifndef TIDEMARK_QMP_SCHEMA_H
#define TIDEMARK_QMP_SCHEMA_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

enum qmp_kind {
    QMP_STR,
    QMP_BOOL,
    QMP_INT,    /* 64-bit signed */
    QMP_UINT32, /* "int" in query-qmp-schema */
    QMP_SIZE,   /* 64-bit unsigned; "4k" on a command line; "int" in query-qmp-schema */
    QMP_NUMBER, /* integer or fraction */
    QMP_ANY,
    QMP_ENUM,
    QMP_ARRAY,
    QMP_OBJECT,
    QMP_ALTERNATE, /* one of several types, distinguished by their JSON type */
};

struct qmp_type;

struct qmp_member {
    const char *name; /* NULL ends the array */
    const struct qmp_type *type;
    bool optional;
};

struct qmp_variant {
    const char *value; /* of the tag; NULL ends the array */
    const struct qmp_type *type;
};

struct qmp_type {
    enum qmp_kind kind;
    const char *name;
    const char *const *values;            /* QMP_ENUM; ends with NULL */
    const struct qmp_type *element;       /* QMP_ARRAY */
    const struct qmp_type *const *choice; /* QMP_ALTERNATE; ends with NULL */
    const struct qmp_member *members;     /* QMP_OBJECT */
    const char *tag;                      /* QMP_OBJECT: a flat union */
    const struct qmp_variant *variants;   /* tag values without a variant add no members */
    /* QMP_OBJECT: further members are allowed here, and checked elsewhere (node options) */
    bool open;
};

extern const struct qmp_type qmp_str, qmp_bool, qmp_int, qmp_uint32, qmp_size, qmp_number, qmp_any,
    qmp_empty;

/*
 * Values are text from `key=value,...`: "on" is true, "4k" is 4096, and an object with the keys 0,
 * 1, ... is an array. They are converted in place.
 */
enum qmp_check_flags { QMP_CHECK_KEYVAL = 1 << 0 };

/*
 * Check the object `value` against the object type `type`; `flags`: of enum qmp_check_flags. 0 or
 * -EINVAL. Errors name the parameter by its path ("actions[1].data.name") and have the wording of
 * QEMU's.
 */
int qmp_check(const struct qmp_type *type, struct json_object *value, unsigned flags,
              struct error *err);

/* --- arguments that passed the check ---------------------------------------------------------- */

/* The value of a member; NULL or `dflt` if it is absent. Strings and objects are borrowed. */
const char *qmp_get_str(struct json_object *args, const char *name);
bool qmp_get_bool(struct json_object *args, const char *name, bool dflt);
uint64_t qmp_get_uint(struct json_object *args, const char *name, uint64_t dflt);
struct json_object *qmp_get(struct json_object *args, const char *name);

#endif

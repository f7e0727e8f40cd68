/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Types of arguments and answers: what QMP commands take and return, what events carry, what the
 * options of drivers, objects and exports are. Whoever reads a value describes its type once, in
 * its own file (schema/define.h has the short forms). From the descriptions come the check of
 * arguments, the answer to query-qmp-schema, the texts of help, and the reference in docs/qmp.md.
 *
 * The form follows QEMU's QAPI (docs/devel/qapi-code-gen): an object has members, and may be a flat
 * union: the value of its member `tag` chooses a variant, whose members belong to the same object.
 * Nothing here yields.
 */
#ifndef TIDEMARK_SCHEMA_SCHEMA_H
#define TIDEMARK_SCHEMA_SCHEMA_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum schema_kind {
    SCHEMA_STR,
    SCHEMA_BOOL,
    SCHEMA_INT,   /* 64-bit signed */
    SCHEMA_INT32, /* "int" in query-qmp-schema, as those that follow */
    SCHEMA_UINT8,
    SCHEMA_UINT16,
    SCHEMA_UINT32,
    SCHEMA_UINT64,
    SCHEMA_SIZE,   /* 64-bit unsigned; "4k" on a command line */
    SCHEMA_NUMBER, /* integer or fraction */
    SCHEMA_NULL,
    SCHEMA_ANY,
    SCHEMA_ENUM,
    SCHEMA_ARRAY,
    SCHEMA_OBJECT,
    SCHEMA_ALTERNATE, /* one of several types, distinguished by their JSON type */
};

struct schema_type;

struct schema_member {
    const char *name; /* NULL ends the array */
    const struct schema_type *type;
    bool optional;
    /* For readers; each may be NULL. One line without a full stop. */
    const char *help;
    /* The value that an absent member stands for, as it would be written. */
    const char *dflt;
    /* Of a number: "bytes", "seconds". */
    const char *unit;
    /* The numbers that are accepted, if not all that the type has; both 0: all. */
    uint64_t min, max;
    /* "deprecated", "unstable", and others that QEMU's schema has; ends with NULL. */
    const char *const *features;
};

struct schema_variant {
    const char *value; /* of the tag; NULL ends the array */
    const struct schema_type *type;
};

struct schema_type {
    enum schema_kind kind;
    const char *name;
    const char *help;                        /* one line; NULL: none */
    const char *const *values;               /* SCHEMA_ENUM; ends with NULL */
    const struct schema_type *element;       /* SCHEMA_ARRAY */
    const struct schema_type *const *choice; /* SCHEMA_ALTERNATE; ends with NULL */
    const struct schema_member *members;     /* SCHEMA_OBJECT */
    const char *tag;                         /* SCHEMA_OBJECT: a flat union */
    const struct schema_variant *variants;   /* tag values without a variant add no members */
    const char *const *features;             /* ends with NULL; NULL: none */
    /* SCHEMA_INT: a number of bytes, "4k" on a command line. */
    bool is_bytes;
    /* SCHEMA_OBJECT: further members are allowed here, and checked elsewhere. */
    bool open;
    /*
     * For what is registered at start: `values` and `variants` come from these functions, which
     * return the same array each time.
     */
    const char *const *(*get_values)(void);
    const struct schema_variant *(*get_variants)(void);
    /* Of a union: what the case is for, one line; NULL: not known. */
    const char *(*get_case_help)(const char *value);
    /* SCHEMA_ENUM: a sentence about a value that is not one of `values`; 0: the usual one. */
    int (*refuse_value)(const char *value, struct error *err);
};

extern const struct schema_type schema_str, schema_bool, schema_int, schema_int32, schema_uint8,
    schema_uint16, schema_uint32, schema_uint64, schema_size, schema_number, schema_null,
    schema_any, schema_empty;
/* "int", but a number of bytes. */
extern const struct schema_type schema_bytes;
extern const struct schema_type schema_strings;

/*
 * Values are text from `key=value,...`: "on" is true, "4k" is 4096, and an object with the keys 0,
 * 1, ... is an array. They are converted in place.
 */
enum schema_check_flags {
    SCHEMA_CHECK_KEYVAL = 1 << 0,
    /* "4k" is a number of bytes, whatever schema_take_plain_bytes() says. */
    SCHEMA_CHECK_SUFFIXES = 1 << 1,
};

/*
 * Whether text for a number of bytes (is_bytes) has to be an integer, as under the names of QEMU's
 * programs, or may have a suffix (the default). Sizes (SCHEMA_SIZE) may have one in any case. To be
 * called at start.
 */
void schema_take_plain_bytes(bool plain);

/*
 * Check the object `value` against the object type `type`; `flags`: of enum schema_check_flags. 0
 * or -EINVAL. Errors name the parameter by its path ("actions[1].data.name") and have the wording
 * of QEMU's.
 */
int schema_check(const struct schema_type *type, struct json_object *value, unsigned flags,
                 struct error *err);

/* The values of an enumeration, and the variants of a union (NULL: it is none). */
const char *const *schema_values_of(const struct schema_type *type);
const struct schema_variant *schema_variants_of(const struct schema_type *type);
/* The variant for a value of the tag; NULL: the value has none. */
const struct schema_type *schema_find_variant(const struct schema_type *type, const char *value);
/* The member of this name, not of a variant; NULL: there is none. */
const struct schema_member *schema_find_member(const struct schema_type *type, const char *name);

#endif

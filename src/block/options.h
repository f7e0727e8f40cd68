/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options of nodes: a tree of names and values, from `key=value,...` (dots nest), from JSON, or
 * from QMP.
 *
 * A driver *takes* what it knows; what is left when it has finished is unknown to it, and
 * options_check_empty() names it. Values keep the type of their source: a string from a command
 * line is accepted where a bool, number or size is wanted; JSON has to have the right type, or be a
 * string; arguments of commands have to have the right type. Main reactor only. None of these
 * functions yields.
 */
#ifndef TIDEMARK_BLOCK_OPTIONS_H
#define TIDEMARK_BLOCK_OPTIONS_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct options;

struct options *options_new(void);
void options_free(struct options *o); /* NULL is fine */
static inline void options_cleanup(struct options **o)
{
    options_free(*o);
}
#define AUTO_OPTIONS __attribute__((cleanup(options_cleanup)))

/*
 * Parse "driver=qcow2,file.filename=a,,b" (",," is a comma in a value). A first element without "="
 * is the value of `implied_key`, if that is not NULL; later ones without "=" mean "=on". Text that
 * begins with '{' is parsed as JSON. Duplicate and contradicting keys are errors. -EINVAL.
 */
int options_parse(const char *text, const char *implied_key, struct options **ret,
                  struct error *err);

/*
 * QEMU has an option that is a value or a group of options, also both at one time: overlap-check.
 * In a group the value that was given beside it has this name.
 */
#define OPTIONS_OWN_VALUE "="

/* A deep copy of a JSON object. Keys with dots in it nest, too. -EINVAL if it is not an object. */
int options_from_json(struct json_object *object, struct options **ret, struct error *err);

/*
 * The same of a command's arguments. Their values have to have the right types, and their keys no
 * dots, unless the object was made by options_to_arguments() of `key=value` text. What is wrong is
 * told as QEMU's programs do, with the whole path.
 */
int options_from_arguments(struct json_object *object, struct options **ret, struct error *err);

/*
 * Whether it comes from options_from_arguments(), so that messages name options by their whole
 * path.
 */
bool options_are_arguments(const struct options *o);

/* Element `index` of a list that was taken from `o` by the name `key`. As above. */
int options_from_element(const struct options *o, const char *key, size_t index,
                         struct json_object *element, struct options **ret, struct error *err);

/* A new reference to a JSON copy of what is still in the tree. */
struct json_object *options_to_json(const struct options *o);
/*
 * Likewise, to be handed to a command, whatever the tree was made of. The object can't be copied by
 * json-c.
 */
struct json_object *options_to_arguments(const struct options *o);
struct options *options_clone(const struct options *o);

bool options_is_empty(const struct options *o);
/* Whether `key` (one level, no dots) is there, whatever its type (also null). */
bool options_has(const struct options *o, const char *key);
/* Whether it is there and is JSON null. */
bool options_is_null(const struct options *o, const char *key);
/* Whether it is there and is this string. */
bool options_is_text(const struct options *o, const char *key, const char *text);
void options_drop(struct options *o, const char *key);

/* Set, replacing. */
void options_set_str(struct options *o, const char *key, const char *value);
void options_set_bool(struct options *o, const char *key, bool value);
void options_set_uint(struct options *o, const char *key, uint64_t value);
void options_set_child(struct options *o, const char *key, struct options *child /* consumed */);
/* Set unless it is there. */
void options_default_str(struct options *o, const char *key, const char *value);
void options_default_bool(struct options *o, const char *key, bool value);

/*
 * Take: *ret gets the value, or the default where the key is absent, and the key is removed.
 * -EINVAL with a sentence that names key, expectation and value when it has the wrong type or form.
 */
int options_take_str(struct options *o, const char *key,
                     char **ret /* owned by the caller; NULL if absent */, struct error *err);
/*
 * As above; a number is taken as its text, as QEMU does for options that are older than their
 * types.
 */
int options_take_text(struct options *o, const char *key, char **ret, struct error *err);
int options_take_bool(struct options *o, const char *key, bool dflt, bool *ret, struct error *err);
int options_take_uint(struct options *o, const char *key, uint64_t dflt, uint64_t max,
                      uint64_t *ret, struct error *err);
int options_take_size(struct options *o, const char *key, uint64_t dflt, uint64_t *ret,
                      struct error *err);
/* `names` ends with NULL; *ret is the index. */
int options_take_enum(struct options *o, const char *key, const char *const *names, int dflt,
                      int *ret, struct error *err);

/*
 * Take a child: absent -> 0 with both NULL; a string -> *ret_node_name (owned); an object ->
 * *ret_child (owned). JSON null is left to options_is_null().
 */
int options_take_child(struct options *o, const char *key, struct options **ret_child,
                       char **ret_node_name, struct error *err);
/*
 * Take a list (a JSON array, or keys "0", "1", ...) as a JSON array; NULL if absent. The caller
 * owns a reference.
 */
int options_take_list(struct options *o, const char *key, struct json_object **ret,
                      struct error *err);

/* -EINVAL: "Unknown <key> '<value>'", or what QEMU says of arguments. */
int options_wrong_choice(const struct options *o, const char *key, const char *value,
                         struct error *err);
/* -EINVAL: an option that has to be there is not. */
int options_missing(const struct options *o, const char *key, struct error *err);

/* 0 if nothing is left; else -EINVAL: "<what> does not support the option '<key>'". */
int options_check_empty(const struct options *o, const char *what, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options of nodes: a tree of names and values, from `key=value,...` (dots nest), from JSON, or
 * from QMP.
 *
 * A driver *takes* the options that it knows: they are removed. options_check_empty() then refuses,
 * and names, the first unknown one. Values keep the type of their source: a string from a command
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

/* An empty tree; NULL: no memory. */
struct options *options_new(void);
void options_free(struct options *o); /* NULL is fine */

/* For AUTO_OPTIONS. */
static inline void options_cleanup(struct options **o)
{
    options_free(*o);
}
#define AUTO_OPTIONS __attribute__((cleanup(options_cleanup)))

/*
 * Parse "driver=qcow2,file.filename=a,,b" (",," is a comma in a value). A first element without "="
 * is the value of `implied_key`, if that is not NULL; later ones without "=" mean "=on". Text that
 * begins with '{' is parsed as JSON, where a key given twice is an error. Of text the last value
 * counts. Contradicting keys are errors. -EINVAL.
 */
int options_parse(const char *text, const char *implied_key, struct options **ret_options,
                  struct error *err);

/* Likewise, but later elements without "=" are errors, as in the options of QEMU's daemon. */
int options_parse_strict(const char *text, const char *implied_key, struct options **ret_options,
                         struct error *err);

/* Parse the text of a JSON object, which may begin with white space. -EINVAL. */
int options_parse_json(const char *text, struct options **ret_options, struct error *err);

/*
 * The name, in a group of options, of a value that was given to the group itself. QEMU has one
 * option that is a value, a group, or both: overlap-check.
 */
#define OPTIONS_OWN_VALUE "="

/*
 * A deep copy of a JSON object, with dotted keys nested. -EINVAL: not an object; a key is given
 * twice.
 */
int options_from_json(struct json_object *object, struct options **ret_options, struct error *err);

/*
 * Likewise from the arguments of a command. Values must have the right types, and keys must have no
 * dots. Errors are worded as in QEMU's programs, with the whole path.
 */
int options_from_arguments(struct json_object *object, struct options **ret_options,
                           struct error *err);

/*
 * Whether options_from_arguments() made the tree: then messages name options by their whole path.
 */
bool options_are_arguments(const struct options *o);

/* Likewise from element `index` of a list that was taken from `o` by the name `key`. */
int options_from_element(const struct options *o, const char *key, size_t index,
                         struct json_object *element, struct options **ret_options,
                         struct error *err);

/* A JSON copy of the options that are still in the tree; the caller has the reference. */
struct json_object *options_to_json(const struct options *o);
/* Whether the tree was made of `key=value` text: all its values are strings. */
bool options_are_text(const struct options *o);
/* NULL: no memory. */
struct options *options_clone(const struct options *o);

/* Whether no option is left. */
bool options_is_empty(const struct options *o);
/* Whether the tree has `key` (one level, no dots), of any type, null included. */
bool options_has(const struct options *o, const char *key);
/* Whether the tree has it, and it is JSON null. */
bool options_is_null(const struct options *o, const char *key);
/* Whether the tree has it, and it is this string. */
bool options_is_text(const struct options *o, const char *key, const char *text);
/* Remove the key, if the tree has it. */
void options_drop(struct options *o, const char *key);

/* Set a value, in place of the old one. */
void options_set_str(struct options *o, const char *key, const char *value);
void options_set_bool(struct options *o, const char *key, bool value);
void options_set_uint(struct options *o, const char *key, uint64_t value);
void options_set_child(struct options *o, const char *key, struct options *child /* consumed */);
/* Set a value unless the tree has the key. */
void options_default_str(struct options *o, const char *key, const char *value);
void options_default_bool(struct options *o, const char *key, bool value);

/*
 * Overwrite the text of a value with zeroes, in place, also for those who share it, as the message
 * that the options came in. The key stays. Nothing if there is no such text.
 */
void options_wipe_str(struct options *o, const char *key);

/*
 * Take: the output gets the value, or the default where the key is absent, and the key is removed.
 * -EINVAL with a sentence that names key, expectation and value when it has the wrong type or form.
 */
int options_take_str(struct options *o, const char *key,
                     char **ret_text /* owned by the caller; NULL if absent */, struct error *err);
/*
 * Likewise; the text is in secret memory, for secret_free(), and options_wipe_str() was called for
 * the value.
 */
int options_take_secret(struct options *o, const char *key, char **ret_text, struct error *err);
/*
 * Likewise; a number is taken as its text, as QEMU does for options that are older than their
 * types.
 */
int options_take_text(struct options *o, const char *key, char **ret_text, struct error *err);
int options_take_bool(struct options *o, const char *key, bool dflt, bool *ret_flag,
                      struct error *err);
int options_take_uint(struct options *o, const char *key, uint64_t dflt, uint64_t max,
                      uint64_t *ret_value, struct error *err);
int options_take_size(struct options *o, const char *key, uint64_t dflt, uint64_t *ret_value,
                      struct error *err);
/* `names` ends with NULL; *ret_value is an index in it. */
int options_take_enum(struct options *o, const char *key, const char *const *names, int dflt,
                      int *ret_value, struct error *err);

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
int options_take_list(struct options *o, const char *key, struct json_object **ret_json,
                      struct error *err);

/* -EINVAL: "Unknown <key> '<value>'", or what QEMU says of arguments. */
int options_wrong_choice(const struct options *o, const char *key, const char *value,
                         struct error *err);
/* -EINVAL: a mandatory option is missing. */
int options_missing(const struct options *o, const char *key, struct error *err);
/* Likewise for the child `name` of a node, in the words that QEMU has for texts and arguments. */
int options_no_child(const struct options *o, const char *name, struct error *err);
/* Likewise for the name of the file that `driver` opens. */
int options_no_filename(const struct options *o, const char *driver, struct error *err);

/*
 * -EINVAL, with a hint: `id`, the value of the option `key`, is none of the names that users give
 * to objects: a letter, then letters, digits, '-', '.' and '_'.
 */
int options_check_identifier(const char *key, const char *id, struct error *err);

/* -EINVAL if an option is left: "<what> does not support the option '<key>'". */
int options_check_empty(const struct options *o, const char *what, struct error *err);

#endif

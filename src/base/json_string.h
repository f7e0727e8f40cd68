/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Strings of JSON values that may be passwords: they are erased when they are freed. Who reads a
 * text can't tell which of its strings is one, so all are treated so. None of these functions
 * yields. Any thread.
 */
#ifndef TIDEMARK_BASE_JSON_STRING_H
#define TIDEMARK_BASE_JSON_STRING_H

#include <json-c/json.h>
#include <stddef.h>

/* A new reference to a string of `size` bytes; NULL: out of memory. */
struct json_object *json_string_new(const char *text, size_t size);

/*
 * A copy of a value and of all that is in it, whose strings are such strings. (json-c's own deep
 * copy refuses these.) *ret_copy is a new reference, NULL for null. 0, or -ENOMEM.
 */
int json_copy(struct json_object *value, struct json_object **ret_copy);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* JSON on standard output, in the layout and order of QEMU's tools. None of this yields. */
#ifndef TIDEMARK_CLI_JSON_H
#define TIDEMARK_CLI_JSON_H

#include <json-c/json.h>

/*
 * Print a value and a newline: 4 spaces per level, members in QEMU's order, empty containers on two
 * lines.
 */
void cli_print_json(struct json_object *json);
/*
 * Print the members of an object (or the elements of an array) for people, as lines "name: value".
 * `level` is the indentation, in units of 4 spaces.
 */
void cli_print_tree(struct json_object *value, int level);

#endif

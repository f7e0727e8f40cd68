/* SPDX-License-Identifier: Apache-2.0 */
/* The nodes that the strings of a command's arguments name. Nothing here yields. */
#ifndef TIDEMARK_QMP_NAMED_H
#define TIDEMARK_QMP_NAMED_H

#include <json-c/json.h>
#include <stdbool.h>

#include "block/node.h"

/* Returns false to end the iteration. */
typedef bool qmp_string_fn(const char *string, void *arg);

/* Call `fn` for each string in a value, at any depth. Returns false if `fn` ended the iteration. */
bool qmp_foreach_string(struct json_object *value, qmp_string_fn *fn, void *arg);

/* The node that the export `id` shows, borrowed; NULL: there is no such export. */
struct block_node *qmp_node_of_export(const char *id);

/* Call `fn` for each node that a string in `data` names, by its own name or that of an export. */
void qmp_foreach_named_node(struct json_object *data, block_node_fn *fn, void *arg);

#endif

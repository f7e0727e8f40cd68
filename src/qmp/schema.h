/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments that have passed the check of their type (schema/schema.h). Nothing here yields. */
#ifndef TIDEMARK_QMP_SCHEMA_H
#define TIDEMARK_QMP_SCHEMA_H

#include "block/options.h"
#include "schema/schema.h"

/*
 * Convert an option of a command line, `key=value,...` or JSON, to arguments, and check them.
 * *ret_args gets a new reference. Errors of schema_check().
 */
int qmp_args_of_options(const struct schema_type *type, const struct options *opts,
                        struct json_object **ret_args, struct error *err);

/* The value of a member; NULL or `dflt` if it is absent. Strings and objects are borrowed. */
const char *qmp_get_str(struct json_object *args, const char *name);
bool qmp_get_bool(struct json_object *args, const char *name, bool dflt);
uint64_t qmp_get_uint(struct json_object *args, const char *name, uint64_t dflt);
struct json_object *qmp_get(struct json_object *args, const char *name);

#endif

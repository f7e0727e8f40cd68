/* SPDX-License-Identifier: Apache-2.0 */
/* The help that `--object help` prints, and parts of that of other options. None of this yields. */
#ifndef TIDEMARK_CLI_OBJECT_HELP_H
#define TIDEMARK_CLI_OBJECT_HELP_H

#include <stdbool.h>

#include "schema/schema.h"

/* Whether one of the parts of an option's value, between commas, is "help" or "?"; not in JSON. */
bool cli_asks_for_help(const char *value);

/* The variant of a union that the value names, "KEY=NAME,..." or "NAME,..."; NULL: none. */
const struct schema_variant *cli_help_variant(const struct schema_type *type, const char *value);

/*
 * Print the options of the type of objects that the value of --object names, or the list of types.
 * They have to be registered before.
 */
void cli_print_object_help(const char *value);

#endif

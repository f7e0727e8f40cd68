/* SPDX-License-Identifier: Apache-2.0 */
/* Types as text for users of command lines. Nothing here yields. */
#ifndef TIDEMARK_SCHEMA_HELP_H
#define TIDEMARK_SCHEMA_HELP_H

#include "base/strbuf.h"
#include "schema/schema.h"

/*
 * Append a line for each member of an object type, without those of variants:
 *
 *   "  cache.direct=<bool>      - bypass the page cache of the host (default: false)"
 *
 * Members of an object in the object have their path. A type in `stop` (ends with NULL; NULL: none)
 * is shown by its name, and not entered.
 */
void schema_help_members(const struct schema_type *type, const struct schema_type *const *stop,
                         struct strbuf *out);

/*
 * Append a line for each member, "  name=<type>", sorted: the form of QEMU's help for objects.
 */
void schema_help_properties(const struct schema_type *type, struct strbuf *out);

#endif

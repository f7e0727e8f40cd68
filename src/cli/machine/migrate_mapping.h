/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of nodes and bitmaps in the stream of a migration: QEMU's migration parameter
 * block-bitmap-mapping. Without a mapping both machines use their own names. Main reactor only;
 * nothing yields.
 */
#ifndef TIDEMARK_CLI_MACHINE_MIGRATE_MAPPING_H
#define TIDEMARK_CLI_MACHINE_MIGRATE_MAPPING_H

#include <json-c/json.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/strbuf.h"

/* The longest name in a stream, in bytes. */
#define MIGRATE_ALIAS_MAX 255

/*
 * Take a mapping over, QEMU's BitmapMigrationNodeAlias as an array; the caller keeps its reference.
 * -EINVAL: an alias or a name is not possible, or is there twice; the mapping of before stays.
 */
int migrate_set_mapping(struct json_object *mapping, struct error *err);
bool migrate_has_mapping(void);
void migrate_free_mapping(void);
/* Append the mapping as `info migrate_parameters` shows it; nothing without one. */
void migrate_print_mapping(struct strbuf *text);

/*
 * The entry of a node in the mapping, by its name or (`by_alias`) by its alias, and that of a
 * bitmap in an entry of a node. NULL: there is none.
 */
struct json_object *migrate_find_node(const char *name, bool by_alias);
struct json_object *migrate_find_bitmap(struct json_object *node, const char *name, bool by_alias);
/* Whether a bitmap is stored in its image: what the entry says, else `before`. */
bool migrate_bitmap_persistent(struct json_object *bitmap, bool before);

extern const struct schema_type migrate_mapping_type;

#endif

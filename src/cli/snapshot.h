/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Internal snapshots of an image: listing them, and reading one. All `co_` functions yield; the
 * others do not.
 */
#ifndef TIDEMARK_CLI_SNAPSHOT_H
#define TIDEMARK_CLI_SNAPSHOT_H

#include <json-c/json.h>

#include "base/strbuf.h"
#include "block/block.h"

/* The snapshots as the member "snapshots" of `info`; a new reference, or NULL if there are none. */
struct json_object *cli_co_snapshots(struct block_node *node);
/* Print the result of cli_co_snapshots() as a table. */
void cli_print_snapshots(struct json_object *array);
/* Append the head of such a table; a row of it, with `id` for the ID (NULL: the snapshot's). */
void cli_format_snapshot_head(struct strbuf *sb);
void cli_format_snapshot(struct strbuf *sb, struct json_object *o, const char *id);
/*
 * Check the form of a snapshot's name: an ID or name, or "snapshot.id=...,snapshot.name=...".
 * -EINVAL. NULL is fine.
 */
int cli_check_snapshot(const char *text, struct error *err);
/* Make a read-only node show the snapshot that `text` names. -ENOTSUP, -ENOENT, ... */
int cli_co_show_snapshot(struct block_node *node, const char *text, struct error *err);

#endif

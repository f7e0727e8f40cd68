/* SPDX-License-Identifier: Apache-2.0 */
/* Dirty bitmaps in the stream of a migration. Main reactor only; the functions yield. */
#ifndef TIDEMARK_CLI_MACHINE_MIGRATE_BITMAPS_H
#define TIDEMARK_CLI_MACHINE_MIGRATE_BITMAPS_H

#include <json-c/json.h>

#include "base/error.h"

/*
 * The bitmaps of all nodes, or those that the mapping names (migrate_mapping.h), as an array:
 * *ret_list, a new reference. With the control lock held. -EBUSY: one is in use. -EINVAL: a name is
 * too long. Errors of reading the bitmaps.
 */
int migrate_co_save_bitmaps(struct json_object **ret_list, struct error *err);
/*
 * Make them. One that the image has stored is there already. If one can't be made, this and those
 * after it are lost, which is logged: the machine goes on. With the control lock held.
 */
void migrate_co_load_bitmaps(struct json_object *list);

#endif

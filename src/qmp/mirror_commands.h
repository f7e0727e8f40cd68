/* SPDX-License-Identifier: Apache-2.0 */
/* What the commands that start mirrors share. */
#ifndef TIDEMARK_QMP_MIRROR_COMMANDS_H
#define TIDEMARK_QMP_MIRROR_COMMANDS_H

#include <json-c/json.h>

#include "base/error.h"
#include "job/mirror.h"

/*
 * The arguments that all of them have, except the target, for a mirror of `source`. Strings are
 * borrowed from `args`. -EINVAL, -ENOENT. Does not yield.
 */
int qmp_get_mirror_params(struct json_object *args, struct block_node *source,
                          struct mirror_params *ret_params, struct error *err);
/*
 * Read the bits of the bitmap `p->bitmap` from the image of the source, before the mirror is
 * started. The disk may hang, so this is a work apart (block/control_lock.h): what was looked up
 * before may be gone afterwards. Errors of the bitmap. Yields.
 */
int qmp_co_fetch_mirror_bitmap(const struct mirror_params *p, struct error *err);

#endif

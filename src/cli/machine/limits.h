/* SPDX-License-Identifier: Apache-2.0 */
/* The limits that -drive and block_set_io_throttle say. Main reactor only. */
#ifndef TIDEMARK_CLI_MACHINE_LIMITS_H
#define TIDEMARK_CLI_MACHINE_LIMITS_H

#include <json-c/json.h>

#include "base/error.h"
#include "block/options.h"

struct machine_disk;

struct machine_drive_limits {
    struct json_object *limits; /* a ThrottleLimits; owned */
    char *group;                /* owned; NULL: not given */
};

/*
 * Take `throttling.*` and the older names out of the options of a drive. -EINVAL with a sentence.
 */
int machine_take_drive_limits(struct options *opts, struct machine_drive_limits *ret_limits,
                              struct error *err);
/* Put them in force. Yields. */
int machine_co_use_drive_limits(const struct machine_drive_limits *l, struct machine_disk *disk,
                                struct error *err);
/*
 * The arguments of block_set_io_throttle as a ThrottleLimits: all of them, so that those which are
 * not given get defaults. The caller owns the value.
 */
struct json_object *machine_limits_of_arguments(struct json_object *args);
/* Free what was taken; {0} is fine. */
void machine_clear_drive_limits(struct machine_drive_limits *l);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of restore share. `co_` functions yield, the others do not. */
#ifndef TIDEMARK_BACKUP_RESTORE_INTERNAL_H
#define TIDEMARK_BACKUP_RESTORE_INTERNAL_H

#include "backup/backup.h"
#include "backup/chain.h"
#include "backup/target.h"
#include "base/error.h"

/*
 * Say to other restores on this machine that the target is taken, until *ret_claim is closed, or
 * the process ends. -EBUSY: another one has it. Where this can't be said, *ret_claim is -1.
 */
int restore_claim_target(const char *target, int *ret_claim, struct error *err);

/* --- to standard output (restore_stream.c) --- */

/* Whether the options fit, and standard output is none that a disk should go to. -EINVAL. */
int restore_check_stream(const struct restore_options *options, struct error *err);
/*
 * Write the disk from begin to end. Areas of zeroes become holes in an empty file. *ret_written:
 * bytes of data.
 */
int restore_co_stream(const struct restore_options *options, struct chain *chain,
                      uint64_t *ret_written, struct error *err);

/* --- into a daemon (restore_node.c) --- */

/* Whether the daemon answers and can have such a node. -EEXIST, -EINVAL. */
int restore_co_check_node(const struct restore_options *o, const struct target *target,
                          struct error *err);
/*
 * Add the restored disk as a node. A new file is given to the user of the daemon, if this process
 * may do that.
 */
int restore_co_add_node(const struct restore_options *options, const struct target *target,
                        struct error *err);

#endif

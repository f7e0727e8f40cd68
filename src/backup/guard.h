/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process next to a backup that puts the source in order when the backup is killed. It runs the
 * same command with --abort, once the pipe to it is closed without a word. It has a session of its
 * own, so that it outlives the terminal. If it is killed, too, the next run does its work.
 *
 * The pipe carries single letters. Nothing here yields but guard_co_wait().
 */
#ifndef TIDEMARK_BACKUP_GUARD_H
#define TIDEMARK_BACKUP_GUARD_H

#include <stdbool.h>

#include "base/error.h"

enum guard_note {
    GUARD_FROZEN = 'f', /* the guest may be frozen */
    GUARD_THAWED = 't',
    GUARD_DONE = 'd', /* everything is in order */
};

/* The option that tells the guard its end of the pipe; its value follows. */
#define GUARD_OPTION "--abort-after"

/*
 * Start a guard: this program with `argv`, whose last two places before the NULL are filled with
 * GUARD_OPTION and its value. Returns the descriptor to note by, which the caller owns, or -errno.
 */
int guard_start(char **argv);
/* Tell the guard. `fd` < 0: there is none. */
void guard_say(int fd, enum guard_note note);
/*
 * In the guard: wait for the end of the pipe. Returns whether the backup was killed; *ret_frozen:
 * the guest may be frozen. Yields.
 */
bool guard_co_wait(int fd, bool *ret_frozen);

#endif

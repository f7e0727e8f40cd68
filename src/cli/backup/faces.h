/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the faces of backups share: how they end, and what programs get. A face is the edge: it
 * prints its errors by backup_fail(). Functions without `co_` do not yield.
 */
#ifndef TIDEMARK_CLI_BACKUP_FACES_H
#define TIDEMARK_CLI_BACKUP_FACES_H

#include <json-c/json.h>
#include <signal.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/progress.h"
#include "base/size.h"

/* Exit statuses, as docs/backup.md has them. JSON output says which kind of failure it was. */
enum backup_status {
    BACKUP_FAILED = 1,
    BACKUP_DAMAGED = 2,   /* verify: a backup is damaged */
    BACKUP_UNSETTLED = 3, /* the backup is complete, the daemon could not be put in order */
};

/* Set by the first SIGINT, SIGTERM or SIGHUP; a second one ends the process at once. */
extern volatile sig_atomic_t backup_stop;
/* From now on these signals set backup_stop, unless they are ignored. */
void backup_catch_signals(void);

/*
 * Print and clear `err`: on standard error and, with `json`, as an object on standard output.
 * Returns BACKUP_FAILED.
 */
int backup_fail(struct error *err, bool json);
/* Print an object (consumed; NULL: out of memory). Returns the exit status. */
int backup_print_json(struct json_object *o);

/* The rows of the options that say how progress is shown. */
#define BACKUP_PROGRESS_ARGS(flag, text)                                                           \
    CLI_ARG(NULL, 'p', CLI_FLAG, &(flag), NULL,                                                    \
            "show progress, also if standard error is no terminal"),                               \
        CLI_ARG("progress", 0, CLI_VALUE, &(text), "FORMAT",                                       \
                "show progress as 'human', or as 'json': an object per line,\n"                    \
                "on standard error")
/* The form of progress that they mean. -EINVAL. */
int backup_progress(bool flag, const char *text, enum progress_form *ret_form, struct error *err);

/*
 * backup --leftovers: print what backups have in a daemon, on `node` (NULL: on all nodes). Returns
 * the exit status. Yields.
 */
int backup_co_print_leftovers(const char *qmp_socket, const char *node, bool json);

/* size_format() for a table. */
static inline const char *backup_size(uint64_t bytes, char buf[static 16])
{
    return size_format(bytes, buf, 16);
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What the faces of backups share: how they end, and how programs are told. */
#ifndef TIDEMARK_CLI_BACKUP_FACES_H
#define TIDEMARK_CLI_BACKUP_FACES_H

#include <json-c/json.h>
#include <signal.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/progress.h"
#include "base/size.h"

/* Exit statuses, as docs/backup.md has them. What kind of failure it was is told in JSON. */
enum {
    BACKUP_FAILED = 1,
    BACKUP_DAMAGED = 2,   /* verify: what a repository holds is not what it was */
    BACKUP_UNSETTLED = 3, /* the backup is complete, the daemon could not be put in order */
};

/* Set by the first signal that asks for the end; a second one ends the process at once. */
extern volatile sig_atomic_t backup_stop;
void backup_catch_signals(void);

/* Tell what is in `err`, on standard error and, with `json`, as an object on standard output. Returns BACKUP_FAILED. */
int backup_fail(struct error *err, bool json);
/* Print an object (consumed; NULL: no memory). The exit status. */
int backup_print_json(struct json_object *o);

/* The two rows of options that say how progress is shown, and what they come to: 0, or -EINVAL (told). */
#define BACKUP_PROGRESS_ARGS(flag, text)                                                           \
    {NULL, 'p', CLI_FLAG, &(flag), NULL, "show progress, also if not on a terminal"},              \
    {                                                                                              \
        "progress", 0, CLI_VALUE, &(text), "FORMAT",                                               \
            "show it as 'human', or as 'json': objects, one a line, on standard error"             \
    }
int backup_progress(bool flag, const char *text, enum progress_form *ret_form);

/* backup --leftovers: print what backups have in a daemon, on `node` (NULL: on all). The exit status. Yields. */
int backup_co_print_leftovers(const char *qmp_socket, const char *node, bool json);

static inline const char *backup_size(uint64_t bytes, char buf[static 16])
{
    return size_format(bytes, buf, 16);
}

#endif

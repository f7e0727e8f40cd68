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

#include "backup/key.h"
#include "backup/repository.h"
#include "backup/source.h"
#include "base/error.h"
#include "base/progress.h"
#include "base/size.h"

/* Exit statuses, as docs/backup.md has them. JSON output says which kind of failure it was. */
enum backup_status {
    BACKUP_FAILED = 1,
    BACKUP_DAMAGED = 2,   /* verify: a backup is damaged */
    BACKUP_UNSETTLED = 3, /* the backup is complete, the daemon could not be put in order */
    BACKUP_STOPPED = 4,   /* verify: by a signal */
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
/* The rows of the options that name the key of a repository. */
#define BACKUP_KEY_ARGS                                                                            \
    CLI_ARG("key-file", 0, CLI_VALUE, &backup_key_source.file, "FILE",                             \
            "key of the repository, which authenticates and decrypts it\n"                         \
            "(default: the file named in TIDEMARK_KEY_FILE)"),                                     \
        CLI_ARG("passphrase-file", 0, CLI_VALUE, &backup_key_source.passphrase, "FILE",            \
                "passphrase instead of a key (TIDEMARK_PASSPHRASE_FILE)"),                         \
        CLI_ARG("key-command", 0, CLI_VALUE, &backup_key_source.command, "COMMAND",                \
                "shell command that prints the key (TIDEMARK_KEY_COMMAND)")
/* The row of the option for the disks of a machine, in a root of sets (backup/set_root.h). */
#define BACKUP_VM_ARG(machine)                                                                     \
    CLI_ARG("vm", 0, CLI_VALUE, &(machine), "NAME",                                                \
            "only the disks of this machine; DIR is the root of its sets")
/* The row of the option that makes new repositories ones that only grow. */
#define BACKUP_APPEND_ONLY_ARG                                                                     \
    CLI_ARG("append-only", 0, CLI_FLAG, &repository_new_append_only, NULL,                         \
            "make a new repository one that only grows: no command changes or\n"                   \
            "removes what is in it")
/* The row of the option that makes new repositories encrypted ones. */
#define BACKUP_ENCRYPT_ARG                                                                         \
    CLI_ARG("encrypt", 0, CLI_FLAG, &backup_key_encrypts, NULL,                                    \
            "encrypt a new repository with the key; without the key, nothing\n"                    \
            "can be restored from it")
/* The form of progress that they mean. -EINVAL. */
int backup_progress(bool flag, const char *text, enum progress_form *ret_form, struct error *err);

/*
 * backup --leftovers: print what backups have in a daemon, on `node` (NULL: on all nodes). Returns
 * the exit status. Yields.
 */
int backup_co_print_leftovers(const struct source_options *source, const char *node, bool json);

/* size_format() for a table. */
static inline const char *backup_size(uint64_t bytes, char buf[static 16])
{
    return size_format(bytes, buf, 16);
}

#endif

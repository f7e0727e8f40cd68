/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The option --notify: a program of the user learns how a face ended. It is started as `PROGRAM
 * FACE STATUS`, with the JSON form of the result, or of the error, on its standard input. What it
 * does changes nothing about the exit status of the face.
 */
#ifndef TIDEMARK_CLI_BACKUP_NOTIFY_H
#define TIDEMARK_CLI_BACKUP_NOTIFY_H

#include <json-c/json.h>

/* The value of the option; NULL: not given. */
extern const char *backup_notify_program;

/* The row of the option. */
#define BACKUP_NOTIFY_ARG                                                                          \
    CLI_ARG("notify", 0, CLI_VALUE, &backup_notify_program, "PROGRAM",                             \
            "run PROGRAM at the end, with the command and its exit status as\n"                    \
            "arguments, and the result as JSON on its standard input")

/* Keep the result for the program; takes a reference of its own. NULL is ignored. */
void backup_note_result(struct json_object *result);
/* Run the program, if there is one, and wait for it. Returns `status`. Blocks. */
int backup_notify(const char *face, int status);

#endif

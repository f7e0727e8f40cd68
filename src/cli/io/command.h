/* SPDX-License-Identifier: Apache-2.0 */
/* Commands of `tidemark io`. */
#ifndef TIDEMARK_CLI_IO_COMMAND_H
#define TIDEMARK_CLI_IO_COMMAND_H

#include <stdbool.h>

#include "cli/io/session.h"

/* The arguments of a command, after its options were taken. All text is borrowed. */
struct io_args {
    unsigned set[128];      /* by letter: 0, or the place of the last one among all options */
    const char *value[128]; /* of options that have one; NULL: not given */
    int argc;
    char **argv; /* the arguments that are not options */
};

/* What has to be open for a command. */
enum io_command_needs {
    IO_NEEDS_IMAGE = 1 << 0,
    /* An image that can be written. */
    IO_NEEDS_WRITE = 1 << 1,
};

struct io_command {
    const char *name, *alias;
    const char *letters;    /* as getopt(3) has them; NULL: no options */
    int min_args, max_args; /* options counted; max -1: no limit */
    unsigned needs;         /* io_command_needs */
    const char *arguments;  /* for help */
    const char *about;
    const char *help; /* may be NULL */
    /*
     * Run the command; yields. 0, or -errno when it failed. An error in `err` is printed on
     * standard error by the caller. Where qemu-io prints a failure as output of the command, the
     * command has printed it on standard output, and `err` is empty.
     */
    int (*co_run)(struct io *io, const struct io_command *command, struct io_args *args,
                  struct error *err);
};

/* --- the tables, in the order of names, each ended by a NULL name ----------------------------- */

extern const struct io_command io_rw_commands[];
extern const struct io_command io_aio_commands[];
extern const struct io_command io_break_commands[];
extern const struct io_command io_image_commands[];
extern const struct io_command io_misc_commands[];

/*
 * Split a line into words and run it; an empty line does nothing. 0, or -errno as of
 * io_command.co_run. Yields.
 */
int io_co_run_text(struct io *io, const char *line, struct error *err);

/* --- all commands (commands.c); none of these yields ------------------------------------------ */

/* The command of a name or alias; NULL if there is none. */
const struct io_command *io_find_command(const char *name);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* All commands, by name, and the command that lists them. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "cli/io/command.h"
#include "cli/io/util.h"

static int co_run_io_help(struct io *io, const struct io_command *command, struct io_args *a,
                          struct error *err);

static const struct io_command help_commands[] = {
    {"help", "?", NULL, 0, 1, 0, "[command]", "help for one or all commands", NULL, co_run_io_help},
    {0},
};

static const struct io_command *const tables[] = {
    io_rw_commands,    io_aio_commands,  io_break_commands,
    io_image_commands, io_misc_commands, help_commands,
};

const struct io_command *io_find_command(const char *name)
{
    for (size_t t = 0; t < ARRAY_SIZE(tables); t++) {
        for (const struct io_command *c = tables[t]; c->name; c++) {
            if (strcmp(c->name, name) == 0 || (c->alias && strcmp(c->alias, name) == 0)) {
                return c;
            }
        }
    }
    return NULL;
}

/* Print a line for each command, in the order of names, by merging the sorted tables. */
static void print_all_commands(void)
{
    const struct io_command *next[ARRAY_SIZE(tables)];

    for (size_t t = 0; t < ARRAY_SIZE(tables); t++) {
        next[t] = tables[t];
    }
    for (;;) {
        size_t least = ARRAY_SIZE(tables);

        for (size_t t = 0; t < ARRAY_SIZE(tables); t++) {
            if (next[t]->name &&
                (least == ARRAY_SIZE(tables) || strcmp(next[t]->name, next[least]->name) < 0)) {
                least = t;
            }
        }
        if (least == ARRAY_SIZE(tables)) {
            return;
        }
        io_print_command(next[least]++);
    }
}

static int co_run_io_help(struct io *io, const struct io_command *command, struct io_args *a,
                          struct error *err)
{
    const struct io_command *c;

    if (a->argc == 0) {
        print_all_commands();
        printf("\nUse 'help commandname' for extended help.\n");
        return 0;
    }
    c = io_find_command(a->argv[0]);
    if (!c) {
        printf("command %s not found\n", a->argv[0]);
        return -EINVAL;
    }
    io_print_command(c);
    if (c->help) {
        printf("%s\n", c->help);
    }
    return 0;
}

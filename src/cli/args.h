/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options of a command line from a table: parsing and --help come from the same rows. On top of getopt_long(3), so
 * that options and other arguments may be mixed, and "--" ends the options. None of this yields.
 */
#ifndef TIDEMARK_CLI_ARGS_H
#define TIDEMARK_CLI_ARGS_H

#include <stdbool.h>
#include <stddef.h>

/* An option as it was given: which one, and its value (NULL if it takes none). */
struct cli_item {
    const char *name;
    const char *value;
};

/* Options that may repeat and whose order counts. */
struct cli_items {
    struct cli_item *item; /* owned */
    size_t count;
};

/* Add one at the end; both strings are borrowed. False: out of memory, which has been reported. */
bool cli_items_append(struct cli_items *items, const char *name, const char *value);
void cli_items_clear(struct cli_items *items);
#define CLI_ITEMS_AUTO(name)                                                                       \
    __attribute__((cleanup(cli_items_clear))) struct cli_items name = {NULL, 0}

enum cli_arg_kind {
    CLI_FLAG,   /* no value; target: bool, set to true */
    CLI_VALUE,  /* a value; target: const char *, the last one given */
    CLI_REPEAT, /* a value; target: struct cli_items, appended */
    CLI_ACTION, /* no value; target: struct cli_items, appended */
};

/* One option. A table ends with a row that has neither name nor letter. */
struct cli_arg {
    const char *name; /* long name, NULL if it has none */
    char letter;      /* 0 if it has none */
    enum cli_arg_kind kind;
    void *target;
    const char *value; /* what help calls the value */
    const char *help;
};

/* What --help prints around the table. */
struct cli_usage {
    const char *command;  /* sub-command; NULL for a whole face */
    const char *synopsis; /* the arguments that are no options */
    const char *about;    /* what it does, some lines */
    const char *examples; /* lines; may be NULL */
};

#define CLI_ARGS_HELP (-1)
#define CLI_ARGS_BAD (-2)

/*
 * Parse argv[1] and on. Returns the index of the first argument that is no option (they are moved to the end),
 * CLI_ARGS_HELP when help was asked for and printed, or CLI_ARGS_BAD when the user has been told what is wrong.
 */
int cli_args_parse(const struct cli_arg *args, const struct cli_usage *usage, int argc,
                   char **argv);

/* Tell what is wrong with the command line and how to get help. Returns 1. */
int cli_usage_fail(const struct cli_usage *usage, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options of a command line from a table: parsing and --help come from the same rows. Built on
 * getopt_long(3), so that options and other arguments may be mixed, and "--" ends the options.
 * None of these functions yields.
 */
#ifndef TIDEMARK_CLI_ARGS_H
#define TIDEMARK_CLI_ARGS_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

/* An option as it was given. */
struct cli_item {
    const char *name;  /* of the option; borrowed from its row */
    const char *value; /* borrowed from the command line; NULL if the option takes none */
};

/* Options that may repeat and whose order counts. Start with {0}. */
struct cli_items {
    struct cli_item *item; /* owned */
    size_t count;
};

/* Append an option; both strings are borrowed. False: out of memory, and a message is printed. */
bool cli_items_append(struct cli_items *items, const char *name, const char *value);
/* Free what is held, and leave `items` empty. */
void cli_items_clear(struct cli_items *items);
/* Declares `struct cli_items name`, empty, released when the scope ends. */
#define CLI_ITEMS_AUTO(name)                                                                       \
    __attribute__((cleanup(cli_items_clear))) struct cli_items name = {NULL, 0}

enum cli_arg_kind {
    /* No value; target: bool, set to true. */
    CLI_FLAG,
    /* A value; target: const char *, the last one given. */
    CLI_VALUE,
    /* A value; target: struct cli_items, appended. */
    CLI_REPEAT,
    /* Likewise, of an object; help of the first one is printed at once, whatever else there is. */
    CLI_OBJECT,
    /* No value; target: struct cli_items, appended. */
    CLI_ACTION,
};

/* One option. A table ends with CLI_ARG_END. */
struct cli_arg {
    const char *name; /* long name, NULL if it has none */
    char letter;      /* 0 if it has none */
    enum cli_arg_kind kind;
    void *target;
    const char *value; /* what --help calls the value */
    const char *help;  /* may have several lines; NULL: --help does not show the option */
};

/* What --help prints around the table. */
struct cli_usage {
    const char *command;  /* sub-command; NULL for a whole face */
    const char *synopsis; /* the arguments that are not options */
    const char *about;    /* what it does, in some lines */
    const char *examples; /* lines; '@' begins one with the command; may be NULL */
    bool like_qemu_nbd;   /* under QEMU's name an error refers to --help in the words of qemu-nbd */
};

/* Results of cli_args_parse() that are no index, and no errno either. */
enum cli_args_result {
    /* Help was asked for and printed. */
    CLI_ARGS_HELP = INT_MIN,
    /* The command line is wrong; the parser has printed why, as getopt(3) does. */
    CLI_ARGS_BAD,
};

/*
 * Parse argv[1] and on. Returns the index of the first argument that is not an option (these are
 * moved to the end), or one of cli_args_result.
 */
int cli_args_parse(const struct cli_arg *args, const struct cli_usage *usage, int argc,
                   char **argv);

/*
 * From now on --help of a sub-command prints one line, its name and arguments, indented by two
 * spaces: the help of a whole face lists its commands so. False: as usual again.
 */
void cli_args_set_only_synopsis(bool only);

/* Set an error about the command line, with a hint how to get help. Returns -EINVAL. */
int cli_usage_error(struct error *err, const struct cli_usage *usage, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* --- rows that several tables have ------------------------------------------------------------ */

#define CLI_ARG(...)                                                                               \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }
#define CLI_ARG_END CLI_ARG(NULL, 0, CLI_FLAG, NULL, NULL, NULL)
/* Another name or letter of an option, which --help does not show. */
#define CLI_ARG_ALIAS(name, letter, kind, target) CLI_ARG(name, letter, kind, target, "", NULL)
#define CLI_ARG_OBJECT(items)                                                                      \
    CLI_ARG("object", 0, CLI_OBJECT, &(items), "DEF",                                              \
            "an object that others refer to: TYPE,id=ID,...")
#define CLI_ARG_IMAGE_OPTS(flag)                                                                   \
    CLI_ARG("image-opts", 0, CLI_FLAG, &(flag), NULL,                                              \
            "FILENAME is options: driver=...,file.filename=...")
#define CLI_ARG_FORMAT(var)                                                                        \
    CLI_ARG("format", 'f', CLI_VALUE, &(var), "FMT",                                               \
            "format of the image; guessed if it is only read")
#define CLI_ARG_QUIET(flag) CLI_ARG("quiet", 'q', CLI_FLAG, &(flag), NULL, "print errors only")
#define CLI_ARG_PROGRESS(flag) CLI_ARG("progress", 'p', CLI_FLAG, &(flag), NULL, "show progress")
#define CLI_ARG_FORCE_SHARE(flag)                                                                  \
    CLI_ARG("force-share", 'U', CLI_FLAG, &(flag), NULL,                                           \
            "read an image that is in use (may be inconsistent)")
#define CLI_ARG_OUTPUT(var)                                                                        \
    CLI_ARG("output", 0, CLI_VALUE, &(var), "FORM", "human (default) or json")

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/args.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/object_help.h"

#define ARGS_MAX 64
/* getopt's return values for long options without a letter begin here. */
#define LONG_BASE 1000
/* Where --help describes an option, in columns from the left. */
#define HELP_COLUMN 33
#define TRY_HELP "Try '%s%s%s --help' for more info"
#define TRY_HELP_NBD "Try `%s --help' for more information."

/* --help of a sub-command prints one line. */
static bool only_synopsis;

void cli_args_set_only_synopsis(bool only)
{
    only_synopsis = only;
}

void cli_items_clear(struct cli_items *items)
{
    free(items->item);
    *items = (struct cli_items){NULL, 0};
}

bool cli_items_append(struct cli_items *items, const char *name, const char *value)
{
    struct cli_item *bigger = realloc(items->item, (items->count + 1) * sizeof(*bigger));

    if (!bigger) {
        cli_fail("Out of memory");
        return false;
    }
    bigger[items->count] = (struct cli_item){.name = name, .value = value};
    items->item = bigger;
    items->count++;
    return true;
}

static bool takes_value(const struct cli_arg *a)
{
    return a->kind == CLI_VALUE || a->kind == CLI_REPEAT || a->kind == CLI_OBJECT;
}

static bool is_end(const struct cli_arg *a)
{
    return !a->name && !a->letter;
}

int cli_usage_error(struct error *err, const struct cli_usage *usage, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    error_vset(err, EINVAL, fmt, ap);
    va_end(ap);
    if (usage->like_qemu_nbd && cli_is_compat()) {
        error_hint(err, TRY_HELP_NBD, cli_program());
        return -EINVAL;
    }
    error_hint(err, TRY_HELP, cli_program(), usage->command ? " " : "", usage->command ?: "");
    return -EINVAL;
}

/* Print what getopt(3) found wrong, in its own words. `word` is the argument it stopped at. */
static void print_bad_option(const struct cli_usage *usage, bool lacks_value, const char *word)
{
    bool is_long = optopt == 0 || optopt >= LONG_BASE;
    int name_length = (int)strcspn(word, "=");

    fflush(stdout);
    fprintf(stderr, "%s%s%s: ", cli_program(), usage->command ? " " : "", usage->command ?: "");
    if (lacks_value && is_long) {
        fprintf(stderr, "option '%s' requires an argument\n", word);
    } else if (lacks_value) {
        fprintf(stderr, "option requires an argument -- '%c'\n", optopt);
    } else if (optopt == 0) {
        fprintf(stderr, "unrecognized option '%s'\n", word);
    } else if (is_long) {
        fprintf(stderr, "option '%.*s' doesn't allow an argument\n", name_length, word);
    } else {
        fprintf(stderr, "invalid option -- '%c'\n", optopt);
    }
    if (usage->like_qemu_nbd && cli_is_compat()) {
        fprintf(stderr, "%s: " TRY_HELP_NBD "\n", cli_program(), cli_program());
        return;
    }
    fprintf(stderr, TRY_HELP "\n", cli_program(), usage->command ? " " : "", usage->command ?: "");
}

/*
 * Print "  left      help". A long `left`, and each further line of the help, takes a line of its
 * own.
 */
static void print_described(const char *left, const char *help)
{
    bool fits = strlen(left) <= HELP_COLUMN - 3;

    printf("  %-*s%c", fits ? HELP_COLUMN - 3 : 0, left, fits ? ' ' : '\n');
    for (int indent = fits ? 0 : HELP_COLUMN; *help; indent = HELP_COLUMN) {
        int length = (int)strcspn(help, "\n");

        printf("%*s%.*s\n", indent, "", length, help);
        help += length + (help[length] == '\n');
    }
}

static void print_arg(const struct cli_arg *a)
{
    char left[64];

    snprintf(left, sizeof(left), "%c%c%s%s%s%s%s", a->letter ? '-' : ' ', a->letter ?: ' ',
             a->letter && a->name ? ", " : "  ", a->name ? "--" : "", a->name ?: "",
             takes_value(a) ? (a->name ? "=" : " ") : "", takes_value(a) ? a->value : "");
    print_described(left, a->help);
}

/* Each '@' at the beginning of a line becomes the command as it is typed. */
static void print_examples(const struct cli_usage *usage)
{
    const char *line = usage->examples;

    printf("\nexamples:\n");
    while (*line) {
        int length = (int)strcspn(line, "\n");

        if (*line == '@') {
            printf("  %s%s%s %.*s\n", cli_program(), usage->command ? " " : "",
                   usage->command ?: "", length - 1, line + 1);
        } else {
            printf("%.*s\n", length, line);
        }
        line += length + (line[length] == '\n');
    }
}

/*
 * Print " [-U] [-f FMT] [--output=FORM] FILENAME" on the same line: programs search the help of
 * QEMU's tools for such words to learn which options there are.
 */
static void print_synopsis(const struct cli_arg *args, const struct cli_usage *usage)
{
    for (const struct cli_arg *a = args; !is_end(a); a++) {
        const char *value = takes_value(a) ? a->value : "";

        if (a->help && a->letter) {
            printf(" [-%c%s%s]", a->letter, *value ? " " : "", value);
        } else if (a->help) {
            printf(" [--%s%s%s]", a->name, *value ? "=" : "", value);
        }
    }
    printf("%s%s\n", *usage->synopsis ? " " : "", usage->synopsis);
}

static void print_usage(const struct cli_arg *args, const struct cli_usage *usage)
{
    if (only_synopsis) {
        printf("  %s", usage->command);
        print_synopsis(args, usage);
        return;
    }
    printf("usage: %s%s%s", cli_program(), usage->command ? " " : "", usage->command ?: "");
    if (cli_is_compat() && usage->command) {
        print_synopsis(args, usage);
    } else {
        printf(" [options]%s%s\n", *usage->synopsis ? " " : "", usage->synopsis);
    }
    printf("\n%s\n\noptions:\n", usage->about);
    for (const struct cli_arg *a = args; !is_end(a); a++) {
        if (a->help) {
            print_arg(a);
        }
    }
    print_described("-h, --help", "this text");
    if (usage->examples) {
        print_examples(usage);
    }
}

/* Fill getopt's two tables. `letters` has room for 2 characters per option, ":h" and NUL. */
static void build_tables(const struct cli_arg *args, struct option *longs, char *letters)
{
    size_t n_long = 0;

    *letters++ = ':';
    *letters++ = 'h';
    longs[n_long++] = (struct option){.name = "help", .val = 'h'};
    for (size_t i = 0; i < ARGS_MAX && !is_end(&args[i]); i++) {
        if (args[i].letter) {
            *letters++ = args[i].letter;
            if (takes_value(&args[i])) {
                *letters++ = ':';
            }
        }
        if (args[i].name) {
            longs[n_long++] = (struct option){
                .name = args[i].name,
                .has_arg = takes_value(&args[i]) ? required_argument : no_argument,
                .val = LONG_BASE + (int)i,
            };
        }
    }
    *letters = '\0';
    longs[n_long] = (struct option){NULL, 0, NULL, 0};
}

static const struct cli_arg *find_arg(const struct cli_arg *args, int c)
{
    if (c >= LONG_BASE) {
        return &args[c - LONG_BASE];
    }
    for (const struct cli_arg *a = args; !is_end(a); a++) {
        if (a->letter == c) {
            return a;
        }
    }
    return NULL;
}

static bool apply_arg(const struct cli_arg *a, const char *value)
{
    switch (a->kind) {
    case CLI_FLAG:
        *(bool *)a->target = true;
        return true;
    case CLI_VALUE:
        *(const char **)a->target = value;
        return true;
    case CLI_REPEAT:
    case CLI_OBJECT:
    case CLI_ACTION:
        return cli_items_append(a->target, a->name, takes_value(a) ? value : NULL);
    }
    return false;
}

/* Objects before it would be made first, and may be wrong. */
static bool asks_for_object_help(const struct cli_arg *a, const char *value)
{
    return a->kind == CLI_OBJECT && ((const struct cli_items *)a->target)->count == 0 &&
           cli_asks_for_help(value);
}

int cli_args_parse(const struct cli_arg *args, const struct cli_usage *usage, int argc, char **argv)
{
    struct option longs[ARGS_MAX + 2];
    char letters[ARGS_MAX * 2 + 3];
    int c;

    build_tables(args, longs, letters);
    optind = 0; /* glibc: start again, with permutation */
    opterr = 0;
    while ((c = getopt_long(argc, argv, letters, longs, NULL)) != -1) {
        const struct cli_arg *a;

        if (c == 'h') {
            print_usage(args, usage);
            return CLI_ARGS_HELP;
        }
        if (c == ':' || c == '?') {
            print_bad_option(usage, c == ':', argv[optind - 1]);
            return CLI_ARGS_BAD;
        }
        a = find_arg(args, c);
        if (a && asks_for_object_help(a, optarg)) {
            cli_register_drivers();
            cli_print_object_help(optarg);
            return CLI_ARGS_HELP;
        }
        if (!a || !apply_arg(a, optarg)) {
            return CLI_ARGS_BAD;
        }
    }
    return optind;
}

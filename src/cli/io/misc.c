/* SPDX-License-Identifier: Apache-2.0 */
/* Commands that need no image: help, quit, sleep, sigraise, abort. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/bitmaps.h"
#include "cli/io/io.h"
#include "loop/loop.h"

static void print_oneline(const struct io_command *c)
{
    printf("%s %s%s-- %s\n", c->name, c->arguments, *c->arguments ? " " : "", c->about);
}

static int co_help(struct io *io, const struct io_command *command, struct io_args *a)
{
    const struct io_command *c;

    if (a->argc == 0) {
        io_for_each_command(print_oneline);
        printf("\nUse 'help commandname' for extended help.\n");
        return 0;
    }
    c = io_find_command(a->argv[0]);
    if (!c) {
        printf("command %s not found\n", a->argv[0]);
        return -EINVAL;
    }
    print_oneline(c);
    if (c->help) {
        printf("%s\n", c->help);
    }
    return 0;
}

int io_usage(const struct io_command *command)
{
    print_oneline(command);
    return -EINVAL;
}

static int co_quit(struct io *io, const struct io_command *command, struct io_args *a)
{
    io->quit = true;
    return 0;
}

static int parse_number(const char *text, long *ret)
{
    char *end;

    errno = 0;
    *ret = strtol(text, &end, 0);
    if (errno || end == text || *end || *ret < 0) {
        printf("%s is not a valid number\n", text);
        return -EINVAL;
    }
    return 0;
}

static int co_sleep(struct io *io, const struct io_command *command, struct io_args *a)
{
    long ms;
    int rc = parse_number(a->argv[0], &ms);

    if (rc == 0) {
        loop_co_sleep((int64_t)ms * 1000000);
    }
    return rc;
}

/*
 * A program that dies leaves an image as one that was being written: bitmaps are marked in use, here by the first write only. Test suites
 * make inconsistent bitmaps so, without a write.
 */
static void co_be_writing(struct io *io)
{
    struct block_node *node = io->disk.node ? block_node_skip_filters(io->disk.node) : NULL;
    ERROR_AUTO(err);

    if (node && block_co_bitmaps_will_change(node, &err) < 0) {
        cli_report(&err);
    }
}

static int co_sigraise(struct io *io, const struct io_command *command, struct io_args *a)
{
    long number;
    int rc = parse_number(a->argv[0], &number);

    if (rc < 0) {
        return rc;
    }
    if (number != 0) {
        co_be_writing(io);
    }
    /* What was printed must be seen: nothing is flushed after this. */
    fflush(stdout);
    return raise((int)number) == 0 ? 0 : -EINVAL;
}

static int co_abort(struct io *io, const struct io_command *command, struct io_args *a)
{
    co_be_writing(io);
    fflush(stdout);
    abort();
}

const struct io_command io_misc_commands[] = {
    {"abort", NULL, NULL, 0, 0, 0, "", "simulate a program crash using abort(3)", NULL, co_abort},
    {"help", "?", NULL, 0, 1, 0, "[command]", "help for one or all commands", NULL, co_help},
    {"quit", "q", NULL, 0, 0, 0, "", "exit the program", NULL, co_quit},
    {"sigraise", NULL, NULL, 1, 1, 0, "signal", "raises a signal", NULL, co_sigraise},
    {"sleep", NULL, NULL, 1, 1, 0, "", "waits for the given value in milliseconds", NULL, co_sleep},
    {0},
};

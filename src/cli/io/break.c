/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Breakpoints, for images that are opened through blkdebug: break, remove_break, resume,
 * wait_break.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/time_units.h"
#include "cli/io/command.h"
#include "filter/filter.h"
#include "loop/loop.h"

#define POLL_NS NS_PER_MS

/* Print the words that test suites wait for. */
static void print_breakpoint(const char *tag, bool held)
{
    printf("blkdebug: %s request '%s'\n", held ? "Suspended" : "Resuming", tag);
    fflush(stdout);
}

static int co_run_break(struct io *io, const struct io_command *command, struct io_args *a,
                        struct error *err)
{
    int r;

    fault_set_watch(print_breakpoint);
    r = fault_break(io->disk.node, a->argv[0], a->argv[1]);
    if (r < 0) {
        printf("Could not set breakpoint: %s\n", strerror(-r));
    }
    return r;
}

static int co_run_remove_break(struct io *io, const struct io_command *command, struct io_args *a,
                               struct error *err)
{
    int r = fault_remove_break(io->disk.node, a->argv[0]);

    if (r < 0) {
        printf("Could not remove breakpoint %s: %s\n", a->argv[0], strerror(-r));
    }
    return r;
}

static int co_run_resume(struct io *io, const struct io_command *command, struct io_args *a,
                         struct error *err)
{
    int r = fault_resume(io->disk.node, a->argv[0]);

    if (r < 0) {
        printf("Could not resume request: %s\n", strerror(-r));
    }
    return r;
}

static int co_run_wait_break(struct io *io, const struct io_command *command, struct io_args *a,
                             struct error *err)
{
    while (!fault_is_held(io->disk.node, a->argv[0])) {
        loop_co_sleep(POLL_NS);
    }
    return 0;
}

const struct io_command io_break_commands[] = {
    {"break", NULL, NULL, 2, 2, IO_NEEDS_IMAGE, "event tag",
     "sets a breakpoint on event and tags the stopped request as tag", NULL, co_run_break},
    {"remove_break", NULL, NULL, 1, 1, IO_NEEDS_IMAGE, "tag", "remove a breakpoint by tag", NULL,
     co_run_remove_break},
    {"resume", NULL, NULL, 1, 1, IO_NEEDS_IMAGE, "tag", "resumes the request tagged as tag", NULL,
     co_run_resume},
    {"wait_break", NULL, NULL, 1, 1, IO_NEEDS_IMAGE, "tag", "waits for the suspension of a request",
     NULL, co_run_wait_break},
    {0},
};

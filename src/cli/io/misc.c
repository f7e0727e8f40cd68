/* SPDX-License-Identifier: Apache-2.0 */
/* Commands that need no image: quit, sleep, sigraise, abort. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/time_units.h"
#include "block/bitmaps.h"
#include "cli/cli.h"
#include "cli/io/command.h"
#include "cli/io/util.h"
#include "loop/loop.h"

static int co_run_io_quit(struct io *io, const struct io_command *command, struct io_args *a,
                          struct error *err)
{
    io->quit = true;
    return 0;
}

static int co_run_sleep(struct io *io, const struct io_command *command, struct io_args *a,
                        struct error *err)
{
    long ms;
    int r = io_parse_number(a->argv[0], &ms);

    if (r == 0) {
        loop_co_sleep((int64_t)ms * NS_PER_MS);
    }
    return r;
}

/*
 * Mark the bitmaps as in use, which we do on the first write, while QEMU's tools do so when they
 * open an image. Test suites rely on that: they kill qemu-io without a write to make bitmaps
 * inconsistent.
 */
static void co_mark_in_use(struct io *io)
{
    struct block_node *node = io->disk.node ? block_node_skip_filters(io->disk.node) : NULL;
    ERROR_AUTO(err);

    if (node && block_co_bitmaps_will_change(node, &err) < 0) {
        cli_report(&err);
    }
}

static int co_run_sigraise(struct io *io, const struct io_command *command, struct io_args *a,
                           struct error *err)
{
    uint64_t number;
    int r = io_parse_size(a->argv[0], &number);

    if (r < 0) {
        return r;
    }
    if (number > (uint64_t)SIGRTMAX) {
        printf("signal argument '%s' is too large to be a valid signal\n", a->argv[0]);
        return -EINVAL;
    }
    if (number != 0) {
        co_mark_in_use(io);
    }
    /* Nothing is flushed after this. */
    fflush(stdout);
    return raise((int)number) == 0 ? 0 : -EINVAL;
}

static int co_run_abort(struct io *io, const struct io_command *command, struct io_args *a,
                        struct error *err)
{
    co_mark_in_use(io);
    fflush(stdout);
    abort();
}

const struct io_command io_misc_commands[] = {
    {"abort", NULL, NULL, 0, 0, 0, "", "simulate a program crash using abort(3)", NULL,
     co_run_abort},
    {"quit", "q", NULL, 0, 0, 0, "", "exit the program", NULL, co_run_io_quit},
    {"sigraise", NULL, NULL, 1, 1, 0, "signal", "raises a signal", NULL, co_run_sigraise},
    {"sleep", NULL, NULL, 1, 1, 0, "", "waits for the given value in milliseconds", NULL,
     co_run_sleep},
    {0},
};

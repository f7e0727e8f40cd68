/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/clock.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/strbuf.h"
#include "base/time_units.h"
#include "cli/machine/lines.h"
#include "filter/throttle_group.h"
#include "loop/loop.h"
#include "qmp/events.h"

/* Requests that were let pass end within that. */
#define SETTLE_NS (2 * NS_PER_MS)

static bool stepped;
static int64_t stepped_ns;
static int64_t started_ns;

void machine_clock_use_steps(void)
{
    stepped = true;
    qmp_event_use_clock(machine_clock_ns);
}

bool machine_clock_is_stepped(void)
{
    return stepped;
}

int64_t machine_clock_ns(void)
{
    return stepped ? stepped_ns : loop_now_ns();
}

void machine_clock_start(void)
{
    started_ns = machine_clock_ns();
}

int64_t machine_clock_uptime_ns(void)
{
    return machine_clock_ns() - started_ns;
}

/* The number behind a command of qtest; -1: another command, or no number. */
static int64_t argument_of(const char *line, const char *command)
{
    size_t length = strlen(command);
    char *end;
    long long ns;

    if (strncmp(line, command, length) != 0 || line[length] != ' ') {
        return -1;
    }
    errno = 0;
    ns = strtoll(line + length, &end, 10);
    return errno != 0 || end == line + length ? -1 : ns;
}

/*
 * Requests that wait for a limit pass one after the other on the way. What may pass then has ended
 * when this returns, as far as disks answer at once.
 */
static void co_step_to(int64_t ns)
{
    int64_t next;

    while ((next = throttle_clock_next()) <= ns - stepped_ns) {
        stepped_ns += MAX(next, 1);
        throttle_clock_changed();
    }
    stepped_ns = ns;
    throttle_clock_changed();
    qmp_event_clock_moved();
    loop_co_sleep(SETTLE_NS);
}

/* --- commands that wait ----------------------------------------------------------------------- */

/* How long a command may take before the clock moves for it, and by how much it moves then. */
#define PATIENCE_NS (200 * NS_PER_MS)
#define WAIT_STEP_NS (10 * NS_PER_MS)

static unsigned commands_in_work;
static uint64_t commands_ended;
static bool watched;

static void co_watch_commands(void *arg)
{
    (void)arg;
    while (commands_in_work > 0) {
        uint64_t seen = commands_ended;

        loop_co_sleep(PATIENCE_NS);
        while (commands_in_work > 0 && commands_ended == seen) {
            co_step_to(stepped_ns + WAIT_STEP_NS);
            loop_co_sleep(WAIT_STEP_NS);
        }
    }
    watched = false;
}

void machine_clock_command_begins(void)
{
    commands_in_work++;
    if (stepped && !watched) {
        watched = reactor_spawn(reactor_main(), co_watch_commands, NULL) >= 0;
    }
}

void machine_clock_command_ends(void)
{
    commands_in_work--;
    commands_ended++;
}

/* --- qtest ------------------------------------------------------------------------------------ */

/* QEMU's docs/devel/testing/qtest, "QTest Protocol", as far as it concerns the clock. */
static void co_qtest_line(struct machine_lines *lines, const char *line)
{
    STRBUF_AUTO(answer);
    int64_t step_ns = argument_of(line, "clock_step"), set_ns = argument_of(line, "clock_set");

    if (step_ns >= 0) {
        co_step_to(stepped_ns + step_ns);
        strbuf_printf(&answer, "OK %" PRId64 "\n", stepped_ns);
    } else if (set_ns >= stepped_ns) {
        co_step_to(set_ns);
        strbuf_printf(&answer, "OK %" PRId64 "\n", stepped_ns);
    } else {
        strbuf_printf(&answer, "FAIL Unknown command '%s'\n", line);
    }
    machine_lines_co_send(lines, strbuf_str(&answer), answer.len);
}

/* On the clock of the loop; 0: qtest is not served. */
static int64_t opened_us;

/* QEMU's tests strike the lines about qtest out of what the machine prints. */
void machine_qtest_end(void)
{
    int64_t us = loop_now_ns() / 1000 - opened_us;

    if (opened_us > 0) {
        fprintf(stderr, "[I +%" PRId64 ".%06" PRId64 "] CLOSED\n", us / 1000000, us % 1000000);
    }
}

int machine_qtest_start(int fd, struct chardev *chardev, struct error *err)
{
    static const struct machine_lines_ops ops = {.co_line = co_qtest_line};
    int64_t us = loop_now_ns() / 1000;

    opened_us = us;
    fprintf(stderr, "[I %" PRId64 ".%06" PRId64 "] OPENED\n", us / 1000000, us % 1000000);
    return machine_lines_start(fd, &ops, chardev, err);
}

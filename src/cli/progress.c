/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/progress.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/size.h"
#include "cli/cli.h"
#include "loop/loop.h"

#define BAR_WIDTH 40
#define REDRAW_NS 100000000LL

static volatile sig_atomic_t asked; /* by a signal, since the last line */

static void ask(int signal)
{
    (void)signal;
    asked = 1;
}

void cli_progress_listen(void)
{
    struct sigaction action = {.sa_handler = ask, .sa_flags = SA_RESTART};

    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
}

static void answer(double percent)
{
    asked = 0;
    fprintf(stderr, "    (%3.2f/100%%)\n", percent);
}

static double percent(const struct cli_progress *p)
{
    return p->total ? (double)p->done * 100 / (double)p->total : 100;
}

static void draw_bar(struct cli_progress *p)
{
    int64_t elapsed = loop_now_ns() - p->begin_ns;
    double seconds = elapsed > 0 ? (double)elapsed / 1e9 : 1e-9;
    double rate = (double)p->done / seconds;
    int filled = (int)(percent(p) * BAR_WIDTH / 100);
    char bar[BAR_WIDTH + 1], done[24], speed[24];

    memset(bar, ' ', BAR_WIDTH);
    memset(bar, '#', (size_t)filled);
    bar[BAR_WIDTH] = '\0';
    printf("\r[%s] %5.1f%%  %s  %s/s", bar, percent(p), size_format(p->done, done, sizeof(done)),
           size_format((uint64_t)rate, speed, sizeof(speed)));
    if (rate > 0 && p->done < p->total) {
        uint64_t left = (uint64_t)((double)(p->total - p->done) / rate);

        printf("  %u:%02u left", (unsigned)(left / 60), (unsigned)(left % 60));
    }
    printf("\033[K");
    fflush(stdout);
    p->drawn_ns = loop_now_ns();
}

static void draw(struct cli_progress *p)
{
    if (p->bar) {
        draw_bar(p);
    } else {
        printf("    (%3.2f/100%%)\r", percent(p));
        fflush(stdout);
    }
    p->shown = percent(p);
}

void cli_progress_begin(struct cli_progress *p, bool wanted, uint64_t total)
{
    *p = (struct cli_progress){
        .enabled = wanted,
        .bar = !cli_is_compat() && isatty(STDOUT_FILENO),
        .total = total,
        .begin_ns = loop_now_ns(),
    };
    if (wanted) {
        if (total == 0) {
            p->total = 1;
        }
        draw(p);
        p->total = total;
    }
}

void cli_progress_add(struct cli_progress *p, uint64_t bytes)
{
    double now;

    p->done =
        MIN(p->done + bytes, p->total); /* what is compressed may be more than what was counted */
    if (!p->enabled) {
        if (asked) {
            answer(percent(p));
        }
        return;
    }
    now = percent(p);
    if (p->bar ? loop_now_ns() - p->drawn_ns >= REDRAW_NS
               : now - p->shown >= 1 || (now >= 100 && p->shown < 100)) {
        draw(p);
    }
}

void cli_progress_set(struct cli_progress *p, uint64_t done, uint64_t total)
{
    p->total = total;
    p->done = 0;
    cli_progress_add(p, done);
}

void cli_progress_end(struct cli_progress *p, bool complete)
{
    if (!p->enabled) {
        return;
    }
    if (complete) {
        p->done = p->total;
        draw(p);
    }
    printf("\n");
    fflush(stdout);
    p->enabled = false;
}

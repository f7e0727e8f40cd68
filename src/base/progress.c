/* SPDX-License-Identifier: Apache-2.0 */
#include "base/progress.h"

#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "base/size.h"
#include "base/time_units.h"

#define BAR_WIDTH 30
#define REDRAW_NS (100 * NS_PER_MS)
#define SECONDS_LEFT_MAX 359999.0 /* 99:59:59 */

static volatile sig_atomic_t asked; /* by a signal, since the last line */

static void on_signal(int signal)
{
    (void)signal;
    asked = 1;
}

void progress_listen(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
}

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS_PER_SECOND + now.tv_nsec;
}

static double percentage(const struct progress *p)
{
    return p->total ? (double)p->done * 100 / (double)p->total : 100;
}

static void print_percent(FILE *stream, double percent, char end)
{
    fprintf(stream, "    (%3.2f/100%%)%c", percent, end);
}

static void print_json(const struct progress *p)
{
    fprintf(p->stream,
            "{\"progress\": {\"what\": \"%s\", \"done-bytes\": %" PRIu64
            ", \"total-bytes\": %" PRIu64 "}}\n",
            p->what ? p->what : "", p->done, p->total);
}

/* "0:12 left", or "in 3.4 s" at the end. */
static void print_time(const struct progress *p, double seconds, double rate, bool last)
{
    if (last) {
        fprintf(p->stream, "  in %.1f s", seconds);
    } else if (rate > 0) {
        unsigned left = (unsigned)MIN((double)(p->total - p->done) / rate, SECONDS_LEFT_MAX);

        fprintf(p->stream, "  %u:%02u left", left / 60, left % 60);
    }
}

static void print_bar(const struct progress *p, int64_t now, bool last)
{
    bool in_place = p->form == PROGRESS_BAR;
    double seconds = (double)(now - p->begin_ns) / (double)NS_PER_SECOND;
    double rate = seconds > 0.001 ? (double)p->done / seconds : 0;
    char bar[BAR_WIDTH + 1], done[16], total[16], speed[16];

    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', (size_t)(percentage(p) * BAR_WIDTH / 100));
    bar[BAR_WIDTH] = '\0';
    fprintf(p->stream, "%s%s%s[%s] %5.1f%%  %s of %s  %s/s", in_place ? "\r" : "",
            p->what ? p->what : "", p->what ? "  " : "", bar, percentage(p),
            size_format(p->done, done, sizeof(done)), size_format(p->total, total, sizeof(total)),
            size_format((uint64_t)rate, speed, sizeof(speed)));
    print_time(p, seconds, rate, last);
    fputs(in_place ? "\033[K" : "\n", p->stream);
}

static void show(struct progress *p, int64_t now, bool last)
{
    switch (p->form) {
    case PROGRESS_NONE:
        return;
    case PROGRESS_PERCENT:
        print_percent(p->stream, percentage(p), '\r');
        break;
    case PROGRESS_BAR:
    case PROGRESS_LINES:
        print_bar(p, now, last);
        break;
    case PROGRESS_JSON:
        print_json(p);
        break;
    }
    fflush(p->stream);
    p->drawn_ns = now;
    p->shown = percentage(p);
}

/*
 * Whether enough has changed to be shown. The end is shown by progress_end(), except as percentage.
 */
static bool is_due(const struct progress *p, int64_t now)
{
    double percent = percentage(p);

    switch (p->form) {
    case PROGRESS_NONE:
        return false;
    case PROGRESS_PERCENT:
        return percent - p->shown >= 1 || (percent >= 100 && p->shown < 100);
    case PROGRESS_BAR:
        return p->done < p->total && now - p->drawn_ns >= REDRAW_NS;
    case PROGRESS_LINES:
        return p->done < p->total && percent >= 50 && p->shown < 50;
    case PROGRESS_JSON:
        return p->done < p->total && now - p->drawn_ns >= NS_PER_SECOND;
    }
    return false;
}

void progress_begin(struct progress *p, FILE *stream, enum progress_form form, const char *what,
                    uint64_t total)
{
    int64_t now = now_ns();

    *p = (struct progress){
        .form = form,
        .stream = stream,
        .what = what,
        .total = total,
        .begin_ns = now,
        .drawn_ns = form == PROGRESS_JSON ? now : 0,
    };
    if (form == PROGRESS_PERCENT) {
        /* Also where there is nothing to do, which counts as 100% afterwards. */
        print_percent(stream, 0, '\r');
        fflush(stream);
    }
}

void progress_add(struct progress *p, uint64_t bytes)
{
    int64_t now;

    p->done = MIN(p->done + bytes, p->total);
    if (p->form == PROGRESS_NONE) {
        if (asked) {
            asked = 0;
            print_percent(stderr, percentage(p), '\n');
        }
        return;
    }
    now = now_ns();
    if (is_due(p, now)) {
        show(p, now, false);
    }
}

void progress_set(struct progress *p, uint64_t done, uint64_t total)
{
    p->total = total;
    p->done = 0;
    progress_add(p, done);
}

void progress_end(struct progress *p, bool complete)
{
    bool in_place = p->form == PROGRESS_PERCENT || p->form == PROGRESS_BAR;

    if (p->form == PROGRESS_NONE) {
        return;
    }
    if (complete) {
        p->done = p->total;
        show(p, now_ns(), true);
    }
    if (in_place) {
        fputc('\n', p->stream);
        fflush(p->stream);
    }
    p->form = PROGRESS_NONE;
}

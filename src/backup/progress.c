/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/size.h"
#include "loop/loop.h"

#define BAR_WIDTH 30
#define REDRAW_NS 100000000
#define LINE_NS 1000000000
#define NS_PER_SECOND 1000000000.0

static void draw_json(struct progress *p, int64_t now)
{
    fprintf(stderr,
            "{\"progress\": {\"what\": \"%s\", \"done-bytes\": %llu, \"total-bytes\": %llu}}\n",
            p->what, (unsigned long long)p->done, (unsigned long long)p->total);
    fflush(stderr);
    p->drawn_ns = now;
}

static void draw(struct progress *p, int64_t now, bool last)
{
    double seconds = (double)(now - p->started_ns) / NS_PER_SECOND;
    double share = p->total ? (double)p->done / (double)p->total : 1.0;
    double rate = seconds > 0.001 ? (double)p->done / seconds : 0.0;
    char done[16], total[16], speed[16], bar[BAR_WIDTH + 1], eta[32] = "";
    int filled = (int)(share * BAR_WIDTH);

    if (p->json) {
        draw_json(p, now);
        return;
    }
    for (int i = 0; i < BAR_WIDTH; i++) {
        bar[i] = i < filled ? '#' : '.';
    }
    bar[BAR_WIDTH] = '\0';
    if (last) {
        snprintf(eta, sizeof(eta), "in %.1f s", seconds);
    } else if (rate > 0) {
        int left = (int)MIN((double)(p->total - p->done) / rate, 359999.0);
        snprintf(eta, sizeof(eta), "ETA %d:%02d", left / 60, left % 60);
    }
    fprintf(stderr, "%s%-8s [%s] %3d%%  %s of %s  %s/s  %s%s", p->terminal ? "\r" : "", p->what,
            bar, (int)(share * 100), size_format(p->done, done, sizeof(done)),
            size_format(p->total, total, sizeof(total)),
            size_format((uint64_t)rate, speed, sizeof(speed)), eta, p->terminal ? "\x1b[K" : "\n");
    fflush(stderr);
    p->drawn_ns = now;
}

void progress_begin(struct progress *p, const char *what, uint64_t total, enum progress_mode mode)
{
    bool terminal = isatty(STDERR_FILENO);

    *p = (struct progress){.what = what,
                           .total = total,
                           .started_ns = loop_now_ns(),
                           .drawn_ns = mode == PROGRESS_JSON ? loop_now_ns() : 0,
                           .enabled = mode != PROGRESS_AUTO || terminal,
                           .terminal = terminal && mode != PROGRESS_JSON,
                           .json = mode == PROGRESS_JSON};
}

void progress_add(struct progress *p, uint64_t bytes)
{
    int64_t now;
    int decile;

    p->done = MIN(p->total, p->done + bytes);
    if (!p->enabled || p->done == p->total) {
        return;
    }
    now = loop_now_ns();
    decile = (int)((double)p->done * 10 / (double)p->total);
    if (p->json       ? now - p->drawn_ns >= LINE_NS
        : p->terminal ? now - p->drawn_ns >= REDRAW_NS
                      : decile / 5 > p->decile / 5) {
        draw(p, now, false);
        p->decile = decile;
    }
}

void progress_end(struct progress *p, bool complete)
{
    if (!p->enabled) {
        return;
    }
    if (complete) {
        p->done = p->total;
        draw(p, loop_now_ns(), true);
    }
    if (p->terminal) {
        fputc('\n', stderr);
    }
    p->enabled = false;
}

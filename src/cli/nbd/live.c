/* SPDX-License-Identifier: Apache-2.0 */
/* --stats: what clients do, as a line a second: in place on a terminal, else as lines. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/size.h"
#include "base/time_units.h"
#include "cli/nbd/command_line.h"
#include "export/export.h"
#include "loop/loop.h"
#include "nbd/stats.h"

/* Main reactor only. */
static struct {
    struct loop_timer timer;
    const char *export_id; /* borrowed; NULL: nothing is shown */
    bool in_place;
    int64_t shown_ns;          /* when the last line was */
    uint64_t shown[NBD_STATS]; /* the figures then */
} live;

static const enum nbd_kind reads[] = {NBD_KIND_READ};
static const enum nbd_kind writes[] = {NBD_KIND_WRITE, NBD_KIND_ZEROES, NBD_KIND_TRIM};

/* What a figure of some kinds has grown by. */
static uint64_t growth(const uint64_t *now, const enum nbd_kind *kinds, size_t count,
                       enum nbd_figure figure)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < count; i++) {
        size_t stat = NBD_STAT(kinds[i], figure);

        sum += now[stat] - live.shown[stat];
    }
    return sum;
}

/*
 * The latency that `share` of the requests of the interval did not exceed, in nanoseconds: the
 * upper bound of its bucket. 0: there was no request.
 */
static double latency_of_share(const uint64_t *now, double share)
{
    uint64_t counts[HISTOGRAM_BUCKETS] = {0}, total = 0, seen = 0;

    for (int kind = 0; kind < NBD_LATENCIES; kind++) {
        for (int i = 0; i < HISTOGRAM_BUCKETS; i++) {
            size_t stat = (size_t)NBD_STAT_LATENCY(kind, i);

            counts[i] += now[stat] - live.shown[stat];
            total += now[stat] - live.shown[stat];
        }
    }
    for (int i = 0; i < HISTOGRAM_BUCKETS && total > 0; i++) {
        seen += counts[i];
        if ((double)seen >= share * (double)total) {
            return ldexp(2.0, i);
        }
    }
    return 0;
}

static void print_traffic(const char *what, const uint64_t *now, const enum nbd_kind *kinds,
                          size_t count, double seconds)
{
    char rate[16];
    uint64_t bytes = growth(now, kinds, count, NBD_FIGURE_BYTES);
    uint64_t requests = growth(now, kinds, count, NBD_FIGURE_DONE);

    printf("  %s %.0f/s %s/s", what, (double)requests / seconds,
           size_format((uint64_t)((double)bytes / seconds), rate, sizeof(rate)));
}

static void print_live_line(const uint64_t *now, double seconds)
{
    uint64_t failed = 0;

    for (int kind = 0; kind < NBD_KINDS; kind++) {
        failed += now[NBD_STAT(kind, NBD_FIGURE_FAILED)] + now[NBD_STAT(kind, NBD_FIGURE_INVALID)];
    }
    printf("%sclients %" PRIu64, live.in_place ? "\r\x1b[K" : "", now[NBD_STAT_CLIENTS]);
    print_traffic("read", now, reads, ARRAY_SIZE(reads), seconds);
    print_traffic("write", now, writes, ARRAY_SIZE(writes), seconds);
    printf("  latency p50 %.3g ms p99 %.3g ms  in flight %" PRIu64 "  errors %" PRIu64 "%s",
           latency_of_share(now, 0.5) / (double)NS_PER_MS,
           latency_of_share(now, 0.99) / (double)NS_PER_MS, now[NBD_STAT_DEPTH], failed,
           live.in_place ? "" : "\n");
    fflush(stdout);
}

static void show_live_line(struct loop_timer *timer)
{
    uint64_t now[NBD_STATS];
    struct export_info info;
    int64_t now_ns = loop_now_ns();

    if (!export_find(live.export_id, &info)) {
        return;
    }
    export_read_stats(live.export_id, now);
    print_live_line(now, (double)(now_ns - live.shown_ns) / (double)NS_PER_SECOND);
    memcpy(live.shown, now, sizeof(now));
    live.shown_ns = now_ns;
    loop_timer_arm(timer, now_ns + NS_PER_SECOND);
}

void nbd_live_begin(const char *export_id)
{
    live.export_id = export_id;
    live.in_place = isatty(STDOUT_FILENO);
    live.shown_ns = loop_now_ns();
    loop_timer_init(&live.timer, show_live_line);
    loop_timer_arm(&live.timer, live.shown_ns + NS_PER_SECOND);
}

void nbd_live_end(void)
{
    if (live.export_id) {
        loop_timer_disarm(&live.timer);
        printf("%s", live.in_place ? "\n" : "");
        live.export_id = NULL;
    }
}

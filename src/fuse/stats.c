/* SPDX-License-Identifier: Apache-2.0 */
/* What a disk counts. */
#include "fuse/internal.h"
#include "loop/loop.h"

#define KIND_ROWS(name, what)                                                                      \
    {name "_requests", "Number of " what " that succeeded", STAT_COUNTER, STAT_COUNT},             \
        {name "_bytes", "Bytes of " what " that succeeded", STAT_COUNTER, STAT_BYTES},             \
        {name "_failed", "Number of " what " that failed", STAT_COUNTER, STAT_COUNT},              \
    {                                                                                              \
        name "_invalid", "Number of " what " that were refused: bounds, read-only", STAT_COUNTER,  \
            STAT_COUNT                                                                             \
    }
#define LATENCY_ROW(name, what)                                                                    \
    {                                                                                              \
        name "_latency", "Latency of " what, STAT_HISTOGRAM, STAT_NANOSECONDS                      \
    }

/* In the order of struct fuse_counters. */
const struct stat_desc fuse_stats[] = {
    KIND_ROWS("read", "read requests"),
    KIND_ROWS("write", "write requests"),
    KIND_ROWS("zeroes", "write-zeroes requests"),
    KIND_ROWS("flush", "flush requests"),
    KIND_ROWS("other", "requests that concern no contents"),
    LATENCY_ROW("read", "read requests"),
    LATENCY_ROW("write", "write requests"),
    LATENCY_ROW("zap", "write-zeroes requests"),
    LATENCY_ROW("flush", "flush requests"),
    {.name = NULL},
};

static void count_latency(struct fuse_disk *d, enum fuse_kind kind, int64_t ns)
{
    static const enum latency_kind kinds[] = {[FUSE_KIND_READ] = LATENCY_READ,
                                              [FUSE_KIND_WRITE] = LATENCY_WRITE,
                                              [FUSE_KIND_FLUSH] = LATENCY_FLUSH};

    histogram_add(&d->counters.latency[kind], ns);
    if (kind != FUSE_KIND_ZEROES) {
        latency_set_add(d->config.latencies, kinds[kind], ns);
    }
}

void fuse_count(const struct fuse_request *rq, int r)
{
    struct fuse_disk *d = rq->disk;
    struct counter *of = d->counters.of[rq->kind];

    if (r < 0) {
        counter_add(&of[rq->invalid ? FUSE_FIGURE_INVALID : FUSE_FIGURE_FAILED], 1);
    } else {
        counter_add(&of[FUSE_FIGURE_DONE], 1);
        counter_add(&of[FUSE_FIGURE_BYTES], rq->length);
    }
    if (rq->kind < FUSE_LATENCIES) {
        count_latency(d, rq->kind, loop_now_ns() - rq->begun_ns);
    }
}

void fuse_disk_read_stats(const struct fuse_disk *d, uint64_t *ret_values)
{
    const struct counter *place = &d->counters.of[0][0];
    size_t count = sizeof(d->counters) / sizeof(struct counter);

    for (size_t i = 0; i < count; i++) {
        ret_values[i] = counter_read(&place[i]);
    }
}

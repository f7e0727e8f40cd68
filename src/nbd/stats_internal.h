/* SPDX-License-Identifier: Apache-2.0 */
/* How the server counts. */
#ifndef TIDEMARK_NBD_STATS_INTERNAL_H
#define TIDEMARK_NBD_STATS_INTERNAL_H

#include "base/latency.h"
#include "nbd/proto.h"
#include "nbd/stats.h"

/*
 * The figures of a connection, in the order of nbd_stats. Written by the thread of its reactor
 * alone; the main reactor reads them meanwhile.
 */
struct nbd_counters {
    struct counter values[NBD_STAT_SCALARS];
    struct histogram latency[NBD_LATENCIES];
};

/* The kind of a command of the protocol. */
static inline enum nbd_kind nbd_kind_of(uint16_t type)
{
    static const uint8_t kinds[] = {
        [NBD_CMD_READ] = NBD_KIND_READ,           [NBD_CMD_WRITE] = NBD_KIND_WRITE,
        [NBD_CMD_DISC] = NBD_KIND_OTHER,          [NBD_CMD_FLUSH] = NBD_KIND_FLUSH,
        [NBD_CMD_TRIM] = NBD_KIND_TRIM,           [NBD_CMD_CACHE] = NBD_KIND_CACHE,
        [NBD_CMD_WRITE_ZEROES] = NBD_KIND_ZEROES, [NBD_CMD_BLOCK_STATUS] = NBD_KIND_STATUS,
    };

    return type < sizeof(kinds) ? (enum nbd_kind)kinds[type] : NBD_KIND_OTHER;
}

/* A request has ended with the result `r`, 0 or -errno. `invalid`: it was refused at once. */
static inline void nbd_counters_end(struct nbd_counters *c, enum nbd_kind kind, uint64_t length,
                                    int r, bool invalid)
{
    if (r < 0) {
        enum nbd_figure figure = invalid ? NBD_FIGURE_INVALID : NBD_FIGURE_FAILED;

        counter_add(&c->values[NBD_STAT(kind, figure)], 1);
        return;
    }
    counter_add(&c->values[NBD_STAT(kind, NBD_FIGURE_DONE)], 1);
    counter_add(&c->values[NBD_STAT(kind, NBD_FIGURE_BYTES)], length);
}

/* The reply of a request has left, `ns` after its reception. `set`: of its export; NULL: none. */
static inline void nbd_counters_latency(struct nbd_counters *c, struct latency_set *set,
                                        enum nbd_kind kind, int64_t ns)
{
    static const uint8_t latencies[NBD_KINDS] = {
        [NBD_KIND_READ] = NBD_LATENCY_READ,   [NBD_KIND_WRITE] = NBD_LATENCY_WRITE,
        [NBD_KIND_ZEROES] = NBD_LATENCY_ZAP,  [NBD_KIND_TRIM] = NBD_LATENCY_ZAP,
        [NBD_KIND_FLUSH] = NBD_LATENCY_FLUSH, [NBD_KIND_STATUS] = NBD_LATENCIES,
        [NBD_KIND_CACHE] = NBD_LATENCIES,     [NBD_KIND_OTHER] = NBD_LATENCIES,
    };

    if (kind == NBD_KIND_READ || kind == NBD_KIND_WRITE || kind == NBD_KIND_FLUSH) {
        latency_set_add(set,
                        kind == NBD_KIND_READ    ? LATENCY_READ
                        : kind == NBD_KIND_WRITE ? LATENCY_WRITE
                                                 : LATENCY_FLUSH,
                        ns);
    }
    if (latencies[kind] < NBD_LATENCIES) {
        histogram_add(&c->latency[latencies[kind]], ns);
    }
}

/*
 * Add what `c` counts to `values`, which have the order of nbd_stats, as the connection ends:
 * without what is true of live connections only.
 */
void nbd_counters_retire(const struct nbd_counters *c, uint64_t *values);

#endif

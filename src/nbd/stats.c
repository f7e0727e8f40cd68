/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd/stats.h"

#include <string.h>

#include "base/checked.h"
#include "nbd/server_internal.h"
#include "nbd/stats_internal.h"

#define ROW(kind, figure, name, help, unit)                                                        \
    [NBD_STAT(kind, figure)] = {name, help, STAT_COUNTER, unit}
#define KIND_ROWS(kind, name, what)                                                                \
    ROW(kind, NBD_FIGURE_DONE, name "_requests", "Number of " what " that succeeded", STAT_COUNT), \
        ROW(kind, NBD_FIGURE_BYTES, name "_bytes", "Bytes of " what " that succeeded",             \
            STAT_BYTES),                                                                           \
        ROW(kind, NBD_FIGURE_FAILED, name "_failed", "Number of " what " that failed",             \
            STAT_COUNT),                                                                           \
        ROW(kind, NBD_FIGURE_INVALID, name "_invalid",                                             \
            "Number of " what " that were refused: bounds, flags, read-only", STAT_COUNT)

/* A histogram is one row of the table, and many places of the values: they come last. */
const struct stat_desc nbd_stats[] = {
    KIND_ROWS(NBD_KIND_READ, "read", "read requests"),
    KIND_ROWS(NBD_KIND_WRITE, "write", "write requests"),
    KIND_ROWS(NBD_KIND_ZEROES, "zeroes", "write-zeroes requests"),
    KIND_ROWS(NBD_KIND_TRIM, "trim", "trim requests"),
    KIND_ROWS(NBD_KIND_FLUSH, "flush", "flush requests"),
    KIND_ROWS(NBD_KIND_STATUS, "block_status", "block status requests"),
    KIND_ROWS(NBD_KIND_CACHE, "cache", "cache requests"),
    KIND_ROWS(NBD_KIND_OTHER, "unknown", "requests of unknown commands"),
    [NBD_STAT_DEPTH] = {"queue_depth", "Requests whose replies have not left", STAT_GAUGE,
                        STAT_COUNT},
    [NBD_STAT_DEPTH_MAX] = {"queue_depth_max", "Highest queue depth of one connection", STAT_PEAK,
                            STAT_COUNT},
    [NBD_STAT_KTLS] = {"clients_ktls", "Clients for which the kernel makes the records of TLS",
                       STAT_GAUGE, STAT_COUNT},
    [NBD_STAT_CLIENTS] = {"clients", "Clients that are connected", STAT_GAUGE, STAT_COUNT},
    [NBD_STAT_CONNECTIONS] = {"client_connections", "Clients that have chosen the export",
                              STAT_COUNTER, STAT_COUNT},
    [NBD_STAT_SLOW] = {"slow_requests", "Requests that were reported as slow", STAT_COUNTER,
                       STAT_COUNT},
    [NBD_STAT_UNCOPIED] = {"read_uncopied",
                           "Bytes of reads that were sent from the page cache without a copy",
                           STAT_COUNTER, STAT_BYTES},
    [NBD_STAT_LATEST] = {"latest_request", "When a request was last received; 0: never", STAT_PEAK,
                         STAT_MOMENT},
    [NBD_STAT_SCALARS + NBD_LATENCY_READ] = {"read_latency", "Latency of read requests",
                                             STAT_HISTOGRAM, STAT_NANOSECONDS},
    [NBD_STAT_SCALARS + NBD_LATENCY_WRITE] = {"write_latency", "Latency of write requests",
                                              STAT_HISTOGRAM, STAT_NANOSECONDS},
    [NBD_STAT_SCALARS + NBD_LATENCY_ZAP] = {"zap_latency",
                                            "Latency of write-zeroes and trim requests",
                                            STAT_HISTOGRAM, STAT_NANOSECONDS},
    [NBD_STAT_SCALARS + NBD_LATENCY_FLUSH] = {"flush_latency", "Latency of flush requests",
                                              STAT_HISTOGRAM, STAT_NANOSECONDS},
    [NBD_STAT_SCALARS + NBD_LATENCIES] = {.name = NULL},
};

static void sum(const struct nbd_counters *c, uint64_t *values, bool retire)
{
    const struct counter *place = c->values;

    for (const struct stat_desc *desc = nbd_stats; desc->name; desc++) {
        for (size_t width = stat_width(desc); width > 0; width--, values++) {
            uint64_t value = counter_read(place++);

            if (desc->kind == STAT_PEAK) {
                *values = MAX(*values, value);
            } else if (desc->kind != STAT_GAUGE || !retire) {
                *values += value;
            }
        }
    }
}

void nbd_counters_retire(const struct nbd_counters *c, uint64_t *values)
{
    sum(c, values, true);
}

void nbd_export_read_stats(const struct nbd_export *e, uint64_t *ret_values)
{
    struct nbd_connection *c;

    memcpy(ret_values, e->past, sizeof(e->past));
    LIST_FOREACH (c, &e->clients, export_link) {
        sum(&c->counters, ret_values, false);
    }
}

void nbd_export_foreach_connection(const struct nbd_export *e,
                                   void (*fn)(const struct nbd_connection_info *info,
                                              const uint64_t *values, void *arg),
                                   void *arg)
{
    struct nbd_connection *c;

    LIST_FOREACH (c, &e->clients, export_link) {
        struct nbd_connection_info info = {.peer = c->peer, .serial = c->serial};
        uint64_t values[NBD_STATS] = {0};

        sum(&c->counters, values, false);
        fn(&info, values, arg);
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the NBD server counts for a connection and for an export.
 *
 * The latency of a request is the time from the reception of its header to the moment when the last
 * byte of its reply was given to the socket. The clock is read once for all requests that one
 * reception brought, and once for all replies that leave together.
 *
 * Everything here runs on the main reactor, and does not yield.
 */
#ifndef TIDEMARK_NBD_STATS_H
#define TIDEMARK_NBD_STATS_H

#include "base/counters.h"
#include "nbd/server.h"

/* Kinds of requests. */
enum nbd_kind {
    NBD_KIND_READ,
    NBD_KIND_WRITE,
    NBD_KIND_ZEROES,
    NBD_KIND_TRIM,
    NBD_KIND_FLUSH,
    NBD_KIND_STATUS,
    NBD_KIND_CACHE,
    /* Commands that the server does not know. */
    NBD_KIND_OTHER,
    NBD_KINDS
};

/* Figures of each kind. */
enum nbd_figure {
    /* Requests that succeeded, and the bytes that they concern. */
    NBD_FIGURE_DONE,
    NBD_FIGURE_BYTES,
    /* Requests that failed in the node. */
    NBD_FIGURE_FAILED,
    /* Requests that broke the rules of the protocol or of the export: bounds, flags, read-only. */
    NBD_FIGURE_INVALID,
    NBD_FIGURES
};

/* Latencies are kept apart for these, as QEMU does; zap: zeroes and trims. */
enum nbd_latency {
    NBD_LATENCY_READ,
    NBD_LATENCY_WRITE,
    NBD_LATENCY_ZAP,
    NBD_LATENCY_FLUSH,
    NBD_LATENCIES
};

#define NBD_STAT(kind, figure) ((kind)*NBD_FIGURES + (figure))

enum nbd_stat {
    /*
     * Requests received whose replies have not left, now and at most. Of an export: the peak of one
     * connection.
     */
    NBD_STAT_DEPTH = NBD_STAT(NBD_KINDS, 0),
    NBD_STAT_DEPTH_MAX,
    /* 1 while the client is connected and the kernel makes the records of its TLS. */
    NBD_STAT_KTLS,
    /* 1 while the client is connected, and 1 for good: sums of them are numbers of clients. */
    NBD_STAT_CLIENTS,
    NBD_STAT_CONNECTIONS,
    /* Requests that were reported as slow. */
    NBD_STAT_SLOW,
    /* Bytes of reads that were sent without a copy. */
    NBD_STAT_UNCOPIED,
    /* Of the latest reception: CLOCK_MONOTONIC in nanoseconds; 0: none. */
    NBD_STAT_LATEST,
    NBD_STAT_SCALARS
};

/* Index of a bucket (or with HISTOGRAM_BUCKETS, of the sum) of a histogram. */
#define NBD_STAT_LATENCY(latency, bucket) (NBD_STAT_SCALARS + (latency)*HISTOGRAM_VALUES + (bucket))
#define NBD_STATS NBD_STAT_LATENCY(NBD_LATENCIES, 0)

extern const struct stat_desc nbd_stats[];

/* Fill NBD_STATS values: the sum over all clients that the export has had. */
void nbd_export_read_stats(const struct nbd_export *e, uint64_t *ret_values);

struct nbd_connection_info {
    /* "192.0.2.1:4711", "unix:PID"; borrowed. */
    const char *peer;
    /* Never used twice in the life of a server. */
    uint64_t serial;
};

/* Call `fn` for each client of the export, with NBD_STATS values. fn must not yield. */
void nbd_export_foreach_connection(const struct nbd_export *e,
                                   void (*fn)(const struct nbd_connection_info *info,
                                              const uint64_t *values, void *arg),
                                   void *arg);

#endif

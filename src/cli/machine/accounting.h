/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a disk of the machine counts, for query-blockstats: requests of guests, for whom qemu-io's
 * aio_read, aio_write and aio_flush stand. Main reactor only; none of this yields.
 */
#ifndef TIDEMARK_CLI_MACHINE_ACCOUNTING_H
#define TIDEMARK_CLI_MACHINE_ACCOUNTING_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/latency.h"
#include "cli/io/session.h"

/* Intervals for which a disk can be asked to keep averages. */
#define ACCOUNTING_INTERVALS_MAX 16

struct accounting_figures {
    uint64_t operations, bytes, failed, invalid, time_ns;
};

struct accounting {
    struct accounting_figures ops[IO_ACCOUNT_OPS];
    uint64_t write_highest;
    bool account_invalid, account_failed; /* such requests count for idle time and averages */
    bool was_used;
    int64_t last_access_ns;
    uint64_t intervals[ACCOUNTING_INTERVALS_MAX]; /* seconds */
    size_t interval_count;
    struct accounting_sample *samples; /* owned; oldest first */
    size_t sample_count, sample_room;
    struct latency_set latencies; /* that block-latency-histogram-set asks for */
};

/* Nothing has been counted; requests of all kinds count. */
void accounting_init(struct accounting *a);
/* Free what it owns. */
void accounting_clear(struct accounting *a);
/* A request has ended: io.account, with the accounting as `arg`. */
void accounting_hook(void *arg, enum io_account_op op, uint64_t offset, uint64_t bytes,
                     enum io_account_outcome outcome, int64_t took_ns);
/* As a BlockDeviceStats of QMP: a new reference. */
struct json_object *accounting_json(struct accounting *a);

#endif

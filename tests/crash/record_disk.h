/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The leaf driver "record-disk": a file in memory that grows, and that keeps a log of what was done
 * to it and when, so that any state that a power cut could have left can be made afterwards
 * (states.h). Several disks share a log and its time: an image, its external data file, the other
 * images of its chain.
 *
 * Time is a counter that each beginning and each end of a request moves on. The log keeps whole
 * sectors, as they were in memory when the request was carried out: that is what a cache of sectors
 * writes back, in whatever order it likes. Two changes of one sector can thus be lost, but not the
 * earlier one alone.
 */
#ifndef TIDEMARK_TESTS_RECORD_DISK_H
#define TIDEMARK_TESTS_RECORD_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "block/driver.h"
#include "pages.h"

#define RECORD_SECTOR 512u
#define RECORD_DISKS 8u /* that can share a log */

enum record_kind { RECORD_WRITE, RECORD_ZEROES, RECORD_TRUNCATE, RECORD_FLUSH };

struct record_op {
    enum record_kind kind;
    unsigned disk;
    uint64_t offset, length; /* whole sectors; of a truncate: length is the new size */
    uint8_t *data;           /* RECORD_WRITE: length bytes */
    uint64_t begin, end;     /* when; end is UINT64_MAX while it is in flight */
    uint64_t size_after;     /* of the file: shows what a write at the end extended it to */
    bool metadata; /* neither guest data (workload.h), plain or compressed, nor zeroes only */
    bool ignored;  /* a flush that is to count for nothing (planted bugs) */
};

struct record_log {
    struct record_op *ops; /* in the order carried out */
    size_t count, capacity;
    uint64_t clock;
    struct pages initial[RECORD_DISKS]; /* the files when logging began */
    /* Whether a block of data, a whole number of sectors, has guest data in it. */
    bool (*is_guest_data)(const uint8_t *data, size_t size);
    /* Called whenever the time moves on, with the new time. NULL: nobody looks. */
    void (*on_tick)(void *arg, uint64_t now);
    void *on_tick_arg;
};

extern const struct block_driver record_disk_driver;

/*
 * The file becomes what `pages` hold, which have to stay as they are meanwhile. The node must not
 * be in use.
 */
void record_disk_show(struct block_node *node, struct pages *pages);
/*
 * Log from now on, as disk number `disk` of it, with the present contents as the initial ones.
 * `data_only`: there is no metadata on it. The log is the caller's and has to outlive the node's
 * contents.
 */
void record_disk_set_log(struct block_node *node, struct record_log *log, unsigned disk,
                         bool data_only);
/* It can't be longer than that from now on: -ENOSPC. */
void record_disk_set_limit(struct block_node *node, uint64_t limit);
/* No longer. What it holds lies on the log's initial contents until something else is shown. */
void record_disk_end_log(struct block_node *node);
/* What it holds now. Borrowed. */
struct pages *record_disk_pages(struct block_node *node);

/* The time, moved on. */
uint64_t record_tick(struct record_log *log);
void record_log_clear(struct record_log *log);

#endif

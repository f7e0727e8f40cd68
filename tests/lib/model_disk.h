/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk's contents in an array, and guests that do random requests to a node and to the array.
 * Requests that are in flight at the same time don't share a byte, but they do share clusters,
 * slices and tables.
 */
#ifndef TIDEMARK_TESTS_MODEL_DISK_H
#define TIDEMARK_TESTS_MODEL_DISK_H

#include <stdatomic.h>

#include "block/block.h"
#include "block/gate.h"
#include "co/sync.h"
#include "loop/loop.h"

struct model_disk {
    uint8_t *bytes;
    uint64_t size;
    struct range_lock busy; /* writers exclusive, readers shared */
    atomic_uint failures;
    char why[256]; /* of the first failure */
    atomic_uint done_ops;
    /* Errors from below are expected: what failed may or may not have landed. */
    bool faults;
};

struct model_guests {
    struct model_disk *disk;
    struct block_edge *edge;
    struct reactor **reactors; /* where guests run: `reactor_count` of them */
    unsigned reactor_count;
    unsigned per_reactor; /* guests on each */
    unsigned ops;         /* requests of each guest */
    uint64_t seed;
    uint64_t cluster_size; /* lengths and alignments that are likely */
    bool compressed;       /* some writes are */
};

uint64_t model_random(uint64_t *state);

void model_disk_init(struct model_disk *m, uint64_t size);
void model_disk_release(struct model_disk *m);
/*
 * Main reactor, in a coroutine: run all guests to their ends. Failures are counted and described in
 * the disk.
 */
void model_disk_co_run(const struct model_guests *g);
/* Compare all of it. */
void model_disk_co_verify(struct model_disk *m, struct block_edge *edge);

#endif

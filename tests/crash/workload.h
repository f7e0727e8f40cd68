/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A random, reproducible workload on an image over record disks: several sessions, each opens the
 * image, lets a guest (guest.h) work on it, changes persistent bitmaps, internal snapshots and the
 * size in between (changes.h), and closes it. Key slots of encrypted disks change (keys.h). Bitmaps
 * of a second image may change together with its own (joint.h). An image with a backing file is
 * committed between some of them. A chain of images is changed by jobs meanwhile (chain.h).
 */
#ifndef TIDEMARK_TESTS_WORKLOAD_H
#define TIDEMARK_TESTS_WORKLOAD_H

#include "base/error.h"
#include "config.h"
#include "model.h"
#include "record_disk.h"

struct workload {
    /* given */
    uint64_t seed;
    uint64_t size; /* of the virtual disk at most, bytes */
    struct crash_config config;
    unsigned sessions;
    unsigned ops;              /* guest requests per session */
    bool no_flush_after_crash; /* a planted bug */
    /* made */
    struct model model;
    struct record_log log;
};

/*
 * Run it. Main reactor, in a coroutine; yields. -EIO and a sentence when what is read in between is
 * not what was written, or anything fails.
 */
int workload_co_run(struct workload *w, struct error *err);
void workload_clear(struct workload *w);

#endif

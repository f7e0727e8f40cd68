/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A random, reproducible workload on a qcow2 image over a record disk: several sessions, each opens the image, lets a few
 * workers write, overwrite, zero, discard and flush at the same time, changes persistent bitmaps, internal snapshots and the
 * size in between, and closes it.
 */
#ifndef TIDEMARK_TESTS_WORKLOAD_H
#define TIDEMARK_TESTS_WORKLOAD_H

#include "base/error.h"
#include "model.h"
#include "record_disk.h"

struct workload {
    /* given */
    uint64_t seed;
    uint64_t size;         /* of the virtual disk at most, bytes */
    uint32_t cluster_size; /* bytes */
    unsigned sessions;
    unsigned ops; /* guest requests per session */
    bool bitmaps;
    bool guest_only; /* neither snapshots nor changes of size */
    /* made */
    struct model model;
    struct record_log log;
};

/*
 * Run it. Main reactor, in a coroutine; yields. -EIO and a sentence when what is read in between is not what was written,
 * or anything fails.
 */
int workload_co_run(struct workload *w, struct error *err);
void workload_clear(struct workload *w);

/* Open "record-disk" nodes and qcow2 on top, for workload and verification. */
int crash_co_open_disk(const char *node_name, struct block_node **ret, struct error *err);
int crash_co_open_qcow2(const char *disk_name, bool writable, struct block_node **ret,
                        struct error *err);

#endif

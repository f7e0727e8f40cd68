/* SPDX-License-Identifier: Apache-2.0 */
/* A small graph with a copy-before-write filter over memory disks, for the tests of that filter. */
#ifndef TIDEMARK_TESTS_CBW_FIXTURE_H
#define TIDEMARK_TESTS_CBW_FIXTURE_H

#include "memory_disk.h"

#define CLUSTER (64u * 1024)

/*
 *   guest          snapshot
 *     |               |
 *    cbw <----- snapshot-access
 *     |file  |target
 *   disk    temp
 */
struct cbw_graph {
    struct block_node *disk_node, *temp_node, *cbw_node, *access_node;
    struct memory_disk *disk, *temp;
    struct block_root *guest_root, *snapshot_root;
    struct block_edge *guest, *snapshot;
};

/*
 * Open a node, writable, from JSON; the test fails if that does. Names are to be given by the
 * caller.
 */
struct block_node *fixture_open(const char *json);
/*
 * As above; the error's sentence (static buffer) where it is expected to fail, NULL if it did not.
 */
const char *fixture_open_fails(const char *json);

/*
 * A disk of `size` bytes, each cluster filled with its number plus 1. `cbw_options`: more options
 * of the filter, as `,"key":value`; "" for none. Copies are of whole clusters, unless it says
 * `"min-cluster-size":0`. `bitmap_clusters`: if not 0, a bitmap "snap" on
 * the disk with the first clusters limits the snapshot.
 */
void cbw_graph_open(struct cbw_graph *g, uint64_t size, const char *cbw_options,
                    unsigned bitmap_clusters);
void cbw_graph_close(struct cbw_graph *g);

/*
 * Whether [offset, offset + length) read through `edge` is as cbw_graph_open() filled it; -errno if
 * the read fails.
 */
int cbw_reads_original(struct block_edge *edge, uint64_t offset, size_t length);
int cbw_guest_fill(struct cbw_graph *g, uint64_t offset, size_t length, int byte);

/*
 * Start `entry(arg)` in a coroutine of this reactor and run it until it first waits; *done is set
 * when it ends.
 */
struct background {
    void (*entry)(void *arg);
    void *arg;
    bool done;
};
void background_start(struct background *b, void (*entry)(void *arg), void *arg);
/* Let others run until *done, at most some seconds; fails the test then. */
void background_finish(struct background *b);
/* Give others time to go as far as they can. */
void let_others_run(void);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A leaf driver "memory-disk" for tests: a disk in memory, the requests of which can be held,
 * counted and made to fail. Options: size, cluster-size (what it reports; default 0).
 *
 * Reads and writes are plain memory accesses after a trip through the run queue, so that the seeded
 * scheduler and TSan see requests that overlap but should not.
 */
#ifndef TIDEMARK_TESTS_MEMORY_DISK_H
#define TIDEMARK_TESTS_MEMORY_DISK_H

#include <pthread.h>
#include <stdint.h>

#include "block/driver.h"

#define MEMORY_DISK_READ 1u
#define MEMORY_DISK_WRITE 2u /* also zeroes */
#define MEMORY_DISK_DISCARD 4u
#define MEMORY_DISK_FLUSH 8u
#define MEMORY_DISK_KINDS 4

struct memory_disk {
    uint8_t *data;
    uint8_t *written; /* a byte per 4 KiB: whether it was ever written since the last discard */
    uint64_t size;

    pthread_mutex_t lock; /* guards all below */
    unsigned hold_kinds;
    unsigned hold_count; /* requests of these kinds still to be held */
    struct co_queue held;
    unsigned held_now;
    unsigned fail_kinds;
    int fail_errno;
    uint64_t requests[MEMORY_DISK_KINDS]; /* by kind: log2 of the flag */
};

extern const struct block_driver memory_disk_driver;

struct memory_disk *memory_disk_of(struct block_node *node);

/*
 * Hold the next `count` requests of these kinds before they do anything, until
 * memory_disk_release().
 */
void memory_disk_hold(struct memory_disk *d, unsigned kinds, unsigned count);
/* Let all held ones go and hold no more. */
void memory_disk_release(struct memory_disk *d);
unsigned memory_disk_held(struct memory_disk *d);
/* Make requests of these kinds fail with errno `errnum` from now on; kinds 0: none. */
void memory_disk_fail(struct memory_disk *d, unsigned kinds, int errnum);
uint64_t memory_disk_requests(struct memory_disk *d, unsigned kind);

#endif

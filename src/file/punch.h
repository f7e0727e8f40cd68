/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Punching holes into a file, one call at a time. The kernel holds the inode exclusively meanwhile, so calls in parallel
 * would only hold up threads. Those that come while one runs wait, and what lies side by side is then punched in one go.
 */
#ifndef TIDEMARK_FILE_PUNCH_H
#define TIDEMARK_FILE_PUNCH_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"

struct punch_queue {
    pthread_mutex_t guard; /* guards all below */
    bool running;
    struct list waiting; /* of struct punch_request, oldest first */
};

void punch_queue_init(struct punch_queue *q);
void punch_queue_destroy(struct punch_queue *q);

/* Make [offset, offset + length) a hole; the file's size stays. 0 or -errno of fallocate(2). Yields. */
int co_punch_hole(struct punch_queue *q, int fd, uint64_t offset, uint64_t length);

#endif

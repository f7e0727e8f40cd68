/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Punches holes into a file, with one system call at a time. The kernel locks the inode exclusively
 * for the call, so parallel calls would only block threads. Requests that come during a call wait;
 * then adjacent ones are punched with one call.
 */
#ifndef TIDEMARK_FILE_PUNCH_H
#define TIDEMARK_FILE_PUNCH_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"

struct punch_queue {
    /* guards all below */
    pthread_mutex_t guard;
    /* a request punches */
    bool running;
    /* of struct punch_request, oldest first */
    struct list waiting;
};

/* No request is in flight when the queue is destroyed. Neither yields. */
void punch_queue_init(struct punch_queue *q);
void punch_queue_destroy(struct punch_queue *q);

/*
 * Make [offset, offset + length) of `fd` a hole; the size of the file does not change. All requests
 * of a queue have the same `fd`. 0, or -errno of fallocate(2). Yields.
 */
int co_punch_hole(struct punch_queue *q, int fd, uint64_t offset, uint64_t length);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pipes that carry pages of the page cache from a file to a socket without a copy. One set for each
 * reactor, used on its thread only. Nothing here yields.
 */
#ifndef TIDEMARK_NBD_PIPES_H
#define TIDEMARK_NBD_PIPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/gate.h"

enum {
    /*
     * Pipes of a reactor; of the process, one for each 8 descriptors that it may open. When
     * all are in use, reads are copied.
     */
    NBD_PIPES = 128,
    NBD_DESCRIPTORS_PER_PIPE = 8,
    /* What a pipe should hold, and the least that is worth it. Bytes. */
    NBD_PIPE_BYTES = 1024 * 1024,
    NBD_PIPE_BYTES_MIN = 256 * 1024,
    /* Pipes of one request. */
    NBD_PIPES_OF_JOB = 4,
};

struct nbd_pipe {
    int read_fd, write_fd;
    /* Bytes in it. */
    size_t bytes;
    /* In the list of free ones, or of a request, in the order of the bytes. */
    struct nbd_pipe *next;
};

/* All zero: none was made yet. */
struct nbd_pipes {
    struct nbd_pipe pipe[NBD_PIPES];
    struct nbd_pipe *free;
    unsigned made;
    /* The system gives us none that are large enough. */
    bool useless;
};

/*
 * Read [offset, offset + length) of a node into pipes; *ret_first is the list of them. -ENOTSUP:
 * this cannot be done (now), and there is no list; or another error of block_co_read_pages().
 * Yields as that does.
 */
int nbd_pipes_co_read(struct nbd_pipes *p, struct block_edge *edge, uint64_t offset,
                      uint64_t length, struct nbd_pipe **ret_first);
/* Give a list back, with the bytes in it. NULL is fine. */
void nbd_pipes_put(struct nbd_pipes *p, struct nbd_pipe *first);
/* Whether an address is that of a pipe of the set. */
static inline bool nbd_pipes_has(const struct nbd_pipes *p, const void *address)
{
    return (uintptr_t)address - (uintptr_t)p->pipe < sizeof(p->pipe);
}

#endif

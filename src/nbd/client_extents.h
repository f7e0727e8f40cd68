/* SPDX-License-Identifier: Apache-2.0 */
/* The extents that a node of the driver nbd remembers. */
#ifndef TIDEMARK_NBD_CLIENT_EXTENTS_H
#define TIDEMARK_NBD_CLIENT_EXTENTS_H

#include <pthread.h>

#include "nbd/client.h"

/* The extents that the server reported last. Any reactor. */
struct nbd_status_cache {
    /* Guards all members. */
    pthread_mutex_t lock;
    /* None: nothing is known. */
    struct nbd_extents extents;
    /* The range of all extents. */
    uint64_t start, end;
    /* The extent that is likely to be asked for next, and where it begins. */
    size_t next;
    uint64_t next_start;
    /* Of the node, when the server was asked. */
    uint64_t write_generation;
    int64_t until_ns;
};

/* Nothing is known. */
void nbd_status_cache_init(struct nbd_status_cache *s);
void nbd_status_cache_destroy(struct nbd_status_cache *s);

/*
 * The first extent of [offset, offset + length) of the first context of `c`: from memory or from
 * the server. `generation` has another value after each write through the node; `read_only`: none
 * is made through it. 0 or -errno. Yields. Any reactor.
 */
int nbd_status_cache_co_get(struct nbd_status_cache *s, struct nbd_client *c, uint64_t generation,
                            bool read_only, uint64_t offset, uint64_t length,
                            struct nbd_extent *ret_extent);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Several connections to one export, over which large reads and writes are spread. The first is
 * there from the beginning; others are made in the background when those that are there have much
 * to do. They live on reactors of their own, so that receiving and TLS use more than one processor.
 *
 * `co_` functions yield; the others do not.
 */
#ifndef TIDEMARK_NBD_CLIENT_POOL_H
#define TIDEMARK_NBD_CLIENT_POOL_H

#include "nbd/client.h"

enum {
    /* Connections of one pool. */
    NBD_POOL_MAX = 16,
};

struct nbd_pool;

/*
 * A pool of at most `max` connections, of which `first` is one, and the pool's from now on. Further
 * ones are made only if the server says that they see each other's changes (multi-conn).
 * `repeats`: the first is restored when it is lost; then all changes go there, which has to repeat
 * them in their order. On the reactor of `first`. -ENOMEM: `first` is still the caller's.
 */
int nbd_pool_new(struct nbd_client *first, unsigned max, bool repeats, struct nbd_pool **ret_pool);

/* As nbd_client_give_up(), of all. Main reactor; yields. */
void nbd_pool_co_give_up(struct nbd_pool *p);
/* As nbd_client_cut(), of all; no others are made. Main reactor; yields. */
void nbd_pool_co_cut(struct nbd_pool *p);

/* As nbd_client_co_close(), of all. NULL is fine. */
void nbd_pool_co_close(struct nbd_pool *p);

/* The first connection. Any thread. */
struct nbd_client *nbd_pool_first(const struct nbd_pool *p);

/* As the functions of one connection. From any reactor. */
int nbd_pool_co_preadv(struct nbd_pool *p, uint64_t offset, struct iov iov);
int nbd_pool_co_pwritev(struct nbd_pool *p, uint64_t offset, struct iov iov, bool fua);

/* The figures of all connections together, by the rows of nbd_client_stats. Main reactor. */
void nbd_pool_read_stats(struct nbd_pool *p, uint64_t *ret_values);

#endif

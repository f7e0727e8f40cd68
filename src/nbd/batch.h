/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long to hold back replies for more requests.
 *
 * A client with many requests in flight sends them one by one. A server that answers each at once
 * pays a recv() and a sendmsg() for each, and makes the client pay as much. A server that waits
 * until all of them have come pays once. Such a client differs from one that waits for its one
 * reply by the number of requests that come while none is answered: the depth. It is measured from
 * time to time by holding replies back for a moment (40 us), and trusted in between:
 *
 *   depth unknown   answer at once; from time to time, hold for a moment and count
 *   depth known     hold until that many requests have come, or the moment is over; then answer all
 *
 * A client of depth 1 loses that moment once in many requests. One of depth n never waits when all
 * n are there.
 *
 * Used on the connection's reactor. Nothing here yields.
 */
#ifndef TIDEMARK_NBD_BATCH_H
#define TIDEMARK_NBD_BATCH_H

#include <stdbool.h>
#include <stdint.h>

struct nbd_batch {
    /* Requests since replies were last sent. */
    unsigned received;
    /* Requests to wait for; 0: unknown, or not worth it. */
    unsigned depth;
    /* Batches until the next one that measures the depth. */
    unsigned until_probe;
    /* This batch measures the depth. */
    bool probing;
    /* 0: not holding. */
    int64_t hold_until_ns;
};

/* Of a new connection: the depth is unknown. */
void nbd_batch_init(struct nbd_batch *b);

/* A request has been taken. */
static inline void nbd_batch_count(struct nbd_batch *b)
{
    b->received++;
}

/* The socket is empty. True: hold the replies back, and look at it again; false: send them. */
bool nbd_batch_hold(struct nbd_batch *b);

/* Whether one request has come, and no others are expected before its reply. */
static inline bool nbd_batch_is_single(const struct nbd_batch *b)
{
    return b->received == 1 && b->depth == 0 && b->until_probe > 0;
}

/* Whether replies are being held back now. */
static inline bool nbd_batch_is_holding(const struct nbd_batch *b)
{
    return b->hold_until_ns != 0;
}

/* The replies are sent: the batch ends. */
void nbd_batch_end(struct nbd_batch *b);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long to hold back replies for more requests.
 *
 * A client with many requests in flight sends them one by one. A server that answers each at once
 * pays a recv() and a sendmsg() for each, and makes the client pay as much. One that waits until
 * all of them have come pays once. What tells the two apart from a client that waits for its one
 * reply is how many requests come while nothing is answered: the depth. It is learned from time to
 * time by holding back for a moment, and trusted in between:
 *
 *      depth unknown   answer at once; every so many batches hold for a moment and count
 *      depth known     hold until so many requests have come, or none has come for a moment; then answer all of them
 *
 * A client of depth 1 loses that moment once in many requests; one of depth n never waits when all
 * n are there.
 */
#ifndef TIDEMARK_NBD_BATCH_H
#define TIDEMARK_NBD_BATCH_H

#include <stdbool.h>
#include <stdint.h>

struct nbd_batch {
    unsigned received;     /* requests since the replies left last */
    unsigned depth;        /* what to wait for; 0: unknown, or not worth it */
    unsigned until_probe;  /* batches until the next one that counts */
    bool probing;          /* this batch counts */
    int64_t hold_until_ns; /* 0: not holding */
};

void nbd_batch_init(struct nbd_batch *b);

/* A request has been taken. */
static inline void nbd_batch_count(struct nbd_batch *b)
{
    b->received++;
}

/*
 * The socket is empty. True: look again, hold the replies back; false: let them go. Does not yield.
 */
bool nbd_batch_hold(struct nbd_batch *b);

/* Whether replies are being held back now. */
static inline bool nbd_batch_is_holding(const struct nbd_batch *b)
{
    return b->hold_until_ns != 0;
}

/* The replies leave. */
void nbd_batch_end(struct nbd_batch *b);

#endif

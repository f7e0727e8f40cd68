/* SPDX-License-Identifier: Apache-2.0 */
/* A guest: a few workers that write, overwrite, zero, discard, flush and read at the same time. */
#ifndef TIDEMARK_TESTS_GUEST_H
#define TIDEMARK_TESTS_GUEST_H

#include "block/gate.h"
#include "co/sync.h"
#include "workload.h"

struct guest {
    struct workload *w;
    struct block_edge *edge;
    uint64_t random;
    struct error *err; /* of the first failure */
    int ret;
    /* inside */
    struct range_lock busy; /* sectors with a request in flight: no two overlap */
    struct co_group workers;
    unsigned left; /* requests of this batch */
    bool alone;    /* no other request is in flight */
};

void guest_init(struct guest *g);
void guest_destroy(struct guest *g);
/* Send this number of requests and wait for all. g->ret has the result. Yields. */
void guest_co_run(struct guest *g, unsigned requests);
/* -EILSEQ if the sectors are not what was written. Yields. */
int guest_co_read_back(struct guest *g, uint64_t sector, uint64_t sectors);
/* Some data everywhere, before anything is logged. */
int guest_co_fill(struct guest *g);

#endif

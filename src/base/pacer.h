/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A limit of bytes per second. The first bytes may move at once; each piece puts off the next one
 * by the time that it takes at the given rate. Time that passes unused is not saved up. No lock:
 * the owner guards it. Does not yield.
 */
#ifndef TIDEMARK_BASE_PACER_H
#define TIDEMARK_BASE_PACER_H

#include <stdint.h>

/* Start with {.rate = ...}. */
struct pacer {
    uint64_t rate;   /* bytes per second; 0: no limit */
    int64_t next_ns; /* when the next bytes may move, on the clock that the caller uses */
};

/*
 * Reserve the time for `bytes` more. Returns how many nanoseconds the caller waits before it moves
 * them: 0 without a limit. What moves no bytes waits for its turn as well.
 */
int64_t pacer_take(struct pacer *p, uint64_t bytes, int64_t now_ns);

#endif

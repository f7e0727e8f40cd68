/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the copying of `img convert` share. */
#ifndef TIDEMARK_CLI_IMG_COPY_INTERNAL_H
#define TIDEMARK_CLI_IMG_COPY_INTERNAL_H

#include "base/checked.h"
#include "cli/img/copy.h"

#define REQUEST_SIZE MiB /* the longest that a file takes on the spot */
#define GRANULE_MIN 512u /* the smallest cluster */
/* In a request, the first and the last of which may be parts: longer ones are a granule each. */
#define GRANULES_MAX (REQUEST_SIZE / GRANULE_MIN + 1)
#define SALVAGE_STEP 512u

struct chunk {
    uint64_t offset, length;
    uint64_t number; /* the how manieth it is */
    enum convert_kind kind;
};

struct worker {
    struct convert *c;
    uint8_t *buffer;
    struct chunk chunk;
    bool zero[GRANULES_MAX]; /* data: which granules of the chunk, as read, are zero */
    bool all_zero;           /* all of them */

    /* Where order matters; guarded by the lock. */
    enum { IDLE, FETCHING, FETCHED } stage; /* FETCHED: the chunk waits to be written */
    struct co_queue put;                    /* waits until it was, or will not be */
    int result;                             /* of writing it */
};

/* --- convert_move.c: one chunk. Those named co_ yield, return 0 or -errno, and tell the user what went wrong. --- */

struct convert_source *convert_source_at(struct convert *c, uint64_t offset);
/* Whether the target has at `offset` what its backing file has, which the source then need not have. */
bool convert_is_backed(const struct convert *c, uint64_t offset);
/* Whether there is nothing to be done for a chunk, which costs no time then, whatever the rate limit. */
bool convert_is_left_out(const struct convert *c, const struct chunk *chunk);
/* What can be done before it is its turn. */
int convert_co_fetch(struct worker *w);
/* Whether a fetched chunk leaves the target as it is. */
bool convert_needs_no_put(const struct worker *w);
/* Write what was fetched. */
int convert_co_put(struct worker *w);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of image_copy.h share. All `co_` functions yield; the others do not. */
#ifndef TIDEMARK_CLI_IMG_IMAGE_COPY_INTERNAL_H
#define TIDEMARK_CLI_IMG_IMAGE_COPY_INTERNAL_H

#include <pthread.h>

#include "base/checked.h"
#include "base/pacer.h"
#include "base/progress.h"
#include "cli/img/image_copy.h"
#include "co/sync.h"

#define REQUEST_SIZE MiB /* the longest that a file takes on the spot */
#define GRANULE_MIN 512u /* the smallest cluster */
/*
 * Granules per request, of which the first and the last may be parts. A longer request is one
 * granule.
 */
#define GRANULES_MAX (REQUEST_SIZE / GRANULE_MIN + 1)
/* Unit of reads and status queries in areas that cannot be read. */
#define SALVAGE_STEP 512u

enum image_copy_kind {
    IMAGE_COPY_DATA,    /* read, and write what is not zero */
    IMAGE_COPY_ZERO,    /* reads as zeroes */
    IMAGE_COPY_BACKING, /* the target's backing file has it */
};

/* A part of the target that one worker copies. */
struct chunk {
    uint64_t offset, length; /* in the target */
    uint64_t number;         /* in the order of taking, which is that of offsets */
    enum image_copy_kind kind;
};

/*
 * Stages of a worker, where the order of writes matters:
 *
 *     IDLE --a chunk is taken--> FETCHING --read--> FETCHED --written, by any worker--> IDLE
 */
enum worker_stage { WORKER_IDLE, WORKER_FETCHING, WORKER_FETCHED };

struct worker {
    struct image_copy *c;
    uint8_t *buffer; /* owned */
    struct chunk chunk;
    bool zero[GRANULES_MAX]; /* data: which granules of the chunk, as read, are zero */
    bool all_zero;           /* all of them */

    /* Where the order of writes matters; guarded by the lock of the copy. */
    enum worker_stage stage;
    struct co_queue put; /* waits here until the chunk was written, or will not be */
    int result;          /* of writing it */

    struct error err; /* of the chunk, if it failed; set by the worker that reads or writes it */
};

struct image_copy {
    const struct image_copy_options *options;
    struct image_copy_source *source;
    size_t source_count;
    uint64_t total; /* of all sources */
    struct image_copy_target *target;

    /* Set before workers start. */
    uint32_t granule;     /* zeroes are looked for in pieces of this size */
    uint32_t unit;        /* compressed: requests are multiples of it; else 1 */
    uint64_t request;     /* longest piece of data to read */
    bool takes_one_write; /* the target takes one write at a time: it is a file in the page cache */
    struct worker *worker; /* options->workers of them */

    pthread_mutex_t lock; /* guards all that follows, except for `group` */
    uint64_t next;        /* where the next chunk begins */
    uint64_t extent_end;  /* the status found last holds up to here */
    enum image_copy_kind extent_kind;
    bool looking;            /* a worker queries the status of the next extent */
    struct co_queue lookers; /* workers that wait for it */
    struct pacer pacer;
    uint64_t chunks;        /* chunks that were taken */
    bool writing;           /* a worker writes what was fetched, in order */
    bool failed;            /* a worker failed; the others stop */
    int result;             /* the first error */
    struct error *err;      /* its sentence */
    uint64_t copied;        /* bytes of data that were taken so far */
    unsigned started;       /* workers */
    struct reactor *helper; /* the second thread; NULL before there is one */
    struct progress progress;

    struct co_group group; /* of workers that run */
};

/* --- image_copy_chunk.c: one chunk. Failures are described in w->err. ------------------------- */

/* The source that has the byte at `offset` of the target. */
struct image_copy_source *image_copy_source_at(struct image_copy *c, uint64_t offset);
/*
 * Whether the target's backing file covers `offset`, so that the target lacks nothing where the
 * source's top image has nothing.
 */
bool image_copy_is_backed(const struct image_copy *c, uint64_t offset);
/* Whether nothing needs to be done for a chunk. The rate limit does not count it. */
bool image_copy_is_left_out(const struct image_copy *c, const struct chunk *chunk);
/*
 * Read the worker's chunk; whatever can be done before it is its turn to be written. 0 or -errno.
 */
int image_copy_co_fetch(struct worker *w);
/* Whether a fetched chunk leaves the target as it is. */
bool image_copy_needs_no_put(const struct worker *w);
/* Write what was fetched. 0 or -errno. */
int image_copy_co_put(struct worker *w);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The copying part of `img convert`: several requests in flight, zeroes and unallocated areas left out. In a coroutine
 * on the main reactor; yields.
 */
#ifndef TIDEMARK_CLI_IMG_COPY_H
#define TIDEMARK_CLI_IMG_COPY_H

#include "base/pacer.h"
#include "base/progress.h"
#include "cli/image.h"
#include "co/sync.h"

enum convert_kind {
    CONVERT_DATA,    /* read, and write what is not zero */
    CONVERT_ZERO,    /* reads as zeroes */
    CONVERT_BACKING, /* the target's backing file has it */
};

struct convert_source {
    struct cli_disk disk;
    uint64_t start; /* in the target */
    uint64_t size;
};

struct convert {
    /* Set by the caller. Offsets and lengths in bytes. */
    struct convert_source *source;
    size_t source_count;
    uint64_t total; /* of all sources */
    struct cli_disk target;
    uint64_t zero_from;           /* from here on, what is not written reads as zeroes */
    bool share_backing;           /* what the source's top has not, the target's backing file has */
    uint64_t target_backing_size; /* if share_backing */
    uint64_t min_sparse;          /* shortest run of zeroes to leave out; 0: write everything */
    bool compressed;
    bool offload;      /* let the system copy where it can */
    bool out_of_order; /* parts of the target may be written in any order */
    bool salvage;      /* unreadable parts become zeroes */
    bool quiet;
    bool show_progress;
    unsigned workers;

    /* Of the copy itself. */
    uint32_t granule;        /* zeroes are looked for in pieces of this size */
    uint32_t unit;           /* compressed: requests are multiples of it; else 1 */
    uint64_t request;        /* longest piece of data to read */
    bool takes_one_write;    /* the target, at a time */
    pthread_mutex_t lock;    /* guards what follows, up to the group */
    uint64_t next;           /* where the next request begins */
    uint64_t extent_end;     /* the status found last holds to here */
    bool looking;            /* a worker asks for the next */
    struct co_queue lookers; /* wait for it */
    enum convert_kind extent_kind;
    struct pacer pacer;     /* its rate is set by the caller */
    uint64_t chunks;        /* requests that were taken */
    bool writing;           /* a worker does so, in order */
    bool failed;            /* a worker gave up; the others stop */
    uint64_t copied;        /* bytes of data that were taken so far */
    struct worker *worker;  /* as many as there are to be */
    unsigned started;       /* of them */
    struct reactor *helper; /* the second thread; NULL before there is one */
    struct progress progress;
    struct co_group group;
};

/* Copy. Returns 0 or 1 (the user has been told). */
int convert_co_run(struct convert *c);

#endif

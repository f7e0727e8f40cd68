/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The copying part of `img convert`: several requests in flight, zeroes and unallocated areas left
 * out. Sizes, offsets and lengths are in bytes.
 */
#ifndef TIDEMARK_CLI_IMG_IMAGE_COPY_H
#define TIDEMARK_CLI_IMG_IMAGE_COPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "cli/image.h"

/* How to copy, as the command line says. */
struct image_copy_options {
    uint64_t min_sparse; /* shortest run of zeroes to leave out; 0: write everything */
    uint64_t rate;       /* per second; 0: no limit */
    unsigned workers;    /* requests in flight, at least 1 */
    bool compressed;
    bool offload;      /* let the system copy where it can */
    bool out_of_order; /* parts of the target may be written in any order */
    bool salvage;      /* unreadable parts become zeroes, with a warning */
    bool quiet;        /* no warnings */
    bool show_progress;
};

/* One of the disks that are joined in the target. */
struct image_copy_source {
    struct cli_disk disk;
    uint64_t start; /* offset in the target */
    uint64_t size;
};

struct image_copy_target {
    struct cli_disk disk;
    /* From this offset on, what is not written reads as zeroes. */
    uint64_t zero_from;
    /* Areas that the source's top image does not store are in the target's backing file. */
    bool share_backing;
    uint64_t backing_size; /* if share_backing */
    /* Its clusters are written once, as a whole. */
    bool whole_clusters;
};

/*
 * Copy `count` sources, which follow each other without gaps from 0 on, to the target. With
 * share_backing there is one source. For a coroutine of the main reactor; yields. -errno of the
 * first request that failed.
 */
int image_copy_co_run(const struct image_copy_options *options, struct image_copy_source *sources,
                      size_t count, struct image_copy_target *target, struct error *err);

#endif

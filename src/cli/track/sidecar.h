/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The image that tracks a raw disk: a qcow2 whose raw data file is the disk, all of it mapped
 * (2 MiB clusters: 16 TiB need 64 MiB), and which keeps the bitmaps.
 *
 * All functions are for coroutines of the main reactor, and yield.
 */
#ifndef TIDEMARK_CLI_TRACK_SIDECAR_H
#define TIDEMARK_CLI_TRACK_SIDECAR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "cli/args.h"

struct json_object;

/* The disk and its image; text is borrowed. */
struct track_sidecar {
    const char *disk, *image;
    bool device;
    /* of the disk, in bytes */
    uint64_t size;
};

/* The options that open the image over the disk, as blockdev-add takes them. NULL: no memory. */
struct json_object *track_sidecar_options(const struct track_sidecar *s, const char *node_name);

/*
 * Make the image, with no bitmap. It gets its name when it is complete, and what the disk has stays
 * as it is. -EEXIST is no error: the old one is replaced.
 */
int track_co_make_sidecar(const struct track_sidecar *s, struct error *err);

/*
 * Make sure that `bitmaps` (names, may be empty) exist and record; new ones get `granularity` (0:
 * 64 KiB). If `all_dirty`, all bitmaps have everything then. An image of another size is made
 * again, with its bitmaps. -EINVAL: it is no image of this kind.
 */
int track_co_prepare_sidecar(const struct track_sidecar *s, const struct cli_items *bitmaps,
                             uint32_t granularity, bool all_dirty, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of an image (specification, "Header" and "Header extensions").
 *
 * All `co_` functions yield; control operations only, except where said. They return 0 or -errno,
 * and fill `err` where they take it.
 */
#ifndef TIDEMARK_QCOW2_HEADER_HEADER_H
#define TIDEMARK_QCOW2_HEADER_HEADER_H

#include "qcow2/image.h"

/*
 * Read the header, its extensions and the backing file name into `q`, at open. -EINVAL if it is
 * invalid, -ENOTSUP if the image has features that we do not know. What was read by then belongs to
 * `q` in either case: qcow2_free_header() frees it.
 */
int qcow2_co_read_header(struct qcow2 *q, struct error *err);

/*
 * Write the header as the members of `q` describe it, and sync. One write of the first sector
 * switches all of it (R3). On failure the old header is on disk, or, where that is not certain,
 * q->broken is set. -ENOSPC if extensions and backing file name do not fit into the first cluster.
 */
int qcow2_co_write_header(struct qcow2 *q, struct error *err);

/*
 * Whether the header has room to name a first bitmap. -ENOSPC if not: with small clusters and a
 * long backing file name.
 */
int qcow2_co_check_room_for_bitmaps(struct qcow2 *q, struct error *err);

/* Free all memory of `q` that qcow2_co_read_header() allocated. Does not yield. */
void qcow2_free_header(struct qcow2 *q);

/*
 * Add incompatible feature bits; they are stable when it returns 0, and unknown after a failure.
 * Any reactor, also while requests run.
 */
int qcow2_co_set_incompatible(struct qcow2 *q, uint64_t bits);

/*
 * Fail with -ENOTSUP, and name the incompatible features `unknown` as the image's feature name
 * table does. `sector`: the first SECTOR_SIZE bytes of the file.
 */
int qcow2_co_refuse_features(struct qcow2 *q, const uint8_t *sector, uint64_t unknown,
                             struct error *err);

/* block_driver.co_change_backing: record another backing file name; both strings are copied. */
int qcow2_co_change_backing(struct block_node *node, const char *filename, const char *format,
                            struct error *err);

#endif

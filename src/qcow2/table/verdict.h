/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verdict that an image is corrupt: its metadata violates the specification.
 *
 * Whatever finds that calls one of the functions below, and returns the -EIO that it gets. They
 * only record the verdict in the image, with its description; a writable image takes no more
 * writes from then on. qcow2_co_conclude() (header/mark_corrupt.h) acts on it: it is called before
 * a commit writes anything, and when an operation of the driver ends.
 *
 * Only the first fatal and the first harmless violation are recorded. Any thread, with or without
 * locks; none of the functions yields.
 *
 * A header of which nobody knows what is on disk stops writes as well: qcow2_give_up_header().
 */
#ifndef TIDEMARK_QCOW2_TABLE_VERDICT_H
#define TIDEMARK_QCOW2_TABLE_VERDICT_H

#include "qcow2/image.h"

/*
 * The image is corrupt, as the format describes ("L2 table offset 0x200 unaligned"). Harmless if
 * the image is read-only, else fatal. Returns -EIO.
 */
int qcow2_corrupt(struct qcow2 *q, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* As qcow2_corrupt() for a violation that is harmless in any case. */
void qcow2_corrupt_nonfatal(struct qcow2 *q, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/*
 * qcow2_corrupt() for the L2 entry at `index` of a pinned slice, which was found while reading or
 * writing guest offset `guest`.
 */
int qcow2_corrupt_entry(struct qcow2 *q, const struct cache_entry *slice, unsigned index,
                        uint64_t guest, bool writing);

/*
 * Writing the header has failed with -errno `r`, and so has writing the old one again: which of
 * them is on disk is not known. Logs that. The image takes no more writes.
 */
void qcow2_give_up_header(struct qcow2 *q, int r);

/* qcow2_check_writable() with a sentence, for operations on the whole image. */
int qcow2_refuse_broken(const struct qcow2 *q, struct error *err);

#endif

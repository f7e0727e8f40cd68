/* SPDX-License-Identifier: Apache-2.0 */
/* Metadata that violates the specification. */
#ifndef TIDEMARK_QCOW2_HEADER_CORRUPT_H
#define TIDEMARK_QCOW2_HEADER_CORRUPT_H

#include "qcow2/image.h"

/*
 * Metadata violates the specification: report it once. A writable image is marked in its header,
 * stably, and takes no more writes. Any reactor, with or without the lock; yields. Returns -EIO.
 */
int qcow2_co_corrupt(struct qcow2 *q, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* As above for a violation that does no harm: it is only reported. */
void qcow2_corrupt_nonfatal(struct qcow2 *q, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/*
 * qcow2_co_corrupt() for the L2 entry at `index` of a pinned slice, which was found while reading or
 * writing guest offset `guest`.
 */
int qcow2_co_corrupt_entry(struct qcow2 *q, const struct cache_entry *slice, unsigned index,
                           uint64_t guest, bool writing);

/* qcow2_check_writable() with a sentence, for operations on the whole image. */
int qcow2_refuse_broken(const struct qcow2 *q, struct error *err);

#endif

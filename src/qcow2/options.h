/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_OPTIONS_H
#define TIDEMARK_QCOW2_OPTIONS_H

#include "block/options.h"
#include "qcow2/image.h"
#include "schema/schema.h"

/* Options that are needed only to make the caches; bytes. */
struct qcow2_cache_options {
    uint64_t slice, ref_bytes;
};

/* BlockdevOptionsQcow2 */
extern const struct schema_type qcow2_options_type;
/* BlockdevQcow2EncryptionFormat */
extern const struct schema_type qcow2_encryption_format_type;

/* Take the options of an image whose header was read. -EINVAL. Does not yield. */
int qcow2_take_options(struct qcow2 *q, struct options *opts,
                       struct qcow2_cache_options *ret_options, struct error *err);

/*
 * Set the limit of the L2 cache to that of the options, but not more than a whole disk of `size`
 * bytes needs. After open and resize, and before tables of an area beyond the end of the disk are
 * made. 0 or -ENOMEM. Does not yield.
 */
int qcow2_fit_l2_cache(struct qcow2 *q, uint64_t size);

#endif

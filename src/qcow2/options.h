/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_OPTIONS_H
#define TIDEMARK_QCOW2_OPTIONS_H

#include "block/options.h"
#include "qcow2/image.h"

struct qcow2_cache_options {
    uint64_t slice, ref_bytes;
};

/* Take the options of an image whose header was read; those of no further use once caches are made are in *ret. -EINVAL */
int qcow2_take_options(struct qcow2 *q, struct options *opts, struct qcow2_cache_options *ret,
                       struct error *err);

/* Let the L2 cache take what the options say, but no more than the whole disk needs. After open and resize. 0 or -ENOMEM */
int qcow2_fit_l2_cache(struct qcow2 *q);

#endif

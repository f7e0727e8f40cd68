/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compressing and decompressing one cluster. Stored is what the specification says about the
 * header's compression_type: for type 0 a deflate stream (RFC 1951) without a zlib header, for
 * type 1 zstd frames.
 *
 * Nothing here yields; call it in the offload pool. Each thread keeps the working memory of the
 * codecs that it has used (under 2 MiB) until it ends.
 */
#ifndef TIDEMARK_QCOW2_DATA_COMPRESSION_H
#define TIDEMARK_QCOW2_DATA_COMPRESSION_H

#include <stddef.h>

#include "qcow2/header/format.h"

/*
 * Compress into `out`, which has `room` bytes. *ret_size: bytes stored. -E2BIG if they do not fit,
 * -ENOMEM.
 */
int codec_compress(enum compression_type type, const void *in, size_t in_size, void *out,
                   size_t room, size_t *ret_size);

/*
 * Decompress until `out` is full. The rest of `in` is ignored: data is padded to whole sectors, and
 * clusters share sectors. -EIO if the data is invalid or ends too early, -ENOMEM.
 */
int codec_decompress(enum compression_type type, const void *in, size_t in_size, void *out,
                     size_t out_size);

#endif

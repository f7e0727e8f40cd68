/* SPDX-License-Identifier: Apache-2.0 */
/* The largest disk or file: QEMU opens nothing that is larger. */
#ifndef TIDEMARK_BLOCK_SIZE_MAX_H
#define TIDEMARK_BLOCK_SIZE_MAX_H

#include <stdint.h>

#include "base/error.h"

/* Bytes: 2^63 - 2^30. */
#define BLOCK_SIZE_MAX (UINT64_C(0x8000000000000000) - (UINT64_C(1) << 30))

/* -EFBIG: the size, in bytes, is above BLOCK_SIZE_MAX. Does not yield. */
int block_check_size_max(uint64_t size, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes as people write and read them. None of these functions yields. */
#ifndef TIDEMARK_BASE_SIZE_H
#define TIDEMARK_BASE_SIZE_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/*
 * Parse a size in bytes, with or without a '+' before it: decimal (with a fraction if a suffix follows) or 0x hexadecimal, and an
 * optional suffix b, k, M, G, T, P or E (powers of 1024, either case; no suffix means bytes).
 * Errors: -EINVAL (not a size), -ERANGE (over 2^63 - 1). `what` names the value in the sentence.
 */
int size_parse(const char *text, const char *what, uint64_t *ret_bytes, struct error *err);

/* "1.5 GiB", "64 KiB", "512 B": at most three significant digits. `buf` gets at least 16 bytes. */
const char *size_format(uint64_t bytes, char *buf, size_t buf_size);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes as people write and read them. None of these functions yields. */
#ifndef TIDEMARK_BASE_SIZE_H
#define TIDEMARK_BASE_SIZE_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/*
 * Parse a size: white space and a '+', both optional, then a hexadecimal number of bytes with 0x,
 * or a decimal number with an optional fraction ("1.5", ".5", "1.") and an optional suffix b, k, M,
 * G, T, P or E, in either case, for powers of 1024; without a suffix the number counts bytes. What
 * is no whole number of bytes is rounded to the nearest one; bytes themselves have no fraction but
 * zero. `what` names the value in the error. Returns 0, -EINVAL (not a size) or -ERANGE (above
 * 2^63 - 1).
 */
int size_parse(const char *text, const char *what, uint64_t *ret_bytes, struct error *err);

/*
 * Write a size for people, with at most three significant digits: "1.5 GiB", "64 KiB", "512 B".
 * `buf` has at least 16 bytes. Returns `buf`.
 */
const char *size_format(uint64_t bytes, char *buf, size_t buf_size);

#endif

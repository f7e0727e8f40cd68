/* SPDX-License-Identifier: Apache-2.0 */
/* Percent-encoding of URIs (RFC 3986, section 2.1). None of these functions yields. */
#ifndef TIDEMARK_BASE_PERCENT_H
#define TIDEMARK_BASE_PERCENT_H

#include <stddef.h>

/*
 * A string of `text`, `size` bytes, with each %XX decoded. The caller frees it. NULL if an escape
 * is malformed or stands for NUL, or out of memory.
 */
char *percent_decode(const char *text, size_t size);

/*
 * A copy of `text` with '%' and each character of `special` written as %XX. The caller frees it.
 * NULL if out of memory.
 */
char *percent_encode(const char *text, const char *special);

#endif

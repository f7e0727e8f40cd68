/* SPDX-License-Identifier: Apache-2.0 */
/* Percent-encoding of URIs (RFC 3986, section 2.1). */
#ifndef TIDEMARK_BASE_PERCENT_H
#define TIDEMARK_BASE_PERCENT_H

#include <stddef.h>

/* `size` bytes with each %XX resolved, malloc'ed; NULL if an escape is malformed or stands for NUL, or out of memory. */
char *percent_decode(const char *text, size_t size);
/* `text` with '%' and the characters of `special` as %XX, malloc'ed; NULL if out of memory. */
char *percent_encode(const char *text, const char *special);

#endif

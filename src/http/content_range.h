/* SPDX-License-Identifier: Apache-2.0 */
/* The header Content-Range of answers (RFC 9110, section 14.4). Does not yield. */
#ifndef TIDEMARK_HTTP_CONTENT_RANGE_H
#define TIDEMARK_HTTP_CONTENT_RANGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct content_range {
    bool is_satisfied;    /* false: "bytes *\/TOTAL", the range is beyond the end */
    uint64_t first, last; /* offsets of bytes, inclusive; only if satisfied */
    bool has_total;       /* false: the server does not say how long the file is */
    uint64_t total;       /* bytes of the file, more than `last` */
};

/*
 * Parse the value of the header, `size` bytes without a NUL. False: it is malformed, contradicts
 * itself, or has numbers above 2^63 - 1.
 */
bool content_range_parse(const char *text, size_t size, struct content_range *ret_range);

#endif

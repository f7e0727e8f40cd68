/* SPDX-License-Identifier: Apache-2.0 */
/* Base64 (RFC 4648, section 4). Nothing here yields. */
#ifndef TIDEMARK_BASE_BASE64_H
#define TIDEMARK_BASE_BASE64_H

#include <stddef.h>

#include "base/error.h"

/*
 * Decode `*size` bytes of text in place, skipping white space, and put a NUL behind; there has to
 * be room for it. *size is that of the result then. -EINVAL.
 */
int base64_decode(char *text, size_t *size, struct error *err);

/* Encode; a string that the caller frees. NULL without memory. */
char *base64_encode(const void *data, size_t size);

#endif

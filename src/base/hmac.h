/* SPDX-License-Identifier: Apache-2.0 */
/* HMAC-SHA256 (RFC 2104). None of these yields. Any thread. */
#ifndef TIDEMARK_BASE_HMAC_H
#define TIDEMARK_BASE_HMAC_H

#include <stddef.h>
#include <stdint.h>

#include "base/sha256.h"

/* Of one message. 0; -EIO if the library fails. */
int hmac_sha256(const void *key, size_t key_size, const void *data, size_t size,
                uint8_t ret_mac[static SHA256_SIZE]);

/* Whether two codes are equal, in a time that does not depend on where they differ. */
int hmac_equals(const void *a, const void *b, size_t size);

#endif

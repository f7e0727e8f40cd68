/* SPDX-License-Identifier: Apache-2.0 */
#include "base/hmac.h"

#include <errno.h>
#include <string.h>

#define BLOCK_SIZE 64

/* SHA-256 of the key, each byte changed by `change`, and a message behind it. */
static int hash_with_key(const uint8_t key[static BLOCK_SIZE], uint8_t change, const void *data,
                         size_t size, uint8_t ret_digest[static SHA256_SIZE])
{
    struct sha256 *sha = sha256_new();
    uint8_t pad[BLOCK_SIZE];
    int r = sha ? 0 : -EIO;

    for (size_t i = 0; i < BLOCK_SIZE; i++) {
        pad[i] = key[i] ^ change;
    }
    if (r == 0) {
        r = sha256_add(sha, pad, sizeof(pad));
    }
    if (r == 0) {
        r = sha256_add(sha, data, size);
    }
    if (r == 0) {
        r = sha256_finish(sha, ret_digest);
    }
    sha256_free(sha);
    return r;
}

int hmac_sha256(const void *key, size_t key_size, const void *data, size_t size,
                uint8_t ret_mac[static SHA256_SIZE])
{
    uint8_t block[BLOCK_SIZE] = {0}, inner[SHA256_SIZE];
    int r = 0;

    if (key_size > sizeof(block)) {
        r = sha256_of_buffer(key, key_size, block);
    } else {
        memcpy(block, key, key_size);
    }
    if (r == 0) {
        r = hash_with_key(block, 0x36, data, size, inner);
    }
    return r < 0 ? r : hash_with_key(block, 0x5c, inner, sizeof(inner), ret_mac);
}

int hmac_equals(const void *a, const void *b, size_t size)
{
    const uint8_t *x = a, *y = b;
    uint8_t different = 0;

    for (size_t i = 0; i < size; i++) {
        different |= x[i] ^ y[i];
    }
    return different == 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "base/sha256.h"

#include <errno.h>

#include "base/libcrypto_lazy.h"

/* A struct sha256 is an EVP_MD_CTX: nothing else is kept. */
static EVP_MD_CTX *context(struct sha256 *sha)
{
    return (EVP_MD_CTX *)sha;
}

struct sha256 *sha256_new(void)
{
    EVP_MD_CTX *ctx = lazy_libcrypto_load(NULL) < 0 ? NULL : EVP_MD_CTX_new();

    if (ctx && !EVP_DigestInit_ex(ctx, EVP_sha256(), NULL)) {
        EVP_MD_CTX_free(ctx);
        ctx = NULL;
    }
    return (struct sha256 *)ctx;
}

void sha256_free(struct sha256 *sha)
{
    if (sha) {
        EVP_MD_CTX_free(context(sha));
    }
}

int sha256_add(struct sha256 *sha, const void *data, size_t size)
{
    return EVP_DigestUpdate(context(sha), data, size) ? 0 : -EIO;
}

int sha256_finish(struct sha256 *sha, uint8_t ret_digest[static SHA256_SIZE])
{
    unsigned len = 0;

    return EVP_DigestFinal_ex(context(sha), ret_digest, &len) && len == SHA256_SIZE ? 0 : -EIO;
}

int sha256_of_buffer(const void *data, size_t size, uint8_t ret_digest[static SHA256_SIZE])
{
    unsigned len = 0;

    if (lazy_libcrypto_load(NULL) < 0 ||
        !EVP_Digest(data, size, ret_digest, &len, EVP_sha256(), NULL) || len != SHA256_SIZE) {
        return -EIO;
    }
    return 0;
}

void sha256_to_hex(const uint8_t digest[static SHA256_SIZE], char ret_hex[static SHA256_HEX_SIZE])
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < SHA256_SIZE; i++) {
        ret_hex[2 * i] = digits[digest[i] >> 4];
        ret_hex[2 * i + 1] = digits[digest[i] & 15];
    }
    ret_hex[SHA256_HEX_SIZE - 1] = '\0';
}

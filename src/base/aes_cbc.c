/* SPDX-License-Identifier: Apache-2.0 */
#include "base/aes_cbc.h"

#include <errno.h>
#include <limits.h>

#include "base/libcrypto_lazy.h"

static int decrypt(EVP_CIPHER_CTX *ctx, const uint8_t *key, const uint8_t *iv, uint8_t *data,
                   size_t size)
{
    int done = 0;

    /* Without padding the library decrypts every block at once. */
    if (!EVP_DecryptInit_ex(ctx, EVP_aes_256_cbc(), NULL, key, iv) ||
        !EVP_CIPHER_CTX_set_padding(ctx, 0) ||
        !EVP_DecryptUpdate(ctx, data, &done, data, (int)size) || (size_t)done != size) {
        return -EIO;
    }
    return 0;
}

int aes256_cbc_decrypt(const uint8_t key[static AES256_KEY_SIZE],
                       const uint8_t iv[static AES_BLOCK_SIZE], uint8_t *data, size_t size)
{
    EVP_CIPHER_CTX *ctx;
    int r;

    if (size == 0) {
        return 0;
    }
    if (size > INT_MAX || lazy_libcrypto_load(NULL) < 0 || !(ctx = EVP_CIPHER_CTX_new())) {
        return -EIO;
    }
    r = decrypt(ctx, key, iv, data, size);
    EVP_CIPHER_CTX_free(ctx);
    return r;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "base/aead.h"

#include <errno.h>
#include <limits.h>

#include "base/libcrypto_lazy.h"

#define SCRYPT_R 8
#define SCRYPT_OTHER_MEMORY (1u << 20)

/* A struct aead is an EVP_CIPHER_CTX: nothing else is kept. */
static EVP_CIPHER_CTX *cipher_of(struct aead *a)
{
    return (EVP_CIPHER_CTX *)a;
}

struct aead *aead_new(const uint8_t key[static AEAD_KEY_SIZE], int seals)
{
    EVP_CIPHER_CTX *ctx = lazy_libcrypto_load(NULL) < 0 ? NULL : EVP_CIPHER_CTX_new();

    if (ctx && !EVP_CipherInit_ex(ctx, EVP_aes_256_gcm(), NULL, key, NULL, seals != 0)) {
        EVP_CIPHER_CTX_free(ctx);
        ctx = NULL;
    }
    return (struct aead *)ctx;
}

void aead_free(struct aead *a)
{
    if (a) {
        EVP_CIPHER_CTX_free(cipher_of(a));
    }
}

/* Everything but the tag. */
static int run_cipher(EVP_CIPHER_CTX *ctx, const struct aead_message *m)
{
    int done = 0;

    if (m->size > INT_MAX || m->aad_size > INT_MAX ||
        !EVP_CipherInit_ex(ctx, NULL, NULL, NULL, m->nonce, -1)) {
        return -EIO;
    }
    if (m->aad_size && !EVP_CipherUpdate(ctx, NULL, &done, m->aad, (int)m->aad_size)) {
        return -EIO;
    }
    if (m->size &&
        (!EVP_CipherUpdate(ctx, m->out, &done, m->in, (int)m->size) || (size_t)done != m->size)) {
        return -EIO;
    }
    return 0;
}

int aead_seal(struct aead *a, const struct aead_message *m)
{
    EVP_CIPHER_CTX *ctx = cipher_of(a);
    uint8_t none[AEAD_TAG_SIZE];
    int done = 0, r = run_cipher(ctx, m);

    return r == 0 && EVP_CipherFinal_ex(ctx, none, &done) &&
                   EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, AEAD_TAG_SIZE, m->tag)
               ? 0
               : -EIO;
}

int aead_open(struct aead *a, const struct aead_message *m)
{
    EVP_CIPHER_CTX *ctx = cipher_of(a);
    uint8_t none[AEAD_TAG_SIZE];
    int done = 0;

    if (run_cipher(ctx, m) < 0 ||
        !EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, AEAD_TAG_SIZE, m->tag)) {
        return -EIO;
    }
    return EVP_CipherFinal_ex(ctx, none, &done) ? 0 : -EBADMSG;
}

int aead_stretch(const void *passphrase, size_t size, const void *salt, size_t salt_size,
                 unsigned log_n, unsigned p, uint8_t *ret_key, size_t key_size)
{
    const uint64_t n = UINT64_C(1) << log_n;
    const uint64_t memory = 2 * (UINT64_C(128) * SCRYPT_R * n) + SCRYPT_OTHER_MEMORY;

    return lazy_libcrypto_load(NULL) == 0 && EVP_PBE_scrypt(passphrase, size, salt, salt_size, n,
                                                            SCRYPT_R, p, memory, ret_key, key_size)
               ? 0
               : -EIO;
}

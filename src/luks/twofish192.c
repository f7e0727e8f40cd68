/* SPDX-License-Identifier: Apache-2.0 */
#include "luks/twofish192.h"

#include <nettle/cbc.h>
#include <nettle/ctr.h>
#include <nettle/twofish.h>
#include <nettle/xts.h>

#include "base/secret_memory.h"

struct twofish192 {
    enum luks_mode mode;
    struct twofish_ctx data;
    /* of XTS */
    struct twofish_ctx tweak;
};

struct twofish192 *twofish192_new(enum luks_mode mode, const uint8_t *key)
{
    struct twofish192 *t = secret_alloc(sizeof(*t));

    if (t) {
        t->mode = mode;
        twofish192_set_key(&t->data, key);
        if (mode == LUKS_XTS) {
            twofish192_set_key(&t->tweak, key + TWOFISH192_KEY_SIZE);
        }
    }
    return t;
}

static void encrypt_twofish_blocks(const void *ctx, size_t size, uint8_t *dst, const uint8_t *src)
{
    twofish_encrypt(ctx, size, dst, src);
}

static void decrypt_twofish_blocks(const void *ctx, size_t size, uint8_t *dst, const uint8_t *src)
{
    twofish_decrypt(ctx, size, dst, src);
}

void twofish192_encrypt(const struct twofish192 *t, uint8_t *iv, uint8_t *dst, const uint8_t *src,
                        size_t size)
{
    switch (t->mode) {
    case LUKS_ECB:
        twofish_encrypt(&t->data, size, dst, src);
        break;
    case LUKS_CBC:
        cbc_encrypt(&t->data, encrypt_twofish_blocks, TWOFISH_BLOCK_SIZE, iv, size, dst, src);
        break;
    case LUKS_XTS:
        xts_encrypt_message(&t->data, &t->tweak, encrypt_twofish_blocks, iv, size, dst, src);
        break;
    case LUKS_CTR:
        ctr_crypt(&t->data, encrypt_twofish_blocks, TWOFISH_BLOCK_SIZE, iv, size, dst, src);
        break;
    }
}

void twofish192_decrypt(const struct twofish192 *t, uint8_t *iv, uint8_t *dst, const uint8_t *src,
                        size_t size)
{
    switch (t->mode) {
    case LUKS_ECB:
        twofish_decrypt(&t->data, size, dst, src);
        break;
    case LUKS_CBC:
        cbc_decrypt(&t->data, decrypt_twofish_blocks, TWOFISH_BLOCK_SIZE, iv, size, dst, src);
        break;
    case LUKS_XTS:
        xts_decrypt_message(&t->data, &t->tweak, decrypt_twofish_blocks, encrypt_twofish_blocks, iv,
                            size, dst, src);
        break;
    case LUKS_CTR:
        ctr_crypt(&t->data, encrypt_twofish_blocks, TWOFISH_BLOCK_SIZE, iv, size, dst, src);
        break;
    }
}

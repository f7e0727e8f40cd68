/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Authenticated encryption by AES-256-GCM (NIST SP 800-38D), and scrypt (RFC 7914), by OpenSSL. A
 * nonce must never be used twice with one key: random ones are right for 2^32 messages. None of
 * these yields. Any thread; one context serves one caller at a time.
 */
#ifndef TIDEMARK_BASE_AEAD_H
#define TIDEMARK_BASE_AEAD_H

#include <stddef.h>
#include <stdint.h>

#define AEAD_KEY_SIZE 32
#define AEAD_NONCE_SIZE 12
#define AEAD_TAG_SIZE 16

/* A key that is set up, for one direction. */
struct aead;

struct aead_message {
    const uint8_t *nonce;
    const void *aad; /* is authenticated, too */
    size_t aad_size;
    const void *in;
    void *out; /* may be `in` */
    size_t size;
    uint8_t *tag;
};

/* NULL: no memory, or the library can't be loaded. */
struct aead *aead_new(const uint8_t key[static AEAD_KEY_SIZE], int seals);
/* NULL is fine. */
void aead_free(struct aead *a);
/* Encrypt, and make the tag. 0 or -EIO. */
int aead_seal(struct aead *a, const struct aead_message *m);
/* Compare with the tag, and decrypt. 0; -EBADMSG: something was changed, and `out` is of no use. */
int aead_open(struct aead *a, const struct aead_message *m);

/*
 * A key from a passphrase, by scrypt with N = 2^log_n, r = 8 and this p: takes 2^log_n KiB of
 * memory. 0; -EIO: no memory, or the library fails.
 */
int aead_stretch(const void *passphrase, size_t size, const void *salt, size_t salt_size,
                 unsigned log_n, unsigned p, uint8_t *ret_key, size_t key_size);

#endif

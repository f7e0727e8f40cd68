/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ciphers, modes, generators of initialization vectors and hashes that LUKS volumes use: their
 * names for users (those of QEMU's options) and in headers. Nothing here yields.
 */
#ifndef TIDEMARK_LUKS_ALGORITHM_H
#define TIDEMARK_LUKS_ALGORITHM_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

/* A cipher with a key size. */
struct luks_cipher_alg {
    /* for users: "aes-256" */
    const char *name;
    /* in headers: "aes" */
    const char *family;
    /* bytes */
    size_t key_size, block_size;
    /* of libgcrypt; 0: it has none, and nettle's Twofish is used */
    int gcrypt;
};

struct luks_hash {
    const char *name;
    /* bytes of a digest */
    size_t size;
    /* of libgcrypt */
    int gcrypt;
};

enum luks_mode { LUKS_ECB, LUKS_CBC, LUKS_XTS, LUKS_CTR };
enum luks_ivgen { LUKS_PLAIN, LUKS_PLAIN64, LUKS_ESSIV };

/* How the sectors of a volume are encrypted. */
struct luks_encryption {
    const struct luks_cipher_alg *alg;
    enum luks_mode mode;
    enum luks_ivgen ivgen;
    /* NULL: none is named. ESSIV needs it; the other generators ignore it. */
    const struct luks_hash *iv_hash;
};

/* Names for users by the values of the enumerations; NULL ends. */
extern const char *const luks_mode_names[];
extern const char *const luks_ivgen_names[];

/* NULL: there is none of that name. */
const struct luks_cipher_alg *luks_find_cipher(const char *name);
/* That of a family in headers, with a key of that size. */
const struct luks_cipher_alg *luks_find_cipher_of_size(const char *family, size_t key_size);
const struct luks_hash *luks_find_hash(const char *name);

/* The bytes of a volume's key: XTS has two keys. */
size_t luks_key_size(const struct luks_encryption *e);

/*
 * The cipher that ESSIV uses: of the same family, with a digest of the hash as its key. -EINVAL if
 * there is none.
 */
int luks_essiv_cipher(const struct luks_encryption *e, const struct luks_cipher_alg **ret_alg,
                      struct error *err);

/* -EINVAL if cipher and mode do not go together. */
int luks_check_encryption(const struct luks_encryption *e, struct error *err);

/* Load libgcrypt, which the other modules of this layer use. -ENOENT: it is not installed. */
int luks_load_library(struct error *err);

#endif

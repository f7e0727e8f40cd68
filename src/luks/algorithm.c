/* SPDX-License-Identifier: Apache-2.0 */
#include "luks/algorithm.h"

#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/secret_memory.h"
#include "luks/libgcrypt_lazy.h"

static const struct luks_cipher_alg ciphers[] = {
    {"aes-128", "aes", 16, 16, GCRY_CIPHER_AES128},
    {"aes-192", "aes", 24, 16, GCRY_CIPHER_AES192},
    {"aes-256", "aes", 32, 16, GCRY_CIPHER_AES256},
    {"cast5-128", "cast5", 16, 8, GCRY_CIPHER_CAST5},
    {"serpent-128", "serpent", 16, 16, GCRY_CIPHER_SERPENT128},
    {"serpent-192", "serpent", 24, 16, GCRY_CIPHER_SERPENT192},
    {"serpent-256", "serpent", 32, 16, GCRY_CIPHER_SERPENT256},
    {"twofish-128", "twofish", 16, 16, GCRY_CIPHER_TWOFISH128},
    {"twofish-192", "twofish", 24, 16, 0},
    {"twofish-256", "twofish", 32, 16, GCRY_CIPHER_TWOFISH},
    {"sm4", "sm4", 16, 16, GCRY_CIPHER_SM4},
};

static const struct luks_hash hashes[] = {
    {"md5", 16, GCRY_MD_MD5},          {"sha1", 20, GCRY_MD_SHA1},
    {"sha224", 28, GCRY_MD_SHA224},    {"sha256", 32, GCRY_MD_SHA256},
    {"sha384", 48, GCRY_MD_SHA384},    {"sha512", 64, GCRY_MD_SHA512},
    {"ripemd160", 20, GCRY_MD_RMD160}, {"sm3", 32, GCRY_MD_SM3},
};

const char *const luks_mode_names[] = {"ecb", "cbc", "xts", "ctr", NULL};
const char *const luks_ivgen_names[] = {"plain", "plain64", "essiv", NULL};

const struct luks_cipher_alg *luks_find_cipher(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(ciphers); i++) {
        if (strcmp(ciphers[i].name, name) == 0) {
            return &ciphers[i];
        }
    }
    return NULL;
}

const struct luks_cipher_alg *luks_find_cipher_of_size(const char *family, size_t key_size)
{
    for (size_t i = 0; i < ARRAY_SIZE(ciphers); i++) {
        if (ciphers[i].key_size == key_size && strcmp(ciphers[i].family, family) == 0) {
            return &ciphers[i];
        }
    }
    return NULL;
}

const struct luks_hash *luks_find_hash(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(hashes); i++) {
        if (strcmp(hashes[i].name, name) == 0) {
            return &hashes[i];
        }
    }
    return NULL;
}

size_t luks_key_size(const struct luks_encryption *e)
{
    return e->mode == LUKS_XTS ? 2 * e->alg->key_size : e->alg->key_size;
}

int luks_essiv_cipher(const struct luks_encryption *e, const struct luks_cipher_alg **ret_alg,
                      struct error *err)
{
    const struct luks_cipher_alg *alg = luks_find_cipher_of_size(e->alg->family, e->iv_hash->size);
    char family[16];
    size_t i;

    if (alg) {
        *ret_alg = alg;
        return 0;
    }
    snprintf(family, sizeof(family), "%s", e->alg->family);
    for (i = 0; family[i]; i++) {
        family[i] = (char)toupper((unsigned char)family[i]);
    }
    return error_set(err, EINVAL, "No %s cipher with key size %zu available", family,
                     e->iv_hash->size);
}

int luks_check_encryption(const struct luks_encryption *e, struct error *err)
{
    const struct luks_cipher_alg *essiv;

    if (e->mode == LUKS_XTS && e->alg->block_size != 16) {
        return error_set(err, EINVAL, "Unsupported cipher mode %s", luks_mode_names[e->mode]);
    }
    if (e->ivgen != LUKS_ESSIV) {
        return 0;
    }
    if (!e->iv_hash) {
        return error_set(err, EINVAL,
                         "The generator 'essiv' of initialization vectors needs a "
                         "hash");
    }
    return luks_essiv_cipher(e, &essiv, err);
}

/* --- the library ------------------------------------------------------------------------------ */

static int is_secret(const void *p)
{
    return p != NULL;
}

/* All that libgcrypt allocates is secret memory: the states of ciphers contain keys. */
static void set_up_gcrypt(void)
{
    /* Another library may have begun to use it, with memory from malloc. */
    if (gcry_control(GCRYCTL_ANY_INITIALIZATION_P)) {
        return;
    }
    gcry_set_allocation_handler(secret_alloc, secret_alloc, is_secret, secret_realloc, secret_free);
    gcry_check_version(NULL);
    gcry_control(GCRYCTL_DISABLE_SECMEM, 0);
    gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
}

int luks_load_library(struct error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    int r = lazy_libgcrypt_load(err);

    if (r == 0) {
        pthread_once(&once, set_up_gcrypt);
    }
    return r;
}

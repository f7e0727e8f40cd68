/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The key of repositories: the contents of a file or what a command prints, of 32 to 4096 bytes, as
 * `openssl rand -base64 32` makes; or what scrypt makes of a passphrase and a random salt, which is
 * kept in the repository. The key itself never gets there. From it come keys that authenticate
 * manifests (`mac`) and that encrypt files (`seal`, backup/stored.h).
 *
 * The program has one key or passphrase, or none; a node may have one of its own. Nothing here
 * yields; a passphrase takes some 100 ms for each salt, a command as long as it runs. Any thread.
 */
#ifndef TIDEMARK_BACKUP_KEY_H
#define TIDEMARK_BACKUP_KEY_H

#include <json-c/json.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/sha256.h"

#define BACKUP_SALT_SIZE 16

/* How the key comes from a passphrase. */
struct backup_kdf {
    uint8_t salt[BACKUP_SALT_SIZE];
    uint32_t log_n; /* of scrypt; 0: the key comes from no passphrase */
};

struct backup_key {
    uint8_t mac[SHA256_SIZE];
    uint8_t seal[SHA256_SIZE];
    char check[SHA256_HEX_SIZE]; /* tells this key from others, and nothing about it */
    struct backup_kdf kdf;
};

/*
 * Where the key comes from, at most one of: a file, a file with a passphrase (without newlines at
 * its end), and a shell command that prints the key. Borrowed. All NULL: the environment variables
 * TIDEMARK_KEY_FILE, TIDEMARK_PASSPHRASE_FILE or TIDEMARK_KEY_COMMAND, if one is set.
 */
struct backup_key_source {
    const char *file, *passphrase, *command;
    /* Ends the wait for a key that does not come; NULL: nothing does. */
    volatile sig_atomic_t *stop;
};
extern struct backup_key_source backup_key_source;
/* New repositories are encrypted with the key. */
extern bool backup_key_encrypts;

/*
 * Read the key when it is needed for the first time. A passphrase is stretched as `kdf` says; NULL:
 * in some way, so that a repository with another key is noticed. *ret_key is NULL
 * if there is no key; it stays valid. -ENOKEY: what the error names can't be used; -EINVAL: there
 * are two sources.
 */
int backup_key_get(const struct backup_kdf *kdf, const struct backup_key **ret_key,
                   struct error *err);
/*
 * A key or passphrase of its own, from an object of the type "secret"; whoever opens a repository
 * with it keeps it as long. -ENOENT, -EINVAL: there is no such secret; -ENOKEY: it can't be used.
 */
struct backup_key_ring;
int backup_key_ring_new(const char *secret, bool is_passphrase, struct backup_key_ring **ret_ring,
                        struct error *err);
/* Release it and its keys. NULL is fine. */
void backup_key_ring_free(struct backup_key_ring *ring);
/* As backup_key_get(), from `ring`; NULL: from the sources of the program. */
int backup_key_get_of(struct backup_key_ring *ring, const struct backup_kdf *kdf,
                      const struct backup_key **ret_key, struct error *err);
/* The key for a new repository: a passphrase gets a salt of its own. Errors as above. */
int backup_key_make(const struct backup_key **ret_key, struct error *err);

/* The way of a passphrase in a JSON object, and back. *ret_kdf is zeroes if there is none. */
void backup_kdf_to_json(const struct backup_kdf *kdf, struct json_object *o);
void backup_kdf_from_json(struct json_object *o, struct backup_kdf *ret_kdf);

/* The code of a JSON object, without its members "mac" and "sha256", which are removed. -ENOMEM. */
int backup_key_authenticate(const struct backup_key *key, struct json_object *o,
                            char ret_mac[static SHA256_HEX_SIZE]);

#endif

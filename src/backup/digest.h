/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256, by OpenSSL. Only `co_` functions yield. Any thread. */
#ifndef TIDEMARK_BACKUP_DIGEST_H
#define TIDEMARK_BACKUP_DIGEST_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define DIGEST_SIZE 32
#define DIGEST_HEX_SIZE 65 /* with the NUL */

/* Digest of a buffer. 0; -ENOMEM or -EIO if the library fails. */
int digest_buffer(const void *data, size_t size, uint8_t ret_digest[static DIGEST_SIZE]);

/* A digest in lower-case hexadecimal. */
void digest_to_hex(const uint8_t digest[static DIGEST_SIZE], char ret_hex[static DIGEST_HEX_SIZE]);

/*
 * Digest in hexadecimal, and size in bytes (`ret_size` may be NULL), of a whole file. Runs in the
 * offload pool; yields. `stop` (may be NULL): -EINTR when it becomes true. Errors name the file as
 * `shown`.
 */
int digest_co_file(int fd, const char *shown, volatile sig_atomic_t *stop,
                   char ret_hex[static DIGEST_HEX_SIZE], uint64_t *ret_size, struct error *err);

/* As above; -EBADMSG unless the file has this size and this digest. */
int digest_co_expect(int fd, const char *shown, uint64_t size, const char *sha256,
                     volatile sig_atomic_t *stop, struct error *err);

#endif

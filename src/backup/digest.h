/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256, by OpenSSL. None of these functions yields unless named co_. Any thread. */
#ifndef TIDEMARK_BACKUP_DIGEST_H
#define TIDEMARK_BACKUP_DIGEST_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define DIGEST_SIZE 32
#define DIGEST_HEX_SIZE 65 /* with the NUL */

/* Of a buffer. -ENOMEM or -EIO if the library fails. */
int digest_buffer(const void *data, size_t size, uint8_t ret[static DIGEST_SIZE]);

/* Lower-case hexadecimal of a digest. */
void digest_to_hex(const uint8_t digest[static DIGEST_SIZE], char ret[static DIGEST_HEX_SIZE]);

/*
 * Of a whole file, in hexadecimal, and its size in bytes (may be NULL). Runs in the offload pool, in a coroutine; yields. `stop`
 * (may be NULL) ends it with -EINTR when it becomes true. Errors name the file as `shown`.
 */
int digest_co_file(int fd, const char *shown, volatile sig_atomic_t *stop,
                   char ret_hex[static DIGEST_HEX_SIZE], uint64_t *ret_size, struct error *err);

/* As above; -EBADMSG unless the file has this size and digest. */
int digest_co_expect(int fd, const char *shown, uint64_t size, const char *sha256,
                     volatile sig_atomic_t *stop, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256 of files. The functions yield. */
#ifndef TIDEMARK_BACKUP_DIGEST_H
#define TIDEMARK_BACKUP_DIGEST_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/sha256.h"

/*
 * Digest in hexadecimal, and size in bytes (`ret_size` may be NULL), of a whole file. Runs in the
 * offload pool; yields. `stop` (may be NULL): -EINTR when it becomes true. Errors name the file as
 * `shown`.
 */
int digest_co_file(int fd, const char *shown, volatile sig_atomic_t *stop,
                   char ret_hex[static SHA256_HEX_SIZE], uint64_t *ret_size, struct error *err);

/*
 * A file that is complete: as digest_co_file(), and the file is synced meanwhile, as that takes the
 * storage, and the digest a processor. *stored grows by the space that the file takes.
 */
int digest_co_complete(int fd, const char *shown, volatile sig_atomic_t *stop,
                       char ret_hex[static SHA256_HEX_SIZE], uint64_t *ret_size, uint64_t *stored,
                       struct error *err);

/* As digest_co_file(); -EBADMSG unless the file has this size and this digest. */
int digest_co_expect(int fd, const char *shown, uint64_t size, const char *sha256,
                     volatile sig_atomic_t *stop, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file of a repository: as it is or, where the repository is encrypted, sealed. A sealed file is
 * encrypted and authenticated in pieces (AES-256-GCM), with a key of its own, which comes from that
 * of the repository and from a random salt. Little-endian:
 *
 *     0   header, 128 bytes:
 *           0 "TIDESEAL"   8 u32 version 1   12 u32 kind (enum stored_kind)
 *          16 u32 bytes of a piece; 0: the contents are one piece of their size
 *          20 u32 0   24 u64 size of the contents
 *          32 salt, 32 bytes   64 salt of the passphrase, 16 bytes
 *          80 u32 log2 of N of scrypt (r = 8, p = 3); 0: the key comes from no passphrase
 *          84 zeroes   100 nonce, 12 bytes   112 tag, 16 bytes, of the 100 bytes before
 *   128   pieces, in their order: nonce 12, contents, tag 16. The last one is filled with zeroes.
 *
 *     key of the file = HMAC-SHA256(seal, salt, u32 kind)
 *     authenticated with a piece: u64 its number, u32 kind; with the only one: the header
 *
 * So a piece opens only in its place of its file, and a file only as what it was made for; the size
 * of the file is that which its header says, which is written last. Nonces are random, as a file
 * that was copied goes on with its key. An older state of the same file opens as well: files of a
 * backup are compared with the SHA-256 in its manifest, too, and their clusters with their
 * checksums.
 *
 * Functions without `co_` do not yield; they may block, and return 0 or -errno; -EBADMSG: what was
 * read is not what was written. Any thread.
 */
#ifndef TIDEMARK_BACKUP_STORED_H
#define TIDEMARK_BACKUP_STORED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backup/key.h"
#include "base/error.h"

#define STORED_HEADER_SIZE 128u
#define STORED_PIECE 8192u

enum stored_kind {
    STORED_MANIFEST = 1,
    STORED_IMAGE = 2,
    STORED_SUMS = 3,
    STORED_PLACE = 4,
    STORED_VERIFIED = 5,
    STORED_SET = 6,
    STORED_DEFINITION = 7,
    STORED_TEMPORARY = 8,
};

struct stored;

/*
 * Begin an empty file. `fd` is borrowed; `seal` NULL: as it is. A sealed one can be read by others
 * after stored_finish(). NULL: no memory, or no random numbers.
 */
struct stored *stored_create(int fd, const struct backup_key *seal, enum stored_kind kind);
/*
 * Open a file that is complete; `fd` is borrowed, errors call it `shown`. -EBADMSG: it is not
 * sealed, by another key, or was changed.
 */
int stored_open(int fd, const struct backup_key *seal, enum stored_kind kind, const char *shown,
                struct stored **ret_stored, struct error *err);
/* NULL is fine. */
void stored_free(struct stored *s);

/* Bytes of the contents. */
uint64_t stored_size(struct stored *s);
/* Read exactly `size` bytes. -EIO: the contents end before. */
int stored_read(struct stored *s, void *buf, size_t size, uint64_t offset);
/*
 * Write anywhere; what lies between reads as zeroes. Calls that write to one piece exclude each
 * other.
 */
int stored_write(struct stored *s, const void *buf, size_t size, uint64_t offset);
/* Make the contents shorter or, with zeroes, longer. */
int stored_truncate(struct stored *s, uint64_t size);
/* Complete the header. To be repeated after further writes. The caller syncs. */
int stored_finish(struct stored *s);

/* --- small files, in memory --- */

/* Seal a text: *ret_data is malloc'ed. -ENOMEM, -EIO. */
int stored_seal_text(const struct backup_key *seal, enum stored_kind kind, const void *text,
                     size_t size, uint8_t **ret_data, size_t *ret_size);
/* Get a text back, with a NUL behind it: *ret_text is malloc'ed. Errors as stored_open(). */
int stored_open_text(const struct backup_key *seal, enum stored_kind kind, const void *data,
                     size_t size, const char *shown, char **ret_text, size_t *ret_size,
                     struct error *err);
/* Whether these are the first bytes of a sealed file; then *ret_kdf says how its key is made. */
bool stored_is_sealed(const void *data, size_t size, struct backup_kdf *ret_kdf);

/*
 * As files_read_at() and files_write_at(), for the contents of a file that is one piece; `seal`
 * NULL: as it is.
 */
int stored_read_at(int dir, const char *name, size_t max, const struct backup_key *seal,
                   enum stored_kind kind, const char *shown, char **ret_text, size_t *ret_size,
                   struct error *err);
int stored_write_at(int dir, const char *name, const char *text, const struct backup_key *seal,
                    enum stored_kind kind, const char *shown, struct error *err);

#endif

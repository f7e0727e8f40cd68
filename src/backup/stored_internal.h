/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the two parts of sealed files: the header (stored_header.c), and pieces (stored.c). */
#ifndef TIDEMARK_BACKUP_STORED_INTERNAL_H
#define TIDEMARK_BACKUP_STORED_INTERNAL_H

#include "backup/stored.h"
#include "base/aead.h"

#define STORED_OVERHEAD (AEAD_NONCE_SIZE + AEAD_TAG_SIZE)
#define STORED_AT_SIZE 24 /* in the header: of the contents */

/* A header with a new salt, but without size and tag. `piece`: see stored.h. 0 or -EIO. */
int stored_begin_header(const struct backup_key *seal, enum stored_kind kind, uint32_t piece,
                        uint8_t ret_header[static STORED_HEADER_SIZE]);
/* The key of the file with this header. 0 or -EIO. */
int stored_derive_key(const struct backup_key *seal, const uint8_t *header,
                      uint8_t ret_key[static AEAD_KEY_SIZE]);
/* Enter the size, and make the tag. 0 or -EIO. */
int stored_seal_header(const uint8_t *key, uint8_t *header, uint64_t size);
/*
 * Check what a header says, its first `size` bytes, and get the key of the file. -EBADMSG; errors
 * call the file `shown`.
 */
int stored_open_header(const struct backup_key *seal, enum stored_kind kind, uint32_t piece,
                       uint8_t *header, size_t size, const char *shown, uint8_t *ret_key,
                       struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header of a LUKS volume of version 1 (LUKS On-Disk Format Specification 1.2.3, section 4.1).
 * All numbers are big-endian; offsets and sizes on disk are in sectors of 512 bytes.
 *
 *        0   6  magic                104   4  offset of the payload
 *        6   2  version              108   4  bytes of the key
 *        8  32  cipher               112  20  digest of the key
 *       40  32  mode                 132  32  its salt
 *       72  32  hash                 164   4  its iterations
 *                                    168  40  UUID
 *      208  48  key slots 0 to 7:
 *                 0   4  state        40   4  offset of the key material
 *                 4   4  iterations   44   4  stripes
 *                 8  32  salt
 *
 * Nothing here yields.
 */
#ifndef TIDEMARK_LUKS_HEADER_H
#define TIDEMARK_LUKS_HEADER_H

#include <stdint.h>

#include "luks/algorithm.h"

enum {
    LUKS_HEADER_SIZE = 592,
    LUKS_SLOTS = 8,
    LUKS_STRIPES = 4000,
    LUKS_DIGEST_SIZE = 20,
    LUKS_SALT_SIZE = 32,
    /* The offset of the first key material, and what all offsets are rounded to. */
    LUKS_MATERIAL_UNIT = 4096,
};

struct luks_slot {
    bool active;
    uint32_t iterations;
    uint8_t salt[LUKS_SALT_SIZE];
    /* bytes */
    uint64_t offset;
};

struct luks_header {
    struct luks_encryption encryption;
    const struct luks_hash *hash;
    /* bytes; 0: the payload is not in the file of the header */
    uint64_t payload_offset;
    size_t key_size;
    uint8_t digest[LUKS_DIGEST_SIZE], digest_salt[LUKS_SALT_SIZE];
    uint32_t digest_iterations;
    char uuid[41];
    struct luks_slot slots[LUKS_SLOTS];
};

/*
 * Read and check a header of LUKS_HEADER_SIZE bytes. If it is `detached`, the payload is elsewhere.
 * -EINVAL: it is none; -ENOTSUP: of another version.
 */
int luks_parse_header(const uint8_t *h, bool detached, struct luks_header *ret_header,
                      struct error *err);

/* Fill LUKS_HEADER_SIZE bytes. */
void luks_store_header(const struct luks_header *header, uint8_t *ret_bytes);

/* Fill in where key material and payload of a new volume are, by its encryption. */
void luks_lay_out(struct luks_header *header, bool detached);

/* Bytes of the key material in a slot, in whole sectors. */
size_t luks_material_size(const struct luks_header *header);

/* The end of the key material of the last slot, rounded up: the size of a header of its own. */
uint64_t luks_header_end(const struct luks_header *header);

/* How many slots are active. */
unsigned luks_count_active(const struct luks_header *header);

/* Whether a file begins as a LUKS volume of any version. */
bool luks_has_magic(const uint8_t *head, size_t size);

#endif

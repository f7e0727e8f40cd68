/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the image of a backup says of itself: it is all that is known of a backup whose manifest
 * can't be read. Any thread; blocks, and does not yield.
 */
#ifndef TIDEMARK_BACKUP_IMAGE_HEADER_H
#define TIDEMARK_BACKUP_IMAGE_HEADER_H

#include <stdint.h>

#include "backup/repository.h"

struct image_header {
    uint64_t virtual_size; /* bytes */
    unsigned cluster_bits;
    char parent[BACKUP_ID_SIZE]; /* the backup that it names as its backing file; "": none */
};

/*
 * Read the header of an image; `fd` is borrowed, errors call it `shown`. `seal`: as for
 * stored_open(), whose errors it returns. -EINVAL: the file is too short or was changed, or the
 * backing file is no backup.
 */
int image_header_read(int fd, const struct backup_key *seal, const char *shown,
                      struct image_header *ret_header, struct error *err);

/* The same of the image of backup `id`; -ENOENT and the like as well. */
int image_header_read_of(const struct repository *r, const char *id,
                         struct image_header *ret_header, struct error *err);

#endif

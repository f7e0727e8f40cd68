/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two files of a backup that is made from other backups: image and checksums. What they will
 * hold is known before, from the checksum files of those. Main reactor; `co_` functions yield.
 */
#ifndef TIDEMARK_BACKUP_LAYER_WRITER_H
#define TIDEMARK_BACKUP_LAYER_WRITER_H

#include <signal.h>

#include "backup/chain.h"
#include "backup/layer_image.h"
#include "backup/manifest.h"
#include "backup/repository.h"
#include "backup/writeback.h"

struct layer_writer {
    bool full;
    bool based;            /* the image began as a copy */
    unsigned cluster_bits; /* of the image */
    uint64_t disk_size;
    int image_fd, sums_fd;
    const struct backup_key *seal; /* with which they are encrypted; NULL: they are not */
    struct stored *sums_file;
    struct layer_image tables;  /* of an image that began as a copy */
    struct stored *tables_file; /* to read them; NULL: another image, or an encrypted one */
    char *image, *sums;         /* their paths, for messages */
    struct block_node *node;
    struct block_root *root;
    struct sums_runs runs;
    struct writeback writeback; /* of an image that did not begin as a copy */
};

/* An image that is copied first, and then written over. */
struct layer_base {
    int fd;
    const char *shown;               /* its path, for messages */
    const struct manifest *manifest; /* of that backup */
    volatile sig_atomic_t *stop;     /* may be NULL */
};

#define LAYER_WRITER_INIT ((struct layer_writer){.image_fd = -1, .sums_fd = -1})

/*
 * Make both files in a draft, for a disk of this size. `parent`: id of the backup that it builds
 * on; "" for a full one. The image begins as a copy of that of `base`, which has the same parent;
 * NULL: empty. *ret_writer is to be released, also on failure. -EBADMSG: `base` is damaged.
 */
int layer_writer_co_open(const struct repository_draft *draft, const char *parent,
                         uint64_t disk_size, const struct layer_base *base,
                         struct layer_writer *ret_writer, struct error *err);
/* Take over which clusters the layers of a chain hold together, and their digests. */
int layer_writer_take_sums(struct layer_writer *w, struct chain *chain, struct error *err);
/* Write whole clusters of the image; `data` NULL: zeroes. Several at a time, in any order. */
int layer_writer_co_write(struct layer_writer *w, uint64_t offset, uint8_t *data, uint64_t size,
                          struct error *err);
/*
 * Complete and sync both files, close the image, and enter sizes and digests into the manifest.
 * `stop` may be NULL.
 */
int layer_writer_co_finish(struct layer_writer *w, volatile sig_atomic_t *stop, struct manifest *m,
                           struct error *err);
/* Release what it holds; the files stay. Yields. */
void layer_writer_co_release(struct layer_writer *w);

#endif

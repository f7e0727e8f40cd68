/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading backups: the layers of a chain, each an image with its checksums, and which layer a cluster is to be read
 * from. The layers are opened one by one, as files of the repository: what an image says of its backing file or data
 * file is never followed. Every checksum file is compared with the manifest when it is opened. Main reactor, in a coroutine; `co_` functions yield.
 */
#ifndef TIDEMARK_BACKUP_CHAIN_H
#define TIDEMARK_BACKUP_CHAIN_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#include "backup/repository.h"
#include "backup/sums.h"
#include "base/error.h"
#include "base/progress.h"
#include "block/block.h"

struct chain_layer {
    const struct repository_entry *entry; /* borrowed */
    char *image;                          /* path */
    char *sums_path;
    struct sums sums;
    struct block_node *node;
    struct block_root *root;
    size_t run; /* of the walk: the first run that ends beyond its position */
};

struct chain {
    struct chain_layer *layers; /* the full backup first */
    size_t count;
    uint64_t disk_size;
    uint64_t clusters;
    uint64_t position; /* of the walk, in clusters */
};

#define CHAIN_INIT ((struct chain){0})

/*
 * Compare the checksum file of a backup, size and SHA-256, with the manifest. *ret_fd (may be NULL) gets it, open. -EBADMSG
 * when they differ.
 */
int chain_co_check_sums(const struct repository *r, const struct repository_entry *e, int *ret_fd,
                        struct error *err);

/* Open. On failure *ret is to be closed, too. Errors name the file. */
int chain_co_open(const struct repository *r, const struct repository_entry *const *entries,
                  size_t count, struct chain *ret, struct error *err);
void chain_co_close(struct chain *c);

struct chain_extent {
    uint64_t first, count;     /* clusters */
    struct chain_layer *layer; /* that decides the contents; NULL: none, they are zeroes */
    enum sums_kind kind;
    uint64_t digest; /* index of the first one's digest in layer->sums */
};

/* The next extent of at most `most` clusters; false at the end of the disk. Does not yield. */
bool chain_next(struct chain *c, uint64_t most, struct chain_extent *ret);
/* Bytes in extents of data. Does not yield. */
uint64_t chain_data_bytes(const struct chain *c);

/*
 * Read the whole chain, many requests in flight, and compare every data cluster with its checksum. `sink` (may be NULL)
 * gets extents in any order, several at a time: `data` is what was read, or NULL for zeroes. It may yield; what it
 * returns, if negative, ends the reading. -EBADMSG when contents and checksum differ; the error names file and place.
 */
struct chain_reader {
    struct chain *chain;
    int (*co_sink)(void *arg, uint64_t offset, uint8_t *data, uint64_t size, struct error *err);
    void *arg;
    struct progress *progress;   /* told of the bytes of data */
    volatile sig_atomic_t *stop; /* may be NULL */
};

int chain_co_read(const struct chain_reader *reader, struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading backups. A chain is a list of layers, each an image with its checksums; the chain decides
 * which layer a cluster is read from. The layers are opened one by one, as files of the repository:
 * the backing file or data file that an image names is never followed. Every checksum file is
 * compared with the manifest when it is opened. Main reactor, in a coroutine; `co_` functions
 * yield.
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
    size_t run; /* first run that ends after the position of chain_next() */
};

struct chain {
    struct chain_layer *layers; /* the full backup first */
    size_t count;
    uint64_t disk_size;
    uint64_t clusters;
    uint64_t position; /* of chain_next(), in clusters */
};

#define CHAIN_INIT ((struct chain){0})

/*
 * Compare size and SHA-256 of the checksum file of a backup with the manifest. *ret_fd (may be
 * NULL) gets a descriptor of the file. -EBADMSG: they differ.
 */
int chain_co_check_sums(const struct repository *r, const struct repository_entry *e, int *ret_fd,
                        struct error *err);

/*
 * Open `count` layers, the full backup first. *ret_chain is to be closed, also on failure. Errors
 * name the file.
 */
int chain_co_open(const struct repository *r, const struct repository_entry *const *entries,
                  size_t count, struct chain *ret_chain, struct error *err);
/* Close the layers and release the chain. Yields. */
void chain_co_close(struct chain *c);

struct chain_extent {
    uint64_t first, count;     /* clusters */
    struct chain_layer *layer; /* whose contents count; NULL: none, the clusters are zeroes */
    enum sums_kind kind;
    uint64_t digest; /* index in layer->sums of the first cluster's digest */
};

/* The next extent of at most `most` clusters; false at the end of the disk. Does not yield. */
bool chain_next(struct chain *c, uint64_t most, struct chain_extent *ret_extent);
/* Bytes in extents of data, of the whole chain. Does not yield. */
uint64_t chain_data_bytes(const struct chain *c);

/*
 * Read the whole chain, with many requests in flight, and compare every data cluster with its
 * checksum. `co_sink` (may be NULL) gets extents in any order, several at a time: `data` is NULL
 * for zeroes. It may yield; a negative result ends the reading. -EBADMSG: contents and checksum
 * differ; the error names file and offset.
 */
struct chain_reader {
    struct chain *chain;
    int (*co_sink)(void *arg, uint64_t offset, uint8_t *data, uint64_t size, struct error *err);
    void *arg;
    struct progress *progress;   /* counts bytes of data; NULL: none */
    volatile sig_atomic_t *stop; /* may be NULL */
};
/* Run a reader. 0, or the first error. Yields. */
int chain_co_read(const struct chain_reader *reader, struct error *err);

#endif

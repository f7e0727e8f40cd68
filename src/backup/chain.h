/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading backups. A chain is a list of layers, each an image with its checksums; the chain decides
 * which layer a cluster is read from. The layers are opened one by one, as files of the repository:
 * the backing file or data file that an image names is never followed. Every checksum file is
 * compared with the manifest when it is opened. Main reactor, in a coroutine; `co_` functions
 * yield.
 *
 * Layers have the sizes that the disk had. As for qcow2 images that are backing files of each
 * other, what is past the end of a layer reads as zeroes through it, whatever is below; and a short
 * last cluster is filled up with zeroes.
 */
#ifndef TIDEMARK_BACKUP_CHAIN_H
#define TIDEMARK_BACKUP_CHAIN_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backup/repository.h"
#include "backup/stored_node.h"
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
    uint64_t clusters; /* of the disk at that time */
    size_t run;        /* first run that ends after the position of chain_next() */
};

struct chain {
    struct chain_layer *layers; /* the full backup first */
    size_t count;
    uint64_t disk_size; /* of the last layer */
    uint64_t clusters;
    uint64_t below;    /* clusters of what the first layer builds on; 0 for a full backup */
    uint64_t position; /* of chain_next(), in clusters */
    /* Read again, because a prune changed the repository meanwhile; NULL mostly. Owned. */
    struct repository *reread;
};

#define CHAIN_INIT ((struct chain){0})

/*
 * Compare size and SHA-256 of the checksum file of a backup with the manifest. *ret_fd (may be
 * NULL) gets a descriptor of the file. -EBADMSG: they differ.
 */
int chain_co_check_sums(const struct repository *r, const struct repository_entry *e, int *ret_fd,
                        struct error *err);

/*
 * Open `count` layers that build on each other, the oldest first. If a prune has replaced or
 * removed one of them since the repository was read, the last one is looked up again. *ret_chain is
 * to be closed, also on failure. Errors name the file.
 */
int chain_co_open(const struct repository *r, const struct repository_entry *const *entries,
                  size_t count, struct chain *ret_chain, struct error *err);
/* Close the layers and release the chain. Yields. */
void chain_co_close(struct chain *c);

/*
 * Open only the image of a backup, as a layer, and close it again. *ret_layer is to be closed, also
 * on failure.
 */
int chain_co_open_image(const struct repository *r, const struct repository_entry *e,
                        struct chain_layer *ret_layer, struct error *err);
void chain_co_close_layer(struct chain_layer *layer);

/*
 * Whether an image is one that a backup may have: without a data file, encryption and the like.
 * -EINVAL. To be called before it is opened as an image. Does not yield.
 */
int chain_check_image_header(const struct stored_image *image, struct error *err);

struct chain_extent {
    uint64_t first, count;     /* clusters */
    struct chain_layer *layer; /* whose contents count; NULL: none, the clusters are zeroes */
    enum sums_kind kind;
    /*
     * Index in layer->sums of the first cluster's digest; CHAIN_NO_DIGEST: zeroes, since they are
     * past the layer's end, while the backup below the chain may have something else there.
     */
    uint64_t digest;
};
#define CHAIN_NO_DIGEST UINT64_MAX

/* Begin again at the first cluster. Does not yield. */
void chain_rewind(struct chain *c);
/* The next extent of at most `most` clusters; false at the end of the disk. Does not yield. */
bool chain_next(struct chain *c, uint64_t most, struct chain_extent *ret_extent);
/*
 * The extent that begins at `cluster`, which is on the disk, of at most `most` clusters. Any
 * thread; does not yield.
 */
void chain_extent_at(const struct chain *c, uint64_t cluster, uint64_t most,
                     struct chain_extent *ret_extent);
/* Clusters that are compared at once. */
#define CHAIN_PIECE 8u
/*
 * Read an extent of data, at most CHAIN_PIECE clusters, and compare it with its checksums. `buf`
 * gets whole clusters. -EBADMSG: they differ; errors name file and offset. Any reactor; yields.
 */
int chain_co_read_extent(const struct chain_extent *e, uint8_t *buf, struct error *err);
/* Bytes in extents of data, of the whole chain; rewinds it. Does not yield. */
uint64_t chain_data_bytes(struct chain *c);

/* The same, without the lowest N layers. */
uint64_t chain_data_bytes_above(struct chain *c, size_t layers);

/*
 * Read the whole chain, with many requests in flight, and compare every data cluster with its
 * checksum. `co_sink` (may be NULL) gets extents in any order, several at a time, or with `ordered`
 * from the beginning of the disk to its end, one at a time: `data` is NULL for zeroes. It may
 * yield; a negative result ends the reading. -EBADMSG: contents and checksum differ; the error
 * names file and offset.
 */
struct chain_reader {
    struct chain *chain;
    int (*co_sink)(void *arg, uint64_t offset, uint8_t *data, uint64_t size, struct error *err);
    void *arg;
    bool own_only;               /* what no layer holds is not given to co_sink */
    bool ordered;                /* not with own_only */
    uint64_t from;               /* the cluster to begin with */
    size_t skip;                 /* what is in the lowest N layers is not read */
    struct progress *progress;   /* counts bytes of data; NULL: none */
    volatile sig_atomic_t *stop; /* may be NULL */
};
/* Run a reader. 0, or the first error. Yields. */
int chain_co_read(const struct chain_reader *reader, struct error *err);

#endif

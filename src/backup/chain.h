/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading backups. A chain is a list of layers (backup/layer.h), each an image with its checksums;
 * the chain decides which layer a cluster is read from. For that it has a map of the whole disk,
 * which is made of the runs of the layers by merging two and two. Chains may be of any length.
 * Main reactor, in a coroutine; `co_` functions yield.
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

#include "backup/layer.h"
#include "backup/repository.h"
#include "backup/sums.h"
#include "base/error.h"
#include "base/progress.h"
#include "block/block.h"

struct chain_layer {
    const struct repository_entry *entry; /* borrowed */
    struct layer *file;
    uint64_t clusters; /* of the disk at that time */
};

struct chain_map; /* see chain_map.h */

struct chain {
    struct chain_layer *layers; /* the full backup first */
    size_t count;
    uint64_t disk_size; /* of the last layer */
    uint64_t clusters;
    uint64_t below; /* clusters of what the first layer builds on; 0 for a full backup */
    /* NULL: not made yet, and the layers are asked one after the other. Owned. */
    _Atomic(struct chain_map *) map;
    uint64_t position; /* of chain_next(), in clusters */
    size_t piece;      /* of the map, where that is */
    /* Read again, because a prune changed the repository meanwhile; NULL mostly. Owned. */
    struct repository *reread;
};

#define CHAIN_INIT ((struct chain){.map = NULL})

/*
 * Compare size and SHA-256 of the checksum file of a backup with the manifest. -EBADMSG: they
 * differ; -EINTR: *stop (may be NULL) became true. Yields.
 */
int chain_co_check_sums(const struct repository *r, const struct repository_entry *e,
                        volatile sig_atomic_t *stop, struct error *err);

/*
 * Open `count` layers that build on each other, the oldest first. If a prune has replaced or
 * removed one of them since the repository was read, the last one is looked up again. *ret_chain is
 * to be closed, also on failure. Errors name the file. -EINTR: *stop (may be NULL) became true.
 */
int chain_co_open(const struct repository *r, const struct repository_entry *const *entries,
                  size_t count, volatile sig_atomic_t *stop, struct chain *ret_chain,
                  struct error *err);
/* Close the layers and release the chain. Does not yield. */
void chain_close(struct chain *c);

/* As chain_co_open(), without the map: for some reads here and there. */
int chain_co_open_unmapped(const struct repository *r,
                           const struct repository_entry *const *entries, size_t count,
                           volatile sig_atomic_t *stop, struct chain *ret_chain, struct error *err);
/*
 * Make the map, if there is none. Any reactor; several at a time may call it, while others look for
 * extents. -ENOMEM. Yields.
 */
int chain_co_map(struct chain *c, struct error *err);

/* The image of a backup as a node, without its backing file. */
struct chain_image {
    const struct repository_entry *entry; /* borrowed */
    char *path;
    struct block_node *node;
    struct block_root *root;
    unsigned cluster_bits;
};

/* Open it. *ret_image is to be closed, also on failure. */
int chain_co_open_image(const struct repository *r, const struct repository_entry *e,
                        struct chain_image *ret_image, struct error *err);
void chain_co_close_image(struct chain_image *image);

struct chain_extent {
    uint64_t first, count;     /* clusters */
    struct chain_layer *layer; /* whose contents count; NULL: none, the clusters are zeroes */
    enum sums_kind kind;
    /*
     * Index in the layer of the first cluster's digest; CHAIN_NO_DIGEST: zeroes, since they are
     * past the layer's end, while the backup below the chain may have something else there.
     */
    uint64_t digest;
};
#define CHAIN_NO_DIGEST UINT64_MAX

/* Begin again at the first cluster. Does not yield. */
void chain_rewind(struct chain *c);
/* Go on at a cluster. Does not yield. */
void chain_seek(struct chain *c, uint64_t cluster);
/*
 * The next extent of at most `most` clusters; false at the end of the disk. The chain has a map.
 * Does not yield.
 */
bool chain_next(struct chain *c, uint64_t most, struct chain_extent *ret_extent);
/*
 * The extent that begins at `cluster`, which is on the disk, of at most `most` clusters. Any
 * thread; does not yield.
 */
void chain_extent_at(const struct chain *c, uint64_t cluster, uint64_t most,
                     struct chain_extent *ret_extent);
/*
 * The digests that the layers have for `count` clusters of an extent of data from its cluster
 * number `from` on. Errors as layer_read_digests(). Any thread; does not yield.
 */
int chain_read_digests(const struct chain_extent *e, uint64_t from, uint64_t count,
                       uint8_t *ret_digests);
/* Clusters that are compared at once. */
#define CHAIN_PIECE 16u
/*
 * Read an extent of data, at most CHAIN_PIECE clusters, and compare it with its checksums. `buf`
 * gets whole clusters. -EBADMSG: they differ; errors name file and offset. Any reactor; yields.
 */
int chain_co_read_extent(const struct chain_extent *e, uint8_t *buf, struct error *err);
/* Bytes in extents of data, of the whole chain; rewinds it. Does not yield. */
uint64_t chain_data_bytes(struct chain *c);

/* The same, without the lowest N layers, in whole groups of `group` clusters. */
uint64_t chain_data_bytes_above(struct chain *c, size_t layers, unsigned group);

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
    bool own_only; /* what no layer holds is not given to co_sink */
    bool ordered;  /* not with own_only */
    /*
     * Not 0: give co_sink aligned groups of as many clusters, at most CHAIN_PIECE, wherever a layer
     * above the lowest `skip` ones holds something (with a `skip` of 0: data). A group is read
     * whole, through all layers, of which the first is a full backup. Not with `ordered`.
     */
    unsigned group;
    uint64_t from;               /* the cluster to begin with */
    size_t skip;                 /* what is in the lowest N layers is not read */
    struct progress *progress;   /* counts bytes of data; NULL: none */
    volatile sig_atomic_t *stop; /* may be NULL */
};
/* Run a reader. 0, or the first error. Yields. */
int chain_co_read(const struct chain_reader *reader, struct error *err);

#endif

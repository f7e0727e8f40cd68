/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the drivers of images with a table of blocks share (VDI, VHD, VHDX, VMDK): reads, status,
 * and writes that allocate. The driver knows the tables; this layer asks it run by run.
 *
 * Order of an allocating write, under the lock of the map:
 *
 *   1. the driver reserves a place in the file, without an entry that leads to it
 *   2. the whole block is written there: the guest's data, and around them what the block showed
 *   3. with a backing file the data are flushed: the block showed something that a flush may have
 *      promised, and must not show less after a crash. Likewise where the place may hold what an
 *      earlier crash left there
 *   4. the driver writes the entry
 *
 * So after a crash an entry leads to a block that was written, or that reads as zeroes where the
 * disk had none; and a flush of the file makes all stable that was acknowledged. A crash between 1
 * and 4 leaks the place.
 *
 * All `co_` functions run on any reactor, several at once, and yield.
 */
#ifndef TIDEMARK_BLOCKMAP_BLOCKMAP_H
#define TIDEMARK_BLOCKMAP_BLOCKMAP_H

#include "block/driver.h"

enum blockmap_kind {
    /* This image has nothing here: zeroes, or what the backing file has. */
    BLOCKMAP_ABSENT,
    BLOCKMAP_ZERO,
    /* Plain bytes at `host` of `edge`. */
    BLOCKMAP_DATA,
    /* One block, or a part of one, that the driver decompresses. */
    BLOCKMAP_COMPRESSED
};

/* Adjacent bytes of the disk of one kind. */
struct blockmap_run {
    enum blockmap_kind kind;
    uint64_t length;
    struct block_edge *edge;
    uint64_t host;
    /* DATA that was allocated in advance: the file may know that it is zero. */
    bool is_preallocated;
};

/* A place for a block that was reserved; for the driver that reserved it. */
struct blockmap_place {
    struct block_edge *edge;
    uint64_t host;
    /* The file reads as zeroes there. */
    bool is_zero;
};

/*
 * The room behind what a file has. An entry may lead to a place only when the file is stably so
 * long that it includes that: else a crash leaves an entry that leads out of the file, or to a
 * place that is given away a second time. So the file grows in large steps, each followed by a
 * flush, and is cut when the image is completed; after a crash it has a hole at its end. Guarded by
 * the lock of the map.
 */
struct blockmap_room {
    /* The file is stably that long; 0: not known yet. */
    uint64_t end;
    /* Places were given away: the file may be longer than what it has. */
    bool is_used;
};

struct blockmap_ops {
    /*
     * The run at `offset`, at most `length` bytes of it, which is not 0; `offset` and `length` are
     * multiples of the driver's request alignment. 0 or -errno.
     */
    int (*co_find)(struct block_node *node, uint64_t offset, uint64_t length,
                   struct blockmap_run *ret_run);
    /* Read a part of a compressed run. NULL: there are none. */
    int (*co_read_compressed)(struct block_node *node, uint64_t offset, struct iov iov,
                              const struct blockmap_run *run);
    /* A compressed block that is written gets another place; false: it can't be written. */
    bool replaces_compressed;
    /*
     * Step 1, for the block that begins at `offset`, of which `length` bytes are within the disk.
     * NULL: no block is ever absent. -EAGAIN: the block has been made whole, find it again;
     * -ENOSPC, -EIO ...
     */
    int (*co_reserve_locked)(struct block_node *node, uint64_t offset, uint64_t length,
                             struct blockmap_place *ret_place);
    /*
     * Step 2 or 3 has failed, on a full disk for instance: the place is free again, and does not
     * read as zeroes any more. So a guest that tries again and again does not make the file grow.
     */
    void (*co_give_back_locked)(struct block_node *node, const struct blockmap_place *place);
    /* Step 4, and only after it co_find() returns the new place. */
    int (*co_link_locked)(struct block_node *node, uint64_t offset,
                          const struct blockmap_place *place);
    /* Before the first write of all: marks that the image was changed. NULL: nothing. */
    int (*co_begin_writing_locked)(struct block_node *node);
    /*
     * Mark the whole block at `offset`, which is ABSENT or ZERO, as zeroes. NULL or -ENOTSUP:
     * zeroes are written as data.
     */
    int (*co_zero_locked)(struct block_node *node, uint64_t offset);
};

/* The first member of the driver's instance. */
struct blockmap {
    const struct blockmap_ops *ops;
    /* Held while blocks are reserved and linked; and by the driver for its own tables. */
    struct co_mutex lock;
    /* Bytes of a block of the disk, the unit of allocation; not 0. */
    uint64_t block_size;
    /* The first write was announced to the driver. */
    atomic_bool is_writing;
    bool initialised;
};

/* Main reactor; does not yield. */
void blockmap_init(struct blockmap *map, const struct blockmap_ops *ops, uint64_t block_size);
/* Likewise; may be called twice, or without the first. */
void blockmap_destroy(struct blockmap *map);

/* The operations of struct block_driver. */
int blockmap_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);
int blockmap_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags);
int blockmap_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                             unsigned flags);
int blockmap_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                       struct block_status *ret_status);

/*
 * Announce the first write to the driver. For a driver that writes without blockmap_co_pwritev().
 */
int blockmap_co_begin_writing(struct block_node *node);

/*
 * Before a place that ends at `end` is used: make the file that long, stably. `footer` bytes of
 * BLOCKMAP_FOOTER are written at the new end of the file, if it grows; NULL: zeroes.
 */
#define BLOCKMAP_FOOTER 512
int blockmap_co_make_room_locked(struct block_edge *edge, struct blockmap_room *room, uint64_t end,
                                 const uint8_t *footer);
/*
 * When nothing is written any more: the file ends at `end`, if places were given away. A file that
 * can't be cut keeps a hole at its end.
 */
void blockmap_co_cut_room(struct block_edge *edge, struct blockmap_room *room, uint64_t end);

/*
 * Read `size` bytes at `offset` of a file, all of which must exist. -EINVAL and others, with a
 * sentence: "Could not read the <what> of 'image'".
 */
int blockmap_co_read_exactly(struct block_node *node, struct block_edge *edge, uint64_t offset,
                             void *buf, size_t size, const char *what, struct error *err);
/* -EACCES if the node was opened for writing: "Image is read-only: 'image' <why>". */
int blockmap_refuse_writing(const struct block_node *node, const char *why, struct error *err);

#endif

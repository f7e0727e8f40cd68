/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images as command lines name them: a filename and a format, or --image-opts, with a cache mode.
 * For coroutines of the main reactor. All `co_` functions yield; the others do not.
 */
#ifndef TIDEMARK_CLI_IMAGE_H
#define TIDEMARK_CLI_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "block/block.h"
#include "block/gate.h"

/* Buffers of commands that copy or compare, in bytes. */
#define CLI_BUFFER_SIZE ((size_t)(2 * MiB))
#define CLI_BUFFER_ALIGNMENT 4096u
/* Bytes of a disk for one query of its status, so that each answer is quick to compute. */
#define CLI_STATUS_STEP (1ULL << 30)

/* What a command line says about an image. All text is borrowed. */
struct cli_image {
    const char *name;    /* filename, or the options text if image_opts */
    const char *format;  /* NULL: guess */
    const char *cache;   /* a cache mode; NULL: writeback */
    const char *discard; /* "unmap", "ignore"; NULL: unmap */
    bool image_opts;
    bool force_share;
    /* Linux AIO is wanted: changes nothing, but needs a direct cache mode, as in QEMU's tools. */
    bool native_aio;
    /* Show this internal snapshot: an ID or name, or snapshot.id=...; NULL: none. */
    const char *snapshot;
    bool copy_on_read;
    bool alone;                /* nobody may write to it while it is read */
    bool overlay;              /* writes go to a temporary file and are lost */
    const char *extra_options; /* text of more options for the node; NULL: none */
};

/* An opened image and the user's edge to it. Start with {0}: not open. */
struct cli_disk {
    struct block_node *node; /* a reference */
    struct block_root *root; /* NULL if nothing is read or written */
    struct block_edge *edge; /* of root */
    const char *name;        /* as the user named it; borrowed */
    bool writethrough;       /* the cache mode wants every write on stable storage */
};

/* -EINVAL if there is no such cache mode; `what` names the option ("cache"). NULL is fine. */
int cli_check_cache_mode(const char *mode, const char *what, struct error *err);
/*
 * Whether the cache mode `mode` (NULL: the default) makes every write stable, or avoids the page
 * cache.
 */
bool cli_cache_is_writethrough(const char *mode);
bool cli_cache_is_direct(const char *mode);
/* -EINVAL if `mode` is no way to do I/O ("threads", "native", "io_uring"). NULL is fine. */
int cli_check_aio_mode(const char *mode, struct error *err);
/* Whether `mode` is a discard mode ("unmap", "on", "ignore", "off"). NULL is fine. */
bool cli_is_discard_mode(const char *mode);
/* The preallocation mode of that name ("off", "metadata", "falloc", "full"). -EINVAL. */
int cli_parse_prealloc(const char *text, enum block_prealloc *ret_mode, struct error *err);

/* Whether the image is named by a tree of options: --image-opts or json:{...}. */
bool cli_image_is_options(const struct cli_image *image);
/*
 * The options of the image's top node: those given as text, and what the other members of `image`
 * mean where the text says nothing. `flags`: BLOCK_OPEN_... . The caller frees *ret_options.
 */
int cli_image_options(const struct cli_image *image, unsigned flags, struct options **ret_options,
                      struct error *err);
/*
 * -EINVAL if the image is to be shared, by the option that the error calls `option`, and its own
 * options deny that (force-share=off).
 */
int cli_check_force_share(const struct cli_image *image, const char *option, struct error *err);
/*
 * Give each child that has a filename and no driver the driver of that filename's protocol, as
 * QEMU's tools do. *opts is replaced; NULL after a failure.
 */
int cli_name_drivers(struct options **opts, struct error *err);
/*
 * Put a temporary qcow2 overlay, which vanishes with the process, on *node. The overlay replaces
 * *node and its reference.
 */
int cli_co_add_overlay(struct block_node **node, bool read_only, struct error *err);
/*
 * Put a filter on *node that copies into the image what is read from its backing files. As above.
 */
int cli_co_add_copy_on_read(struct block_node **node, struct error *err);

/*
 * Open an image. `flags` are BLOCK_OPEN_...: with BLOCK_OPEN_RDWR the disk can be written, with
 * BLOCK_OPEN_RESIZE_FILE resized as well, with BLOCK_OPEN_NO_IO there is no root. Errors begin
 * "Could not open 'name': ". *ret_disk is untouched on failure; the caller closes it.
 */
int cli_co_open_disk(const struct cli_image *image, unsigned flags, struct cli_disk *ret_disk,
                     struct error *err);
/* The same without that beginning. */
int cli_co_open_disk_plainly(const struct cli_image *image, unsigned flags,
                             struct cli_disk *ret_disk, struct error *err);
/*
 * Flush the disk and let its formats store what they keep in memory, then close it. The disk is
 * closed also when that fails.
 */
int cli_co_finish_disk(struct cli_disk *disk, struct error *err);
/* Close without reporting errors; does nothing on a disk that is not open. */
void cli_co_close_disk(struct cli_disk *disk);
/* Declares `struct cli_disk name`, not open, closed when the scope ends. */
#define CLI_DISK_AUTO(name) __attribute__((cleanup(cli_co_close_disk))) struct cli_disk name = {0}

/* Size in bytes of a disk that has a root. */
static inline uint64_t cli_disk_size(const struct cli_disk *disk)
{
    return block_edge_size(disk->edge);
}

/* Status of the whole chain of a disk, in the terms of `map`. */
struct cli_extent {
    uint64_t start, length; /* bytes */
    unsigned flags;         /* BLOCK_STATUS_... */
    int depth;              /* 0: the image itself, 1: its backing file, ... */
    uint64_t map;           /* offset in `file`, if BLOCK_STATUS_OFFSET */
    struct block_node *file;
};

/* The extent at `offset`, of at least one and at most `length` bytes. Sets no sentence. */
int cli_co_extent(const struct cli_disk *disk, uint64_t offset, uint64_t length,
                  struct cli_extent *ret_extent);

#endif

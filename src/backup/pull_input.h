/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a pull reads: a point in time, by NBD or from an opened image. The order of calls is
 * co_changed() (where there is a bitmap), co_begin(), then the others, several at a time. Main
 * reactor, in a coroutine. Functions return 0 or -errno.
 */
#ifndef TIDEMARK_BACKUP_PULL_INPUT_H
#define TIDEMARK_BACKUP_PULL_INPUT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "block/block.h"
#include "nbd/client.h"

struct pull_input;

#define PULL_CHUNK_CLUSTERS 16u

/* Called with areas that are not empty; offsets ascend. -ENOMEM. Does not yield. */
typedef int pull_input_area(void *arg, uint64_t offset, uint64_t length);

struct pull_input_ops {
    /* Call `area` for everything that the bitmap marks. */
    int (*co_changed)(struct pull_input *input, pull_input_area *area, void *arg,
                      struct error *err);
    /* Get ready to read. -EIO: what is read has fewer than `disk_size` bytes. */
    int (*co_begin)(struct pull_input *input, uint64_t disk_size, struct error *err);
    /* Call `area` for those parts of [offset, offset + length) that may hold other than zeroes. */
    int (*co_data)(struct pull_input *input, uint64_t offset, uint64_t length,
                   pull_input_area *area, void *arg);
    int (*co_read)(struct pull_input *input, uint64_t offset, void *buf, uint64_t size);
    /*
     * The digests (backup/sums.h) of the clusters in [offset, offset + length), which begins with a
     * cluster and is not empty, without fetching them: of the first *ret_count, at least
     * PULL_CHUNK_CLUSTERS of them if there are as many. A failure says nothing about the contents:
     * fetch them. One call at a time. NULL: the input can't.
     */
    int (*co_digests)(struct pull_input *input, uint64_t offset, uint64_t length,
                      uint8_t *ret_digests, uint64_t *ret_count);
    /* A hint: the area will not be read again. */
    void (*co_release)(struct pull_input *input, uint64_t offset, uint64_t size);
    /* From time to time after a stop: requests that are not answered fail. Any time. */
    void (*co_give_up)(struct pull_input *input);
    /* Release it. */
    void (*co_close)(struct pull_input *input);
};

struct pull_input {
    const struct pull_input_ops *ops;
    /* For messages: "export 'disk'". Borrowed. */
    const char *shown;
    bool has_bitmap;
};

struct pull_nbd_config {
    const struct socket_address *address;
    /*
     * Instead of that, if not NULL: make a connection, which becomes the caller's. `arg` is
     * co_reach_arg.
     */
    int (*co_reach)(void *arg, int *ret_fd, struct error *err);
    void *co_reach_arg;
    const struct nbd_client_tls *tls; /* NULL: in the clear */
    /* As in struct pull_input_ops, with co_digests_arg. NULL: there is no way. */
    int (*co_digests)(void *arg, uint64_t offset, uint64_t length, uint8_t *ret_digests,
                      uint64_t *ret_count);
    void *co_digests_arg;
    const char *export_name;
    const char *bitmap;   /* that marks what changed; NULL: there is none */
    bool release;         /* areas that were read are discarded in the export */
    unsigned connections; /* at most */
};

/* An export; everything in `config` is copied or borrowed until it is closed. -ENOMEM */
int pull_nbd_new(const struct pull_nbd_config *config, struct pull_input **ret_input,
                 struct error *err);

struct block_bitmap;

/*
 * An image that nobody writes to, by a root that the caller owns, as it does `bitmap` (NULL: there
 * is none). `shown` is borrowed. -ENOMEM
 */
int pull_image_new(struct block_root *root, struct block_bitmap *bitmap, const char *shown,
                   struct pull_input **ret_input, struct error *err);

/* Release an input. NULL is fine. Yields. */
void pull_input_co_close(struct pull_input *input);

#endif

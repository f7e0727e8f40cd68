/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/stored_node.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/files.h"
#include "backup/manifest.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/driver.h"
#include "loop/loop.h"

#define DRIVER "tidemark-sealed"

struct sealed_file {
    struct stored *stored;
    int fd; /* one of its own */
};

/* What is being opened; users can't open such a node. The option `image` has the number. */
struct sealed_opening {
    const struct stored_image *image;
    bool is_new;
    uint64_t number;
    struct sealed_opening *next;
};

static struct sealed_opening *openings;
static uint64_t openings_so_far;

/* --- the driver of sealed files --------------------------------------------------------------- */

static int sealed_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct sealed_file *f = node->opaque;
    const struct sealed_opening *opening = openings;
    const struct stored_image *image;
    uint64_t number = 0;
    int r = options_take_uint(opts, "image", 0, INT64_MAX, &number, err);

    while (opening && opening->number != number) {
        opening = opening->next;
    }
    if (r < 0 || !opening) {
        return r < 0 ? r
                     : error_set(err, EINVAL,
                                 "Parameter 'driver' does not accept value '" DRIVER "'");
    }
    image = opening->image;
    f->fd = fcntl(image->fd, F_DUPFD_CLOEXEC, 0);
    if (f->fd < 0) {
        return error_set_errno(err, errno, "Could not open '%s'", image->shown);
    }
    if (opening->is_new) {
        f->stored = stored_create(f->fd, image->seal, STORED_IMAGE);
        r = f->stored ? 0 : error_out_of_memory(err);
    } else {
        r = stored_open(f->fd, image->seal, STORED_IMAGE, image->shown, &f->stored, err);
    }
    if (r < 0) {
        close(f->fd);
    } else {
        node->filename = strdup(image->shown); /* for messages */
        node->beyond_filename = true;
        node->limits.request_alignment = STORED_PIECE;
        block_node_set_size(node, round_up(stored_size(f->stored), STORED_PIECE));
    }
    return r;
}

static void sealed_co_close(struct block_node *node)
{
    struct sealed_file *f = node->opaque;

    stored_free(f->stored);
    close(f->fd);
}

struct sealed_request {
    struct sealed_file *file;
    uint64_t offset, size;
    struct iov iov;
    uint8_t *buf; /* NULL: `iov` has one element */
    bool write;
};

static int sealed_request_run(void *arg)
{
    struct sealed_request *q = arg;
    uint8_t *data = q->buf ?: q->iov.vec[0].iov_base;
    uint64_t end, there;
    int r;

    if (q->write) {
        if (q->buf) {
            iov_copy_to_buf(q->iov, 0, q->buf, q->size);
        }
        return stored_write(q->file->stored, data, q->size, q->offset);
    }
    /* Beyond its end, the file reads as zeroes. */
    end = MAX(stored_size(q->file->stored), q->offset);
    there = MIN(q->size, end - q->offset);
    memset(data + there, 0, q->size - there);
    r = there ? stored_read(q->file->stored, data, there, q->offset) : 0;
    if (r == 0 && q->buf) {
        iov_copy_from_buf(q->iov, 0, q->buf, q->size);
    }
    return r;
}

static int sealed_co_request(struct block_node *node, uint64_t offset, struct iov iov, bool write)
{
    struct sealed_request q = {
        .file = node->opaque, .offset = offset, .size = iov.size, .iov = iov, .write = write};
    int r;

    if (iov.count != 1) {
        q.buf = malloc(iov.size);
        if (!q.buf) {
            return -ENOMEM;
        }
    }
    r = loop_co_offload(sealed_request_run, &q);
    free(q.buf);
    return r;
}

static int sealed_co_preadv(struct block_node *node, uint64_t offset, struct iov iov,
                            unsigned flags)
{
    return flags & BLOCK_REQ_PREFETCH ? 0 : sealed_co_request(node, offset, iov, false);
}

static int sealed_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                             unsigned flags)
{
    return sealed_co_request(node, offset, iov, true);
}

struct sealed_resize {
    struct sealed_file *file;
    uint64_t size;
};

static int sealed_resize_run(void *arg)
{
    struct sealed_resize *q = arg;

    return stored_truncate(q->file->stored, q->size);
}

static int sealed_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                              struct error *err)
{
    struct sealed_resize q = {.file = node->opaque, .size = round_up(size, STORED_PIECE)};
    int r = loop_co_offload(sealed_resize_run, &q);

    if (r < 0) {
        return error_set_errno(err, -r, "Could not resize file");
    }
    block_node_set_size(node, q.size);
    return 0;
}

static int sealed_co_extend(struct block_node *node, uint64_t size)
{
    struct sealed_file *f = node->opaque;

    return size > stored_size(f->stored) ? sealed_co_truncate(node, size, BLOCK_PREALLOC_OFF, NULL)
                                         : 0;
}

static int finish_and_sync(void *arg)
{
    struct sealed_file *f = arg;
    int r = stored_finish(f->stored);

    return r < 0 ? r : fsync(f->fd) < 0 ? -errno : 0;
}

/* Completes the header, too. */
static int sealed_co_flush(struct block_node *node)
{
    return node->read_only ? 0 : loop_co_offload(finish_and_sync, node->opaque);
}

static int sealed_co_inactivate(struct block_node *node, struct error *err)
{
    int r = sealed_co_flush(node);

    return r < 0 ? error_set_errno(err, -r, "Could not complete the file") : 0;
}

static const struct block_driver sealed_driver = {
    .name = DRIVER,
    .help = "an encrypted image of a backup",
    .instance_size = sizeof(struct sealed_file),
    .is_internal = true,
    .is_protocol = true,
    .keeps_zero_beyond_eof = true,
    .co_open = sealed_co_open,
    .co_inactivate = sealed_co_inactivate,
    .co_close = sealed_co_close,
    .co_preadv = sealed_co_preadv,
    .co_pwritev = sealed_co_pwritev,
    .co_truncate = sealed_co_truncate,
    .co_extend = sealed_co_extend,
    .co_flush = sealed_co_flush,
};

void stored_node_register_driver(void)
{
    block_register_driver(&sealed_driver);
}

/* --- images ----------------------------------------------------------------------------------- */

static int co_open_sealed(const struct stored_image *image, bool is_new, bool read_only,
                          struct block_node **ret_node, struct error *err)
{
    struct options *opts = options_new();
    struct sealed_opening opening = {.image = image,
                                     .is_new = is_new,
                                     .number = ++openings_so_far,
                                     .next = openings},
                          **link = &openings;
    int r;

    if (!opts) {
        return error_out_of_memory(err);
    }
    options_set_str(opts, "driver", DRIVER);
    options_set_bool(opts, "read-only", read_only);
    options_set_uint(opts, "image", opening.number);
    openings = &opening;
    r = block_co_open(opts, read_only ? 0 : BLOCK_OPEN_RDWR, ret_node, err);
    while (*link != &opening) {
        link = &(*link)->next;
    }
    *link = opening.next;
    return r;
}

/*
 * An image is read from its beginning to its end, and written nearly so, which needs few tables. A
 * table of 64 KiB leads to 512 MiB of the disk, one of 256 KiB, in a full image, to 8 GiB.
 */
static void limit_caches(struct options *opts, bool read_only)
{
    options_set_uint(opts, "l2-cache-size", read_only ? 512 * KiB : 4 * MiB);
    options_set_uint(opts, "refcount-cache-size", 1 * MiB);
}

/* Of an image that nobody else sees: what is in it counts when the whole file was synced. */
static void set_draft_options(struct options *opts)
{
    struct options *cache = options_new();

    options_set_str(opts, "discard", "unmap");
    if (cache) {
        options_set_bool(cache, "no-flush", true);
        options_set_child(opts, "cache", cache);
    }
}

/* The image in a file that is open as a node, whose reference goes over to it. */
static int co_open_above(struct block_node *file, bool read_only, struct block_node **ret_node,
                         struct error *err)
{
    struct options *opts = options_new();
    int r;

    if (!opts) {
        block_co_unref(file);
        return error_out_of_memory(err);
    }
    options_set_str(opts, "driver", "qcow2");
    options_set_bool(opts, "read-only", read_only);
    limit_caches(opts, read_only);
    if (!read_only) {
        set_draft_options(opts);
    }
    options_set_str(opts, "file", block_node_name(file));
    r = block_co_open(opts, BLOCK_OPEN_NO_BACKING | (read_only ? 0 : BLOCK_OPEN_RDWR), ret_node,
                      err);
    block_co_unref(file);
    return r;
}

static int co_open_plain(const struct stored_image *image, bool read_only,
                         struct block_node **ret_node, struct error *err)
{
    struct options *opts = options_new(), *file = options_new();
    char self[FILES_SELF_SIZE];

    if (!opts || !file) {
        options_free(opts);
        options_free(file);
        return error_out_of_memory(err);
    }
    files_self_path(image->fd, self);
    options_set_str(opts, "driver", "qcow2");
    options_set_bool(opts, "read-only", read_only);
    limit_caches(opts, read_only);
    if (!read_only) {
        set_draft_options(opts);
    }
    options_set_str(file, "driver", "file");
    options_set_str(file, "filename", self);
    options_set_child(opts, "file", file);
    return block_co_open(opts, BLOCK_OPEN_NO_BACKING | (read_only ? 0 : BLOCK_OPEN_RDWR), ret_node,
                         err);
}

static int co_open_stored_image(const struct stored_image *image, bool read_only,
                                struct block_node **ret_node, struct error *err)
{
    struct block_node *file = NULL;
    int r;

    if (image->seal) {
        r = co_open_sealed(image, false, read_only, &file, err);
        UNLESS_FAILED(r, co_open_above(file, read_only, ret_node, err));
        if (r == -EBADMSG) {
            return error_set(err, EBADMSG, "'%s' was changed", image->shown);
        }
    } else {
        r = co_open_plain(image, read_only, ret_node, err);
    }
    files_name_in_error(err, image->fd, image->shown);
    return r;
}

int stored_node_co_reopen(const struct stored_image *image, struct block_node **ret_node,
                          struct error *err)
{
    return co_open_stored_image(image, false, ret_node, err);
}

int stored_node_co_open(const struct stored_image *image, struct block_node **ret_node,
                        struct error *err)
{
    return co_open_stored_image(image, true, ret_node, err);
}

static struct options *creation_options(const struct stored_image *image)
{
    struct options *opts = options_new();

    if (opts) {
        options_set_str(opts, "compression_type", "zstd");
        options_set_uint(opts, "cluster_size",
                         image->backing ? BACKUP_CLUSTER_SIZE : BACKUP_FULL_CLUSTER_SIZE);
        if (image->backing) {
            options_set_str(opts, "backing_file", image->backing);
            options_set_str(opts, "backing_fmt", "qcow2");
        }
    }
    return opts;
}

static int co_create_sealed(const struct stored_image *image, struct options *opts,
                            struct block_node **ret_node, struct error *err)
{
    struct block_node *file = NULL;
    int r = co_open_sealed(image, true, false, &file, err);

    if (r < 0) {
        options_free(opts);
        return r;
    }
    r = block_co_format_node(block_find_driver("qcow2"), file, NULL, image->size, opts, err);
    if (r < 0) {
        block_co_unref(file);
        return r;
    }
    return co_open_above(file, false, ret_node, err);
}

int stored_node_co_create(const struct stored_image *image, struct block_node **ret_node,
                          struct error *err)
{
    struct options *opts = creation_options(image);
    char self[FILES_SELF_SIZE];
    int r;

    if (!opts) {
        return error_out_of_memory(err);
    }
    if (image->seal) {
        r = co_create_sealed(image, opts, ret_node, err);
    } else {
        files_self_path(image->fd, self);
        r = block_co_create_image("qcow2", self, image->size, opts, err);
        UNLESS_FAILED(r, co_open_plain(image, false, ret_node, err));
    }
    files_name_in_error(err, image->fd, image->shown);
    return r;
}

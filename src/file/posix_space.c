/* SPDX-License-Identifier: Apache-2.0 */
/* Zeroes, discard and size: operations that allocate and free space. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "file/posix_file.h"
#include "loop/loop.h"
#include "schema/define.h"

#define FILL_CHUNK (1 * MiB)
#define HEAD_SIZE 4096

/* --- zeroes */

static bool is_unsupported(int r)
{
    return r == -EOPNOTSUPP || r == -ENOSYS || r == -ENOTTY;
}

/*
 * If `r` means that the call is not supported: set *missing, and return -ENOTSUP. Else return `r`.
 */
static int remember_missing(int r, atomic_bool *missing)
{
    if (is_unsupported(r)) {
        atomic_store(missing, true);
        return -ENOTSUP;
    }
    return r;
}

static int co_punch(struct posix_file *f, uint64_t offset, uint64_t length)
{
    if (atomic_load_explicit(&f->no_punch_hole, memory_order_relaxed)) {
        return -ENOTSUP;
    }
    return remember_missing(co_punch_hole(&f->punches, f->fd, offset, length), &f->no_punch_hole);
}

static int co_fallocate(struct posix_file *f, int mode, uint64_t offset, uint64_t length,
                        atomic_bool *missing)
{
    if (atomic_load_explicit(missing, memory_order_relaxed)) {
        return -ENOTSUP;
    }
    return remember_missing(loop_co_fallocate(f->fd, mode, offset, length), missing);
}

struct allocate_call {
    int fd;
    uint64_t offset, length;
};

/* A file that ends at `offset` or before reads as zeroes past that. -EOPNOTSUPP: it does not. */
static int allocate_past_end_blocking(void *arg)
{
    const struct allocate_call *c = arg;
    struct stat st;

    if (fstat(c->fd, &st) < 0) {
        return -errno;
    }
    if (st.st_size > (off_t)c->offset) {
        return -EOPNOTSUPP;
    }
    return TEMP_FAILURE_RETRY(fallocate(c->fd, 0, (off_t)c->offset, (off_t)c->length)) < 0 ? -errno
                                                                                           : 0;
}

static int co_allocate_past_end(struct posix_file *f, uint64_t offset, uint64_t length)
{
    struct allocate_call c = {f->fd, offset, length};
    int r = loop_co_offload(allocate_past_end_blocking, &c);

    return is_unsupported(r) ? -ENOTSUP : r;
}

/*
 * Make a hole if space may be freed, else allocated blocks that are marked as zero. A hole does not
 * extend the file, so it is no choice where a format writes zeroes past the end (`grows`).
 */
static int co_zero_file(struct posix_file *f, uint64_t offset, uint64_t length, bool grows,
                        bool may_unmap)
{
    int r = -ENOTSUP;

    if (may_unmap && !grows) {
        r = co_punch(f, offset, length);
    }
    if (r == -ENOTSUP) {
        r = co_fallocate(f, FALLOC_FL_ZERO_RANGE, offset, length, &f->no_zero_range);
    }
    if (r == -ENOTSUP && !grows && !atomic_load(&f->no_allocate)) {
        r = co_punch(f, offset, length);
        if (r == 0) {
            r = co_fallocate(f, 0, offset, length, &f->no_allocate);
        }
    }
    /* File systems in memory have no zero range. */
    return r == -ENOTSUP && grows ? co_allocate_past_end(f, offset, length) : r;
}

int posix_file_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                               unsigned flags)
{
    struct posix_file *f = node->opaque;
    int r = co_zero_file(f, offset, length, offset + length > block_node_size(node),
                         flags & BLOCK_REQ_MAY_UNMAP);

    atomic_fetch_add(&f->space_generation, 1);
    return r;
}

struct range_ioctl {
    int fd;
    unsigned long request;
    /* offset, length */
    uint64_t range[2];
};

static int range_ioctl_blocking(void *arg)
{
    struct range_ioctl *c = arg;

    return ioctl(c->fd, c->request, c->range) < 0 ? -errno : 0;
}

static int co_range_ioctl(struct posix_file *f, unsigned long request, uint64_t offset,
                          uint64_t length)
{
    struct range_ioctl c = {.fd = f->fd, .request = request, .range = {offset, length}};

    return loop_co_offload(range_ioctl_blocking, &c);
}

/*
 * -ENOSPC for a range that ends past the end of the device. The kernel returns EINVAL for it, or
 * does a part of it, but to a format it is a lack of space.
 */
static int co_check_device_end(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct posix_file *f = node->opaque;
    uint64_t size;
    int r;

    if (range_fits(offset, length, block_node_size(node))) {
        return 0;
    }
    /* The device may have grown. */
    r = posix_file_co_size(f->fd, true, &size);
    return r == 0 && !range_fits(offset, length, size) ? -ENOSPC : r;
}

int posix_file_co_zero_device(struct block_node *node, uint64_t offset, uint64_t length,
                              unsigned flags)
{
    struct posix_file *f = node->opaque;
    int r = co_check_device_end(node, offset, length);

    if (r < 0) {
        return r;
    }
    r = flags & BLOCK_REQ_MAY_UNMAP ? co_punch(f, offset, length) : -ENOTSUP;
    /* The kernel writes zeroes if the device does not support the command. */
    if (r == -ENOTSUP && !(flags & BLOCK_REQ_NO_FALLBACK)) {
        r = atomic_load(&f->no_zero_range) ? -ENOTSUP
                                           : co_range_ioctl(f, BLKZEROOUT, offset, length);
        r = remember_missing(r, &f->no_zero_range);
    }
    return r;
}

/* --- discard */

/*
 * File systems keep the last block of a file, if the file ends within it, when a hole ends with the
 * file. So the hole reaches past the end, unless something may be written there meanwhile.
 */
static uint64_t length_of_hole(const struct block_node *node, uint64_t offset, uint64_t length)
{
    bool at_end = offset + length == block_node_size(node);

    return at_end && !(node->set_perm & BLOCK_PERM_RESIZE)
               ? round_up(offset + length, 64 * KiB) - offset
               : length;
}

int posix_file_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct posix_file *f = node->opaque;
    int r =
        node->discard_unmap ? co_punch(f, offset, length_of_hole(node, offset, length)) : -ENOTSUP;

    atomic_fetch_add(&f->space_generation, 1);
    return r;
}

int posix_file_co_discard_device(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct posix_file *f = node->opaque;
    int r = node->discard_unmap ? co_range_ioctl(f, BLKDISCARD, offset, length) : -ENOTSUP;

    return is_unsupported(r) ? -ENOTSUP : r;
}

/* --- size */

struct ftruncate_call {
    int fd;
    uint64_t size;
};

static int ftruncate_blocking(void *arg)
{
    const struct ftruncate_call *c = arg;

    return TEMP_FAILURE_RETRY(ftruncate(c->fd, (off_t)c->size)) < 0 ? -errno : 0;
}

static int co_ftruncate(int fd, uint64_t size)
{
    struct ftruncate_call c = {fd, size};

    return loop_co_brief(ftruncate_blocking, &c);
}

/* Write zeroes to [offset, end), and sync. */
static int co_fill_file(int fd, uint64_t offset, uint64_t end)
{
    AUTO_FREE void *zeroes = calloc(1, FILL_CHUNK);
    /* Writes through the page cache need not be aligned. */
    int buffered AUTO_CLOSE = posix_file_co_reopen_buffered(fd);

    if (!zeroes || buffered < 0) {
        return zeroes ? buffered : -ENOMEM;
    }
    while (offset < end) {
        struct iovec vec = {.iov_base = zeroes, .iov_len = MIN(end - offset, FILL_CHUNK)};
        ssize_t n = loop_co_pwritev(buffered, &vec, 1, offset, 0);

        if (n <= 0) {
            return n < 0 ? (int)n : -EIO;
        }
        offset += (uint64_t)n;
    }
    return loop_co_fdatasync(buffered);
}

static int co_preallocate(int fd, uint64_t offset, uint64_t end, enum block_prealloc prealloc)
{
    int r = -EOPNOTSUPP;

    if (prealloc == BLOCK_PREALLOC_FALLOC) {
        r = loop_co_fallocate(fd, 0, offset, end - offset);
    }
    return is_unsupported(r) ? co_fill_file(fd, offset, end) : r;
}

/*
 * Allocate the first block of an empty file, since the alignment that O_DIRECT needs can be
 * determined only by reading data. Errors are ignored: the next write reports a lack of space.
 */
static void co_allocate_head(int fd)
{
    static const uint8_t zeroes[HEAD_SIZE] __attribute__((aligned(HEAD_SIZE)));
    struct iovec vec = {.iov_base = (void *)(uintptr_t)zeroes, .iov_len = sizeof(zeroes)};

    (void)!loop_co_pwritev(fd, &vec, 1, 0, 0);
}

int posix_file_co_resize(int fd, const char *name, uint64_t size, enum block_prealloc prealloc,
                         struct error *err)
{
    uint64_t old_size;
    int r = posix_file_co_size(fd, false, &old_size);

    if (r < 0) {
        return error_set_errno(err, -r, "Could not get the size of '%s'", name);
    }
    if (prealloc == BLOCK_PREALLOC_METADATA) {
        return error_set(err, ENOTSUP, "Unsupported preallocation mode: metadata");
    }
    if (prealloc != BLOCK_PREALLOC_OFF && size < old_size) {
        return error_set(err, EINVAL, "Preallocation does not apply: '%s' becomes smaller", name);
    }
    if (prealloc != BLOCK_PREALLOC_OFF && size > old_size) {
        r = co_preallocate(fd, old_size, size, prealloc);
        if (r < 0) {
            co_ftruncate(fd, old_size);
            return error_set_errno(err, -r, "Could not preallocate '%s' up to %" PRIu64 " bytes",
                                   name, size);
        }
    }
    if (old_size == 0 && size > 0 && prealloc != BLOCK_PREALLOC_FULL) {
        co_allocate_head(fd);
    }
    r = co_ftruncate(fd, size);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not resize file");
    }
    return 0;
}

int posix_file_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                           struct error *err)
{
    struct posix_file *f = node->opaque;
    int r = posix_file_co_resize(f->fd, block_node_display_name(node), size, prealloc, err);

    atomic_fetch_add(&f->space_generation, 1);
    if (r == 0) {
        block_node_set_size(node, posix_file_node_size(size));
    }
    return r;
}

static int extend_blocking(void *arg)
{
    const struct ftruncate_call *c = arg;
    struct stat st;

    if (fstat(c->fd, &st) < 0) {
        return -errno;
    }
    return st.st_size < (off_t)c->size ? ftruncate_blocking(arg) : 0;
}

int posix_file_co_extend(struct block_node *node, uint64_t size)
{
    struct posix_file *f = node->opaque;
    struct ftruncate_call c = {f->fd, size};
    int r = loop_co_brief(extend_blocking, &c);

    atomic_fetch_add(&f->space_generation, 1);
    return r;
}

/* A device can't be resized here. If others have resized it, the node gets its present size. */
int posix_file_co_truncate_device(struct block_node *node, uint64_t size,
                                  enum block_prealloc prealloc, struct error *err)
{
    struct posix_file *f = node->opaque;
    uint64_t device_size;
    int r = posix_file_co_size(f->fd, true, &device_size);

    if (r < 0) {
        return error_set_errno(err, -r, "Could not get the size of '%s'",
                               block_node_display_name(node));
    }
    if (prealloc != BLOCK_PREALLOC_OFF || size != device_size) {
        return error_set(err, ENOTSUP,
                         "Cannot resize device '%s' of %" PRIu64 " bytes to %" PRIu64 " bytes",
                         block_node_display_name(node), device_size, size);
    }
    block_node_set_size(node, device_size);
    return 0;
}

/* --- what queries show */

static int ask_allocated(int fd, uint64_t *ret_bytes)
{
    struct stat st;

    if (fstat(fd, &st) < 0) {
        return -errno;
    }
    *ret_bytes = (uint64_t)st.st_blocks * 512;
    return 0;
}

int posix_file_co_allocated_size(struct block_node *node, uint64_t *ret_size)
{
    return posix_file_co_ask(node->opaque, ask_allocated, ret_size);
}

static int ask_extent_hint(int fd, uint64_t *ret_bytes)
{
    struct fsxattr attributes;

    if (ioctl(fd, FS_IOC_FSGETXATTR, &attributes) < 0) {
        return -errno;
    }
    *ret_bytes = attributes.fsx_extsize;
    return 0;
}

OBJECT(info_data_type, "ImageInfoSpecificFile",
       OPT("extent-size-hint", schema_size, .unit = "bytes", .help = "of the file system"));
const struct schema_type posix_file_specific_info_type =
    OBJECT_INIT("ImageInfoSpecificFileWrapper", REQ("data", info_data_type));

struct json_object *posix_file_co_specific_info(struct block_node *node)
{
    struct json_object *info = json_object_new_object(), *data = json_object_new_object();
    uint64_t hint;

    if (posix_file_co_ask(node->opaque, ask_extent_hint, &hint) == 0 && hint > 0) {
        json_object_object_add(data, "extent-size-hint", json_object_new_int64((int64_t)hint));
    }
    json_object_object_add(info, "type", json_object_new_string("file"));
    json_object_object_add(info, "data", data);
    return info;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reopening a file or device read-only or writable, with the page cache or without. A descriptor
 * that can write stays: permissions and locks say what is done with it. One that can only read is
 * exchanged for one that can write, and one with O_DIRECT for one without, or the other way round,
 * to the same file, whatever its name leads to by now. The locks are taken on the new descriptor
 * before the old one gives them up. A file that is taken over from another process keeps its
 * descriptor.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "block/passed_fd.h"
#include "file/posix_file.h"
#include "loop/loop.h"

struct reopen_call {
    int fd, new_fd;
    int flags; /* of open() */
};

static int reopen_blocking(void *arg)
{
    struct reopen_call *c = arg;
    char path[64];
    int r = fdset_reopen(c->fd, c->flags);

    if (r != -ENOENT) {
        c->new_fd = r;
        return r < 0 ? r : 0;
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", c->fd);
    c->new_fd = open(path, c->flags | O_CLOEXEC | O_NOCTTY);
    return c->new_fd < 0 ? -errno : 0;
}

/* Another descriptor for the file, in f->other_fd. `flags`: the access mode and O_DIRECT. */
static int co_open_other(struct block_node *node, int flags, struct error *err)
{
    struct posix_file *f = node->opaque;
    struct reopen_call c = {.fd = f->fd, .new_fd = -1, .flags = flags};
    bool direct = flags & O_DIRECT;
    int r = loop_co_brief(reopen_blocking, &c);

    if (r == -EINVAL && direct) {
        return error_set(err, EINVAL, "The file system of '%s' does not support cache.direct=on",
                         block_node_display_name(node));
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Could not reopen file '%s'%s",
                               block_node_display_name(node),
                               (flags & O_ACCMODE) == O_RDWR ? " for writing" : "");
    }
    r = posix_file_co_limits(c.new_fd, f->is_device, direct, &f->other_limits);
    if (r < 0) {
        posix_file_co_close_fd(c.new_fd);
        return error_set_errno(err, -r, "Could not get the sector size of '%s'",
                               block_node_display_name(node));
    }
    f->other_fd = c.new_fd;
    return 0;
}

const char *const posix_file_reopen_options[] = {"x-check-cache-dropped", NULL};

int posix_file_co_reopen_prepare(struct block_node *node, struct options *opts, struct error *err)
{
    struct posix_file *f = node->opaque;
    int has = fcntl(f->fd, F_GETFL), wants = has & O_ACCMODE;
    bool ignored;
    int r = opts ? options_take_bool(opts, "x-check-cache-dropped", false, &ignored, err) : 0;

    f->other_fd = -1;
    f->exchanged = false;
    if (r < 0) {
        return r;
    }
    if (f->native_aio && !node->cache_direct) {
        return posix_file_refuse_native_aio(err);
    }
    if (!node->read_only) {
        wants = O_RDWR;
    }
    wants |= node->cache_direct ? O_DIRECT : 0;
    if (wants == (has & (O_ACCMODE | O_DIRECT))) {
        return 0;
    }
    /* Errors of writing back that nobody has seen yet are those of the descriptor that wrote. */
    if ((wants ^ has) & O_DIRECT) {
        r = posix_file_co_flush(node);
        if (r < 0) {
            return error_set_errno(err, -r, "Could not flush '%s'", block_node_display_name(node));
        }
    }
    r = co_open_other(node, wants, err);
    if (r < 0 && node->auto_read_only && (wants & O_ACCMODE) != (has & O_ACCMODE)) {
        error_clear(err);
        node->read_only = true;
        wants = (wants & ~O_ACCMODE) | (has & O_ACCMODE);
        r = wants == (has & (O_ACCMODE | O_DIRECT)) ? 0 : co_open_other(node, wants, err);
    }
    return r;
}

static void exchange(struct block_node *node)
{
    struct posix_file *f = node->opaque;
    struct posix_limits limits = posix_file_get_limits(node);
    int fd = f->fd;

    f->fd = f->lock.fd = f->other_fd;
    f->other_fd = fd;
    posix_file_set_limits(node, &f->other_limits);
    f->other_limits = limits;
    f->exchanged = !f->exchanged;
}

int posix_file_co_reopen_finish(struct block_node *node, struct error *err)
{
    struct posix_file *f = node->opaque;
    int r;

    if (f->other_fd < 0) {
        return 0;
    }
    r = f->locking
            ? posix_file_co_copy_lock(&f->lock, f->other_fd, block_node_display_name(node), err)
            : 0;
    if (r == 0) {
        if (f->other_limits.block_size < f->block_size) {
            posix_file_co_trim_padding(node, 0);
        }
        exchange(node);
    }
    return r;
}

static void co_drop_other(struct posix_file *f)
{
    if (f->other_fd >= 0) {
        posix_file_co_close_fd(f->other_fd); /* gives its locks up */
        f->other_fd = -1;
    }
}

void posix_file_co_reopen_commit(struct block_node *node)
{
    co_drop_other(node->opaque);
}

void posix_file_co_reopen_abort(struct block_node *node)
{
    struct posix_file *f = node->opaque;

    if (f->exchanged) {
        exchange(node);
    }
    co_drop_other(f);
}

/* --- in turns with another process ------------------------------------------------------------ */

static int drop_pages(void *arg)
{
    struct posix_file *f = arg;

    return -posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED);
}

int posix_file_co_renew_size(struct block_node *node, struct error *err)
{
    struct posix_file *f = node->opaque;
    uint64_t size;
    int r = posix_file_co_size(f->fd, f->is_device, &size);

    if (r < 0) {
        return error_set_errno(err, -r, "Could not get the size of '%s'",
                               block_node_display_name(node));
    }
    atomic_fetch_add(&f->space_generation, 1);
    block_node_set_size(node, f->is_device ? size : posix_file_node_size(size));
    return 0;
}

/*
 * Another host may have written the file: what the kernel has of it is dropped, and the size and
 * the holes are asked for again.
 */
int posix_file_co_reload(struct block_node *node, struct error *err)
{
    struct posix_file *f = node->opaque;
    int r = posix_file_co_renew_size(node, err);

    if (r == 0 && f->drop_cache) {
        (void)loop_co_offload(drop_pages, f); /* a file system without pages has none to drop */
    }
    return r;
}

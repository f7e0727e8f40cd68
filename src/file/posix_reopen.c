/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reopening a file or device read-only or writable. A descriptor that can write stays: permissions
 * and locks say what is done with it. One that can only read is exchanged for one that can write,
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
};

static int reopen_writable_blocking(void *arg)
{
    struct reopen_call *c = arg;
    int flags = fcntl(c->fd, F_GETFL), r;
    char path[64];

    if (flags < 0) {
        return -errno;
    }
    r = fdset_reopen(c->fd, (flags & O_DIRECT) | O_RDWR);
    if (r != -ENOENT) {
        c->new_fd = r;
        return r < 0 ? r : 0;
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", c->fd);
    c->new_fd = open(path, (flags & O_DIRECT) | O_RDWR | O_CLOEXEC | O_NOCTTY);
    return c->new_fd < 0 ? -errno : 0;
}

static bool can_write(int fd)
{
    return (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR;
}

int posix_file_co_reopen_prepare(struct block_node *node, struct options *opts, struct error *err)
{
    struct posix_file *f = node->opaque;
    struct reopen_call c = {.fd = f->fd, .new_fd = -1};
    int r;

    f->other_fd = -1;
    f->exchanged = false;
    if (node->read_only || can_write(f->fd)) {
        return 0;
    }
    r = loop_co_brief(reopen_writable_blocking, &c);
    if (r < 0 && node->auto_read_only) {
        node->read_only = true;
        return 0;
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Could not reopen file '%s' for writing",
                               block_node_display_name(node));
    }
    f->other_fd = c.new_fd;
    return 0;
}

static void exchange(struct posix_file *f)
{
    int fd = f->fd;

    f->fd = f->lock.fd = f->other_fd;
    f->other_fd = fd;
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
        exchange(f);
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
        exchange(f);
    }
    co_drop_other(f);
}

/* --- in turns with another process ------------------------------------------------------------ */

static int drop_pages(void *arg)
{
    struct posix_file *f = arg;

    return -posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED);
}

/*
 * Another host may have written the file: what the kernel has of it is dropped, and the size and
 * the holes are asked for again.
 */
int posix_file_co_reload(struct block_node *node, struct error *err)
{
    struct posix_file *f = node->opaque;
    uint64_t size;
    int r = posix_file_co_size(f->fd, f->is_device, &size);

    if (r < 0) {
        return error_set_errno(err, -r, "Could not get the size of '%s'",
                               block_node_display_name(node));
    }
    if (f->drop_cache) {
        (void)loop_co_offload(drop_pages, f); /* a file system without pages has none to drop */
    }
    atomic_fetch_add(&f->space_generation, 1);
    block_node_set_size(node, f->is_device ? size : posix_file_node_size(size));
    return 0;
}

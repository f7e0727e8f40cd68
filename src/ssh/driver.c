/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver. The requests of a node take turns on the offload pool. After a failed fsync it is
 * unknown which writes are on stable storage: flushes fail from then on, until the file is opened
 * again.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/driver.h"
#include "loop/loop.h"
#include "ssh/remote_file.h"
#include "ssh/ssh.h"

/* A disk has whole sectors: the rest of the last one reads as zeroes. Bytes. */
#define SECTOR 512

struct ssh_node {
    struct remote_file *file;
    /* Held while a call for the file runs. Guards the members below. */
    struct co_mutex lock;
    /* 0, or the first failure. */
    int flush_error;
    /* It was logged that flushes do nothing. */
    bool warned;
};

static const struct block_option_desc create_options[] = {
    {"size", "size", "Virtual disk size"},
    {NULL, NULL, NULL},
};

/* --- calls on the pool ---------------------------------------------------------------------- */

struct open_call {
    struct ssh_target target;
    int flags;
    /* Resize the file to `size`; else set `size`. */
    bool resize;
    uint64_t size;
    struct remote_file *file;
    struct error *err;
};

static int ssh_open_blocking(void *arg)
{
    struct open_call *c = arg;
    int r = remote_file_open(&c->target, c->flags, &c->file, c->err);

    if (r == 0 && c->resize) {
        r = remote_file_resize(c->file, c->size);
        if (r < 0) {
            error_set_errno(c->err, -r, "failed to resize remote file '%s'", c->target.path);
        }
    } else if (r == 0) {
        r = remote_file_size(c->file, &c->size, c->err);
    }
    if (r < 0) {
        remote_file_close(c->file);
        c->file = NULL;
    }
    return r;
}

static int ssh_close_blocking(void *arg)
{
    remote_file_close(arg);
    return 0;
}

struct io_call {
    struct remote_file *file;
    int (*fn)(struct remote_file *f, uint64_t offset, struct iov iov);
    uint64_t offset;
    struct iov iov;
};

static int ssh_io_blocking(void *arg)
{
    struct io_call *c = arg;

    return c->fn(c->file, c->offset, c->iov);
}

static int ssh_sync_blocking(void *arg)
{
    return remote_file_sync(arg);
}

struct resize_call {
    struct remote_file *file;
    uint64_t size;
};

static int ssh_resize_blocking(void *arg)
{
    struct resize_call *c = arg;

    return remote_file_resize(c->file, c->size);
}

/* --- opening -------------------------------------------------------------------------------- */

static int ssh_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct ssh_node *n = node->opaque;
    struct open_call c = {.flags = node->read_only ? O_RDONLY : O_RDWR, .err = err};
    int r = ssh_target_take(opts, &c.target, err);

    UNLESS_FAILED(r, loop_co_offload(ssh_open_blocking, &c));
    if (r == -EACCES && !node->read_only && node->auto_read_only) {
        error_clear(err);
        c.flags = O_RDONLY;
        r = loop_co_offload(ssh_open_blocking, &c);
        node->read_only = node->read_only || r == 0;
    }
    if (r == 0) {
        n->file = c.file;
        co_mutex_init(&n->lock);
        block_node_set_size(node, round_up(c.size, SECTOR));
        free(node->filename);
        node->filename = ssh_target_filename(&c.target);
    }
    ssh_target_clear(&c.target);
    return r;
}

static void ssh_co_close(struct block_node *node)
{
    struct ssh_node *n = node->opaque;

    loop_co_offload(ssh_close_blocking, n->file);
    n->file = NULL;
    co_mutex_destroy(&n->lock);
}

static int ssh_co_create(const char *filename, uint64_t size, struct options *opts,
                         struct error *err)
{
    AUTO_OPTIONS struct options *address = options_new();
    struct open_call c = {
        .flags = O_RDWR | O_CREAT | O_TRUNC, .resize = true, .size = size, .err = err};
    int r = address ? options_check_empty(opts, "A file over SSH", err) : error_out_of_memory(err);

    UNLESS_FAILED(r, ssh_target_parse_filename(filename, address, err));
    UNLESS_FAILED(r, ssh_target_take(address, &c.target, err));
    UNLESS_FAILED(r, loop_co_offload(ssh_open_blocking, &c));
    if (r == 0) {
        loop_co_offload(ssh_close_blocking, c.file);
    }
    ssh_target_clear(&c.target);
    return r;
}

/* --- I/O ------------------------------------------------------------------------------------ */

static int ssh_co_io(struct block_node *node, uint64_t offset, struct iov iov,
                     int (*fn)(struct remote_file *f, uint64_t offset, struct iov iov))
{
    struct ssh_node *n = node->opaque;
    struct io_call c = {.file = n->file, .fn = fn, .offset = offset, .iov = iov};
    int r;

    co_mutex_lock(&n->lock);
    r = loop_co_offload(ssh_io_blocking, &c);
    co_mutex_unlock(&n->lock);
    return r;
}

static int ssh_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    return flags & BLOCK_REQ_PREFETCH ? 0 : ssh_co_io(node, offset, iov, remote_file_read);
}

static int ssh_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    return ssh_co_io(node, offset, iov, remote_file_write);
}

static int ssh_co_sync_locked(struct block_node *node)
{
    struct ssh_node *n = node->opaque;

    CO_ASSERT_HELD(&n->lock);
    if (!remote_file_can_sync(n->file)) {
        if (!n->warned) {
            log_warning("'%s': the server can't flush (no fsync@openssh.com); what is written may "
                        "be lost if it crashes",
                        block_node_display_name(node));
        }
        n->warned = true;
        return 0;
    }
    n->flush_error = n->flush_error ? n->flush_error : loop_co_offload(ssh_sync_blocking, n->file);
    return n->flush_error;
}

static int ssh_co_flush(struct block_node *node)
{
    struct ssh_node *n = node->opaque;
    int r;

    co_mutex_lock(&n->lock);
    r = ssh_co_sync_locked(node);
    co_mutex_unlock(&n->lock);
    return r;
}

static int ssh_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                           struct error *err)
{
    struct ssh_node *n = node->opaque;
    struct resize_call c = {n->file, size};
    int r;

    if (prealloc != BLOCK_PREALLOC_OFF) {
        return error_set(err, ENOTSUP, "Nothing can be preallocated over SSH");
    }
    co_mutex_lock(&n->lock);
    r = loop_co_offload(ssh_resize_blocking, &c);
    co_mutex_unlock(&n->lock);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not resize '%s' to %" PRIu64 " bytes",
                               block_node_display_name(node), size);
    }
    block_node_set_size(node, round_up(size, SECTOR));
    return 0;
}

static const struct block_driver ssh_driver = {
    .name = "ssh",
    .help = "protocol: a file on another host, by SFTP",
    .options = &ssh_options_type,
    .instance_size = sizeof(struct ssh_node),
    .is_protocol = true,
    .keeps_zero_beyond_eof = true,
    .has_directories = true,
    .schemes = (const char *const[]){"ssh", NULL},
    .parse_filename = ssh_target_parse_filename,
    .co_open = ssh_co_open,
    .co_close = ssh_co_close,
    .co_create = ssh_co_create,
    .create_options = create_options,
    .co_truncate = ssh_co_truncate,
    .co_preadv = ssh_co_preadv,
    .co_pwritev = ssh_co_pwritev,
    .co_flush = ssh_co_flush,
};

void ssh_register_driver(void)
{
    block_register_driver(&ssh_driver);
}

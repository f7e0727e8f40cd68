/* SPDX-License-Identifier: Apache-2.0 */
/* Opens and closes files and devices: their options, alignment and locks. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/passed_fd.h"
#include "file/posix_file.h"
#include "loop/loop.h"
#include "schema/define.h"

#define DIRECT_ALIGNMENT_MAX 4096
/* The longest O_DIRECT request, since the kernel pins its pages. */
#define DIRECT_MAX_TRANSFER (16 * MiB)

enum locking { LOCKING_AUTO, LOCKING_ON, LOCKING_OFF };

struct open_options {
    char *filename;
    int locking;
    bool native_aio, drop_cache;
    uint64_t temporary; /* bytes; 0: it is a file that exists */
};

/* --- options */

ENUM(aio_type, "BlockdevAioOptions", "threads", "native", "io_uring");
const struct schema_type posix_file_options = {
    .kind = SCHEMA_OBJECT,
    .name = "BlockdevOptionsFile",
    .members = MEMBERS(
        REQ("filename", schema_str, .help = "path of the file"),
        OPT("locking", block_on_off_auto_type, .dflt = "auto",
            .help = "image locks, by which programs notice each other; auto: if the file system "
                    "can"),
        OPT("aio", aio_type, .dflt = "threads",
            .help = "native needs cache.direct; I/O is made as it suits the kernel in any case"),
        OPT("aio-max-batch", schema_int,
            .help = "no effect: what a turn of the reactor has gathered is submitted together"),
        OPT("drop-cache", schema_bool, .dflt = "true",
            .help = "drop the pages of the host when the node becomes active"),
        OPT("x-check-cache-dropped", schema_bool, .dflt = "false", UNSTABLE, .help = "no effect"),
        OPT("x-temporary", schema_size,
            .help = "`filename` is a directory, in which a file of this size is made, without a "
                    "name: it is gone when the node is")),
    FEATURES("dynamic-auto-read-only"),
};

int posix_file_parse_filename(const char *filename, struct options *opts, struct error *err)
{
    const char *colon = strchr(filename, ':');
    const char *path = colon ? colon + 1 : filename;

    if (!path[0]) {
        return error_set(err, EINVAL, "'%s' does not name a file", filename);
    }
    options_set_str(opts, "filename", path);
    return 0;
}

static int take_open_options(const char *driver, struct options *opts,
                             struct open_options *ret_options, struct error *err)
{
    static const char *const locking_names[] = {"auto", "on", "off", NULL};
    static const char *const aio_names[] = {"threads", "native", "io_uring", NULL};
    bool ignored;
    uint64_t batch;
    int aio, r;

    /* Accepted without effect: how I/O is done, and a check that QEMU makes of a drop. */
    if ((r = options_take_str(opts, "filename", &ret_options->filename, err)) < 0 ||
        (r = options_take_enum(opts, "locking", locking_names, LOCKING_AUTO, &ret_options->locking,
                               err)) < 0 ||
        (r = options_take_enum(opts, "aio", aio_names, 0, &aio, err)) < 0 ||
        (r = options_take_bool(opts, "drop-cache", true, &ret_options->drop_cache, err)) < 0 ||
        (r = options_take_uint(opts, "aio-max-batch", 0, INT64_MAX, &batch, err)) < 0 ||
        (r = options_take_bool(opts, "x-check-cache-dropped", false, &ignored, err)) < 0 ||
        (r = options_take_uint(opts, "x-temporary", 0, INT64_MAX, &ret_options->temporary, err)) <
            0) {
        return r;
    }
    ret_options->native_aio = strcmp(aio_names[aio], "native") == 0;
    if (!ret_options->filename || !ret_options->filename[0]) {
        return options_no_filename(opts, driver, err);
    }
    return 0;
}

/* --- open, on the offload pool */

/* Arguments and results of open_blocking(). */
struct open_call {
    const char *filename;
    bool writable, may_fall_back, direct;
    uint64_t temporary; /* bytes; 0: not to be made */
    int fd;
    /* opened for reading only, since writing is not permitted */
    bool fell_back;
    struct stat st;
    /* set when a descriptor set refuses */
    struct error *err;
};

static int open_flags(const struct open_call *c, bool writable)
{
    /* O_NONBLOCK: a FIFO, which is refused later, must not block the open. */
    return (writable ? O_RDWR : O_RDONLY) | (c->direct ? O_DIRECT : 0) | O_CLOEXEC | O_NOCTTY |
           O_NONBLOCK;
}

static bool is_refusal_to_write(int errnum)
{
    return errnum == EACCES || errnum == EROFS || errnum == EPERM;
}

/* A new file without a name in the directory c->filename. The descriptor or -errno. */
static int make_temporary_file(const struct open_call *c)
{
    int fd = open(c->filename, open_flags(c, true) | O_TMPFILE | O_EXCL, 0600);

    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
        AUTO_FREE char *path = NULL;

        if (asprintf(&path, "%s/.tidemark-XXXXXX", c->filename) < 0) {
            path = NULL;
            return -ENOMEM;
        }
        fd = mkostemp(path, open_flags(c, true) & ~O_ACCMODE);
        if (fd >= 0) {
            unlink(path);
        }
    }
    if (fd < 0) {
        return -errno;
    }
    if (TEMP_FAILURE_RETRY(ftruncate(fd, (off_t)c->temporary)) < 0) {
        int saved = errno;

        close(fd);
        return -saved;
    }
    return fd;
}

/* As open(2), also for the paths of descriptor sets. The descriptor or -errno. */
static int open_path(const struct open_call *c, bool writable, struct error *err)
{
    int fd;

    if (c->temporary) {
        return writable ? make_temporary_file(c) : -EROFS;
    }
    if (fdset_is_path(c->filename)) {
        return fdset_open(c->filename, open_flags(c, writable), err);
    }
    fd = open(c->filename, open_flags(c, writable));
    return fd < 0 ? -errno : fd;
}

static int open_file_blocking(void *arg)
{
    struct open_call *c = arg;
    ERROR_AUTO(err);
    int fd = open_path(c, c->writable, &err);
    int flags;

    if (fd < 0 && c->writable && c->may_fall_back && is_refusal_to_write(-fd)) {
        error_clear(&err);
        fd = open_path(c, false, &err);
        c->fell_back = fd >= 0;
    }
    if (fd < 0) {
        error_move(c->err, &err);
        return fd;
    }
    flags = fcntl(fd, F_GETFL);
    if (fstat(fd, &c->st) < 0 || flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0) {
        int saved = errno;

        fdset_close(fd);
        return -saved;
    }
    c->fd = fd;
    return 0;
}

/* Whether the driver supports this kind of file. 0, -EISDIR or -EINVAL. */
static int check_file_kind(const char *driver, const char *filename, mode_t mode, bool is_device,
                           struct error *err)
{
    if (is_device ? S_ISBLK(mode) || S_ISCHR(mode) : S_ISREG(mode)) {
        return 0;
    }
    return error_set(err, S_ISDIR(mode) ? EISDIR : EINVAL, "'%s' driver requires '%s' to be %s",
                     driver, filename,
                     is_device ? "either a character or block device" : "a regular file");
}

static int co_open_fd(struct block_node *node, const struct open_options *o, bool is_device,
                      struct error *err)
{
    struct posix_file *f = node->opaque;
    const char *filename = o->filename;
    struct open_call c = {
        .filename = filename,
        .writable = !node->read_only,
        .may_fall_back = node->auto_read_only,
        .direct = node->cache_direct,
        .temporary = o->temporary,
        .err = err,
    };
    int r = loop_co_brief(open_file_blocking, &c);

    if (r == -EINVAL && c.direct && !fdset_is_path(filename)) {
        return error_set(err, EINVAL,
                         "Could not open '%s': its file system does not support cache.direct=on",
                         filename);
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Could not open '%s'", filename);
    }
    r = check_file_kind(node->driver->name, filename, c.st.st_mode, is_device, err);
    if (r < 0) {
        posix_file_co_close_fd(c.fd);
        return r;
    }
    if (c.fell_back) {
        node->read_only = true;
    }
    node->limits.opt_transfer = is_power_of_2(c.st.st_blksize) ? c.st.st_blksize : 0;
    f->fd = c.fd;
    f->is_device = is_device;
    return 0;
}

int posix_file_refuse_native_aio(struct error *err)
{
    return error_set(err, EINVAL,
                     "aio=native was specified, but it requires cache.direct=on, which was not "
                     "specified.");
}

/* --- limits */

/* The smallest block that the kernel can read from the beginning of the file with O_DIRECT. */
static uint32_t try_direct_alignment(int fd)
{
    AUTO_FREE void *buf = NULL;

    if (posix_memalign(&buf, DIRECT_ALIGNMENT_MAX, DIRECT_ALIGNMENT_MAX) == 0) {
        for (uint32_t size = 512; size < DIRECT_ALIGNMENT_MAX; size *= 2) {
            /* At the end of the file the kernel checks nothing, so 0 bytes prove nothing. */
            if (pread(fd, buf, size, 0) > 0) {
                return size;
            }
        }
    }
    return DIRECT_ALIGNMENT_MAX;
}

struct limits_query {
    int fd;
    bool is_device;
    struct posix_limits limits;
};

static void probe_direct(struct limits_query *q)
{
    uint32_t memory = DIRECT_ALIGNMENT_MAX, block = 0;
#ifdef STATX_DIOALIGN
    struct statx stx;

    if (statx(q->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN) && is_power_of_2(stx.stx_dio_offset_align) &&
        is_power_of_2(stx.stx_dio_mem_align)) {
        block = stx.stx_dio_offset_align;
        memory = stx.stx_dio_mem_align;
    }
#endif
    if (block == 0) {
        block = try_direct_alignment(q->fd);
    }
    q->limits = (struct posix_limits){block, memory, DIRECT_MAX_TRANSFER};
}

/* The size of a device's sectors in bytes; 0: a character device has none. Or -errno. */
static int ask_sector_size(void *arg)
{
    int fd = *(const int *)arg, sector = 0;
    struct stat st;

    if (fstat(fd, &st) == 0 && S_ISCHR(st.st_mode)) {
        return 0;
    }
    return ioctl(fd, BLKSSZGET, &sector) < 0 ? -errno : sector;
}

static int query_direct_limits(void *arg)
{
    struct limits_query *q = arg;
    int sector;

    if (!q->is_device) {
        probe_direct(q);
        return 0;
    }
    sector = ask_sector_size(&q->fd);
    if (sector <= 0) {
        return sector;
    }
    q->limits = (struct posix_limits){(uint32_t)sector, DIRECT_ALIGNMENT_MAX, DIRECT_MAX_TRANSFER};
    return 0;
}

int posix_file_co_limits(int fd, bool is_device, bool direct, struct posix_limits *ret_limits)
{
    struct limits_query q = {.fd = fd, .is_device = is_device, .limits = {1, 1, 0}};
    int r = direct ? loop_co_brief(query_direct_limits, &q) : 0;

    *ret_limits = q.limits;
    return r;
}

struct posix_limits posix_file_get_limits(const struct block_node *node)
{
    return (struct posix_limits){((const struct posix_file *)node->opaque)->block_size,
                                 node->limits.memory_alignment, node->limits.max_transfer};
}

void posix_file_set_limits(struct block_node *node, const struct posix_limits *limits)
{
    ((struct posix_file *)node->opaque)->block_size = limits->block_size;
    node->limits.request_alignment = limits->block_size;
    node->limits.memory_alignment = limits->memory_alignment;
    node->limits.max_transfer = limits->max_transfer;
}

static int co_set_device_limits(struct block_node *node, const char *filename, struct error *err)
{
    struct posix_file *f = node->opaque;
    int sector = loop_co_brief(ask_sector_size, &f->fd);

    if (sector == 0) {
        return 0;
    }
    if (sector < 0) {
        return error_set_errno(err, -sector, "Could not get the sector size of '%s'", filename);
    }
    if (!is_power_of_2((uint64_t)sector)) {
        return error_set(err, EINVAL, "'%s' has sectors of %d bytes, which is not a power of two",
                         filename, sector);
    }
    node->limits.zeroes_alignment = (uint64_t)sector;
    node->limits.discard_alignment = (uint64_t)sector;
    return 0;
}

static int co_set_limits(struct block_node *node, const char *filename, struct error *err)
{
    struct posix_file *f = node->opaque;
    struct posix_limits limits;
    uint64_t size = 0;
    int r = f->is_device ? co_set_device_limits(node, filename, err) : 0;

    if (r < 0) {
        return r;
    }
    r = posix_file_co_limits(f->fd, f->is_device, node->cache_direct, &limits);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not get the sector size of '%s'", filename);
    }
    posix_file_set_limits(node, &limits);
    r = posix_file_co_size(f->fd, f->is_device, &size);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not get the size of '%s'", filename);
    }
    block_node_set_size(node, f->is_device ? size : posix_file_node_size(size));
    node->supported_write_flags = BLOCK_REQ_FUA;
    node->supported_zero_flags = BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK;
    return 0;
}

/* --- locks */

static int co_set_up_locking(struct block_node *node, int locking, const char *filename,
                             struct error *err)
{
    struct posix_file *f = node->opaque;

    if (locking == LOCKING_OFF || node->force_share) {
        return 0;
    }
    f->lock.fd = f->fd;
    f->locking = posix_file_co_has_locks(f->fd);
    if (locking == LOCKING_ON && !f->locking) {
        error_set(err, ENOTSUP, "The file system of '%s' does not support locks", filename);
        error_hint(err, "With locking=auto the file is used without locks");
        return -ENOTSUP;
    }
    return 0;
}

static int trim_blocking(void *arg)
{
    struct block_node *node = arg;
    struct posix_file *f = node->opaque;
    uint64_t size = block_node_size(node);
    uint64_t file_size = 0;

    if (posix_file_size(f->fd, false, &file_size) == 0 && file_size > size &&
        file_size == round_up(size, f->block_size)) {
        return TEMP_FAILURE_RETRY(ftruncate(f->fd, (off_t)size)) < 0 ? -errno : 0;
    }
    return 0;
}

/*
 * O_DIRECT wrote the whole last block. Cut off the part beyond the disk, when the node gives up the
 * write permission.
 */
void posix_file_co_trim_padding(struct block_node *node, unsigned perm)
{
    const struct posix_file *f = node->opaque;

    if (f->block_size > 1 && !f->is_device && (node->set_perm & ~perm & BLOCK_PERM_WRITE)) {
        loop_co_brief(trim_blocking, node);
    }
}

/*
 * The kernel releases the locks of a killed process only after its I/O has ended, some milliseconds
 * after the process has disappeared. A program that is restarted at once should not fail because
 * the image is in use.
 */
#define LOCK_ATTEMPTS 16
#define LOCK_RETRY_NS (20 * NS_PER_MS)

/* Change the locks; try again for a while if they conflict with others. */
static int co_set_file_lock(struct block_node *node, unsigned perm, unsigned shared,
                            struct error *err)
{
    struct posix_file *f = node->opaque;
    int r = -EAGAIN;

    for (int i = 0; i < LOCK_ATTEMPTS && r == -EAGAIN; i++) {
        ERROR_AUTO(attempt);

        if (i > 0) {
            loop_co_sleep(LOCK_RETRY_NS);
        }
        r = posix_file_co_lock(&f->lock, perm, shared, block_node_display_name(node), &attempt);
        if (r < 0 && (r != -EAGAIN || i == LOCK_ATTEMPTS - 1)) {
            error_move(err, &attempt);
        }
    }
    return r;
}

int posix_file_co_set_perm(struct block_node *node, unsigned perm, unsigned shared,
                           struct error *err)
{
    struct posix_file *f = node->opaque;
    int r;

    posix_file_co_trim_padding(node, perm);
    if (!f->locking) {
        return 0;
    }
    if (shared & BLOCK_PERM_WRITE) {
        atomic_store(&f->sole_writer, false);
    }
    /*
     * Users of the node that share the size (exports, for block_resize) get to know of a change.
     * Users of other nodes of the file, here or in another process, would not: nobody may begin to
     * change it, nor create an image in its place, for which the file is emptied. While the file
     * is handed over, another process does with it what it likes.
     */
    f->lock.closed = perm && !(shared & BLOCK_SHARE_HAND_OVER) ? BLOCK_PERM_RESIZE : 0;
    r = co_set_file_lock(node, perm, shared, err);
    if (f->lock.unshared & BLOCK_PERM_WRITE) {
        /* Extents that were found while others could write may have changed since. */
        if (!atomic_load(&f->sole_writer)) {
            atomic_fetch_add(&f->space_generation, 1);
        }
        atomic_store(&f->sole_writer, true);
    }
    return r;
}

/* --- open and close */

static int co_open_file(struct block_node *node, struct options *opts, bool is_device,
                        struct error *err)
{
    struct posix_file *f = node->opaque;
    struct open_options o = {0};
    int r = take_open_options(block_node_format(node), opts, &o, err);

    f->fd = f->other_fd = -1;
    if (r >= 0 && o.native_aio && !node->cache_direct) {
        /* The option has no effect here, but the mistake is an error in QEMU, too. */
        r = posix_file_refuse_native_aio(err);
    }
    if (r >= 0) {
        r = co_open_fd(node, &o, is_device, err);
    }
    if (r >= 0) {
        r = co_set_limits(node, o.filename, err);
        if (r >= 0) {
            r = co_set_up_locking(node, o.locking, o.filename, err);
        }
        if (r < 0) {
            posix_file_co_close_fd(f->fd);
        }
    }
    free(o.filename);
    if (r < 0) {
        return r;
    }
    f->drop_cache = o.drop_cache;
    f->native_aio = o.native_aio;
    sync_group_init(&f->sync);
    status_cache_init(&f->status);
    punch_queue_init(&f->punches);
    return 0;
}

int posix_file_co_open_regular(struct block_node *node, struct options *opts, struct error *err)
{
    return co_open_file(node, opts, false, err);
}

int posix_file_co_open_device(struct block_node *node, struct options *opts, struct error *err)
{
    return co_open_file(node, opts, true, err);
}

void posix_file_co_close(struct block_node *node)
{
    struct posix_file *f = node->opaque;

    /* Closing the descriptor releases the locks, unless a descriptor set has the file open, too. */
    if (f->locking && fdset_is_last(f->fd)) {
        f->lock.closed = 0;
        posix_file_co_lock(&f->lock, 0, BLOCK_PERM_ALL, block_node_display_name(node), NULL);
    }
    posix_file_forget_questions(f);
    posix_file_co_close_fd(f->fd);
    f->fd = -1;
    punch_queue_destroy(&f->punches);
    status_cache_destroy(&f->status);
    sync_group_destroy(&f->sync);
}

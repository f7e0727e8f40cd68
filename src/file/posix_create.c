/* SPDX-License-Identifier: Apache-2.0 */
/* Creates files, and prepares devices, for new images. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "block/passed_fd.h"
#include "block/size_max.h"
#include "file/posix_file.h"
#include "loop/loop.h"
#include "schema/define.h"

/* Bytes at the beginning of a device that are cleared, since a format probe reads them. */
#define DEVICE_HEAD 4096

const struct block_option_desc posix_file_create_options[] = {
    {"size", "size", "Virtual disk size"},
    {"preallocation", "str", "Preallocation mode (allowed values: off, falloc, full)"},
    {"extent_size_hint", "size", "Extent size hint for the image file, 0 to disable"},
    {"nocow", "bool (on/off)", "Turn off copy-on-write (valid only on btrfs)"},
    {NULL, NULL, NULL},
};

const struct schema_type posix_file_create_type = OBJECT_INIT(
    "BlockdevCreateOptionsFile", REQ("filename", schema_str),
    REQ("size", schema_size, .unit = "bytes"),
    OPT("preallocation", block_prealloc_type, .dflt = "off", .help = "off, falloc or full"),
    OPT("nocow", schema_bool, .dflt = "false",
        .help = "turn copy-on-write of the file system off, on btrfs"),
    OPT("extent-size-hint", schema_size, .dflt = "0", .unit = "bytes", .max = UINT32_MAX,
        .help = "for file systems that know it; 0: theirs"));

struct create_options {
    /* enum block_prealloc */
    int prealloc;
    bool nocow;
    /* bytes; 0: the default of the file system */
    uint64_t extent_size;
};

struct create_call {
    const char *path;
    bool nocow;
    uint64_t extent_size;
    /* the file did not exist before */
    bool created;
    int fd;
    struct stat st;
    /* set when a descriptor set refuses */
    struct error *err;
};

static int take_create_options(struct options *opts, struct create_options *ret_options,
                               struct error *err)
{
    static const char *const names[] = {"off", "falloc", "full", "metadata", NULL};
    static const int modes[] = {BLOCK_PREALLOC_OFF, BLOCK_PREALLOC_FALLOC, BLOCK_PREALLOC_FULL,
                                BLOCK_PREALLOC_METADATA};
    int mode, r;

    if ((r = options_take_enum(opts, "preallocation", names, 0, &mode, err)) < 0 ||
        (r = options_take_bool(opts, "nocow", false, &ret_options->nocow, err)) < 0 ||
        (r = options_take_size(opts, "extent_size_hint", 0, &ret_options->extent_size, err)) < 0) {
        return r;
    }
    if (ret_options->extent_size > UINT32_MAX) {
        return error_set(err, EINVAL, "Extent size hint is too large");
    }
    ret_options->prealloc = modes[mode];
    if (ret_options->prealloc == BLOCK_PREALLOC_METADATA) {
        return error_set(err, ENOTSUP, "Unsupported preallocation mode: metadata");
    }
    /* Before any change: a misspelt option must not destroy an image. */
    return options_check_empty(opts, "A raw file", err);
}

static int create_blocking(void *arg)
{
    struct create_call *c = arg;
    /* O_NONBLOCK: see open_flags() in posix_open.c. The contents stay until the locks are taken. */
    int flags = O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;

    if (fdset_is_path(c->path)) {
        c->fd = fdset_open(c->path, flags, c->err);
        if (c->fd < 0) {
            return c->fd;
        }
    } else {
        c->fd = open(c->path, flags | O_CREAT | O_EXCL, 0644);
        c->created = c->fd >= 0;
        if (c->fd < 0 && errno == EEXIST) {
            /* Without O_CREAT: see protected_regular in proc(5). */
            c->fd = open(c->path, flags);
        }
        if (c->fd < 0 && errno == ENOENT) {
            /* A link may name a file that does not exist yet. */
            c->fd = open(c->path, flags | O_CREAT, 0644);
        }
        if (c->fd < 0) {
            return -errno;
        }
    }
    if (fstat(c->fd, &c->st) < 0 || fcntl(c->fd, F_SETFL, O_RDWR) < 0) {
        int saved = errno;

        fdset_close(c->fd);
        return -saved;
    }
    if (c->extent_size) {
        struct fsxattr attributes;

        /* A hint: file systems that do not support it ignore it. */
        if (ioctl(c->fd, FS_IOC_FSGETXATTR, &attributes) == 0) {
            attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
            attributes.fsx_extsize = (uint32_t)c->extent_size;
            (void)!ioctl(c->fd, FS_IOC_FSSETXATTR, &attributes);
        }
    }
    if (c->nocow) {
        int attributes;

        /* Only file systems that copy on write support it, and it has no meaning on others. */
        if (ioctl(c->fd, FS_IOC_GETFLAGS, &attributes) == 0) {
            attributes |= FS_NOCOW_FL;
            (void)!ioctl(c->fd, FS_IOC_SETFLAGS, &attributes);
        }
    }
    return 0;
}

static int co_sync_created(const struct create_call *c, struct error *err)
{
    int r = loop_co_fdatasync(c->fd);

    return r < 0 ? error_set_errno(err, -r, "Could not flush '%s'", c->path) : 0;
}

static int co_prepare_regular(const struct create_call *c, uint64_t size, int prealloc,
                              struct error *err)
{
    int r = posix_file_co_resize(c->fd, c->path, 0, BLOCK_PREALLOC_OFF, err);

    UNLESS_FAILED(r, posix_file_co_resize(c->fd, c->path, size, prealloc, err));
    if (r < 0 || prealloc == BLOCK_PREALLOC_OFF) {
        return r;
    }
    /* Space that was allocated in advance is still allocated after a crash. */
    return co_sync_created(c, err);
}

static int co_prepare_device(const struct create_call *c, uint64_t size, int prealloc,
                             struct error *err)
{
    static const uint8_t zeroes[DEVICE_HEAD];
    struct iovec vec = {.iov_base = (void *)(uintptr_t)zeroes, .iov_len = sizeof(zeroes)};
    uint64_t device_size;
    ssize_t n;
    int r = posix_file_co_size(c->fd, true, &device_size);

    if (r < 0) {
        return error_set_errno(err, -r, "Could not get the size of '%s'", c->path);
    }
    if (prealloc != BLOCK_PREALLOC_OFF) {
        /* KubeVirt looks for the first three words, and tries another mode. */
        return error_set(err, ENOTSUP, "Unsupported preallocation mode '%s': '%s' is a device",
                         prealloc == BLOCK_PREALLOC_FALLOC ? "falloc" : "full", c->path);
    }
    if (device_size < size) {
        return error_set(err, ENOSPC, "Cannot grow device files");
    }
    if (device_size >= sizeof(zeroes)) {
        n = loop_co_pwritev(c->fd, &vec, 1, 0, 0);
        if (n < 0) {
            return error_set_errno(err, (int)-n, "Could not clear the head of '%s'", c->path);
        }
        return co_sync_created(c, err);
    }
    return 0;
}

/* Lock the new file, and give it its contents. */
static int co_prepare_file(struct create_call *c, uint64_t size, int prealloc, struct error *err)
{
    struct image_lock lock = {.fd = c->fd};
    int r = 0;

    if (!S_ISREG(c->st.st_mode) && !S_ISBLK(c->st.st_mode) && !S_ISCHR(c->st.st_mode)) {
        return error_set(err, EINVAL, "'%s' is neither a regular file nor a device", c->path);
    }
    if (posix_file_co_has_locks(c->fd)) {
        const unsigned change = BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE;

        /* What the file has is lost: nobody may write it, even who shares that with others. */
        r = posix_file_co_lock(&lock, change, BLOCK_PERM_ALL & ~change, c->path, err);
    }
    if (r < 0) {
        return r;
    }
    return S_ISREG(c->st.st_mode) ? co_prepare_regular(c, size, prealloc, err)
                                  : co_prepare_device(c, size, prealloc, err);
}

static const char *path_of(const char *filename)
{
    return block_driver_of_filename(filename) ? strchr(filename, ':') + 1 : filename;
}

static int remove_regular(void *arg)
{
    const char *path = arg;
    struct stat st;

    if (stat(path, &st) < 0) {
        return -errno;
    }
    if (!S_ISREG(st.st_mode)) {
        return -EINVAL;
    }
    return unlink(path) < 0 ? -errno : 0;
}

int posix_file_co_remove(const char *filename)
{
    return loop_co_brief(remove_regular, (void *)(uintptr_t)path_of(filename));
}

int posix_file_co_create(const char *filename, uint64_t size, struct options *opts,
                         struct error *err)
{
    struct create_options o;
    struct create_call c = {.path = path_of(filename), .err = err};
    int r = take_create_options(opts, &o, err);

    UNLESS_FAILED(r, block_check_size_max(size, err));
    if (r < 0) {
        return r;
    }
    c.nocow = o.nocow;
    c.extent_size = o.extent_size;
    r = loop_co_brief(create_blocking, &c);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not create '%s'", c.path);
    }
    r = co_prepare_file(&c, size, o.prealloc, err);
    if (r < 0 && c.created) {
        loop_co_unlink(c.path);
    }
    posix_file_co_close_fd(c.fd);
    return r;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The life of a disk: its mountpoint, its session, its reactor. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "fuse/internal.h"
#include "loop/loop.h"

enum {
    REACTORS_MAX = 4,
    LOG_LINE_MAX = 512,
};

/* Requests in flight that take longer do not keep a disk mounted. */
#define PATIENCE_NS NS_PER_SECOND

/* What follows belongs to the main reactor. */
static struct list mounts = LIST_INIT(mounts);
static struct reactor *reactors[REACTORS_MAX];
static unsigned reactor_count, reactor_next;

/* --- reactors --------------------------------------------------------------------------------- */

/* One for each processor, made when a disk needs it; they stay for the life of the process. */
static int pick_reactor(struct reactor **ret_reactor, struct error *err)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned want = (unsigned)MIN(MAX(processors, 1), REACTORS_MAX);

    if (reactor_count < want) {
        int r = reactor_create("fuse-io", &reactors[reactor_count], err);

        if (r < 0 && reactor_count == 0) {
            return r;
        }
        reactor_count += r == 0;
    }
    *ret_reactor = reactors[reactor_next++ % reactor_count];
    return 0;
}

/* --- the mountpoint: calls that block --------------------------------------------------------- */

struct path_call {
    const char *mountpoint;
    char *path; /* result; NULL: none */
};

/* The path as far as it can be resolved without a look at the last name. */
static int resolve_folder(void *arg)
{
    struct path_call *c = arg;
    AUTO_FREE char *for_folder = strdup(c->mountpoint), *for_name = strdup(c->mountpoint);
    AUTO_FREE char *folder = NULL;

    if (!for_folder || !for_name) {
        return -ENOMEM;
    }
    folder = realpath(dirname(for_folder), NULL);
    if (folder && asprintf(&c->path, "%s/%s", folder, basename(for_name)) < 0) {
        c->path = NULL;
        return -ENOMEM;
    }
    return 0;
}

/*
 * Detach a mount of a process that has died: whatever lies there is an error for everybody. As
 * users that may not do that themselves use the program fusermount3, which checks whose mount it
 * is.
 */
static void detach_dead_mount(const char *path)
{
    char *const argv[] = {"fusermount3", "-u", "-z", "-q", "--", (char *)path, NULL};
    pid_t pid;

    if (umount2(path, MNT_DETACH) == 0) {
        log_notice("'%s': removed the mount of a process that has died", path);
    } else if (posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ) == 0) {
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
        }
    }
}

/* What stat() says may be what the kernel remembers of a mount whose process has just died. */
static int look(const char *path, struct statx *ret_stat)
{
    return statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_TYPE, ret_stat) < 0 ? -errno : 0;
}

int fuse_look_at_mountpoint(const char *path, mode_t *ret_mode)
{
    struct statx found;
    int r = look(path, &found);

    if (r == -ENOTCONN) {
        detach_dead_mount(path);
        r = look(path, &found);
    }
    if (r == 0) {
        *ret_mode = found.stx_mode;
    }
    return r;
}

/* 0: a regular file, whose path is the result; -EISDIR: something else; or of stat(2). */
static int look_at_file(void *arg)
{
    struct path_call *c = arg;
    mode_t mode = 0;
    int r = fuse_look_at_mountpoint(c->mountpoint, &mode);

    if (r < 0) {
        return r;
    }
    if (!S_ISREG(mode)) {
        return -EISDIR;
    }
    c->path = realpath(c->mountpoint, NULL);
    return c->path ? 0 : -errno;
}

/* --- the session: calls that block ------------------------------------------------------------ */

__attribute__((format(printf, 2, 0))) static void log_line(enum fuse_log_level level,
                                                           const char *format, va_list args)
{
    char line[LOG_LINE_MAX];

    vsnprintf(line, sizeof(line), format, args);
    line[strcspn(line, "\n")] = '\0';
    log_warning("%s", line);
}

int fuse_load(struct error *err)
{
    int r = lazy_libfuse_load(err);

    if (r == 0) {
        fuse_set_log_func(log_line);
    }
    return r;
}

struct fuse_session *fuse_new_session(const char *options, const struct fuse_lowlevel_ops *ops,
                                      size_t ops_size, void *arg)
{
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    struct fuse_session *session = NULL;

    if (fuse_opt_add_arg(&args, "tidemark") == 0 && fuse_opt_add_arg(&args, "-o") == 0 &&
        fuse_opt_add_arg(&args, options) == 0) {
        session = fuse_session_new(&args, ops, ops_size, arg);
    }
    fuse_opt_free_args(&args);
    return session;
}

static int try_mount(struct fuse_disk *d, bool allow_other)
{
    d->session =
        fuse_new_session(allow_other ? "default_permissions,allow_other" : "default_permissions",
                         &fuse_disk_ops, sizeof(fuse_disk_ops), d);
    if (!d->session) {
        return -ENOMEM;
    }
    if (fuse_session_mount(d->session, d->path) != 0) {
        fuse_session_destroy(TAKE_PTR(d->session));
        return -EIO;
    }
    d->allow_other = allow_other;
    d->mounted = true;
    return 0;
}

static int mount_session(void *disk)
{
    struct fuse_disk *d = disk;
    int r = -EIO, flags;

    if (d->config.allow_other != FUSE_ALLOW_OTHER_OFF) {
        r = try_mount(d, true);
    }
    if (r < 0 && d->config.allow_other != FUSE_ALLOW_OTHER_ON) {
        r = try_mount(d, false);
    }
    if (r < 0) {
        return r;
    }
    flags = fcntl(fuse_session_fd(d->session), F_GETFL);
    return flags < 0 || fcntl(fuse_session_fd(d->session), F_SETFL, flags | O_NONBLOCK) < 0 ? -errno
                                                                                            : 0;
}

/* Closes the descriptor: whoever has the file open gets errors from now on. */
static int unmount_session(void *disk)
{
    fuse_session_unmount(((struct fuse_disk *)disk)->session);
    return 0;
}

/* --- mounting --------------------------------------------------------------------------------- */

static int check_not_mounted(const char *path, const char *mountpoint, struct error *err)
{
    struct fuse_disk *d;

    LIST_FOREACH (d, &mounts, link) {
        if (path && strcmp(d->path, path) == 0) {
            return error_set(err, EEXIST, "There already is a FUSE export on '%s'", mountpoint);
        }
    }
    return 0;
}

/* Find out whether the mountpoint can be used, and take its path. */
static int co_take_path(struct fuse_disk *d, const char *mountpoint, struct error *err)
{
    struct path_call folder = {.mountpoint = mountpoint}, file = {.mountpoint = mountpoint};
    int r = loop_co_offload(resolve_folder, &folder);
    AUTO_FREE char *unresolved = folder.path;

    if (r < 0) {
        return error_out_of_memory(err);
    }
    /* A look at a disk that is not published yet would wait for ever. */
    r = check_not_mounted(unresolved, mountpoint, err);
    if (r < 0) {
        return r;
    }
    r = loop_co_offload(look_at_file, &file);
    if (r == -EISDIR) {
        return error_set(err, EINVAL, "'%s' is not a regular file", mountpoint);
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Failed to stat '%s'", mountpoint);
    }
    d->path = file.path;
    r = check_not_mounted(d->path, mountpoint, err);
    if (r == 0) {
        list_append(&mounts, &d->link);
    }
    return r;
}

/* What the receiver waits for. */
static int make_poll_set(struct fuse_disk *d)
{
    struct epoll_event event = {.events = EPOLLIN};

    d->poll_set = epoll_create1(EPOLL_CLOEXEC);
    d->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (d->poll_set < 0 || d->bell < 0 ||
        epoll_ctl(d->poll_set, EPOLL_CTL_ADD, d->bell, &event) < 0 ||
        epoll_ctl(d->poll_set, EPOLL_CTL_ADD, fuse_session_fd(d->session), &event) < 0) {
        return -errno;
    }
    return 0;
}

static int co_mount_disk(struct fuse_disk *d, struct error *err)
{
    int r = fuse_load(err);

    UNLESS_FAILED(r, co_take_path(d, d->config.mountpoint, err));
    if (r == 0 && !d->reactor) {
        r = pick_reactor(&d->reactor, err);
    }
    if (r < 0) {
        return r;
    }
    if (loop_co_offload(mount_session, d) < 0) {
        return error_set(err, EIO, "Failed to mount FUSE session to export");
    }
    r = make_poll_set(d);
    return r < 0 ? error_set_errno(err, -r, "Failed to set up FUSE session") : 0;
}

int fuse_disk_co_mount(const struct fuse_disk_config *config, struct fuse_disk **ret_disk,
                       struct error *err)
{
    struct fuse_disk *d = calloc(1, sizeof(*d));
    int r;

    if (!d) {
        return error_out_of_memory(err);
    }
    list_init(&d->link);
    list_init(&d->spare);
    co_mutex_init(&d->resizing);
    d->config = *config;
    d->edge = block_root_edge(config->root);
    d->reactor = config->reactor;
    d->size = block_node_size(block_root_node(config->root));
    d->poll_set = d->bell = -1;
    d->mode = S_IRUSR | (config->writable ? S_IWUSR : 0);
    d->uid = getuid();
    d->gid = getgid();
    clock_gettime(CLOCK_REALTIME, &d->mtime);
    d->atime = d->ctime = d->mtime;
    d->seen_generation = block_node_write_generation(block_root_node(config->root));
    r = co_mount_disk(d, err);
    if (r < 0) {
        fuse_disk_co_free(d);
        return r;
    }
    *ret_disk = d;
    return 0;
}

void fuse_disk_publish(struct fuse_disk *d)
{
    d->published = true;
    if (reactor_spawn(d->reactor, fuse_disk_co_receive, d) < 0) {
        log_error("FUSE export on '%s': out of memory, cannot answer requests", d->path);
        d->receiver_ended = true;
    }
}

void fuse_disk_set_size(struct fuse_disk *d, uint64_t size)
{
    atomic_store(&d->size, size);
}

void fuse_disk_set_drained(struct fuse_disk *d, bool drained)
{
    d->drained = drained;
}

size_t fuse_disk_requests(const struct fuse_disk *d)
{
    return atomic_load(&d->running);
}

/* --- unmounting ------------------------------------------------------------------------------- */

static void co_settle_requests(void *disk)
{
    fuse_disk_co_settle(disk, PATIENCE_NS);
}

static void co_wait_for_rest(void *disk)
{
    fuse_disk_co_wait_idle(disk);
}

static void co_unmount_path(struct fuse_disk *d)
{
    if (d->mounted) {
        loop_co_offload(unmount_session, d);
        d->mounted = false;
    }
    list_remove(&d->link);
    list_init(&d->link);
}

void fuse_disk_co_unmount(struct fuse_disk *d)
{
    loop_co_call_on(d->reactor, co_settle_requests, d);
    co_unmount_path(d);
    loop_co_call_on(d->reactor, co_wait_for_rest, d);
}

void fuse_disk_co_free(struct fuse_disk *d)
{
    co_unmount_path(d);
    if (d->session) {
        fuse_session_destroy(d->session);
    }
    if (d->poll_set >= 0) {
        close(d->poll_set);
    }
    if (d->bell >= 0) {
        close(d->bell);
    }
    fuse_disk_free_requests(d);
    co_mutex_destroy(&d->resizing);
    free(d->path);
    free(d);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * File I/O: what is tried on the spot, and what the engine does.
 *
 * Measured by bench/micro/file_io.c on Linux 6.18, ext4, two processors, all in the page cache: us
 * of processor time for one operation; depth is the number of coroutines that do them.
 *
 *                                       inline    io_uring    pool
 *     read 4k, depth 1                    0.98        1.45
 *     read 4k, depth 32                   0.95        0.90
 *     overwrite 4k, depth 1               3.2        30        22
 *     overwrite 4k, depth 32              3.3         5.4      14
 *     overwrite 64k, depth 1              6.7        12 to 46  17
 *     overwrite 64k, depth 32             6.7        11        16
 *     overwrite 1M, depth 1              47          59 to 97  64
 *     overwrite 1M, depth 32            147         158 to 189 168
 *
 * Reads: inline with RWF_NOWAIT, which never waits for the disk. At depth 32 what batching saves
 * is about what the ring itself costs. A file system in memory knows no RWF_NOWAIT, and has nothing to wait for: a patient
 * program (loop_set_patient()) reads there without it.
 *
 * Writes: ext4 does not take RWF_NOWAIT for a buffered write, and io_uring hands each to a worker
 * thread. So a write is done inline as long as it takes no more time than receiving its data
 * from a socket did. When the kernel throttles writers to a slow disk such a call may sleep; those
 * that did are noticed, and the next ones to this file system go by the engine. One that hangs costs the reactor
 * its thread, and it goes on with another (rescue.c); until it returns, all to this file system go by the engine. A
 * patient program has nobody else who would wait.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>

#include "loop/internal.h"

#define FD_USES 64

/* The longest buffered write that is tried inline, by those that are not patient. */
#define INLINE_WRITE_MAX ((size_t)1 << 20)
#define STALL_NS INT64_C(2000000)
#define WATCHED_WRITES 256
#define INLINE_BAR_MIN 256
#define INLINE_BAR_MAX 65536

/* TIDEMARK_READ and TIDEMARK_WRITE, for experiments. */
static enum { READ_NOWAIT, READ_ENGINE } read_policy;
static enum { WRITE_AUTO, WRITE_INLINE, WRITE_ENGINE, WRITE_POOL } write_policy;

static int choose(const char *variable, const char *const names[], int count)
{
    const char *value = getenv(variable);

    for (int i = 0; value && i < count; i++) {
        if (strcmp(value, names[i]) == 0) {
            return i;
        }
    }
    return 0;
}

void loop_file_io_init(void)
{
    static const char *const reads[] = {"nowait", "ring"};
    static const char *const writes[] = {"auto", "inline", "ring", "pool"};

    read_policy = choose("TIDEMARK_READ", reads, 2);
    write_policy = choose("TIDEMARK_WRITE", writes, 4);
}

enum fd_kind {
    FD_CACHED,
    FD_UNCACHED,  /* its I/O goes to the device each time, and must not be tried inline */
    FD_IN_MEMORY, /* there is no device */
};

/* Only who is patient may wait for the server of a network file system, and only he wants to know. */
static enum fd_kind query_kind(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    struct statfs fs;

    if (flags >= 0 && (flags & (O_DIRECT | O_DSYNC))) {
        return FD_UNCACHED;
    }
    return loop_is_patient() && fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC ? FD_IN_MEMORY
                                                                                  : FD_CACHED;
}

/* Of its file system. Does not ask a server. */
static uint64_t query_device(int fd)
{
    struct statx st;

    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, &st) < 0) {
        return 0;
    }
    return makedev(st.stx_dev_major, st.stx_dev_minor);
}

static unsigned find_file_system(struct reactor *reactor, uint64_t device)
{
    unsigned i = 0;

    while (i < FILE_SYSTEMS && reactor->file_systems[i].device != device) {
        i++;
    }
    if (i == FILE_SYSTEMS) {
        /* The last one is kept for all that find no place. */
        do {
            i = reactor->next_file_system++ % FILE_SYSTEMS;
        } while (reactor->file_systems[i].hanging > 0 && i != FILE_SYSTEMS - 1);
        if (reactor->file_systems[i].hanging == 0) {
            reactor->file_systems[i] = (struct file_system){.device = device};
        }
    }
    return i;
}

static void query(struct reactor *reactor, int fd, struct fd_memory *m)
{
    m->kind = (uint8_t)query_kind(fd);
    m->uses_left = FD_USES;
    m->fs = (uint8_t)find_file_system(reactor, query_device(fd));
}

/*
 * What fd is of. Asking costs system calls, so the answer is kept for
 * some uses; a stale one, after the number was closed and opened anew, makes I/O slower and nothing
 * worse.
 */
static struct fd_memory memory_of(struct reactor *reactor, int fd)
{
    struct fd_memory none = {.kind = FD_CACHED};

    if (fd < 0) {
        return none; /* the system call will say so */
    }
    if (fd >= FD_MEMORY) {
        query(reactor, fd, &none);
        return none;
    }
    if (reactor->fds[fd].uses_left == 0) {
        query(reactor, fd, &reactor->fds[fd]);
    }
    reactor->fds[fd].uses_left--;
    return reactor->fds[fd];
}

/*
 * Whether a write to its file system hangs. What waits for it then is the pool's: file I/O in flight in the ring keeps
 * writes to other file systems from being made on the spot.
 */
static bool is_hanging(struct reactor *reactor, int fd)
{
    return reactor->file_systems[memory_of(reactor, fd).fs].hanging > 0;
}

/*
 * Threads, the kernel's or the pool's, are many but not without number. A file that hangs holds as many as it has operations
 * in flight, so these are limited; the others wait until one of them is done.
 */
#define IN_FLIGHT_MAX 64

/* On the stack of the coroutine that waits. */
struct crowd_waiter {
    struct list link;
    struct co *co;
    int fd;
};

static void co_enter(struct reactor *reactor, int fd)
{
    struct crowd_waiter self = {.co = co_self(), .fd = fd};

    if (fd < 0 || fd >= FD_MEMORY) {
        return;
    }
    if (reactor->fds[fd].in_flight < IN_FLIGHT_MAX) {
        reactor->fds[fd].in_flight++;
        return;
    }
    list_append(&reactor->crowd, &self.link);
    co_suspend(); /* who leaves hands its place over */
}

static void leave(struct reactor *reactor, int fd)
{
    struct crowd_waiter *w;

    if (fd < 0 || fd >= FD_MEMORY) {
        return;
    }
    LIST_FOREACH (w, &reactor->crowd, link) {
        if (w->fd == fd) {
            list_remove(&w->link);
            co_wake(w->co);
            return;
        }
    }
    reactor->fds[fd].in_flight--;
}

static ssize_t co_read_elsewhere(struct reactor *reactor, int fd, const struct iovec *iov,
                                 int iovcnt, uint64_t offset)
{
    ssize_t n;

    co_enter(reactor, fd);
    reactor_count(reactor, REACTOR_STAT_SUBMITTED);
    n = is_hanging(reactor, fd) ? loop_pool_co_preadv(reactor, fd, iov, iovcnt, offset)
                                : reactor->engine->co_preadv(reactor, fd, iov, iovcnt, offset);
    leave(reactor, fd);
    return n;
}

ssize_t loop_co_preadv(int fd, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    struct reactor *reactor = reactor_current();
    struct fd_memory m = memory_of(reactor, fd);

    assert(reactor && co_self());
    if (read_policy == READ_NOWAIT && m.kind != FD_UNCACHED) {
        /* Only who is patient trusts a memory of descriptors that may be stale with a read that could wait. */
        int flags = m.kind == FD_IN_MEMORY && loop_is_patient() ? 0 : RWF_NOWAIT;
        ssize_t n = preadv2(fd, iov, iovcnt, (off_t)offset, flags);

        /* Some kernels return 0 before the end of the file: that is asked again. */
        if (n > 0) {
            return n;
        }
        if (n < 0 && errno != EAGAIN && errno != EOPNOTSUPP && errno != EINTR) {
            return -errno;
        }
    }
    return co_read_elsewhere(reactor, fd, iov, iovcnt, offset);
}

static size_t total_length(const struct iovec *iov, int iovcnt)
{
    size_t length = 0;

    for (int i = 0; i < iovcnt; i++) {
        length += iov[i].iov_len;
    }
    return length;
}

/* Each stall in a row bars inline writes for longer. */
static void bar_inline_writes(struct file_system *fs)
{
    fs->bar = fs->bar ? fs->bar * 2 : INLINE_BAR_MIN;
    if (fs->bar > INLINE_BAR_MAX) {
        fs->bar = INLINE_BAR_MAX;
    }
    fs->barred = fs->bar;
    fs->calm = 0;
}

/* How often this thread has gone to sleep. */
static long count_sleeps(void)
{
    struct rusage usage;

    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}

static ssize_t write_now(int fd, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    ssize_t n = pwritev(fd, iov, iovcnt, (off_t)offset);

    return n < 0 ? -errno : n;
}

/*
 * A slow write stalled, or the processor was needed elsewhere: the latter is no reason to change
 * anything. Only a sleep tells them apart, and it is asked for after a first suspicion only, since
 * that costs system calls. A disk that stalls will stall again soon.
 */
static ssize_t co_write_inline(struct reactor *reactor, struct file_system *fs, int fd,
                               const struct iovec *iov, int iovcnt, uint64_t offset)
{
    bool watched = fs->watched > 0;
    long sleeps = watched ? count_sleeps() : 0;
    int64_t begin = loop_now_ns();
    ssize_t r;
    bool slow;

    loop_hang_begin(reactor, fs, begin);
    r = write_now(fd, iov, iovcnt, offset);
    if (!loop_co_hang_end(reactor, begin)) {
        fs->hanging--;
        reactor_count(reactor, REACTOR_STAT_HANGS);
        bar_inline_writes(fs);
        return r;
    }
    slow = loop_now_ns() - begin > STALL_NS;
    if (slow && watched && count_sleeps() > sleeps) {
        reactor_count(reactor, REACTOR_STAT_STALLS);
        bar_inline_writes(fs);
    } else if (++fs->calm >= INLINE_BAR_MAX) {
        fs->bar = 0;
    }
    if (slow) {
        fs->watched = WATCHED_WRITES;
    } else if (watched) {
        fs->watched--;
    }
    return r;
}

/* Whether those that share the thread would not mind. */
static bool may_wait(struct reactor *reactor)
{
    return loop_is_patient() || (!reactor->is_rescued && !loop_is_serving());
}

/* The file system that a write goes to on the spot; NULL: it does not. */
static struct file_system *choose_inline(struct reactor *reactor, int fd, struct fd_memory m,
                                         const struct iovec *iov, int iovcnt)
{
    struct file_system *fs = &reactor->file_systems[m.fs];

    if (total_length(iov, iovcnt) > INLINE_WRITE_MAX || !loop_may_hang(reactor, fd)) {
        return NULL;
    }
    if (write_policy == WRITE_INLINE) {
        return fs;
    }
    if (m.kind == FD_UNCACHED || fs->hanging > 0) {
        return NULL;
    }
    if (fs->barred > 0) {
        fs->barred--;
        return NULL;
    }
    return fs;
}

static ssize_t co_write_elsewhere(struct reactor *reactor, int fd, const struct iovec *iov,
                                  int iovcnt, uint64_t offset, unsigned flags)
{
    ssize_t n;

    co_enter(reactor, fd);
    reactor_count(reactor, REACTOR_STAT_SUBMITTED);
    n = is_hanging(reactor, fd)
            ? loop_pool_co_pwritev(reactor, fd, iov, iovcnt, offset, flags)
            : reactor->engine->co_pwritev(reactor, fd, iov, iovcnt, offset, flags);
    leave(reactor, fd);
    return n;
}

static ssize_t co_write_auto(struct reactor *reactor, int fd, const struct iovec *iov, int iovcnt,
                             uint64_t offset)
{
    struct fd_memory m = memory_of(reactor, fd);

    if (may_wait(reactor)) {
        if (m.kind != FD_UNCACHED) {
            return write_now(fd, iov, iovcnt, offset);
        }
    } else {
        struct file_system *fs = choose_inline(reactor, fd, m, iov, iovcnt);

        if (fs) {
            return co_write_inline(reactor, fs, fd, iov, iovcnt, offset);
        }
    }
    return co_write_elsewhere(reactor, fd, iov, iovcnt, offset, 0);
}

ssize_t loop_co_pwritev(int fd, const struct iovec *iov, int iovcnt, uint64_t offset,
                        unsigned flags)
{
    struct reactor *reactor = reactor_current();

    assert(reactor && co_self());
    if (write_policy == WRITE_POOL) {
        return loop_pool_co_pwritev(reactor, fd, iov, iovcnt, offset, flags);
    }
    if (write_policy == WRITE_ENGINE || (flags & LOOP_IO_DSYNC)) {
        return co_write_elsewhere(reactor, fd, iov, iovcnt, offset, flags);
    }
    return co_write_auto(reactor, fd, iov, iovcnt, offset);
}

int loop_co_fdatasync(int fd)
{
    struct reactor *reactor = reactor_current();
    int r;

    assert(reactor && co_self());
    co_enter(reactor, fd);
    reactor_count(reactor, REACTOR_STAT_SUBMITTED);
    r = is_hanging(reactor, fd) ? loop_pool_co_fdatasync(reactor, fd)
                                : reactor->engine->co_fdatasync(reactor, fd);
    leave(reactor, fd);
    return r;
}

int loop_co_fallocate(int fd, int mode, uint64_t offset, uint64_t length)
{
    struct reactor *reactor = reactor_current();
    int r;

    assert(reactor && co_self());
    co_enter(reactor, fd);
    reactor_count(reactor, REACTOR_STAT_SUBMITTED);
    r = is_hanging(reactor, fd) ? loop_pool_co_fallocate(reactor, fd, mode, offset, length)
                                : reactor->engine->co_fallocate(reactor, fd, mode, offset, length);
    leave(reactor, fd);
    return r;
}

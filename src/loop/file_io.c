/* SPDX-License-Identifier: Apache-2.0 */
/*
 * File I/O: which operations are tried inline, on the reactor's thread, and which the engine does.
 *
 * Microseconds of processor time per operation, all in the page cache; depth is the number of
 * coroutines. Measured with bench/micro/file_io.c on Linux 6.18, ext4, two processors:
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
 * Reads are tried inline with RWF_NOWAIT, which never waits for the disk. At depth 32 the ring
 * costs about as much as batching saves. tmpfs does not support RWF_NOWAIT, and io_uring passes
 * each read from it to a worker thread. Such a read waits for nothing but memory that was swapped
 * out, as all code of this process does, so it is done inline without the flag.
 *
 * Writes: ext4 does not support RWF_NOWAIT for a buffered write, and io_uring passes each to a
 * worker thread. So a write is done inline, up to INLINE_WRITE_MAX, where it takes no more time
 * than the reception of its data from a socket. When the kernel throttles writers to a slow disk,
 * such a call may sleep; such sleeps are detected, and the next writes to this file system go to
 * the engine. A write that hangs keeps the thread, and the reactor continues on another one
 * (rescue.c); until that write returns, all writes to this file system go to the engine. A program
 * that may block has no other requests that a sleep could delay.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "loop/internal.h"

/* Query a descriptor again after this many uses. */
#define FD_USES 64

/* The longest buffered write that is tried inline by a program that may not block. */
#define INLINE_WRITE_MAX ((size_t)1 << 20)

/* A write that takes longer is suspected of a sleep; the next WATCHED_WRITES are observed. */
#define STALL_NS (2 * NS_PER_MS)
#define WATCHED_WRITES 256

/* How many writes go to the engine after one or more stalls. */
#define INLINE_BAR_MIN 256
#define INLINE_BAR_MAX 65536

/* TIDEMARK_READ and TIDEMARK_WRITE, for experiments. */
static enum { READ_NOWAIT, READ_ENGINE } read_policy;
static enum { WRITE_AUTO, WRITE_INLINE, WRITE_ENGINE, WRITE_POOL } write_policy;

/* The index of the variable's value in `names`; 0 if it is none of them. */
static int choose_policy(const char *variable, const char *const names[], int count)
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

    read_policy = choose_policy("TIDEMARK_READ", reads, 2);
    write_policy = choose_policy("TIDEMARK_WRITE", writes, 4);
}

enum fd_kind {
    FD_CACHED,
    /* O_DIRECT or O_DSYNC: each operation waits for the device, so none is tried inline */
    FD_UNCACHED,
    /* on tmpfs or hugetlbfs, or of memfd_create() */
    FD_IN_MEMORY,
};

/*
 * Only files in memory have seals. Unlike fstatfs(), this call never waits for a file system or its
 * server.
 */
static bool is_in_memory(int fd)
{
    return fcntl(fd, F_GET_SEALS) >= 0;
}

static enum fd_kind query_kind(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags >= 0 && (flags & (O_DIRECT | O_DSYNC))) {
        return FD_UNCACHED;
    }
    return is_in_memory(fd) ? FD_IN_MEMORY : FD_CACHED;
}

/* The device number of the file system; 0 if unknown. Does not query a server. */
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
        /*
         * An entry with writes that hang stays; the last one then serves for several file systems.
         */
        do {
            i = reactor->next_file_system++ % FILE_SYSTEMS;
        } while (reactor->file_systems[i].hanging > 0 && i != FILE_SYSTEMS - 1);
        if (reactor->file_systems[i].hanging == 0) {
            reactor->file_systems[i] = (struct file_system){.device = device};
        }
    }
    return i;
}

static void query_fd(struct reactor *reactor, int fd, struct fd_memory *m)
{
    m->kind = (uint8_t)query_kind(fd);
    m->uses_left = FD_USES;
    m->fs = (uint8_t)find_file_system(reactor, query_device(fd));
}

/*
 * What is known about `fd`. A query costs system calls, so its answer is kept for some uses. An
 * answer that is stale, because the number was closed and opened again, makes I/O slower, and has
 * no other effect: what would wait on another file is queried again at each use.
 */
static struct fd_memory memory_of(struct reactor *reactor, int fd)
{
    struct fd_memory none = {.kind = FD_CACHED};

    if (fd < 0) {
        return none; /* the system call will fail */
    }
    if (fd >= FD_MEMORY) {
        query_fd(reactor, fd, &none);
        return none;
    }
    if (reactor->fds[fd].uses_left == 0) {
        query_fd(reactor, fd, &reactor->fds[fd]);
    }
    reactor->fds[fd].uses_left--;
    return reactor->fds[fd];
}

/*
 * Whether a write to the file system of `fd` hangs. Then the offload pool does the I/O there, since
 * file I/O in flight in the ring would prevent inline writes to other file systems
 * (would_strand()).
 */
static bool file_system_hangs(struct reactor *reactor, int fd)
{
    return reactor->file_systems[memory_of(reactor, fd).fs].hanging > 0;
}

/*
 * The most operations in flight on one descriptor; others wait. The number of threads, in the
 * kernel and in the pool, is limited, and a file that hangs keeps one per operation in flight.
 */
#define IN_FLIGHT_MAX 64

/* On the stack of the waiting coroutine. */
struct crowd_waiter {
    struct list link;
    struct co *co;
    int fd;
};

/* Count an operation on `fd`; wait while there are IN_FLIGHT_MAX. */
static void co_enter_crowd(struct reactor *reactor, int fd)
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
    co_suspend(); /* leave_crowd() passes a place on, so the count stays */
}

static void leave_crowd(struct reactor *reactor, int fd)
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
    struct co_wait wait;
    ssize_t n;

    co_wait_begin(&wait, "a read of", NULL, fd);
    co_enter_crowd(reactor, fd);
    reactor_count(reactor, REACTOR_STAT_SUBMITTED);
    n = file_system_hangs(reactor, fd)
            ? loop_pool_co_preadv(reactor, fd, iov, iovcnt, offset)
            : reactor->engine->co_preadv(reactor, fd, iov, iovcnt, offset);
    leave_crowd(reactor, fd);
    co_wait_end(&wait);
    return n;
}

ssize_t loop_co_preadv(int fd, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    struct reactor *reactor = reactor_current();
    struct fd_memory m = memory_of(reactor, fd);

    assert(reactor && co_self());
    if (read_policy == READ_NOWAIT && m.kind != FD_UNCACHED) {
        /* What is known about `fd` may be stale, and then a read without the flag could wait. */
        int flags = m.kind == FD_IN_MEMORY && is_in_memory(fd) ? 0 : RWF_NOWAIT;
        ssize_t n = preadv2(fd, iov, iovcnt, (off_t)offset, flags);

        /* Some kernels return 0 here before the end of the file, so the engine tries again. */
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

/* Send the next writes to the engine: twice as many as after the previous stall. */
static void bar_inline_writes(struct file_system *fs)
{
    fs->bar = fs->bar ? fs->bar * 2 : INLINE_BAR_MIN;
    if (fs->bar > INLINE_BAR_MAX) {
        fs->bar = INLINE_BAR_MAX;
    }
    fs->barred = fs->bar;
    fs->calm = 0;
}

/* How many times this thread has slept (voluntary context switches). */
static long count_sleeps(void)
{
    struct rusage usage;

    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}

static ssize_t write_now(int fd, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    ssize_t n = TEMP_FAILURE_RETRY(pwritev(fd, iov, iovcnt, (off_t)offset));

    return n < 0 ? -errno : n;
}

/*
 * Write on this thread, and measure. A slow write either slept or lost the processor to another
 * process, which is no reason to change anything. The number of sleeps distinguishes the two;
 * reading it costs system calls, so it is read only for some writes after a slow one. A disk that
 * stalls stalls again soon.
 */
static ssize_t co_write_inline(struct reactor *reactor, struct file_system *fs, int fd,
                               const struct iovec *iov, int iovcnt, uint64_t offset)
{
    bool watched = fs->watched > 0;
    long sleeps = watched ? count_sleeps() : 0;
    int64_t begin = loop_now_ns();
    struct co_wait wait = {.fd = fd};
    ssize_t r;
    bool slow;

    loop_hang_begin(reactor, fs, &wait, begin);
    r = write_now(fd, iov, iovcnt, offset);
    if (!loop_co_hang_end(reactor, begin)) {
        co_wait_end(&wait);
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

/* Whether a write may sleep on this thread, because nothing else needs it. */
static bool may_sleep(struct reactor *reactor)
{
    return loop_may_block() || (!reactor->is_rescued && !loop_is_serving());
}

/* The file system of `fd`, if the write is to be done inline; else NULL. */
static struct file_system *choose_inline_write(struct reactor *reactor, int fd, struct fd_memory m,
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
    struct co_wait wait;
    ssize_t n;

    co_wait_begin(&wait, "a write to", NULL, fd);
    co_enter_crowd(reactor, fd);
    reactor_count(reactor, REACTOR_STAT_SUBMITTED);
    n = file_system_hangs(reactor, fd)
            ? loop_pool_co_pwritev(reactor, fd, iov, iovcnt, offset, flags)
            : reactor->engine->co_pwritev(reactor, fd, iov, iovcnt, offset, flags);
    leave_crowd(reactor, fd);
    co_wait_end(&wait);
    return n;
}

static ssize_t co_write_auto(struct reactor *reactor, int fd, const struct iovec *iov, int iovcnt,
                             uint64_t offset)
{
    struct fd_memory m = memory_of(reactor, fd);

    if (may_sleep(reactor)) {
        if (m.kind != FD_UNCACHED) {
            return write_now(fd, iov, iovcnt, offset);
        }
    } else {
        struct file_system *fs = choose_inline_write(reactor, fd, m, iov, iovcnt);

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
    struct co_wait wait;
    int r;

    assert(reactor && co_self());
    co_wait_begin(&wait, "a sync of", NULL, fd);
    co_enter_crowd(reactor, fd);
    reactor_count(reactor, REACTOR_STAT_SUBMITTED);
    r = file_system_hangs(reactor, fd) ? loop_pool_co_fdatasync(reactor, fd)
                                       : reactor->engine->co_fdatasync(reactor, fd);
    leave_crowd(reactor, fd);
    co_wait_end(&wait);
    return r;
}

int loop_co_fallocate(int fd, int mode, uint64_t offset, uint64_t length)
{
    struct reactor *reactor = reactor_current();
    struct co_wait wait;
    int r;

    assert(reactor && co_self());
    co_wait_begin(&wait, "an allocation in", NULL, fd);
    co_enter_crowd(reactor, fd);
    reactor_count(reactor, REACTOR_STAT_SUBMITTED);
    r = file_system_hangs(reactor, fd)
            ? loop_pool_co_fallocate(reactor, fd, mode, offset, length)
            : reactor->engine->co_fallocate(reactor, fd, mode, offset, length);
    leave_crowd(reactor, fd);
    co_wait_end(&wait);
    return r;
}

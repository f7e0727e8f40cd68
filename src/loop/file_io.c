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
 * that did are noticed, and the next ones of this reactor go by the engine, so that the reactor's
 * other disks don't wait. A patient program has none.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/statfs.h>

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

static enum fd_kind query_kind(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    struct statfs fs;

    if (flags >= 0 && (flags & (O_DIRECT | O_DSYNC))) {
        return FD_UNCACHED;
    }
    return fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC ? FD_IN_MEMORY : FD_CACHED;
}

/*
 * What fd is of. Asking costs system calls, so the answer is kept for
 * some uses; a stale one, after the number was closed and opened anew, makes I/O slower and nothing
 * worse.
 */
static enum fd_kind kind_of(struct reactor *r, int fd)
{
    struct fd_memory *m;

    if (fd < 0) {
        return FD_CACHED; /* the system call will say so */
    }
    if (fd >= FD_MEMORY) {
        return query_kind(fd);
    }
    m = &r->fds[fd];
    if (m->uses_left == 0) {
        m->kind = (uint8_t)query_kind(fd);
        m->uses_left = FD_USES;
    }
    m->uses_left--;
    return m->kind;
}

ssize_t loop_co_preadv(int fd, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    struct reactor *r = reactor_current();
    enum fd_kind kind = FD_UNCACHED;

    assert(r && co_self());
    if (read_policy == READ_NOWAIT) {
        kind = kind_of(r, fd);
    }
    if (kind != FD_UNCACHED) {
        /* Only who is patient trusts a memory of descriptors that may be stale with a read that could wait. */
        int flags = kind == FD_IN_MEMORY && loop_is_patient() ? 0 : RWF_NOWAIT;
        ssize_t n = preadv2(fd, iov, iovcnt, (off_t)offset, flags);

        /* Some kernels return 0 before the end of the file: that is asked again. */
        if (n > 0) {
            return n;
        }
        if (n < 0 && errno != EAGAIN && errno != EOPNOTSUPP && errno != EINTR) {
            return -errno;
        }
    }
    return r->engine->co_preadv(r, fd, iov, iovcnt, offset);
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
static void bar_inline_writes(struct reactor *r)
{
    r->inline_bar = r->inline_bar ? r->inline_bar * 2 : INLINE_BAR_MIN;
    if (r->inline_bar > INLINE_BAR_MAX) {
        r->inline_bar = INLINE_BAR_MAX;
    }
    r->inline_writes_barred = r->inline_bar;
    r->inline_writes_calm = 0;
}

/* How often this thread has gone to sleep. */
static long count_sleeps(void)
{
    struct rusage usage;

    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}

/*
 * A slow write stalled, or the processor was needed elsewhere: the latter is no reason to change
 * anything. Only a sleep tells them apart, and it is asked for after a first suspicion only, since
 * that costs system calls. A disk that stalls will stall again soon.
 */
static ssize_t write_inline(struct reactor *r, int fd, const struct iovec *iov, int iovcnt,
                            uint64_t offset)
{
    bool watched = r->inline_writes_watched > 0;
    long sleeps = watched ? count_sleeps() : 0;
    int64_t begin = loop_now_ns();
    ssize_t n = pwritev(fd, iov, iovcnt, (off_t)offset);
    ssize_t ret = n < 0 ? -errno : n;
    bool slow = loop_now_ns() - begin > STALL_NS;

    if (slow && watched && count_sleeps() > sleeps) {
        bar_inline_writes(r);
    } else if (++r->inline_writes_calm >= INLINE_BAR_MAX) {
        r->inline_bar = 0;
    }
    if (slow) {
        r->inline_writes_watched = WATCHED_WRITES;
    } else if (watched) {
        r->inline_writes_watched--;
    }
    return ret;
}

static bool may_write_inline(struct reactor *r, int fd, const struct iovec *iov, int iovcnt)
{
    if (loop_is_patient()) {
        return kind_of(r, fd) != FD_UNCACHED;
    }
    if (total_length(iov, iovcnt) > INLINE_WRITE_MAX || kind_of(r, fd) == FD_UNCACHED) {
        return false;
    }
    if (r->inline_writes_barred > 0) {
        r->inline_writes_barred--;
        return false;
    }
    return true;
}

ssize_t loop_co_pwritev(int fd, const struct iovec *iov, int iovcnt, uint64_t offset,
                        unsigned flags)
{
    struct reactor *r = reactor_current();

    assert(r && co_self());
    if (write_policy == WRITE_ENGINE || (flags & LOOP_IO_DSYNC)) {
        return r->engine->co_pwritev(r, fd, iov, iovcnt, offset, flags);
    }
    if (write_policy == WRITE_POOL) {
        return loop_threads_co_pwritev(r, fd, iov, iovcnt, offset, flags);
    }
    if (write_policy == WRITE_INLINE || may_write_inline(r, fd, iov, iovcnt)) {
        return write_inline(r, fd, iov, iovcnt, offset);
    }
    return r->engine->co_pwritev(r, fd, iov, iovcnt, offset, flags);
}

int loop_co_fdatasync(int fd)
{
    struct reactor *r = reactor_current();

    assert(r && co_self());
    return r->engine->co_fdatasync(r, fd);
}

int loop_co_fallocate(int fd, int mode, uint64_t offset, uint64_t length)
{
    struct reactor *r = reactor_current();

    assert(r && co_self());
    return r->engine->co_fallocate(r, fd, mode, offset, length);
}

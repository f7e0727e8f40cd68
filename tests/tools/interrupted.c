/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loaded into a program (LD_PRELOAD), it makes calls on files end early, as they may: every second
 * one is interrupted by a signal, and of the others every second one transfers a part.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_uint calls;

/* What a call is replaced by: declares `real`, and returns -1 for every second call. */
#define REAL_OR_INTERRUPTED(fd, ret, name, ...)                                                    \
    ret (*real)(__VA_ARGS__) = (ret(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name);                       \
    unsigned number = is_file(fd) ? atomic_fetch_add(&calls, 1) : 3;                               \
    if (number % 2 == 0) {                                                                         \
        errno = EINTR;                                                                             \
        return -1;                                                                                 \
    }

static bool is_file(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
}

/* The first bytes of a vector: 512 or less. */
static struct iovec first_part(const struct iovec *iov)
{
    return (struct iovec){iov->iov_base, iov->iov_len > 512 ? 512 : iov->iov_len};
}

static bool is_part(unsigned number, const struct iovec *iov, int count)
{
    return number % 4 == 1 && count > 0 && iov->iov_len > 0;
}

ssize_t preadv64(int fd, const struct iovec *iov, int count, off64_t offset)
{
    REAL_OR_INTERRUPTED(fd, ssize_t, preadv64, int, const struct iovec *, int, off64_t)
    struct iovec part = first_part(iov);

    return is_part(number, iov, count) ? real(fd, &part, 1, offset) : real(fd, iov, count, offset);
}

ssize_t preadv64v2(int fd, const struct iovec *iov, int count, off64_t offset, int flags)
{
    REAL_OR_INTERRUPTED(fd, ssize_t, preadv64v2, int, const struct iovec *, int, off64_t, int)
    struct iovec part = first_part(iov);

    return is_part(number, iov, count) ? real(fd, &part, 1, offset, flags)
                                       : real(fd, iov, count, offset, flags);
}

ssize_t pwritev64(int fd, const struct iovec *iov, int count, off64_t offset)
{
    REAL_OR_INTERRUPTED(fd, ssize_t, pwritev64, int, const struct iovec *, int, off64_t)
    struct iovec part = first_part(iov);

    return is_part(number, iov, count) ? real(fd, &part, 1, offset) : real(fd, iov, count, offset);
}

ssize_t pwritev64v2(int fd, const struct iovec *iov, int count, off64_t offset, int flags)
{
    REAL_OR_INTERRUPTED(fd, ssize_t, pwritev64v2, int, const struct iovec *, int, off64_t, int)
    struct iovec part = first_part(iov);

    return is_part(number, iov, count) ? real(fd, &part, 1, offset, flags)
                                       : real(fd, iov, count, offset, flags);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
    REAL_OR_INTERRUPTED(fd, int, fallocate64, int, int, off64_t, off64_t)
    return real(fd, mode, offset, length);
}

int ftruncate64(int fd, off64_t length)
{
    REAL_OR_INTERRUPTED(fd, int, ftruncate64, int, off64_t)
    return real(fd, length);
}

int fdatasync(int fd)
{
    REAL_OR_INTERRUPTED(fd, int, fdatasync, int)
    return real(fd);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fd_io.h"

#include <errno.h>
#include <unistd.h>

ssize_t fd_read_at(int fd, void *buf, size_t size, uint64_t offset)
{
    size_t done = 0;

    while (done < size) {
        ssize_t n = pread(fd, (char *)buf + done, size - done, (off_t)(offset + done));

        if (n < 0 && errno != EINTR) {
            return -errno;
        }
        if (n == 0) {
            break;
        }
        done += n > 0 ? (size_t)n : 0;
    }
    return (ssize_t)done;
}

int fd_write_at(int fd, const void *buf, size_t size, uint64_t offset)
{
    size_t done = 0;

    while (done < size) {
        ssize_t n = pwrite(fd, (const char *)buf + done, size - done, (off_t)(offset + done));

        if (n == 0 || (n < 0 && errno != EINTR)) {
            return n < 0 ? -errno : -EIO;
        }
        done += n > 0 ? (size_t)n : 0;
    }
    return 0;
}

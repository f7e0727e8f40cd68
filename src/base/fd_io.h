/* SPDX-License-Identifier: Apache-2.0 */
/* Reads and writes of files that go on after a part, and after a signal. They block. */
#ifndef TIDEMARK_BASE_FD_IO_H
#define TIDEMARK_BASE_FD_IO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Read up to `size` bytes at `offset`: the number of bytes, less than `size` at the end; -errno. */
ssize_t fd_read_at(int fd, void *buf, size_t size, uint64_t offset);
/* Write `size` bytes at `offset`. 0 or -errno; what was written before an error stays. */
int fd_write_at(int fd, const void *buf, size_t size, uint64_t offset);

#endif

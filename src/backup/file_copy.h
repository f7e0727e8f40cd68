/* SPDX-License-Identifier: Apache-2.0 */
/* Copying a file whose SHA-256 is known, so that a copy that was cut short can be continued. */
#ifndef TIDEMARK_BACKUP_FILE_COPY_H
#define TIDEMARK_BACKUP_FILE_COPY_H

#include <signal.h>
#include <stdint.h>

#include "base/error.h"
#include "base/progress.h"

/* Where a copy goes to that is no file of this machine. Functions block; they return -errno. */
struct file_copy_target {
    int (*get_size)(void *arg, uint64_t *ret_size);
    int (*set_size)(void *arg, uint64_t size);
    int (*read)(void *arg, char *buf, size_t size, uint64_t offset);
    int (*write)(void *arg, const char *buf, size_t size, uint64_t offset);
    int (*sync)(void *arg);
};

struct file_copy {
    int from, to;
    const struct file_copy_target *target; /* instead of `to`; NULL: none */
    void *target_arg;
    const char *from_shown, *to_shown; /* for messages */
    uint64_t size;                     /* that it has to have */
    const char *sha256;
    struct progress *progress;   /* counts bytes; NULL: none */
    volatile sig_atomic_t *stop; /* may be NULL */
};

/*
 * Copy, and sync. What `to` holds already is read and kept, if it turns out to be right in the end;
 * if not, all is copied again. Areas of zeroes become holes. Runs in the offload pool; yields.
 * -EBADMSG: `from` is not what it has to be; -EINTR: stopped. *ret_written: bytes of the
 * pieces of 1 MiB that were written.
 */
int file_copy_co_run(const struct file_copy *copy, uint64_t *ret_written, struct error *err);

#endif

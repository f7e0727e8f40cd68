/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The image that `tidemark io` works on: opening and closing it. Everything runs in coroutines of
 * the main reactor. All `co_` functions yield; the others do not.
 */
#ifndef TIDEMARK_CLI_IO_SESSION_H
#define TIDEMARK_CLI_IO_SESSION_H

#include <stdbool.h>

#include "base/error.h"
#include "cli/image.h"
#include "co/sync.h"

/*
 * What is written is on stable storage when its command ends: `io` shows what an image really
 * holds.
 */
#define IO_CACHE_DEFAULT "writethrough"

/* How the image was opened, for reopen. All text is owned. */
struct io_opening {
    char *name; /* NULL: only options */
    char *format, *cache, *discard, *options;
    bool image_opts, read_only, force_share, overlay, copy_on_read, native_aio;
};

/* Requests of aio_read, aio_write, aio_flush, as the owner of a disk counts them. */
enum io_account_op {
    IO_ACCOUNT_READ,
    IO_ACCOUNT_WRITE,
    IO_ACCOUNT_FLUSH,
    IO_ACCOUNT_DISCARD,
    IO_ACCOUNT_OPS
};
enum io_account_outcome { IO_ACCOUNT_DONE, IO_ACCOUNT_FAILED, IO_ACCOUNT_INVALID };

/* Called when such a request has ended. Must not yield. */
typedef void io_account_fn(void *arg, enum io_account_op op, uint64_t offset, uint64_t bytes,
                           enum io_account_outcome outcome, int64_t took_ns);

struct io;

/* A request of `bytes` is about to begin: wait until it may. Yields. */
typedef void io_co_admit_fn(void *arg, bool is_write, uint64_t bytes);

/* What a reopen changes. */
struct io_reopen {
    const char *cache, *options; /* NULL: as they were */
    int read_only;               /* negative: as it was */
};

/* Carry it out on the image, which stays open. Yields. */
typedef int io_co_reopen_fn(struct io *io, const struct io_reopen *how, struct error *err);

struct io {
    struct cli_disk disk;   /* not open: {0} */
    io_account_fn *account; /* NULL: nobody counts */
    void *account_arg;
    io_co_admit_fn *co_admit; /* NULL: nobody has to wait */
    void *admit_arg;
    io_co_reopen_fn *co_reopen; /* NULL: the image is closed, and opened again */
    struct io_opening opening;
    struct co_group in_flight; /* requests of aio_read, aio_write, aio_discard */
    bool misalign;             /* buffers are not aligned for O_DIRECT */
    bool image_opts;           /* `open` takes options, as --image-opts says, and no filename */
    bool quit;
    bool failed; /* a command failed: the exit status is 1 */
};

/* Open the image by io->opening. Errors begin "can't open", as those of qemu-io. */
int io_co_open(struct io *io, struct error *err);
/* The same without that beginning, for a reopen. */
int io_co_open_again(struct io *io, struct error *err);
/*
 * Wait for requests in flight, store what formats keep in memory, and close. The image is closed
 * also on failure.
 */
int io_co_close(struct io *io, struct error *err);
/* Wait until a request may begin. Yields. */
void io_co_admit(const struct io *io, bool is_write, uint64_t bytes);
/* Free the text, and leave `o` empty. */
void io_opening_clear(struct io_opening *o);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* `tidemark io`: commands that read and write one image. Everything runs in coroutines of the main reactor. */
#ifndef TIDEMARK_CLI_IO_IO_H
#define TIDEMARK_CLI_IO_IO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "cli/cli.h"
#include "cli/image.h"
#include "co/sync.h"

/* What is written is stable when its command ends: one looks at an image with `io` to know what it holds. */
#define IO_CACHE_DEFAULT "writethrough"

/* How the image was opened, for reopen. All text is owned. */
struct io_opening {
    char *name; /* NULL: only options */
    char *format, *cache, *discard, *options;
    bool image_opts, read_only, force_share, overlay, copy_on_read, native_aio;
};

struct io {
    struct cli_disk disk;
    struct io_opening opening;
    struct co_group in_flight; /* aio_read and aio_write */
    bool misalign;             /* buffers are not aligned for O_DIRECT */
    bool quit;
    bool failed; /* a command failed: the exit status is 1 */
};

/* A command's arguments after its options were taken. */
struct io_args {
    bool set[128];          /* by letter */
    const char *value[128]; /* of options that have one */
    int argc;
    char **argv; /* the arguments that are no options */
};

#define IO_NEEDS_IMAGE 1u
#define IO_NEEDS_WRITE 2u

struct io_command {
    const char *name, *alias;
    const char *letters;    /* as getopt(3) has them; NULL: no options */
    int min_args, max_args; /* options counted; max -1: no limit */
    unsigned needs;
    const char *arguments; /* for help */
    const char *about;
    const char *help; /* may be NULL */
    /* 0, or -errno when it failed (the user has been told). */
    int (*co_run)(struct io *io, const struct io_command *command, struct io_args *args);
};

/* Tables in the order of names, that end with a NULL name. */
extern const struct io_command io_rw_commands[];
extern const struct io_command io_aio_commands[];
extern const struct io_command io_break_commands[];
extern const struct io_command io_image_commands[];
extern const struct io_command io_misc_commands[];

/* By name or alias; NULL if there is none. */
const struct io_command *io_find_command(const char *name);
/* Call `fn` for all commands in the order of their names. */
void io_for_each_command(void (*fn)(const struct io_command *command));
/* "name args -- about" on standard output. Returns -EINVAL. */
int io_usage(const struct io_command *command);
/* Run one line. */
void io_co_run_line(struct io *io, const char *line);
/* Open by io->opening. Returns 0 or -errno (told). */
int io_co_open(struct io *io);
/* Wait for what is in flight, store, close. Returns 0 or -errno (told). */
int io_co_close(struct io *io);
void io_opening_clear(struct io_opening *o);

/* --- shared by the reading and writing commands --------------------------------------------------- */

/* "64 KiB", "5.500 KiB", "12 bytes". `buf` gets at least 32 bytes. */
const char *io_size_text(double value, char *buf, size_t buf_size);
/* Sizes and lengths as arguments; -errno (told). */
int io_parse_size(const char *text, uint64_t *ret);
int io_parse_length(const char *text, uint64_t max, uint64_t *ret);
int io_parse_pattern(const char *text, int *ret);
/* Longest request. */
#define IO_LENGTH_MAX 2147483136u

/* The two lines of statistics, or one in machine-readable form. */
void io_report(const char *verb, int64_t began_ns, uint64_t offset, uint64_t asked, uint64_t done,
               bool machine);
void io_dump(const uint8_t *buffer, uint64_t offset, size_t size);
/* Memory of `size` bytes filled with `fill`; io_free() it. NULL if there is none (told). */
uint8_t *io_alloc(const struct io *io, size_t size, int fill);
void io_free(const struct io *io, uint8_t *buffer);
/* Whether the buffer holds the pattern only; tells the user if not. */
bool io_verify(const uint8_t *buffer, int pattern, uint64_t offset, size_t size);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the commands of `tidemark io` share: arguments, statistics and buffers. Functions print on
 * standard output, as part of a command's output. None yields.
 */
#ifndef TIDEMARK_CLI_IO_UTIL_H
#define TIDEMARK_CLI_IO_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli/io/command.h"

/* Longest request, in bytes. */
#define IO_LENGTH_MAX 2147483136u
/* Bytes that buffers have where no pattern is given. */
#define IO_READ_FILL 0xab
#define IO_WRITE_FILL 0xcd

/* Print "name args -- about". */
void io_print_command(const struct io_command *command);
/* The same, for a command with wrong arguments. Returns -EINVAL. */
int io_usage(const struct io_command *command);

/* "64 KiB", "5.500 KiB", "12 bytes". `buf` has at least 32 bytes. Returns it. */
const char *io_size_text(double value, char *buf, size_t buf_size);
/* Parse a size in bytes. -EINVAL or -ERANGE, and a sentence is printed. */
int io_parse_size(const char *text, uint64_t *ret_bytes);
/* The same for a length of at most `max` bytes. */
int io_parse_length(const char *text, uint64_t max, uint64_t *ret_bytes);
/*
 * Parse the length of one of several buffers; the ones before it have `before` bytes. Prints, and
 * returns -EINVAL, if the length or the sum is above IO_LENGTH_MAX.
 */
int io_parse_part(const char *text, uint64_t before, uint64_t *ret_bytes);
/* Parse a byte, 0 to 255. -EINVAL, and a sentence is printed. */
int io_parse_pattern(const char *text, int *ret_byte);
/* Parse a number that is not negative. -EINVAL, and a sentence is printed. */
int io_parse_number(const char *text, long *ret_number);

/*
 * Print the two lines of statistics of a request, or one line in machine-readable form. `began_ns`
 * is when it began, on the clock of the loop.
 */
void io_report(const char *verb, int64_t began_ns, uint64_t offset, uint64_t asked, uint64_t done,
               bool machine);
/* Print bytes as a table. `offset` is that of the first one. */
void io_dump(const uint8_t *buffer, uint64_t offset, size_t size);
/* Memory of `size` bytes filled with `fill`. NULL, with an error, if there is none. */
uint8_t *io_alloc(const struct io *io, size_t size, int fill, struct error *err);
/* Free memory of io_alloc(). NULL is fine. */
void io_free(const struct io *io, uint8_t *buffer);
/* Whether the buffer holds the pattern only; prints a sentence if not. */
bool io_verify(const uint8_t *buffer, int pattern, uint64_t offset, size_t size);

#endif

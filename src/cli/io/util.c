/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/io/util.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/time_units.h"
#include "cli/cli.h"
#include "loop/loop.h"

#define MISALIGN_OFFSET 16

void io_print_command(const struct io_command *c)
{
    printf("%s %s%s-- %s\n", c->name, c->arguments, *c->arguments ? " " : "", c->about);
}

int io_usage(const struct io_command *command)
{
    io_print_command(command);
    return -EINVAL;
}

const char *io_size_text(double value, char *buf, size_t buf_size)
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    int unit = -1;
    char number[400];
    char *zeroes;

    while (value >= 1024 && unit + 1 < (int)ARRAY_SIZE(units)) {
        value /= 1024;
        unit++;
    }
    snprintf(number, sizeof(number), unit < 0 ? "%f" : "%.3f", value);
    zeroes = strstr(number, ".000");
    if (zeroes) {
        *zeroes = '\0';
    }
    snprintf(buf, buf_size, "%s %s", number, unit < 0 ? "bytes" : units[unit]);
    return buf;
}

int io_parse_size(const char *text, uint64_t *ret_bytes)
{
    int r = cli_size(text, ret_bytes);

    if (r == -ERANGE) {
        printf("Parsing error: argument too large -- %s\n", text);
    } else if (r < 0) {
        printf("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- %s\n",
               text);
    }
    return r;
}

int io_parse_length(const char *text, uint64_t max, uint64_t *ret_bytes)
{
    int r = io_parse_size(text, ret_bytes);

    if (r == 0 && *ret_bytes > max) {
        printf("length cannot exceed %" PRIu64 ", given %s\n", max, text);
        r = -EINVAL;
    }
    return r;
}

int io_parse_part(const char *text, uint64_t before, uint64_t *ret_bytes)
{
    int r = io_parse_size(text, ret_bytes);

    if (r < 0) {
        return r;
    }
    if (*ret_bytes > IO_LENGTH_MAX) {
        printf("Argument '%s' exceeds maximum size %u\n", text, IO_LENGTH_MAX);
        return -EINVAL;
    }
    if (*ret_bytes > IO_LENGTH_MAX - before) {
        printf("The total number of bytes exceed the maximum size %u\n", IO_LENGTH_MAX);
        return -EINVAL;
    }
    return 0;
}

int io_parse_pattern(const char *text, int *ret_byte)
{
    char *end;
    long value;

    errno = 0;
    value = strtol(text, &end, 0);
    if (errno || end == text || *end || value < 0 || value > 255) {
        printf("%s is not a valid pattern byte\n", text);
        return -EINVAL;
    }
    *ret_byte = (int)value;
    return 0;
}

int io_parse_number(const char *text, long *ret_number)
{
    char *end;

    errno = 0;
    *ret_number = strtol(text, &end, 0);
    if (errno || end == text || *end || *ret_number < 0) {
        printf("%s is not a valid number\n", text);
        return -EINVAL;
    }
    return 0;
}

static void time_text(int64_t ns, bool machine, char *buf, size_t buf_size)
{
    unsigned hundredths = (unsigned)(ns / (NS_PER_SECOND / 100) % 100);
    unsigned seconds = (unsigned)(ns / NS_PER_SECOND);

    if (machine || seconds >= 60) {
        snprintf(buf, buf_size, "%u:%02u:%02u.%02u", seconds / 3600, seconds / 60 % 60,
                 seconds % 60, hundredths);
    } else {
        snprintf(buf, buf_size, "%02u.%02u sec", seconds, hundredths);
    }
}

void io_report(const char *verb, int64_t began_ns, uint64_t offset, uint64_t asked, uint64_t done,
               bool machine)
{
    int64_t ns = MAX(loop_now_ns() - began_ns, 1);
    double seconds = (double)ns / (double)NS_PER_SECOND;
    char taken[48], bytes[32], speed[32];

    time_text(ns, machine, taken, sizeof(taken));
    if (machine) {
        printf("%" PRIu64 ",1,%s,%.3f,%.3f\n", done, taken, (double)done / seconds, 1 / seconds);
        return;
    }
    printf("%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64 "\n", verb, done, asked, offset);
    printf("%s, 1 ops; %s (%s/sec and %.4f ops/sec)\n",
           io_size_text((double)done, bytes, sizeof(bytes)), taken,
           io_size_text((double)done / seconds, speed, sizeof(speed)), 1 / seconds);
}

void io_dump(const uint8_t *buffer, uint64_t offset, size_t size)
{
    for (size_t row = 0; row < size; row += 16) {
        size_t columns = MIN(size - row, 16);

        printf("%08" PRIx64 ":  ", offset + row);
        for (size_t i = 0; i < columns; i++) {
            printf("%02x ", buffer[row + i]);
        }
        printf(" ");
        for (size_t i = 0; i < columns; i++) {
            putchar(isalnum(buffer[row + i]) ? buffer[row + i] : '.');
        }
        printf("\n");
    }
}

uint8_t *io_alloc(const struct io *io, size_t size, int fill, struct error *err)
{
    size_t extra = io->misalign ? MISALIGN_OFFSET : 0;
    uint8_t *memory =
        aligned_alloc(CLI_BUFFER_ALIGNMENT, round_up(MAX(size + extra, 1), CLI_BUFFER_ALIGNMENT));

    if (!memory) {
        error_set(err, ENOMEM, "Out of memory for a buffer of %zu bytes", size);
        return NULL;
    }
    memset(memory + extra, fill, size);
    return memory + extra;
}

void io_free(const struct io *io, uint8_t *buffer)
{
    if (buffer) {
        free(buffer - (io->misalign ? MISALIGN_OFFSET : 0));
    }
}

bool io_verify(const uint8_t *buffer, int pattern, uint64_t offset, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (buffer[i] != pattern) {
            printf("Pattern verification failed at offset %" PRIu64 ", %zu bytes\n", offset, size);
            return false;
        }
    }
    return true;
}

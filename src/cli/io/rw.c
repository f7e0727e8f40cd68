/* SPDX-License-Identifier: Apache-2.0 */
/* Requests that the command waits for: read, write, readv, writev, discard. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/io/command.h"
#include "cli/io/util.h"
#include "loop/loop.h"

#define VECTORS_MAX 1024

/* Print a failure as output of the command. */
static int request_failed(const char *what, int r)
{
    printf("%s failed: %s\n", what, strerror(-r));
    return r;
}

/* Check a range for options that need whole sectors. */
static int check_sectors(uint64_t offset, uint64_t length)
{
    if (offset % 512) {
        printf("%" PRIu64 " is not a sector-aligned value for 'offset'\n", offset);
        return -EINVAL;
    }
    if (length % 512) {
        printf("%" PRIu64 " is not a sector-aligned value for 'count'\n", length);
        return -EINVAL;
    }
    return 0;
}

/* --- read ------------------------------------------------------------------------------------- */

struct read_request {
    uint64_t offset, length;
    bool verify;
    int pattern;
    uint64_t verify_from, verify_length;
};

static int parse_read(const struct io_command *command, const struct io_args *a,
                      struct read_request *q)
{
    q->verify = a->set['P'];
    if ((q->verify && io_parse_pattern(a->value['P'], &q->pattern) < 0) ||
        (a->set['l'] && io_parse_length(a->value['l'], IO_LENGTH_MAX, &q->verify_length) < 0) ||
        (a->set['s'] && io_parse_length(a->value['s'], IO_LENGTH_MAX, &q->verify_from) < 0)) {
        return -EINVAL;
    }
    if (a->argc != 2 || (!q->verify && (a->set['s'] || a->set['l']))) {
        return io_usage(command);
    }
    if (io_parse_size(a->argv[0], &q->offset) < 0 ||
        io_parse_length(a->argv[1], IO_LENGTH_MAX, &q->length) < 0) {
        return -EINVAL;
    }
    if (!a->set['l']) {
        q->verify_length = q->length > q->verify_from ? q->length - q->verify_from : 0;
    }
    if (q->verify &&
        (q->verify_from > q->length || q->verify_length > q->length - q->verify_from)) {
        printf("pattern verification range exceeds end of read data\n");
        return -EINVAL;
    }
    return a->set['b'] ? check_sectors(q->offset, q->length) : 0;
}

static int co_run_read(struct io *io, const struct io_command *command, struct io_args *a,
                       struct error *err)
{
    struct read_request q = {0};
    struct iovec vec;
    int64_t began;
    uint8_t *buffer;
    int result = 0;
    int r = parse_read(command, a, &q);

    if (r < 0) {
        return r;
    }
    buffer = io_alloc(io, q.length, IO_READ_FILL, err);
    if (!buffer) {
        return -ENOMEM;
    }
    began = loop_now_ns();
    io_co_admit(io, false, q.length);
    if (a->set['b']) {
        r = block_co_preadv_vmstate(io->disk.edge, q.offset, iov_from_buf(&vec, buffer, q.length));
    } else {
        r = block_co_pread(io->disk.edge, q.offset, buffer, q.length);
    }
    if (r < 0) {
        io_free(io, buffer);
        return request_failed("read", r);
    }
    if (q.verify &&
        !io_verify(buffer + q.verify_from, q.pattern, q.offset + q.verify_from, q.verify_length)) {
        result = -EINVAL;
    }
    if (!a->set['q']) {
        if (a->set['v']) {
            io_dump(buffer, q.offset, q.length);
        }
        io_report("read", began, q.offset, q.length, q.length, a->set['C']);
    }
    io_free(io, buffer);
    return result;
}

/* --- write ------------------------------------------------------------------------------------ */

/* Fill the buffer with the contents of a file, repeated. */
static int fill_from_file(const char *path, uint8_t *buffer, size_t size, struct error *err)
{
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t got = 0;

    if (fd < 0) {
        int r = -errno;

        fflush(stdout);
        fprintf(stderr, "%s: %s\n", path, strerror(-r));
        return r;
    }
    while (got < size) {
        ssize_t n = read(fd, buffer + got, size - got);

        if (n < 0) {
            return error_set_errno(err, errno, "Could not read '%s'", path);
        }
        if (n == 0) {
            break;
        }
        got += (size_t)n;
    }
    if (got == 0 && size > 0) {
        fflush(stdout);
        fprintf(stderr, "%s: file is empty\n", path);
        return -EINVAL;
    }
    for (size_t at = got; at < size; at++) {
        buffer[at] = buffer[at - got];
    }
    return 0;
}

struct write_request {
    uint64_t offset, length;
    int pattern;
    unsigned flags;
};

static int check_write_options(const struct io_args *a)
{
    const char *problem = NULL;

    if (a->set['b'] && a->set['z']) {
        problem = "-b and -z cannot be specified at the same time";
    } else if (a->set['f'] && (a->set['b'] || a->set['c'])) {
        problem = "-f and -b or -c cannot be specified at the same time";
    } else if (a->set['n'] && !a->set['z']) {
        problem = "-n requires -z to be specified";
    } else if (a->set['u'] && !a->set['z']) {
        problem = "-u requires -z to be specified";
    } else if (!!a->set['z'] + !!a->set['P'] + !!a->set['s'] > 1) {
        problem = "Only one of -z, -P, and -s can be specified at the same time";
    }
    if (problem) {
        printf("%s\n", problem);
        return -EINVAL;
    }
    return 0;
}

static int parse_write(struct io *io, const struct io_command *command, const struct io_args *a,
                       struct write_request *q)
{
    uint64_t max = a->set['n'] ? INT64_MAX : IO_LENGTH_MAX;
    int r;

    q->pattern = IO_WRITE_FILL;
    if (a->argc != 2) {
        return io_usage(command);
    }
    if ((a->set['P'] && io_parse_pattern(a->value['P'], &q->pattern) < 0) ||
        check_write_options(a) < 0 || io_parse_size(a->argv[0], &q->offset) < 0) {
        return -EINVAL;
    }
    r = io_parse_size(a->argv[1], &q->length);
    if (r < 0) {
        return r;
    }
    if (q->length > max) {
        printf("length cannot exceed %" PRIu64 "%s, given %s\n", max,
               a->set['n'] ? "" : " without -n", a->argv[1]);
        return -EINVAL;
    }
    q->flags = (a->set['f'] || io->disk.writethrough ? BLOCK_REQ_FUA : 0) |
               (a->set['n'] ? BLOCK_REQ_NO_FALLBACK : 0) | (a->set['u'] ? BLOCK_REQ_MAY_UNMAP : 0) |
               (a->set['c'] ? BLOCK_REQ_COMPRESSED : 0);
    if (a->set['b'] || a->set['c']) {
        r = check_sectors(q->offset, q->length);
    }
    return r;
}

static bool can_compress(struct block_node *node)
{
    return block_node_traits(block_node_skip_filters(node)) & BLOCK_DRIVER_COMPRESSES;
}

static int co_run_write(struct io *io, const struct io_command *command, struct io_args *a,
                        struct error *err)
{
    struct write_request q = {0};
    struct iovec vec;
    uint8_t *buffer = NULL;
    int64_t began;
    int r = parse_write(io, command, a, &q);

    if (r == 0 && !a->set['z']) {
        buffer = io_alloc(io, q.length, q.pattern, err);
        r = buffer ? 0 : -ENOMEM;
        if (r == 0 && a->set['s']) {
            r = fill_from_file(a->value['s'], buffer, q.length, err);
        }
    }
    if (r < 0) {
        io_free(io, buffer);
        return r;
    }
    began = loop_now_ns();
    io_co_admit(io, true, q.length);
    if (a->set['z']) {
        r = block_co_write_zeroes(io->disk.edge, q.offset, q.length,
                                  q.flags & ~BLOCK_REQ_COMPRESSED);
    } else if (a->set['b']) {
        r = block_co_pwritev_vmstate(io->disk.edge, q.offset, iov_from_buf(&vec, buffer, q.length));
        r = r == 0 && io->disk.writethrough ? block_co_flush(io->disk.edge) : r;
    } else if (a->set['c'] && !can_compress(io->disk.node)) {
        r = -ENOTSUP;
    } else {
        r = block_co_pwrite(io->disk.edge, q.offset, buffer, q.length, q.flags);
    }
    io_free(io, buffer);
    if (r < 0) {
        return request_failed("write", r);
    }
    if (!a->set['q']) {
        io_report("wrote", began, q.offset, q.length, q.length, a->set['C']);
    }
    return 0;
}

/* --- readv, writev ---------------------------------------------------------------------------- */

struct vector {
    uint64_t offset;
    size_t size;
    uint8_t *buffer;
    struct iovec *vec;
    struct iov iov;
};

static void vector_clear(const struct io *io, struct vector *v)
{
    io_free(io, v->buffer);
    free(v->vec);
}

/* Parse "OFFSET LEN [LEN...]", and make the buffers. The caller clears `v`. */
static int parse_vector(const struct io *io, const struct io_command *command,
                        const struct io_args *a, int fill, struct vector *v, struct error *err)
{
    int count = a->argc - 1;

    if (count < 1) {
        return io_usage(command);
    }
    if (count > VECTORS_MAX) {
        printf("too many vectors: at most %d\n", VECTORS_MAX);
        return -EINVAL;
    }
    if (io_parse_size(a->argv[0], &v->offset) < 0) {
        return -EINVAL;
    }
    v->vec = calloc((size_t)count, sizeof(*v->vec));
    if (!v->vec) {
        return error_out_of_memory(err);
    }
    for (int i = 0; i < count; i++) {
        uint64_t length;

        if (io_parse_part(a->argv[i + 1], v->size, &length) < 0) {
            return -EINVAL;
        }
        v->vec[i].iov_len = length;
        v->size += length;
    }
    v->buffer = io_alloc(io, v->size, fill, err);
    if (!v->buffer) {
        return -ENOMEM;
    }
    for (size_t i = 0, at = 0; i < (size_t)count; at += v->vec[i++].iov_len) {
        v->vec[i].iov_base = v->buffer + at;
    }
    v->iov = (struct iov){.vec = v->vec, .count = count, .size = v->size};
    return 0;
}

static int co_run_readv(struct io *io, const struct io_command *command, struct io_args *a,
                        struct error *err)
{
    struct vector v = {0};
    int pattern = 0;
    int64_t began;
    int r = a->set['P'] ? io_parse_pattern(a->value['P'], &pattern) : 0;

    UNLESS_FAILED(r, parse_vector(io, command, a, IO_READ_FILL, &v, err));
    if (r < 0) {
        vector_clear(io, &v);
        return r;
    }
    began = loop_now_ns();
    io_co_admit(io, false, v.iov.size);
    r = block_co_preadv(io->disk.edge, v.offset, v.iov, 0);
    if (r < 0) {
        vector_clear(io, &v);
        return request_failed("readv", r);
    }
    if (a->set['P'] && !io_verify(v.buffer, pattern, v.offset, v.size)) {
        r = -EINVAL;
    }
    if (!a->set['q']) {
        if (a->set['v']) {
            io_dump(v.buffer, v.offset, v.size);
        }
        io_report("read", began, v.offset, v.size, v.size, a->set['C']);
    }
    vector_clear(io, &v);
    return r;
}

static int co_run_writev(struct io *io, const struct io_command *command, struct io_args *a,
                         struct error *err)
{
    struct vector v = {0};
    int pattern = IO_WRITE_FILL;
    int64_t began;
    int r = a->set['P'] ? io_parse_pattern(a->value['P'], &pattern) : 0;

    UNLESS_FAILED(r, parse_vector(io, command, a, pattern, &v, err));
    if (r < 0) {
        vector_clear(io, &v);
        return r;
    }
    began = loop_now_ns();
    io_co_admit(io, true, v.iov.size);
    r = block_co_pwritev(io->disk.edge, v.offset, v.iov,
                         a->set['f'] || io->disk.writethrough ? BLOCK_REQ_FUA : 0);
    if (r < 0) {
        request_failed("writev", r);
    } else if (!a->set['q']) {
        io_report("wrote", began, v.offset, v.size, v.size, a->set['C']);
    }
    vector_clear(io, &v);
    return r;
}

/* --- discard ---------------------------------------------------------------------------------- */

static int co_run_discard(struct io *io, const struct io_command *command, struct io_args *a,
                          struct error *err)
{
    uint64_t offset, length;
    int64_t began;
    int r;

    if (a->argc != 2) {
        return io_usage(command);
    }
    if (io_parse_size(a->argv[0], &offset) < 0 ||
        io_parse_length(a->argv[1], IO_LENGTH_MAX, &length) < 0) {
        return -EINVAL;
    }
    began = loop_now_ns();
    io_co_admit(io, true, length);
    r = block_co_discard(io->disk.edge, offset, length);
    if (r < 0) {
        return request_failed("discard", r);
    }
    if (!a->set['q']) {
        io_report("discard", began, offset, length, length, a->set['C']);
    }
    return 0;
}

const struct io_command io_rw_commands[] = {
    {"discard", "d", "Cq", 2, -1, IO_NEEDS_IMAGE | IO_NEEDS_WRITE, "[-Cq] off len",
     "discards a number of bytes at a specified offset",
     "\n Tells the image that the contents of an area do not matter any more.\n"
     "\n Example:\n 'discard 512 1k' - discards 1 KiB at byte 512\n"
     "\n -C, -- report statistics in machine-readable form\n"
     " -q, -- quiet: no statistics\n",
     co_run_discard},
    {"read", "r", "abCl:pP:qrs:v", 2, -1, IO_NEEDS_IMAGE,
     "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
     "reads a number of bytes at a specified offset",
     "\n Example:\n 'read -v 512 1k' - reads 1 KiB at byte 512 and shows it\n"
     "\n -b, -- read from the VM state\n"
     " -C, -- report statistics in machine-readable form\n"
     " -l, -- with -P: how many bytes to verify\n"
     " -p, -- accepted without effect\n"
     " -P, -- verify that all bytes are this one\n"
     " -q, -- quiet: no statistics\n"
     " -r, -- accepted without effect\n"
     " -s, -- with -P: verify from this byte on\n"
     " -v, -- show the bytes\n",
     co_run_read},
    {"readv", "rv", "CP:qrv", 2, -1, IO_NEEDS_IMAGE, "[-Cqrv] [-P pattern] off len [len..]",
     "reads a number of bytes at a specified offset",
     "\n Reads one area into several buffers.\n"
     "\n Example:\n 'readv -v 512 1k 1k' - reads 2 KiB at byte 512 and shows them\n"
     "\n -C, -- report statistics in machine-readable form\n"
     " -P, -- verify that all bytes are this one\n"
     " -q, -- quiet: no statistics\n"
     " -r, -- accepted without effect\n"
     " -v, -- show the bytes\n",
     co_run_readv},
    {"write", "w", "bcCfnpP:qrs:uz", 2, -1, IO_NEEDS_IMAGE | IO_NEEDS_WRITE,
     "[-bcCfnqruz] [-P pattern | -s source_file] off len",
     "writes a number of bytes at a specified offset",
     "\n Writes a pattern, 0xcd if none is given.\n"
     "\n Example:\n 'write -P 7 512 1k' - writes 1 KiB of sevens at byte 512\n"
     "\n -b, -- write to the VM state\n"
     " -c, -- store compressed\n"
     " -C, -- report statistics in machine-readable form\n"
     " -f, -- on stable storage when it returns (force unit access)\n"
     " -n, -- with -z: fail if zeroes would have to be written as data\n"
     " -p, -- accepted without effect\n"
     " -P, -- the byte to write\n"
     " -q, -- quiet: no statistics\n"
     " -r, -- accepted without effect\n"
     " -s, -- write the contents of a file, repeated\n"
     " -u, -- with -z: space may be freed\n"
     " -z, -- write zeroes without sending them\n",
     co_run_write},
    {"writev", "wv", "CfP:qr", 2, -1, IO_NEEDS_IMAGE | IO_NEEDS_WRITE,
     "[-Cfqr] [-P pattern] off len [len..]", "writes a number of bytes at a specified offset",
     "\n Writes one area from several buffers.\n"
     "\n Example:\n 'writev 512 1k 1k' - writes 2 KiB at byte 512\n"
     "\n -C, -- report statistics in machine-readable form\n"
     " -f, -- on stable storage when it returns (force unit access)\n"
     " -P, -- the byte to write\n"
     " -q, -- quiet: no statistics\n"
     " -r, -- accepted without effect\n",
     co_run_writev},
    {0},
};

/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/file_copy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/fd_io.h"
#include "base/iov.h"
#include "base/sha256.h"
#include "base/size.h"
#include "loop/loop.h"

#define PIECE_SIZE (1024ul * 1024)

#define UNIT_SIZE 4096ul      /* holes are as large */
#define SLICE_SIZE (16 * MiB) /* between two reports of progress */

struct copy_job {
    const struct file_copy *copy;
    uint64_t kept; /* bytes at the begin of `to` that are read instead of written */
    uint64_t done, until;
    uint64_t written;
    struct sha256 *sha;
    char *buf;
    struct error *err;
};

static int read_piece(int fd, const char *shown, char *buf, size_t size, uint64_t offset,
                      struct error *err)
{
    ssize_t n = fd_read_at(fd, buf, size, offset);

    if (n < 0) {
        return error_set_errno(err, (int)-n, "Could not read '%s'", shown);
    }
    return (size_t)n < size ? error_set(err, EBADMSG, "'%s' was cut short", shown) : 0;
}

static int fail_to_write(struct copy_job *job, int r)
{
    return error_set_errno(job->err, -r, "Could not write '%s'", job->copy->to_shown);
}

/* What is there already. */
static int read_kept(struct copy_job *job, size_t size)
{
    const struct file_copy *copy = job->copy;
    int r;

    if (!copy->target) {
        return read_piece(copy->to, copy->to_shown, job->buf, size, job->done, job->err);
    }
    r = copy->target->read(copy->target_arg, job->buf, size, job->done);
    return r < 0 ? error_set_errno(job->err, -r, "Could not read '%s'", copy->to_shown) : 0;
}

/* Of a file, what is not zero. */
static int write_units(struct copy_job *job, const char *buf, size_t size)
{
    bool any = false;
    int r = 0;

    for (size_t at = 0, end; r == 0 && at < size; at = end) {
        bool zero = buffer_is_zero(buf + at, MIN(UNIT_SIZE, size - at));

        for (end = at + UNIT_SIZE;
             end < size && buffer_is_zero(buf + end, MIN(UNIT_SIZE, size - end)) == zero;
             end += UNIT_SIZE) {
        }
        end = MIN(end, size);
        if (!zero) {
            any = true;
            r = fd_write_at(job->copy->to, buf + at, end - at, job->done + at);
        }
    }
    job->written += r == 0 && any ? size : 0;
    return r < 0 ? fail_to_write(job, r) : 0;
}

static int write_piece(struct copy_job *job, const char *buf, size_t size)
{
    const struct file_copy *copy = job->copy;
    int r;

    if (copy->target) {
        r = copy->target->write(copy->target_arg, buf, size, job->done);
        job->written += size;
        return r < 0 ? fail_to_write(job, r) : 0;
    }
    return write_units(job, buf, size);
}

static int copy_slice(void *arg)
{
    struct copy_job *job = arg;
    const struct file_copy *copy = job->copy;
    int r = 0;

    while (r == 0 && job->done < job->until) {
        bool kept = job->done < job->kept;
        size_t n = (size_t)MIN((kept ? job->kept : job->until) - job->done, PIECE_SIZE);

        if (copy->stop && *copy->stop) {
            return error_set(job->err, EINTR, "Stopped while copying '%s'", copy->from_shown);
        }
        r = kept ? read_kept(job, n)
                 : read_piece(copy->from, copy->from_shown, job->buf, n, job->done, job->err);
        UNLESS_FAILED(r, kept ? 0 : write_piece(job, job->buf, n));
        if (r == 0 && sha256_add(job->sha, job->buf, n) < 0) {
            r = error_set(job->err, EIO, "SHA-256 of '%s' failed", copy->from_shown);
        }
        job->done += n;
    }
    return r;
}

static int set_size(const struct file_copy *copy, uint64_t size)
{
    if (copy->target) {
        return copy->target->set_size(copy->target_arg, size);
    }
    return ftruncate(copy->to, (off_t)size) < 0 ? -errno : 0;
}

/* Whether the file is right; if so, it is stable as well. */
static int finish_copy(void *arg)
{
    struct copy_job *job = arg;
    const struct file_copy *copy = job->copy;
    uint8_t digest[SHA256_SIZE];
    char hex[SHA256_HEX_SIZE];
    int r;

    if (sha256_finish(job->sha, digest) < 0) {
        return error_set(job->err, EIO, "SHA-256 of '%s' failed", copy->from_shown);
    }
    sha256_to_hex(digest, hex);
    if (strcmp(hex, copy->sha256) != 0) {
        return error_set(job->err, EBADMSG,
                         "'%s' was changed: its SHA-256 is not that of the manifest",
                         copy->from_shown);
    }
    r = set_size(copy, copy->size);
    if (r == 0 && copy->target) {
        r = copy->target->sync(copy->target_arg);
    } else if (r == 0 && fsync(copy->to) < 0) {
        r = -errno;
    }
    return r < 0 ? fail_to_write(job, r) : 0;
}

/* Copy from the begin. What was counted as progress before stays counted. */
static int co_copy_file_data(struct copy_job *job, uint64_t *counted)
{
    const struct file_copy *copy = job->copy;
    int r = 0;

    job->done = 0;
    job->sha = sha256_new();
    if (!job->sha) {
        return error_out_of_memory(job->err);
    }
    while (r == 0 && job->done < copy->size) {
        job->until = MIN(job->done + SLICE_SIZE, copy->size);
        r = loop_co_offload(copy_slice, job);
        if (copy->progress && job->done > *counted) {
            progress_add(copy->progress, job->done - *counted);
            *counted = job->done;
        }
    }
    UNLESS_FAILED(r, loop_co_offload(finish_copy, job));
    sha256_free(job->sha);
    return r;
}

static int get_file_size(const struct file_copy *copy, uint64_t *ret_size)
{
    struct stat st;

    if (copy->target) {
        return copy->target->get_size(copy->target_arg, ret_size);
    }
    if (fstat(copy->to, &st) < 0) {
        return -errno;
    }
    *ret_size = (uint64_t)st.st_size;
    return 0;
}

static int check_file_sizes(void *arg)
{
    struct copy_job *job = arg;
    const struct file_copy *copy = job->copy;
    struct stat from;
    uint64_t there = 0;
    int r = get_file_size(copy, &there);

    if (r < 0) {
        return error_set_errno(job->err, -r, "Could not inspect '%s'", copy->to_shown);
    }
    if (fstat(copy->from, &from) < 0) {
        return error_set_errno(job->err, errno, "Could not inspect '%s'", copy->from_shown);
    }
    if ((uint64_t)from.st_size != copy->size) {
        return error_set(
            job->err, EBADMSG, "'%s' was changed: it has %llu bytes, the manifest says %llu",
            copy->from_shown, (unsigned long long)from.st_size, (unsigned long long)copy->size);
    }
    job->kept = MIN(there, copy->size);
    return 0;
}

static int empty_target(void *arg)
{
    struct copy_job *job = arg;
    int r = set_size(job->copy, 0);

    return r < 0 ? fail_to_write(job, r) : 0;
}

int file_copy_co_run(const struct file_copy *copy, uint64_t *ret_written, struct error *err)
{
    struct copy_job job = {.copy = copy, .buf = malloc(PIECE_SIZE), .err = err};
    uint64_t counted = 0;
    int r = job.buf ? loop_co_offload(check_file_sizes, &job) : error_out_of_memory(err);

    UNLESS_FAILED(r, co_copy_file_data(&job, &counted));
    if (r == -EBADMSG && job.kept) {
        /* Perhaps what was there is at fault. */
        error_clear(err);
        job.kept = 0;
        r = loop_co_offload(empty_target, &job);
        UNLESS_FAILED(r, co_copy_file_data(&job, &counted));
    }
    free(job.buf);
    *ret_written = job.written;
    return r;
}

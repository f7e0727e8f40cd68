/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/digest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/sha256.h"
#include "loop/loop.h"

#define READ_SIZE (1024ul * 1024)

struct file_job {
    int fd;
    const char *shown;
    char *ret_hex;
    uint64_t size;
    volatile sig_atomic_t *stop;
    struct error *err;
};

static int hash_fd(struct sha256 *sha, struct file_job *job)
{
    char *buf AUTO_FREE = malloc(READ_SIZE);
    uint8_t digest[SHA256_SIZE];

    if (!buf) {
        return error_set(job->err, ENOMEM, "Out of memory while reading '%s'", job->shown);
    }
    for (;;) {
        ssize_t n = pread(job->fd, buf, READ_SIZE, (off_t)job->size);

        if (job->stop && *job->stop) {
            return error_set(job->err, EINTR, "Stopped while reading '%s'", job->shown);
        }
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return error_set_errno(job->err, errno, "Could not read '%s'", job->shown);
        }
        if (n == 0) {
            break;
        }
        job->size += (uint64_t)n;
        if (sha256_add(sha, buf, (size_t)n) < 0) {
            return error_set(job->err, EIO, "SHA-256 of '%s' failed", job->shown);
        }
    }
    if (sha256_finish(sha, digest) < 0) {
        return error_set(job->err, EIO, "SHA-256 of '%s' failed", job->shown);
    }
    sha256_to_hex(digest, job->ret_hex);
    return 0;
}

static int file_job_run(void *arg)
{
    struct file_job *job = arg;
    struct sha256 *sha = sha256_new();
    int r;

    if (!sha) {
        return error_set(job->err, ENOMEM, "Out of memory while reading '%s'", job->shown);
    }
    r = hash_fd(sha, job);
    sha256_free(sha);
    return r;
}

int digest_co_file(int fd, const char *shown, volatile sig_atomic_t *stop,
                   char ret_hex[static SHA256_HEX_SIZE], uint64_t *ret_size, struct error *err)
{
    struct file_job job = {.fd = fd, .shown = shown, .ret_hex = ret_hex, .stop = stop, .err = err};
    int r = loop_co_offload(file_job_run, &job);

    if (r == 0 && ret_size) {
        *ret_size = job.size;
    }
    return r;
}

/* The sync or the digest of a file. */
struct completion_job {
    struct file_job file;
    int (*run)(void *file);
};

static int run_completion_job(void *arg)
{
    struct completion_job *job = arg;

    return job->run(&job->file);
}

static int sync_file_job_run(void *arg)
{
    const struct file_job *job = arg;

    return fsync(job->fd) < 0 ? error_set_errno(job->err, errno, "Could not write '%s'", job->shown)
                              : 0;
}

int digest_co_complete(int fd, const char *shown, volatile sig_atomic_t *stop,
                       char ret_hex[static SHA256_HEX_SIZE], uint64_t *ret_size, uint64_t *stored,
                       struct error *err)
{
    ERROR_AUTO(sync_err);
    const struct file_job file = {.fd = fd, .shown = shown, .ret_hex = ret_hex, .stop = stop};
    struct completion_job jobs[] = {{file, file_job_run}, {file, sync_file_job_run}};
    struct stat st;
    int r;

    jobs[0].file.err = err;
    jobs[1].file.err = &sync_err;
    r = loop_co_offload_all(run_completion_job, jobs, sizeof(jobs[0]), ARRAY_SIZE(jobs));
    if (error_is_set(&sync_err)) {
        error_clear(err);
        error_move(err, &sync_err);
    }
    if (r == 0 && fstat(fd, &st) < 0) {
        r = error_set_errno(err, errno, "Could not inspect '%s'", shown);
    }
    if (r == 0) {
        *ret_size = jobs[0].file.size;
        *stored += (uint64_t)st.st_blocks * 512;
    }
    return r;
}

int digest_co_expect(int fd, const char *shown, uint64_t size, const char *sha256,
                     volatile sig_atomic_t *stop, struct error *err)
{
    char actual[SHA256_HEX_SIZE];
    struct stat st;
    int r;

    if (fstat(fd, &st) < 0) {
        return error_set_errno(err, errno, "Could not inspect '%s'", shown);
    }
    if ((uint64_t)st.st_size != size) {
        return error_set(err, EBADMSG,
                         "'%s' was changed: it has %llu bytes, the manifest says %llu", shown,
                         (unsigned long long)st.st_size, (unsigned long long)size);
    }
    r = digest_co_file(fd, shown, stop, actual, NULL, err);
    if (r == 0 && strcmp(actual, sha256) != 0) {
        r = error_set(err, EBADMSG, "'%s' was changed: its SHA-256 is not that of the manifest",
                      shown);
    }
    return r;
}

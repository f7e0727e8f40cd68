/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "backup/restore_internal.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/sha256.h"
#include "loop/loop.h"

#define ZERO_PIECE 65536u

struct stream {
    const struct restore_options *options;
    bool sparse;     /* an empty file: zeroes are left out */
    off_t begin;     /* of the disk in the file, if `sparse` */
    uint64_t offset; /* in the disk, of the next byte */
    uint64_t written;
    struct progress progress;
};

/* --- writing: in the offload pool, since a pipe may be full --- */

struct stream_piece {
    const uint8_t *data; /* NULL: zeroes */
    uint64_t size;
};

static int write_all(const uint8_t *data, uint64_t size)
{
    while (size > 0) {
        ssize_t n = write(STDOUT_FILENO, data, size);

        if (n < 0 && errno != EINTR) {
            return -errno;
        }
        if (n > 0) {
            data += n;
            size -= (uint64_t)n;
        }
    }
    return 0;
}

static int write_stream_piece(void *arg)
{
    static const uint8_t zeroes[ZERO_PIECE];
    const struct stream_piece *p = arg;
    int r = p->data ? write_all(p->data, p->size) : 0;

    for (uint64_t done = 0; r == 0 && !p->data && done < p->size; done += ZERO_PIECE) {
        r = write_all(zeroes, MIN(p->size - done, ZERO_PIECE));
    }
    return r;
}

static int co_stream_sink(void *arg, uint64_t offset, uint8_t *data, uint64_t size,
                          struct error *err)
{
    struct stream *s = arg;
    struct stream_piece piece = {.data = data, .size = size};
    int r;

    if (!data && s->sparse) {
        r = lseek(STDOUT_FILENO, s->begin + (off_t)(offset + size), SEEK_SET) < 0 ? -errno : 0;
    } else {
        r = loop_co_offload(write_stream_piece, &piece);
    }
    s->written += data ? size : 0;
    return r < 0 ? error_set_errno(err, -r, "Could not write to standard output") : 0;
}

/* --- the target --- */

int restore_check_stream(const struct restore_options *o, struct error *err)
{
    if (strcmp(o->format, "raw") != 0) {
        return error_set(err, EINVAL, "Only the format raw can go to standard output");
    }
    if (o->node) {
        return error_set(err, EINVAL, "Standard output can't become a node of a daemon");
    }
    if (isatty(STDOUT_FILENO)) {
        return error_set(err, EINVAL, "Standard output is a terminal, which has no use for a disk");
    }
    return 0;
}

/* Whether all that comes after the position of standard output is a hole, once it is written. */
static bool is_empty_from_here(off_t *ret_begin)
{
    int flags = fcntl(STDOUT_FILENO, F_GETFL);
    struct stat st;

    *ret_begin = lseek(STDOUT_FILENO, 0, SEEK_CUR);
    return flags >= 0 && !(flags & O_APPEND) && fstat(STDOUT_FILENO, &st) == 0 &&
           S_ISREG(st.st_mode) && *ret_begin >= 0 && st.st_size <= *ret_begin;
}

/*
 * A file or device reports with this call what it could not write; pipes and sockets have no such
 * call.
 */
static int sync_stream(void *arg)
{
    (void)arg;
    return fsync(STDOUT_FILENO) < 0 && errno != EINVAL && errno != EROFS ? -errno : 0;
}

int restore_co_stream(const struct restore_options *options, struct chain *chain,
                      uint64_t *ret_written, struct error *err)
{
    struct stream s = {.options = options};
    struct chain_reader reader = {.chain = chain,
                                  .co_sink = co_stream_sink,
                                  .arg = &s,
                                  .ordered = true,
                                  .progress = &s.progress,
                                  .stop = options->stop};
    int r;

    s.sparse = is_empty_from_here(&s.begin);
    progress_begin(&s.progress, stderr, options->progress, "restore", chain_data_bytes(chain));
    r = chain_co_read(&reader, err);
    progress_end(&s.progress, r == 0);
    if (r == 0 && s.sparse && ftruncate(STDOUT_FILENO, s.begin + (off_t)chain->disk_size) < 0) {
        r = error_set_errno(err, errno, "Could not write to standard output");
    }
    if (r == 0) {
        r = loop_co_offload(sync_stream, NULL);
        if (r < 0) {
            error_set_errno(err, -r, "Could not write to standard output");
        }
    }
    *ret_written = s.written;
    return r;
}

/* --- the claim --- */

/*
 * Its name stands for the directory and the name in it, whatever way leads there; what is no file
 * stands for itself.
 */
static int claim_key(const char *target, uint8_t ret_digest[static SHA256_SIZE])
{
    const char *slash = strrchr(target, '/');
    char *dir AUTO_FREE = slash ? strndup(target, (size_t)(slash - target) + 1) : strdup("./");
    char *key AUTO_FREE = NULL;
    struct stat st;

    if (!dir) {
        return -ENOMEM;
    }
    if (stat(dir, &st) == 0) {
        if (asprintf(&key, "%llx:%llx:%s", (unsigned long long)st.st_dev,
                     (unsigned long long)st.st_ino, slash ? slash + 1 : target) < 0) {
            key = NULL;
        }
    } else {
        key = strdup(target);
    }
    return key ? sha256_of_buffer(key, strlen(key), ret_digest) : -ENOMEM;
}

/* A socket without a file: the kernel lets one process have its name, and forgets it at its end. */
int restore_claim_target(const char *target, int *ret_claim, struct error *err)
{
    static const char prefix[] = "\0tidemark-restore-";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    uint8_t digest[SHA256_SIZE];
    char hex[SHA256_HEX_SIZE];
    int fd AUTO_CLOSE = -1;

    *ret_claim = -1;
    if (claim_key(target, digest) < 0) {
        return 0;
    }
    sha256_to_hex(digest, hex);
    memcpy(address.sun_path, prefix, sizeof(prefix) - 1);
    memcpy(address.sun_path + sizeof(prefix) - 1, hex, sizeof(hex) - 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return 0;
    }
    if (bind(fd, (struct sockaddr *)&address,
             (socklen_t)(offsetof(struct sockaddr_un, sun_path) + sizeof(prefix) + sizeof(hex) -
                         2)) < 0 &&
        errno == EADDRINUSE) {
        error_set(err, EBUSY, "Another restore to '%s' is under way", target);
        return -EBUSY;
    }
    *ret_claim = TAKE_FD(fd);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/strbuf.h"

#define FILE_MODE 0600
#define DIR_MODE 0700

char *files_join(const char *dir, const char *name)
{
    char *s;

    return asprintf(&s, "%s/%s", dir, name) < 0 ? NULL : s;
}

/* --- directories --- */

int files_open_dir(const char *path, struct error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    return fd < 0 ? error_set_errno(err, errno, "Could not open directory '%s'", path) : fd;
}

int files_open_dir_at(int dir, const char *name, const char *shown, struct error *err)
{
    int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

    return fd < 0 ? error_set_errno(err, errno, "Could not open directory '%s'", shown) : fd;
}

int files_make_dir_at(int dir, const char *name, const char *shown, struct error *err)
{
    if (mkdirat(dir, name, DIR_MODE) < 0) {
        return error_set_errno(err, errno, "Could not make directory '%s'", shown);
    }
    return files_open_dir_at(dir, name, shown, err);
}

/* --- files --- */

static int open_regular(int dir, const char *name, int flags, const char *shown, struct error *err)
{
    /* O_NONBLOCK: the open of a FIFO must not block, before the FIFO is refused. */
    int fd AUTO_CLOSE =
        openat(dir, name, flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, FILE_MODE);
    struct stat st;

    if (fd < 0 && errno == ELOOP) {
        return error_set(err, ELOOP, "'%s' is a symbolic link, which is not followed", shown);
    }
    if (fd < 0 || fstat(fd, &st) < 0) {
        return error_set_errno(err, errno, "Could not open '%s'", shown);
    }
    if (!S_ISREG(st.st_mode)) {
        return error_set(err, EINVAL, "'%s' is not a regular file", shown);
    }
    return TAKE_FD(fd);
}

int files_open_at(int dir, const char *name, const char *shown, struct error *err)
{
    return open_regular(dir, name, O_RDONLY, shown, err);
}

int files_reopen_at(int dir, const char *name, const char *shown, struct error *err)
{
    return open_regular(dir, name, O_RDWR | O_CREAT, shown, err);
}

int files_create_at(int dir, const char *name, const char *shown, struct error *err)
{
    int fd = openat(dir, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, FILE_MODE);

    return fd < 0 ? error_set_errno(err, errno, "Could not create '%s'", shown) : fd;
}

int files_create_unnamed_at(int dir)
{
    int fd = openat(dir, ".", O_RDWR | O_TMPFILE | O_CLOEXEC, FILE_MODE);

    return fd < 0 ? -errno : fd;
}

int files_read_at(int dir, const char *name, size_t max, const char *shown, char **ret_text,
                  size_t *ret_size, struct error *err)
{
    int fd AUTO_CLOSE = files_open_at(dir, name, shown, err);
    char *buf AUTO_FREE = NULL;
    size_t size = 0;

    if (fd < 0) {
        return fd;
    }
    buf = malloc(max + 1);
    if (!buf) {
        return error_out_of_memory(err);
    }
    while (size <= max) {
        ssize_t n = read(fd, buf + size, max + 1 - size);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return error_set_errno(err, errno, "Could not read '%s'", shown);
        }
        if (n == 0) {
            buf[size] = '\0';
            *ret_text = TAKE_PTR(buf);
            *ret_size = size;
            return 0;
        }
        size += (size_t)n;
    }
    return error_set(err, EINVAL, "'%s' is longer than %zu bytes", shown, max);
}

int files_write_at(int dir, const char *name, const char *text, const char *shown,
                   struct error *err)
{
    return files_write_bytes_at(dir, name, text, strlen(text), shown, err);
}

static int put_bytes(int fd, const void *data, size_t size, const char *shown, struct error *err)
{
    const char *bytes = data;
    size_t done = 0;

    while (done < size) {
        ssize_t n = write(fd, bytes + done, size - done);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return error_set_errno(err, n < 0 ? errno : EIO, "Could not write '%s'", shown);
        }
        done += (size_t)n;
    }
    return 0;
}

int files_write_bytes_at(int dir, const char *name, const void *data, size_t size,
                         const char *shown, struct error *err)
{
    int fd AUTO_CLOSE = files_create_at(dir, name, shown, err);
    int r = fd < 0 ? fd : put_bytes(fd, data, size, shown, err);

    return r < 0 ? r : files_sync(fd, shown, err);
}

int files_write_temporary_at(int dir, const char *name, const void *data, size_t size,
                             const char *shown, struct error *err)
{
    int fd AUTO_CLOSE = files_create_at(dir, name, shown, err);
    int r = fd < 0 ? fd : put_bytes(fd, data, size, shown, err);

    /* On some file systems this is where a full disk is noticed. */
    if (r == 0 && close(TAKE_FD(fd)) < 0) {
        r = error_set_errno(err, errno, "Could not write '%s'", shown);
    }
    return r;
}

int files_check_size(int fd, const char *shown, uint64_t expected, struct error *err)
{
    struct stat st;

    if (fstat(fd, &st) < 0) {
        return error_set_errno(err, errno, "Could not inspect '%s'", shown);
    }
    if ((uint64_t)st.st_size != expected) {
        return error_set(err, EBADMSG,
                         "'%s' was changed: it has %lld bytes, the manifest says %" PRIu64, shown,
                         (long long)st.st_size, expected);
    }
    return 0;
}

int files_sync(int fd, const char *shown, struct error *err)
{
    return fsync(fd) < 0 ? error_set_errno(err, errno, "Could not make '%s' stable", shown) : 0;
}

int files_sync_parent(const char *path, struct error *err)
{
    char *real AUTO_FREE = realpath(path, NULL);
    const char *parent = real ? dirname(real) : NULL;
    int fd AUTO_CLOSE = -1;

    if (!parent) {
        return error_set_errno(err, errno, "Could not open directory '%s'", path);
    }
    fd = files_open_dir(parent, err);
    if (fd == -EACCES) {
        error_clear(err);
        return 0;
    }
    return fd < 0 ? fd : files_sync(fd, parent, err);
}

/* --- removal --- */

void files_remove_at(int dir, const char *name)
{
    int fd;
    DIR *list;
    struct dirent *d;

    if (unlinkat(dir, name, 0) == 0) {
        return;
    }
    fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    list = fd < 0 ? NULL : fdopendir(fd);
    if (!list) {
        if (fd >= 0) {
            close(fd);
        }
        return;
    }
    while ((d = readdir(list)) != NULL) {
        unlinkat(fd, d->d_name, 0);
    }
    closedir(list);
    unlinkat(dir, name, AT_REMOVEDIR);
}

/* --- names --- */

void files_self_path(int fd, char ret_text[static FILES_SELF_SIZE])
{
    snprintf(ret_text, FILES_SELF_SIZE, "/proc/self/fd/%d", fd);
}

/*
 * Replace `old` by `new` everywhere in *text, which is malloc'ed (or NULL). Without memory nothing
 * changes.
 */
static void replace_all(char **text, const char *old, const char *new)
{
    STRBUF_AUTO(made);
    const char *rest = *text, *found;

    if (!rest || !strstr(rest, old)) {
        return;
    }
    while ((found = strstr(rest, old)) != NULL) {
        strbuf_append(&made, rest, (size_t)(found - rest));
        strbuf_puts(&made, new);
        rest = found + strlen(old);
    }
    strbuf_puts(&made, rest);
    if (!made.failed) {
        free(*text);
        *text = strbuf_take(&made);
    }
}

void files_replace_in_error(struct error *err, const char *old, const char *new)
{
    if (err) {
        replace_all(&err->message, old, new);
        replace_all(&err->hint, old, new);
    }
}

void files_name_in_error(struct error *err, int fd, const char *shown)
{
    char self[FILES_SELF_SIZE];

    files_self_path(fd, self);
    files_replace_in_error(err, self, shown);
}

int files_random_name(char *ret_text, size_t size, struct error *err)
{
    static const char letters[] = "0123456789abcdefghijklmnopqrstuv";
    uint8_t bytes[32];

    if (size - 1 > sizeof(bytes) || getrandom(bytes, size - 1, 0) != (ssize_t)(size - 1)) {
        return error_set_errno(err, errno, "No random numbers for a name");
    }
    for (size_t i = 0; i + 1 < size; i++) {
        ret_text[i] = letters[bytes[i] % 32];
    }
    ret_text[size - 1] = '\0';
    return 0;
}

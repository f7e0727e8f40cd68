/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/scratch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/files.h"
#include "base/cleanup.h"
#include "base/log.h"

/* Another run may take a directory that is just being made for one of a killed run. */
#define ATTEMPTS 20

static bool scratch_is_named(int fd, int parent, const char *name)
{
    struct stat held, named;

    return fstat(fd, &held) == 0 && fstatat(parent, name, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
           held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

static void for_each_name(int fd, void (*fn)(int fd, const char *name))
{
    int list = files_open_dir_at(fd, ".", ".", NULL);
    DIR *dir = list < 0 ? NULL : fdopendir(list);
    struct dirent *d;

    while (dir && (d = readdir(dir)) != NULL) {
        if (strcmp(d->d_name, ".") != 0 && strcmp(d->d_name, "..") != 0) {
            fn(fd, d->d_name);
        }
    }
    if (dir) {
        closedir(dir);
    } else if (list >= 0) {
        close(list);
    }
}

/* A file, or a directory with files and directories of files. */
static void remove_name(int fd, const char *name)
{
    int inner AUTO_CLOSE = files_open_dir_at(fd, name, name, NULL);

    if (inner >= 0) {
        for_each_name(inner, files_remove_at);
    }
    files_remove_at(fd, name);
}

static void empty_scratch(int fd)
{
    for_each_name(fd, remove_name);
}

/* Whoever owns the directory could have put it there: only those of this user are removed. */
static void sweep_one_scratch(int parent, const char *place, const char *name)
{
    int fd AUTO_CLOSE = files_open_dir_at(parent, name, name, NULL);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0 || st.st_uid != geteuid() ||
        flock(fd, LOCK_EX | LOCK_NB) < 0 || !scratch_is_named(fd, parent, name)) {
        return;
    }
    empty_scratch(fd);
    if (unlinkat(parent, name, AT_REMOVEDIR) == 0) {
        log_warning("Removed '%s/%s', which a killed run has left", place, name);
    }
}

static void sweep_scratch(const char *place, const char *prefix)
{
    int parent = files_open_dir(place, NULL);
    DIR *dir = parent < 0 ? NULL : fdopendir(parent);
    struct dirent *d;

    while (dir && (d = readdir(dir)) != NULL) {
        if (strncmp(d->d_name, prefix, strlen(prefix)) == 0) {
            sweep_one_scratch(parent, place, d->d_name);
        }
    }
    if (dir) {
        closedir(dir);
    } else if (parent >= 0) {
        close(parent);
    }
}

/* One attempt. -EAGAIN: another run has taken it for one of a killed run. */
static int make_one(const char *place, const char *prefix, struct scratch *s, struct error *err)
{
    int r = asprintf(&s->path, "%s/%sXXXXXX", place, prefix);

    if (r < 0) {
        s->path = NULL;
        return error_out_of_memory(err);
    }
    if (!mkdtemp(s->path)) {
        r = error_set_errno(err, errno, "Could not make a temporary directory in '%s'", place);
        free(TAKE_PTR(s->path));
        return r;
    }
    s->fd = files_open_dir(s->path, NULL);
    /* Where directories cannot be locked, nothing is ever swept. */
    if (s->fd >= 0 && (flock(s->fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) &&
        scratch_is_named(s->fd, AT_FDCWD, s->path)) {
        return 0;
    }
    if (s->fd >= 0) {
        close(TAKE_FD(s->fd));
    }
    free(TAKE_PTR(s->path));
    return -EAGAIN;
}

int scratch_make(const char *parent, const char *kind, struct scratch *ret_scratch,
                 struct error *err)
{
    const char *place = parent ?: getenv("TMPDIR");
    char *prefix AUTO_FREE = NULL;
    int r = -EAGAIN;

    *ret_scratch = SCRATCH_INIT;
    place = place && *place ? place : "/var/tmp";
    if (asprintf(&prefix, "tidemark-%s.", kind) < 0) {
        prefix = NULL;
        return error_out_of_memory(err);
    }
    sweep_scratch(place, prefix);
    for (int i = 0; r == -EAGAIN && i < ATTEMPTS; i++) {
        r = make_one(place, prefix, ret_scratch, err);
    }
    return r == -EAGAIN ? error_set(err, EAGAIN,
                                    "Could not make a temporary directory in '%s': others remove "
                                    "it",
                                    place)
                        : r;
}

void scratch_remove(struct scratch *s)
{
    if (s->fd >= 0) {
        empty_scratch(s->fd);
        close(s->fd);
    }
    if (s->path) {
        rmdir(s->path);
    }
    free(s->path);
    *s = SCRATCH_INIT;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/target.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "block/block.h"
#include "nbd/client.h"
#include "nbd/uri.h"

#define TMP_PREFIX ".tidemark-restore-"
#define ATTRIBUTES_MAX 65536ul

/* --- what is there --- */

static int refuse_existing(const char *name, struct error *err)
{
    error_set(err, EEXIST, "'%s' exists already", name);
    error_hint(err, "Name a new file, or give --force to overwrite it.");
    return -EEXIST;
}

static int refuse_link(const char *name, struct error *err)
{
    char *real AUTO_FREE = realpath(name, NULL);

    error_set(err, ELOOP, "'%s' is a symbolic link, which is not followed", name);
    if (real) {
        error_hint(err, "Name the file itself: '%s'.", real);
    }
    return -ELOOP;
}

/*
 * Whether another process has the file open for writing, with or without image locks: then the
 * kernel refuses a lease.
 */
static bool is_open_for_writing(int fd)
{
    bool refused;

    /*
     * If another process opens the file meanwhile, it breaks the lease. That raises SIGIO, which
     * would end this process.
     */
    fcntl(fd, F_SETSIG, SIGURG);
    refused = fcntl(fd, F_SETLEASE, F_RDLCK) < 0;
    if (!refused) {
        fcntl(fd, F_SETLEASE, F_UNLCK);
    }
    return refused && errno == EAGAIN;
}

/* Lock the old file as an image until it has been replaced. */
static int take_old(struct target *t, struct error *err)
{
    int r = 0;

    t->old = files_open_at(t->dir, t->base, t->name, err);
    if (t->old < 0) {
        return t->old;
    }
    t->lock.fd = t->old;
    if (image_lock_is_supported(t->old)) {
        r = image_lock_set(&t->lock, BLOCK_PERM_ALL, 0, t->name, NULL);
    }
    if (r == -EAGAIN || is_open_for_writing(t->old)) {
        error_set(err, EBUSY, "'%s' is in use by another program, and is not replaced", t->name);
        error_hint(err, "Restore to another file, or end what uses it.");
        return -EBUSY;
    }
    return 0;
}

/* --- opening --- */

static int open_device(struct target *t, const char *format, bool force, struct error *err)
{
    char *real AUTO_FREE = realpath(t->name, NULL);
    struct stat st;

    t->kind = TARGET_DEVICE;
    if (strcmp(format, "raw") != 0) {
        return error_set(err, EINVAL, "'%s' is a block device, and can be restored as raw only",
                         t->name);
    }
    if (!force) {
        return refuse_existing(t->name, err);
    }
    /* O_EXCL fails while the device is mounted, or part of another one. */
    t->fd = real ? open(real, O_RDWR | O_EXCL | O_NOFOLLOW | O_CLOEXEC) : -1;
    if (t->fd < 0 && errno == EBUSY) {
        return error_set(err, EBUSY,
                         "Device '%s' is in use (mounted, or part of another device), and is not "
                         "overwritten",
                         t->name);
    }
    if (t->fd < 0 || fstat(t->fd, &st) < 0) {
        return error_set_errno(err, errno, "Could not open '%s'", t->name);
    }
    if (!S_ISBLK(st.st_mode)) {
        return error_set(err, EINVAL, "'%s' is no block device any more", t->name);
    }
    files_self_path(t->fd, t->open_name);
    return 0;
}

/* Open the directory of the target, and find its name there. */
static int open_directory(struct target *t, struct error *err)
{
    const char *slash = strrchr(t->name, '/');
    char *dir AUTO_FREE =
        slash ? strndup(t->name, slash == t->name ? 1 : (size_t)(slash - t->name)) : strdup(".");

    t->base = slash ? slash + 1 : t->name;
    if (!dir) {
        return error_out_of_memory(err);
    }
    if (!t->base[0] || strcmp(t->base, ".") == 0 || strcmp(t->base, "..") == 0) {
        return error_set(err, EISDIR, "'%s' does not name a file", t->name);
    }
    t->dir = files_open_dir(dir, err);
    return t->dir < 0 ? t->dir : 0;
}

static int make_name(struct target *t, struct error *err)
{
    char random[13];
    int r = files_random_name(random, sizeof(random), err);

    if (r == 0) {
        snprintf(t->tmp, sizeof(t->tmp), TMP_PREFIX "%s", random);
    }
    return r;
}

/*
 * Make a file without a name, of which nothing is left after a kill; not every file system has such
 * files.
 */
static int make_target_file(struct target *t, struct error *err)
{
    int r;

    t->fd = files_create_unnamed_at(t->dir);
    if (t->fd >= 0) {
        files_self_path(t->fd, t->open_name);
        return 0;
    }
    r = make_name(t, err);
    if (r < 0) {
        return r;
    }
    t->fd = files_create_at(t->dir, t->tmp, t->name, err);
    if (t->fd < 0) {
        t->tmp[0] = '\0';
        return t->fd;
    }
    files_self_path(t->fd, t->open_name);
    return 0;
}

static int open_target_file(struct target *t, bool force, struct error *err)
{
    struct stat st;
    int r = open_directory(t, err);

    if (r < 0) {
        return r;
    }
    if (fstatat(t->dir, t->base, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        if (S_ISLNK(st.st_mode)) {
            return refuse_link(t->name, err);
        }
        if (!S_ISREG(st.st_mode)) {
            return error_set(err, EINVAL, "'%s' is neither a file nor a block device", t->name);
        }
        if (!force) {
            return refuse_existing(t->name, err);
        }
        r = take_old(t, err);
    } else if (errno != ENOENT) {
        r = error_set_errno(err, errno, "Could not inspect '%s'", t->name);
    }
    return r < 0 ? r : make_target_file(t, err);
}

/* Whether the name is that of an export: nbd:..., or a URI whose scheme is one of NBD's. */
static bool is_export_name(const char *name)
{
    const char *rest = strncmp(name, "nbd", 3) == 0 ? name + 3 : "";

    if (rest[0] == 's') {
        rest++;
    } else if (rest[0] == ':') {
        return true;
    }
    return strncmp(rest, "://", 3) == 0 || strncmp(rest, "+unix:", 6) == 0 ||
           strncmp(rest, "+tcp:", 5) == 0 || strncmp(rest, "+vsock:", 7) == 0;
}

static int check_export_name(const char *name, struct error *err)
{
    struct socket_address address = {0};
    char *export_name AUTO_FREE = NULL;
    struct nbd_uri uri;
    int r;

    if (strstr(name, "://")) {
        r = nbd_uri_parse(name, &uri, err);
        if (r == 0) {
            nbd_uri_clear(&uri);
        }
        return r;
    }
    r = nbd_address_parse(name, &address, &export_name, err);
    socket_address_clear(&address);
    return r;
}

static int check_target_export(struct target *t, const char *format, bool force, struct error *err)
{
    int r = check_export_name(t->name, err);

    t->kind = TARGET_NBD;
    if (r == 0 && strcmp(format, "raw") != 0) {
        r = error_set(err, EINVAL, "'%s' is an NBD export, and can be restored as raw only",
                      t->name);
    }
    if (r == 0 && !force) {
        error_set(err, EEXIST, "What export '%s' holds would be lost", t->name);
        error_hint(err, "Give --force to overwrite it.");
        r = -EEXIST;
    }
    return r;
}

int target_open(const char *name, const char *format, bool force, struct target *ret_target,
                struct error *err)
{
    struct stat st;

    *ret_target = TARGET_INIT;
    ret_target->name = name;
    if (is_export_name(name)) {
        return check_target_export(ret_target, format, force, err);
    }
    if (stat(name, &st) == 0 && S_ISBLK(st.st_mode)) {
        return open_device(ret_target, format, force, err);
    }
    return open_target_file(ret_target, force, err);
}

/* --- finishing --- */

static void copy_attribute(int from, int to, const char *name)
{
    char value[4096];
    ssize_t size = fgetxattr(from, name, value, sizeof(value));

    if (size >= 0) {
        fsetxattr(to, name, value, (size_t)size, 0);
    }
}

/*
 * Copy what the old file had, as far as permitted: a process that may not give a file away keeps
 * it.
 */
static void copy_ownership(const struct target *t)
{
    char *names AUTO_FREE = malloc(ATTRIBUTES_MAX);
    ssize_t size = names ? flistxattr(t->old, names, ATTRIBUTES_MAX) : -1;
    struct stat st;
    bool given;

    if (fstat(t->old, &st) < 0) {
        return;
    }
    given = fchown(t->fd, st.st_uid, st.st_gid) == 0;
    for (const char *name = names; size > 0 && name < names + size; name += strlen(name) + 1) {
        copy_attribute(t->old, t->fd, name);
    }
    /*
     * Without the old group, the mode's permissions of the group would be those of another group.
     */
    fchmod(t->fd, given ? st.st_mode & 07777 : st.st_mode & 0700);
}

static bool is_still_there(const struct target *t)
{
    struct stat now, old;

    return fstatat(t->dir, t->base, &now, AT_SYMLINK_NOFOLLOW) == 0 && fstat(t->old, &old) == 0 &&
           now.st_dev == old.st_dev && now.st_ino == old.st_ino;
}

static int link_as(struct target *t, const char *name)
{
    return linkat(AT_FDCWD, t->open_name, t->dir, name, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

/* No system call replaces a file by one without a name: give it a random name for a moment. */
static int rename_over(struct target *t)
{
    if (!t->tmp[0]) {
        int r = make_name(t, NULL);

        UNLESS_FAILED(r, link_as(t, t->tmp));
        if (r < 0) {
            t->tmp[0] = '\0';
            return r;
        }
    }
    return renameat(t->dir, t->tmp, t->dir, t->base) < 0 ? -errno : 0;
}

/*
 * Rename without replacing a file that was made meanwhile. Some file systems have no such rename;
 * they have links, or neither.
 */
static int rename_to_new(struct target *t)
{
    if (!t->tmp[0]) {
        return link_as(t, t->base);
    }
    if (renameat2(t->dir, t->tmp, t->dir, t->base, RENAME_NOREPLACE) == 0) {
        return 0;
    }
    if (errno != EINVAL && errno != ENOSYS) {
        return -errno;
    }
    if (linkat(t->dir, t->tmp, t->dir, t->base, 0) == 0) {
        unlinkat(t->dir, t->tmp, 0);
        return 0;
    }
    if (errno == EEXIST) {
        return -errno;
    }
    return rename_over(t);
}

int target_finish(struct target *t, struct error *err)
{
    int r;

    if (t->kind != TARGET_FILE) {
        return 0;
    }
    if (t->old >= 0) {
        copy_ownership(t);
    }
    r = files_sync(t->fd, t->name, err);
    if (r < 0) {
        return r;
    }
    if (t->old >= 0 && !is_still_there(t)) {
        return error_set(err, EEXIST, "'%s' was replaced by another program meanwhile", t->name);
    }
    r = t->old < 0 ? rename_to_new(t) : rename_over(t);
    if (r == -EEXIST) {
        return error_set(err, EEXIST, "'%s' was made by another program meanwhile", t->name);
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Could not give '%s' its name", t->name);
    }
    t->tmp[0] = '\0';
    return files_sync(t->dir, t->name, err);
}

void target_release(struct target *t)
{
    if (t->tmp[0]) {
        unlinkat(t->dir, t->tmp, 0);
    }
    if (t->fd >= 0) {
        close(t->fd);
    }
    if (t->dir >= 0) {
        close(t->dir);
    }
    if (t->old >= 0) {
        close(t->old);
    }
    *t = TARGET_INIT;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/fleece.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "backup/files.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/unix_socket.h"
#include "block/block.h"
#include "file/image_lock.h"

#define OTHER_PLACE "/var/tmp"
#define LOCK "lock"
#define NEW_LOCK "lock.new"
#define RAW "fleece.raw"
#define QCOW2 "fleece.qcow2"
#define SECTOR 512
#define RANDOM_SIZE 9 /* with the NUL */
#define REPOSITORY_DIGITS 8
/* Free space that is left to the guest on the disk's file system: a share of it, or this. */
#define RESERVED_SHARE 50
#define RESERVED_MOST (1024 * MiB)

/* --- where --- */

static char *directory_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : NULL;
}

static bool is_short_of_space(const char *path)
{
    struct statvfs fs;

    return statvfs(path, &fs) == 0 &&
           (uint64_t)fs.f_bavail * fs.f_frsize <
               MIN((uint64_t)fs.f_blocks * fs.f_frsize / RESERVED_SHARE, RESERVED_MOST);
}

bool fleece_is_short_of_space(const struct fleece *f, bool anywhere)
{
    return (anywhere || f->next_to_disk) && is_short_of_space(f->dir);
}

static char *beside(const char *disk)
{
    char *dir AUTO_FREE = NULL;
    struct stat st;

    if (!disk || stat(disk, &st) < 0 || !S_ISREG(st.st_mode)) {
        return NULL;
    }
    dir = directory_of(disk);
    return dir && access(dir, W_OK) == 0 && !is_short_of_space(dir) ? TAKE_PTR(dir) : NULL;
}

int fleece_init(struct fleece *f, const char *asked, const char *disk, const char *repository,
                struct error *err)
{
    char *near AUTO_FREE = asked ? NULL : beside(disk);
    const char *place = asked ? asked : near ? near : OTHER_PLACE;
    char random[RANDOM_SIZE];
    int r;

    *f = FLEECE_INIT;
    f->next_to_disk = near != NULL;
    f->place = realpath(place, NULL);
    if (!f->place) {
        return error_set_errno(err, errno, "Could not open directory '%s'", place);
    }
    r = files_random_name(random, sizeof(random), err);
    if (r < 0) {
        return r;
    }
    snprintf(f->name, sizeof(f->name), FLEECE_PREFIX "%s-%s", repository, random);
    f->dir = files_join(f->place, f->name);
    f->socket = f->dir ? files_join(f->dir, FLEECE_SOCKET) : NULL;
    return f->socket ? 0 : error_out_of_memory(err);
}

/* --- removing --- */

/* When other runs use the NBD server, its socket stays, and with it the directory. */
static bool has_live_socket(int dir)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct stat st;

    if (fstatat(dir, FLEECE_SOCKET, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISSOCK(st.st_mode)) {
        return false;
    }
    snprintf(addr.sun_path, sizeof(addr.sun_path), "/proc/self/fd/%d/" FLEECE_SOCKET, dir);
    return !unix_socket_is_stale(&addr);
}

static void remove_contents(int place, int dir, const char *name)
{
    static const char *const names[] = {RAW, QCOW2, NEW_LOCK, LOCK};

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        unlinkat(dir, names[i], 0);
    }
    if (!has_live_socket(dir)) {
        unlinkat(dir, FLEECE_SOCKET, 0);
        unlinkat(place, name, AT_REMOVEDIR);
    }
}

void fleece_clear(struct fleece *f)
{
    if (f->fd >= 0) {
        remove_contents(f->place_fd, f->fd, f->name);
        close(f->fd);
    }
    if (f->place_fd >= 0) {
        close(f->place_fd);
    }
    if (f->lock_fd >= 0) {
        close(f->lock_fd);
    }
    free(f->place);
    free(f->dir);
    free(f->image);
    free(f->socket);
    *f = FLEECE_INIT;
}

static enum fleece_owner owner_in(int dir)
{
    int fd AUTO_CLOSE = files_open_at(dir, LOCK, LOCK, NULL);

    if (fd < 0) {
        return FLEECE_UNKNOWN;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
        return FLEECE_DEAD;
    }
    return errno == EWOULDBLOCK ? FLEECE_ALIVE : FLEECE_UNKNOWN;
}

/* Whether a name is that of a run's directory; of `repository`, unless that is NULL. */
static bool is_fleece_name(const char *name, const char *repository)
{
    const char *id = name + strlen(FLEECE_PREFIX), *random = id + REPOSITORY_DIGITS + 1;

    return strncmp(name, FLEECE_PREFIX, strlen(FLEECE_PREFIX)) == 0 &&
           strlen(id) == REPOSITORY_DIGITS + 1 + RANDOM_SIZE - 1 &&
           strspn(id, "0123456789abcdef") >= REPOSITORY_DIGITS && random[-1] == '-' &&
           strspn(random, "0123456789abcdefghijklmnopqrstuv") == RANDOM_SIZE - 1 &&
           (!repository || strncmp(id, repository, REPOSITORY_DIGITS) == 0);
}

/*
 * Open a run's directory, and the place it is in; other directories are not opened. Returns a
 * descriptor, or -1.
 */
static int open_other_daemon(const char *dir, const char *repository, int *ret_place)
{
    char *place AUTO_FREE = directory_of(dir);
    const char *slash = strrchr(dir, '/');

    *ret_place = -1;
    if (!place || !is_fleece_name(slash + 1, repository)) {
        return -1;
    }
    *ret_place = files_open_dir(place, NULL);
    return *ret_place < 0 ? -1 : files_open_dir_at(*ret_place, slash + 1, dir, NULL);
}

/* Whether a daemon has the temporary image open. */
static bool is_image_in_use(int dir)
{
    static const char *const names[] = {RAW, QCOW2};

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        int fd AUTO_CLOSE = files_open_at(dir, names[i], names[i], NULL);
        struct image_lock lock = {.fd = fd};

        if (fd >= 0 && (!image_lock_is_supported(fd) ||
                        image_lock_set(&lock, BLOCK_PERM_ALL, 0, names[i], NULL) < 0)) {
            return true;
        }
    }
    return false;
}

/*
 * Remove directories of dead runs in this place whose temporary image no daemon has open: the
 * repositories of their runs may be gone.
 */
static void sweep_leftovers(int place)
{
    int fd = files_open_dir_at(place, ".", ".", NULL);
    DIR *list = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *d;

    while (list && (d = readdir(list)) != NULL) {
        if (is_fleece_name(d->d_name, NULL)) {
            int dir AUTO_CLOSE = files_open_dir_at(place, d->d_name, d->d_name, NULL);

            if (dir >= 0 && owner_in(dir) == FLEECE_DEAD && !is_image_in_use(dir)) {
                remove_contents(place, dir, d->d_name);
            }
        }
    }
    if (list) {
        closedir(list);
    }
}

/* --- making --- */

/*
 * Make and lock the lock file. The directory gets its name only when it is locked: a directory
 * without lock is that of a dead run.
 */
static int lock_it(struct fleece *f, struct error *err)
{
    char *shown AUTO_FREE = files_join(f->dir, LOCK);

    if (!shown) {
        return error_out_of_memory(err);
    }
    f->lock_fd = files_create_at(f->fd, NEW_LOCK, shown, err);
    if (f->lock_fd < 0) {
        return f->lock_fd;
    }
    return flock(f->lock_fd, LOCK_EX | LOCK_NB) < 0 || renameat(f->fd, NEW_LOCK, f->fd, LOCK) < 0
               ? error_set_errno(err, errno, "Could not lock '%s'", shown)
               : 0;
}

/* The daemon opens the image by its path, so the image has to belong to the daemon's user. */
static int give(int fd, const char *shown, uid_t uid, gid_t gid, struct error *err)
{
    if (geteuid() == 0 && uid != 0 && fchown(fd, uid, gid) < 0) {
        return error_set_errno(err, errno, "Could not give '%s' to the daemon's user", shown);
    }
    return 0;
}

/* A sparse file of the disk's size; where no file can be so large, a qcow2 image. */
static int co_make_temporary_image(struct fleece *f, uint64_t size, bool qcow2, uid_t uid,
                                   gid_t gid, struct error *err)
{
    char self[FILES_SELF_SIZE];
    int fd AUTO_CLOSE = -1;
    int r;

    f->image = files_join(f->dir, RAW);
    if (!f->image) {
        return error_out_of_memory(err);
    }
    fd = files_create_at(f->fd, RAW, f->image, err);
    if (fd < 0) {
        return fd;
    }
    if (!qcow2 && ftruncate(fd, (off_t)round_up(size, SECTOR)) == 0) {
        return give(fd, f->image, uid, gid, err);
    }
    if (!qcow2 && errno != EFBIG) {
        return error_set_errno(err, errno, "Could not create '%s'", f->image);
    }
    if (renameat(f->fd, RAW, f->fd, QCOW2) < 0) {
        return error_set_errno(err, errno, "Could not create '%s'", f->image);
    }
    free(f->image);
    f->image = files_join(f->dir, QCOW2);
    if (!f->image) {
        return error_out_of_memory(err);
    }
    f->is_qcow2 = true;
    files_self_path(fd, self);
    r = block_co_create_image("qcow2", self, round_up(size, SECTOR), options_new(), err);
    files_name_in_error(err, fd, f->image);
    return r < 0 ? r : give(fd, f->image, uid, gid, err);
}

int fleece_co_make(struct fleece *f, uint64_t size, bool qcow2, uid_t uid, gid_t gid,
                   struct error *err)
{
    int r;

    f->place_fd = files_open_dir(f->place, err);
    if (f->place_fd < 0) {
        return f->place_fd;
    }
    sweep_leftovers(f->place_fd);
    f->fd = files_make_dir_at(f->place_fd, f->name, f->dir, err);
    r = f->fd < 0 ? f->fd : lock_it(f, err);
    UNLESS_FAILED(r, co_make_temporary_image(f, size, qcow2, uid, gid, err));
    return r < 0 ? r : give(f->fd, f->dir, uid, gid, err);
}

/* --- those of other runs --- */

enum fleece_owner fleece_owner(const char *image)
{
    char *dir AUTO_FREE = directory_of(image);
    int place AUTO_CLOSE = -1;
    int fd AUTO_CLOSE = dir ? open_other_daemon(dir, NULL, &place) : -1;

    return fd < 0 ? FLEECE_UNKNOWN : owner_in(fd);
}

void fleece_remove(const char *dir, const char *repository)
{
    const char *slash = strrchr(dir, '/');
    int place AUTO_CLOSE = -1;
    int fd AUTO_CLOSE = open_other_daemon(dir, repository, &place);

    /* The lock is the first file in the directory: without it the run was killed before. */
    if (fd >= 0 && slash && owner_in(fd) != FLEECE_ALIVE) {
        remove_contents(place, fd, slash + 1);
    }
}

bool fleece_is_socket(const char *path)
{
    char *dir AUTO_FREE = directory_of(path);
    const char *slash = dir ? strrchr(dir, '/') : NULL;

    return slash && is_fleece_name(slash + 1, NULL) &&
           strcmp(path + strlen(dir) + 1, FLEECE_SOCKET) == 0;
}

int fleece_lock_socket(const char *path, bool alone)
{
    char *dir AUTO_FREE = directory_of(path);
    int place AUTO_CLOSE = -1;
    int fd AUTO_CLOSE = dir ? open_other_daemon(dir, NULL, &place) : -1;

    if (fd < 0 || flock(fd, (alone ? LOCK_EX : LOCK_SH) | LOCK_NB) < 0) {
        return -1;
    }
    return TAKE_FD(fd);
}

void fleece_remove_of_file(const char *file)
{
    char *dir AUTO_FREE = directory_of(file);

    if (dir) {
        fleece_remove(dir, NULL);
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The temporary image of a run: old data of clusters that the guest overwrites. It is in a
 * directory of its own:
 *
 *     PLACE/.tidemark-<repository id>-<random>/
 *         lock          locked (flock) as long as the run lives; other runs check it
 *         fleece.raw    the image; fleece.qcow2 where no file can be as large as the disk
 *         nbd.sock      of the NBD server, if the run had to start one
 *
 * By default PLACE is the directory of the disk's own image, which the guest depends on anyway: a
 * write of the guest waits for the temporary image, and the repository may be on a file system that
 * hangs. Directory and image belong to the daemon's user. Main reactor; only `co_` functions yield.
 */
#ifndef TIDEMARK_BACKUP_FLEECE_H
#define TIDEMARK_BACKUP_FLEECE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

#define FLEECE_PREFIX ".tidemark-"
#define FLEECE_SOCKET "nbd.sock"
#define FLEECE_NAME_SIZE 48

struct fleece {
    char *place;                 /* absolute */
    char name[FLEECE_NAME_SIZE]; /* of the directory in `place` */
    char *dir;                   /* its path */
    char *image, *socket;        /* their paths */
    bool is_qcow2;
    bool next_to_disk;         /* `place` is the directory of the disk's image, by default */
    int place_fd, fd, lock_fd; /* -1 if not open */
};

#define FLEECE_INIT ((struct fleece){.place_fd = -1, .fd = -1, .lock_fd = -1})

/*
 * Choose a place and a name; nothing is made, since the name is recorded in the repository first.
 * The place is `asked` if that is not NULL; else next to the disk's image `disk` (NULL or a device:
 * unknown) if enough space is free there; else /var/tmp.
 */
int fleece_init(struct fleece *f, const char *asked, const char *disk, const char *repository,
                struct error *err);
/*
 * Whether the space next to the disk is so short that a guest may soon have none for its own
 * writes. `anywhere`: wherever the image is, since the guest's writes fail when it can't grow.
 */
bool fleece_is_short_of_space(const struct fleece *f, bool anywhere);
/*
 * Make the directory and the image, for a disk of `size` bytes and a daemon of this user and group;
 * `qcow2`: in that format in any case.
 * Also removes directories in the same place that dead runs have left and that no other run can
 * find.
 */
int fleece_co_make(struct fleece *f, uint64_t size, bool qcow2, uid_t uid, gid_t gid,
                   struct error *err);
/* Remove what was made, and release `f`. */
void fleece_clear(struct fleece *f);

/* --- temporary images of other runs --- */

enum fleece_owner {
    FLEECE_ALIVE,
    FLEECE_DEAD,
    FLEECE_UNKNOWN, /* the image was not found, or has no lock */
};

/* Whether the run that made the temporary image with this path lives. */
enum fleece_owner fleece_owner(const char *image);
/*
 * Remove a directory that a run has left. Does nothing unless the name has the right form, of this
 * repository, and the run is dead.
 */
void fleece_remove(const char *dir, const char *repository);
/* The same for the directory of a temporary image or socket, of any repository. */
void fleece_remove_of_file(const char *file);
/* Whether `path` is the socket of an NBD server that a run has started, for any repository. */
bool fleece_is_socket(const char *path);
/*
 * Lock such a socket: shared while a run uses the server, `alone` to stop it. Returns a descriptor
 * that holds the lock, or -1 if another run holds it. Does not wait.
 */
int fleece_lock_socket(const char *path, bool alone);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The temporary image of a run: old data of what the guest overwrites. It lies in a directory of its own:
 *
 *     PLACE/.tidemark-<repository id>-<random>/
 *         lock          locked (flock) as long as the run lives, so that others can tell
 *         fleece.raw    the image; fleece.qcow2 where the file system has no files as large as the disk
 *         nbd.sock      of the NBD server, if the run had to start one
 *
 * The place is by default the directory of the disk's own image, which the guest depends on anyway: a repository can be on a
 * file system that stops answering, and a write of the guest waits for the temporary image. Directory and image belong to the
 * daemon's user. Main reactor; only `co_` functions yield.
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
    char name[FLEECE_NAME_SIZE]; /* of the directory in it */
    char *dir;                   /* its path */
    char *image, *socket;        /* their paths */
    bool is_qcow2;
    bool beside_disk;          /* and nobody asked for that */
    int place_fd, fd, lock_fd; /* -1 if not open */
};

#define FLEECE_INIT ((struct fleece){.place_fd = -1, .fd = -1, .lock_fd = -1})

/*
 * Choose a place and a name, and nothing more: they are to be written down before they are used. The place is `asked` if that
 * is not NULL, else beside the disk's image `disk` (NULL or a device: not known) if there is space left for others, else
 * /var/tmp.
 */
int fleece_init(struct fleece *f, const char *asked, const char *disk, const char *repository,
                struct error *err);
/* Whether so little is left beside the disk that a guest may soon have no space for its own writes. */
bool fleece_is_short_of_space(const struct fleece *f);
/* Make it, and remove there what runs have left that nobody else can find any more. For a disk of `size` bytes and a daemon of this user and group. */
int fleece_co_make(struct fleece *f, uint64_t size, uid_t uid, gid_t gid, struct error *err);
/* Remove what was made, and release. */
void fleece_clear(struct fleece *f);

/* --- those of other runs --- */

enum fleece_owner {
    FLEECE_ALIVE,
    FLEECE_DEAD,
    FLEECE_UNKNOWN, /* it was not found, or has no lock */
};

/* Of the run that made the temporary image with this path. */
enum fleece_owner fleece_owner(const char *image);
/* Remove a directory that a run left. Does nothing unless it has the form of one, of this repository, and the run is dead. */
void fleece_remove(const char *dir, const char *repository);
/* The same for the directory that a temporary image or a socket is in; of any repository. */
void fleece_remove_of_file(const char *file);
/* Whether it is the socket of an NBD server that a run has started; of any repository. */
bool fleece_is_socket(const char *path);
/*
 * Lock such a socket: shared while a run uses the server, or `alone` to stop it. A descriptor that holds the lock, or -1 if
 * others stand against it. Does not wait.
 */
int fleece_lock_socket(const char *path, bool alone);

#endif

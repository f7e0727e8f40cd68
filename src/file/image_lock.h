/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Locks that keep two processes from using one image in ways that exclude each other. QEMU locks
 * the same byte ranges, so the locks also work between QEMU and Tidemark. None of these functions
 * yields.
 *
 * All locks are shared ones (F_RDLCK), of the open file description, on single bytes:
 *
 *     byte 100 + n    held by a user that has permission n
 *     byte 200 + n    held by a user that does not share permission n
 *
 *     n    0 consistent read    1 write    2 write unchanged    3 resize
 *
 * A user that wants permission n checks that no other user holds byte 200 + n. A user that does not
 * share permission n checks byte 100 + n. F_OFD_GETLK with F_WRLCK finds locks of others only. A
 * user first takes its locks and then checks, so of two users that begin at the same time at most
 * one succeeds.
 */
#ifndef TIDEMARK_FILE_IMAGE_LOCK_H
#define TIDEMARK_FILE_IMAGE_LOCK_H

#include <stdbool.h>

#include "base/error.h"

struct image_lock {
    /* borrowed */
    int fd;
    /* BLOCK_PERM_... whose bytes 100 + n are locked now */
    unsigned perm;
    /* BLOCK_PERM_... whose bytes 200 + n are locked now */
    unsigned unshared;
    /* the part of `unshared` that no other user has */
    unsigned sole;
    /*
     * Set by the owner: BLOCK_PERM_... that nobody may begin to use, even if they are shared with
     * those who use them already.
     */
    unsigned closed;
};

/* Whether the file system of `fd` supports these locks. May block. */
bool image_lock_is_supported(int fd);

/*
 * Change to the permissions `perm`, and share `shared` with others; both are sets of BLOCK_PERM_...
 * What is in `closed` is shared with present users only. `name` is for the message. Returns 0;
 * -EAGAIN if this conflicts with another user; or -errno. After an error the permissions are as
 * before. May block.
 */
int image_lock_set(struct image_lock *l, unsigned perm, unsigned shared, const char *name,
                   struct error *err);

/*
 * Lock the same bytes by another description of the file, which the holder of `l` is about to use
 * in its place: nothing has to be checked. 0 or -errno; after an error the caller closes `fd`. May
 * block.
 */
int image_lock_copy(const struct image_lock *l, int fd, const char *name, struct error *err);

#endif

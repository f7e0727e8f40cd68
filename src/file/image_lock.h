/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Locks that keep two processes from using one image in ways that exclude each other. The byte ranges are those
 * that QEMU locks, so they hold between it and Tidemark as well.
 *
 * All locks are shared ones (F_RDLCK) of the open file description, on single bytes:
 *
 *     byte 100 + n    held by who does what permission n allows
 *     byte 200 + n    held by who does not let others do it
 *
 *     n    0 consistent read    1 write    2 write unchanged    3 resize
 *
 * Who wants permission n therefore asks whether anybody holds 200 + n, and who wants to keep others from it
 * asks about 100 + n; F_OFD_GETLK with F_WRLCK answers, and passes over one's own. Locks are taken
 * first and others looked for after that, so of two who begin at once at most one goes on.
 */
#ifndef TIDEMARK_FILE_IMAGE_LOCK_H
#define TIDEMARK_FILE_IMAGE_LOCK_H

#include <stdbool.h>

#include "base/error.h"

struct image_lock {
    int fd;            /* borrowed */
    unsigned perm;     /* BLOCK_PERM_...: locked now */
    unsigned unshared; /* likewise */
};

/* Whether the file system of fd has such locks. Does not yield. */
bool image_lock_is_supported(int fd);

/*
 * Go over to the permissions `perm`, with others allowed `shared`. -EAGAIN when another user of the file
 * stands against it; then all is as before. `name` is for the message. Does not yield.
 */
int image_lock_set(struct image_lock *l, unsigned perm, unsigned shared, const char *name,
                   struct error *err);

#endif

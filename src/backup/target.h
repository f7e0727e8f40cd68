/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a restore writes to.
 *
 *   a file      is made without a name, or under a random one, in the directory of the target and gets its name when it
 *               is complete and stable. What had that name is replaced only when told to, never while anybody else uses it; its owner, mode
 *               and extended attributes (labels, access lists) go over to the new file. A symbolic link is refused.
 *   a device    is held exclusively and written in place; a link to it is followed, as in /dev/disk
 *   an export   of an NBD server is written in place
 *
 * Main reactor; none of these functions yields, all of them may block.
 */
#ifndef TIDEMARK_BACKUP_TARGET_H
#define TIDEMARK_BACKUP_TARGET_H

#include <stdbool.h>
#include <sys/stat.h>

#include "backup/files.h"
#include "base/error.h"
#include "file/image_lock.h"

enum target_kind { TARGET_FILE, TARGET_DEVICE, TARGET_NBD };

#define TARGET_TMP_SIZE 32

struct target {
    const char *name; /* as the user gave it; borrowed */
    enum target_kind kind;
    int fd;                          /* the new file, or the device; -1 for an export */
    char open_name[FILES_SELF_SIZE]; /* names fd to the block layer; "" for an export */
    int dir;                         /* of the file; -1 if it is none */
    const char *base;                /* its name there; within `name` */
    char tmp[TARGET_TMP_SIZE];       /* its name until it is complete; "": none, or its own */
    int old;                         /* the file that is replaced, locked; -1 if there is none */
    struct image_lock lock;
};

#define TARGET_INIT ((struct target){.fd = -1, .dir = -1, .old = -1})

/*
 * Find out what `name` is, whether it may be written as `format`, and make the file or take hold of the device. -EEXIST if it
 * would be overwritten without `force`; -EBUSY if it is in use. *ret is to be released, also on failure.
 */
int target_open(const char *name, const char *format, bool force, struct target *ret,
                struct error *err);

/* All has been written, and the file is closed but for t->fd: give it its name. -EEXIST if that is taken meanwhile. */
int target_finish(struct target *t, struct error *err);

/* Release; removes a file that has not got its name. */
void target_release(struct target *t);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a restore writes to.
 *
 *   a file      is made without a name, or under a random one, in the directory of the target,
 *               and gets its name when it is complete and synced. An existing file is replaced
 *               only on request, and never while anybody else uses it; its owner, mode and
 *               extended attributes (labels, access lists) go over to the new file. A symbolic
 *               link is refused.
 *   a device    is held exclusively and written in place; a link to it is followed, as in /dev/disk
 *   an export   of an NBD server is written in place
 *
 * Main reactor. Nothing here yields; everything may block. Functions return 0 or -errno.
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
    char open_name[FILES_SELF_SIZE]; /* path of `fd` for the block layer; "" for an export */
    int dir;                         /* directory of the file; -1: no file */
    const char *base;                /* name in `dir`; points into `name` */
    /* random name until the file is complete; "": it has none, or its own */
    char tmp[TARGET_TMP_SIZE];
    int old; /* the file that is replaced, locked; -1 if there is none */
    struct image_lock lock;
};

#define TARGET_INIT ((struct target){.fd = -1, .dir = -1, .old = -1})

/*
 * Find out what `name` is and whether it may be written as `format`; make the file, or open the
 * device. -EEXIST: it would be overwritten without `force`; -EBUSY: it is in use. *ret_target is to
 * be released, also on failure.
 */
int target_open(const char *name, const char *format, bool force, struct target *ret_target,
                struct error *err);

/*
 * Everything is written, and only `fd` is still open: give the file its name. -EEXIST: the name was
 * taken meanwhile.
 */
int target_finish(struct target *t, struct error *err);

/* Release. A file that has not got its name is removed. */
void target_release(struct target *t);

#endif

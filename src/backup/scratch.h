/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Temporary directories. Each is locked by the run that uses it, so that the next run can tell the
 * directory of a killed run from one in use, and removes the first. Nothing here yields; everything
 * may block.
 */
#ifndef TIDEMARK_BACKUP_SCRATCH_H
#define TIDEMARK_BACKUP_SCRATCH_H

#include "base/error.h"

struct scratch {
    char *path; /* NULL: there is none */
    int fd;     /* of the directory, locked; -1: there is none */
};

#define SCRATCH_INIT ((struct scratch){.fd = -1})

/*
 * Remove what killed runs of this user have left, with a warning for each, and make an empty
 * directory "tidemark-KIND.XXXXXX" in `parent` (NULL: $TMPDIR, or /var/tmp). 0 or -errno.
 */
int scratch_make(const char *parent, const char *kind, struct scratch *ret_scratch,
                 struct error *err);
/* Remove the directory, if there is one, with the files in it and in directories two deep. */
void scratch_remove(struct scratch *s);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* A part of verify: the image file of a backup as a whole, compared with its manifest. */
#ifndef TIDEMARK_BACKUP_VERIFY_IMAGE_H
#define TIDEMARK_BACKUP_VERIFY_IMAGE_H

#include <signal.h>

#include "backup/repository.h"
#include "base/error.h"
#include "base/progress.h"
#include "co/sync.h"

/*
 * A comparison under way, by a coroutine of its own. It keeps near to the reading of the contents,
 * so that the disk is read once for both.
 */
struct image_check {
    const struct repository *repository;
    const struct repository_entry *entry;
    const struct progress *contents; /* how far these are */
    bool contents_over;              /* nobody reads them any more */
    volatile sig_atomic_t stop;      /* ends it with -EINTR */
    volatile sig_atomic_t *stop_too; /* may be NULL */
    int status;                      /* when it is over */
    struct error err;
    struct co_group group;
};

/* Start it; the caller has filled in what it is about. Does not yield. */
void image_check_begin(struct image_check *c);
/* Wait for it. Returns 0, -EBADMSG if the file was changed, or another error. Yields. */
int image_check_co_end(struct image_check *c, struct error *err);

#endif

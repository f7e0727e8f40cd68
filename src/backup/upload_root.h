/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A root of sets (set.h) on an SSH server, over SFTP. What the server has of some disks and of sets
 * is mirrored in a temporary directory, descriptions and manifests only, which is a root for
 * everything that reads one. Disks are uploaded by upload.h, each to its own directory, before the
 * sets that have them. `co_` functions run on the main reactor, yield, and return 0 or -errno;
 * `stop` may be NULL, and gives them up.
 */
#ifndef TIDEMARK_BACKUP_UPLOAD_ROOT_H
#define TIDEMARK_BACKUP_UPLOAD_ROOT_H

#include <signal.h>
#include <stddef.h>

#include "base/error.h"

struct upload_root;

/*
 * Make the root on the server, with its directory of sets, if there is none, and mirror the
 * descriptions of these disks. -EINVAL: the directory is that of one disk. Others as
 * upload_co_open().
 */
int upload_root_co_open(const char *address, char *const *disks, size_t count,
                        volatile sig_atomic_t *stop, struct upload_root **ret_root,
                        struct error *err);
/* Mirror the disks and all sets, after disks were uploaded; what was in the mirror is lost. */
int upload_root_co_mirror(struct upload_root *root, char *const *disks, size_t count,
                          struct error *err);
/* The path of the mirror, until the next one is made. Borrowed. */
const char *upload_root_path(const struct upload_root *root);
/*
 * Note that a set of the mirror was made again: it takes the place of a damaged one on the server.
 */
int upload_root_replace(struct upload_root *root, const char *id, struct error *err);
/*
 * Upload the sets that were added to the mirror and the server lacks: each appears there as a
 * whole, or not at all. -EBUSY: another copy does this.
 */
int upload_root_co_put_sets(struct upload_root *root, struct error *err);
/* Remove the mirror. In `err`, its path becomes the address. NULL is fine. Does not yield. */
void upload_root_close(struct upload_root *root, struct error *err);

#endif

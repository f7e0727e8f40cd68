/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The key for descriptions of sets that have no code by it: those of a root whose disks got a key
 * later, or that were made before sets had codes. Such a set gets one if the manifests of its
 * backups, which have theirs, say what it says: same set, node and moment. The name of the machine
 * is in no manifest, and is taken as it is, and so is a definition whose checksum is not in the
 * description. Nothing here yields.
 */
#ifndef TIDEMARK_BACKUP_SET_SIGN_H
#define TIDEMARK_BACKUP_SET_SIGN_H

#include "backup/repair.h"

/*
 * Sign the sets of a root; items of the result are those that had no right code. -ENOKEY: the
 * program has no key; -EINVAL: every set has its code; others as set_read_all(). *ret_result is to
 * be cleared, also on failure.
 */
int set_sign_all(const char *root, struct repair_result *ret_result, struct error *err);

#endif

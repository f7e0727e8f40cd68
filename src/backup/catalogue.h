/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The repositories below a directory, of any number of machines and disks. Nothing is stored about
 * them: the directories themselves are the catalogue, so that it cannot be lost or be out of date.
 * Symbolic links are not followed, and directories whose names begin with a dot are left out. Main
 * reactor; nothing yields, all may block.
 */
#ifndef TIDEMARK_BACKUP_CATALOGUE_H
#define TIDEMARK_BACKUP_CATALOGUE_H

#include "backup/repository.h"

/* As deep below the root a repository is found: .../SITE/MACHINE/VM/DISK. */
#define CATALOGUE_DEPTH 6

struct catalogue_entry {
    char *path;                   /* below the root; "." for the root itself */
    struct repository repository; /* not open if there is a problem */
    char *problem; /* a sentence; NULL: none. Also two repositories with one id: copies by hand */
};

struct catalogue {
    char *root;                   /* absolute */
    struct catalogue_entry *list; /* by path */
    size_t count;
};

/*
 * Find them. -ENOENT, -ENOTDIR: the root is no directory. A directory that cannot be read is an
 * entry with a problem. *ret_catalogue is to be cleared, also on failure.
 */
int catalogue_read(const char *root, struct catalogue *ret_catalogue, struct error *err);
void catalogue_clear(struct catalogue *c);

#endif

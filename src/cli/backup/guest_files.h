/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files in a guest's file system, read by a program that knows it, without mounting it. The volume
 * is a file; what the program prints about it is the guest's, and nothing of it is trusted: names
 * that lead elsewhere are left out. Nothing here yields; everything may block. Functions return 0
 * or -errno.
 */
#ifndef TIDEMARK_CLI_BACKUP_GUEST_FILES_H
#define TIDEMARK_CLI_BACKUP_GUEST_FILES_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/error.h"

#define GUEST_SIZE_UNKNOWN UINT64_MAX

struct guest_entry {
    char *name;
    mode_t mode;    /* with the type */
    uint64_t size;  /* bytes; GUEST_SIZE_UNKNOWN */
    uint64_t inode; /* ext */
    char *path;     /* FAT: from the root, begins with a slash */
};

struct guest_entries {
    struct guest_entry *list;
    size_t count;
    size_t left_out; /* names that are not used */
};

struct guest_volume {
    const struct guest_driver *driver;
    const char *program; /* its path */
    const char *file;    /* the volume */
    const char *folder;  /* for temporary files */
    volatile sig_atomic_t *stop;
};

struct guest_driver {
    const char *const *types; /* of volumes (backup/volumes.h); NULL ends them */
    const char *program, *package;
    /* The entry of the root directory. */
    int (*root)(struct guest_entry *ret_entry);
    /* What is in a directory, but for "." and "..". *ret_entries is to be cleared. */
    int (*list)(const struct guest_volume *v, const struct guest_entry *dir,
                struct guest_entries *ret_entries, struct error *err);
    /*
     * Write the contents of the regular files among `entries`, which is of `dir`, to files in
     * `folder` whose names are `prefix` and their index. What can't be read has no file there.
     */
    int (*take)(const struct guest_volume *v, const struct guest_entries *entries,
                const char *folder, const char *prefix, struct error *err);
    bool ignores_case;
};

extern const struct guest_driver guest_ext, guest_fat;

/* Release. */
void guest_entry_clear(struct guest_entry *e);
void guest_entries_clear(struct guest_entries *e);
#define GUEST_ENTRIES_AUTO(name)                                                                   \
    __attribute__((cleanup(guest_entries_clear))) struct guest_entries name = {0}

/* Append an entry, whose strings the list owns then; a name that is not used is counted. -ENOMEM */
int guest_entries_add(struct guest_entries *e, struct guest_entry entry);

/* Run the program of the volume; *ret_output is what it printed, malloc'ed. */
int guest_run(const struct guest_volume *v, const char *const *words, char **ret_output,
              struct error *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Work on all disks of a root of sets (backup/set.h): what is kept of sets, and copying them. Main
 * reactor; `co_` functions yield. They return 0 or -errno.
 */
#ifndef TIDEMARK_BACKUP_SET_ROOT_H
#define TIDEMARK_BACKUP_SET_ROOT_H

#include <stdbool.h>
#include <stddef.h>

#include "backup/prune.h"
#include "backup/repository_copy.h"
#include "backup/set.h"

/* The sets of a root, and the directories of their disks. */
struct set_root {
    const char *path; /* borrowed */
    struct set_list sets;
    char **disks; /* each once */
    size_t count;
};

/* Whether a directory holds sets, and is no repository itself. */
bool set_is_root(const char *path);
/*
 * Read and examine the sets; the disks are those of `machine` (NULL: of all). -ENOENT: it has no
 * set; others as set_read_all(). *ret_root is to be cleared, also on failure.
 */
int set_root_open(const char *path, const char *machine, struct set_root *ret_root,
                  struct error *err);
void set_root_clear(struct set_root *r);
/* Whether a set is one of `machine` (NULL: any). */
bool set_is_of(const struct set *s, const char *machine);
/* The backup of a disk in a set; NULL: it has none. Borrowed. */
const char *set_backup_of(const struct set *s, const char *directory);

struct prune_root_result {
    struct prune_item *sets; /* the oldest first; only id, time, fate, reasons, newest, problem */
    size_t set_count;
    struct prune_result *disks; /* in the order of root.disks */
    struct set_root root;
};

/*
 * Prune all disks of a root: the rules of `options`, and its `remove`, count sets that are whole,
 * and each disk keeps the backups of the sets that are kept. Backups that are of no set are counted
 * by the same rules, per disk; those of a set that is gone are removed. Sets that are not whole
 * stay. `options->dir` is the root. *ret_result is to be cleared, also on failure.
 */
int prune_root_co_run(const struct prune_options *options, const char *machine,
                      struct prune_root_result *ret_result, struct error *err);
void prune_root_result_clear(struct prune_root_result *r);

struct copy_root_result {
    struct repository_copy_result disks; /* the sums; not `id` */
    size_t sets;                         /* that are new in the copy */
    size_t left_out;                     /* sets that are not whole, or are damaged */
};

/*
 * Copy all disks of a root, and the sets of which the copy has all backups: with `at` or `last`
 * only those of that set, or of the newest ones that are whole. `options` has the two roots; the
 * second may be an address. Damage of one disk does not keep the others from being copied.
 */
int copy_root_co_run(const struct repository_copy_options *options, const char *machine,
                     struct copy_root_result *ret_result, struct error *err);

#endif

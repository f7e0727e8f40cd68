/* SPDX-License-Identifier: Apache-2.0 */
/* What became of the backups of sets: the disks of a set may be pruned and damaged one by one. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backup/condition.h"
#include "backup/files.h"
#include "backup/repository.h"
#include "backup/set.h"
#include "base/cleanup.h"

/* The directory of a disk, read once for all sets. */
struct known_disk {
    char *directory;
    struct repository repository;
    char *problem; /* NULL: it is open */
    /* What is known of its backups, read when it is asked for. */
    bool has_condition;
    struct condition condition;
};

struct known_disks {
    const char *root;
    bool any_key; /* one that does not fit is a problem of the disk, and no error */
    struct known_disk *list;
    size_t count;
};

static void clear_known(struct known_disks *k)
{
    for (size_t i = 0; i < k->count; i++) {
        free(k->list[i].directory);
        free(k->list[i].problem);
        condition_clear(&k->list[i].condition);
        repository_close(&k->list[i].repository);
    }
    free(k->list);
    *k = (struct known_disks){0};
}

static int open_known(const struct known_disks *k, struct known_disk *d, struct error *err)
{
    char *path AUTO_FREE = files_join(k->root, d->directory);
    ERROR_AUTO(why);
    int r = path ? repository_open(path, &d->repository, &why) : -ENOMEM;

    if (r == -ENOMEM) {
        return error_out_of_memory(err);
    }
    if (!k->any_key && (r == -ENOKEY || r == -EKEYREJECTED)) {
        error_move(err, &why);
        return r;
    }
    if (r < 0) {
        d->problem = strdup(error_message(&why));
        return d->problem ? 0 : error_out_of_memory(err);
    }
    return 0;
}

/* The disk of that directory; it is added if it is new. 0, or as set_list_examine(). */
static int get_known(struct known_disks *k, const char *directory, struct known_disk **ret_disk,
                     struct error *err)
{
    struct known_disk *list, *d;

    for (size_t i = 0; i < k->count; i++) {
        if (strcmp(k->list[i].directory, directory) == 0) {
            *ret_disk = &k->list[i];
            return 0;
        }
    }
    list = realloc(k->list, (k->count + 1) * sizeof(*list));
    if (!list) {
        return error_out_of_memory(err);
    }
    k->list = list;
    d = &list[k->count++];
    *d = (struct known_disk){.directory = strdup(directory), .repository = REPOSITORY_INIT};
    *ret_disk = d;
    return d->directory ? open_known(k, d, err) : error_out_of_memory(err);
}

/* NULL in *ret_problem: none. -ENOMEM. */
static int judge_disk(const struct known_disk *known, const struct set *s, const struct set_disk *d,
                      char **ret_problem)
{
    const struct repository_entry **chain AUTO_FREE = NULL;
    const struct repository_entry *e;
    ERROR_AUTO(why);
    size_t count;
    int r;

    *ret_problem = NULL;
    e = known->problem ? NULL : repository_get(&known->repository, d->backup);
    if (known->problem) {
        *ret_problem = strdup(known->problem);
    } else if (!e) {
        r = asprintf(ret_problem, "Backup %s is gone", d->backup);
        *ret_problem = r < 0 ? NULL : *ret_problem;
    } else if (e->problem) {
        *ret_problem = strdup(e->problem);
    } else if (e->manifest.set[0] && strcmp(e->manifest.set, s->id) != 0) {
        r = asprintf(ret_problem, "Backup %s is of set %s", e->id, e->manifest.set);
        *ret_problem = r < 0 ? NULL : *ret_problem;
    } else {
        r = repository_chain(&known->repository, e, &chain, &count, &why);
        if (r == 0) {
            return 0;
        }
        *ret_problem = strdup(error_message(&why));
    }
    return *ret_problem ? 0 : -ENOMEM;
}

static int examine_set(struct known_disks *k, struct set *s, struct error *err)
{
    for (size_t i = 0; i < s->count; i++) {
        struct set_disk *d = &s->disks[i];
        struct known_disk *known;
        int r = get_known(k, d->directory, &known, err);

        if (r < 0) {
            return r;
        }
        free(d->problem);
        if (judge_disk(known, s, d, &d->problem) < 0) {
            return error_out_of_memory(err);
        }
    }
    return 0;
}

int set_list_examine(struct set_list *list, const char *root, struct error *err)
{
    struct known_disks known = {.root = root};
    int r = 0;

    for (size_t i = 0; r == 0 && i < list->count; i++) {
        r = examine_set(&known, &list->list[i], err);
    }
    clear_known(&known);
    set_list_drop_removed(list, root);
    return r;
}

/* --- what verification has found --- */

/* What is known to be wrong with a backup that is there; NULL: nothing. Borrowed. */
static int ask_condition(struct known_disk *known, const char *id, const char **ret_problem)
{
    const struct repository_entry *e = repository_get(&known->repository, id);

    if (!known->has_condition) {
        known->has_condition = true;
        if (condition_read(&known->repository, &known->condition) < 0) {
            return -ENOMEM;
        }
    }
    *ret_problem = e ? known->condition.problems[e - known->repository.entries] : NULL;
    return 0;
}

static int take_found_in_set(struct known_disks *k, struct set *s, struct error *err)
{
    for (size_t i = 0; i < s->count; i++) {
        struct set_disk *d = &s->disks[i];
        const char *problem = NULL;
        struct known_disk *known;
        int r = get_known(k, d->directory, &known, err);

        if (r < 0) {
            return r;
        }
        if (d->problem || known->problem) {
            continue;
        }
        r = ask_condition(known, d->backup, &problem);
        d->problem = problem ? strdup(problem) : NULL;
        if (r < 0 || (problem && !d->problem)) {
            return error_out_of_memory(err);
        }
    }
    return 0;
}

int set_list_take_found_damage(struct set_list *list, const char *root, struct error *err)
{
    struct known_disks known = {.root = root};
    int r = 0;

    for (size_t i = 0; r == 0 && i < list->count; i++) {
        r = take_found_in_set(&known, &list->list[i], err);
    }
    clear_known(&known);
    return r;
}

/* --- sets without a code of the key ----------------------------------------------------------- */

static bool is_same_moment(const struct backup_moment *a, const struct backup_moment *b)
{
    return strcmp(a->utc, b->utc) == 0 && a->monotonic_ns == b->monotonic_ns;
}

/* What a set says of a backup that is there, compared with its manifest. NULL: nothing is wrong. */
static const char *disprove(const struct known_disk *known, const struct set *s,
                            const struct set_disk *d, const struct repository_entry *e)
{
    const struct manifest *m = &e->manifest;

    return !known->repository.key                  ? "The directory of the disk has no key"
           : e->problem                            ? e->problem
           : strcmp(m->set, s->id) != 0            ? "The backup is not of this set"
           : strcmp(m->node, d->node) != 0         ? "The backup is of another node"
           : !is_same_moment(&m->begin, &s->begin) ? "The backup is of another moment"
           : !is_same_moment(&m->end, &s->end)     ? "The backup is of another moment"
                                                   : NULL;
}

static int prove_set(struct known_disks *k, struct set *s, struct set_key *key, struct error *err)
{
    size_t proved = 0;

    for (size_t i = 0; i < s->count; i++) {
        struct set_disk *d = &s->disks[i];
        const struct repository_entry *e;
        const char *problem;
        struct known_disk *known;
        int r = get_known(k, d->directory, &known, err);

        if (r < 0) {
            return r;
        }
        e = known->problem ? NULL : repository_get(&known->repository, d->backup);
        problem = known->problem ? known->problem : e ? disprove(known, s, d, e) : NULL;
        d->problem = problem ? strdup(problem) : NULL;
        if (problem && !d->problem) {
            return error_out_of_memory(err);
        }
        if (e && !problem) {
            proved++;
            key->key = known->repository.key;
            key->seal = key->seal ?: repository_seal(&known->repository);
        }
    }
    if (proved == 0 && !set_problem_disk(s)) {
        s->disks[0].problem = strdup("None of its backups is there");
        return s->disks[0].problem ? 0 : error_out_of_memory(err);
    }
    return 0;
}

int set_list_prove(struct set_list *list, const char *root, struct set_key *ret_key,
                   struct error *err)
{
    struct known_disks known = {.root = root};
    int r = 0;

    *ret_key = (struct set_key){0};
    for (size_t i = 0; r == 0 && i < list->count; i++) {
        r = prove_set(&known, &list->list[i], ret_key, err);
    }
    clear_known(&known);
    return r;
}

/* --- sets that are empty --- */

static int is_empty(struct known_disks *k, const struct set *s, bool *ret_empty, struct error *err)
{
    *ret_empty = !s->damaged;
    for (size_t i = 0; *ret_empty && i < s->count; i++) {
        struct known_disk *known;
        int r = get_known(k, s->disks[i].directory, &known, err);

        if (r < 0) {
            return r;
        }
        *ret_empty = !known->problem && !repository_get(&known->repository, s->disks[i].backup);
    }
    return 0;
}

static int remove_empty_below(const char *root, struct error *err)
{
    struct known_disks known = {.root = root, .any_key = true};
    struct set_list all = {0};
    int r = set_read_all(root, &all, err);

    for (size_t i = 0; r == 0 && i < all.count; i++) {
        bool empty;

        r = is_empty(&known, &all.list[i], &empty, err);
        if (r == 0 && empty) {
            r = set_remove(root, all.list[i].id, err);
        }
    }
    clear_known(&known);
    set_list_clear(&all);
    /* Sets of other keys are not this disk's alone. */
    if (r == -ENOKEY || r == -EKEYREJECTED) {
        error_clear(err);
        r = 0;
    }
    return r;
}

int set_remove_empty(const char *disk_directory, struct error *err)
{
    char *root AUTO_FREE = files_join(disk_directory, "..");
    char *sets AUTO_FREE = root ? files_join(root, SET_DIRECTORY) : NULL;
    struct stat st;

    if (!sets) {
        return error_out_of_memory(err);
    }
    return lstat(sets, &st) == 0 && S_ISDIR(st.st_mode) ? remove_empty_below(root, err) : 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/catalogue.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/files.h"
#include "base/checked.h"
#include "base/cleanup.h"

void catalogue_clear(struct catalogue *c)
{
    for (size_t i = 0; i < c->count; i++) {
        free(c->list[i].path);
        free(c->list[i].problem);
        repository_close(&c->list[i].repository);
    }
    free(c->list);
    free(c->root);
    *c = (struct catalogue){0};
}

static struct catalogue_entry *append_entry(struct catalogue *c, const char *path)
{
    struct catalogue_entry *list = realloc(c->list, (c->count + 1) * sizeof(*list));
    struct catalogue_entry *e;

    if (!list) {
        return NULL;
    }
    c->list = list;
    e = &list[c->count];
    *e = (struct catalogue_entry){.path = strdup(path), .repository = REPOSITORY_INIT};
    if (!e->path) {
        return NULL;
    }
    c->count++;
    return e;
}

static int take_problem(struct catalogue_entry *e, const char *text)
{
    e->problem = e->problem ? e->problem : strdup(text);
    return e->problem ? 0 : -ENOMEM;
}

/* Whether a directory has what a repository has, sound or not. */
static bool looks_like_repository(int dir)
{
    struct stat st;

    return fstatat(dir, REPOSITORY_DESCRIPTION, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

/*
 * Whether what was opened is one: without a description, some backup has to have a file of a
 * backup, as names of folders that are numbers may be those of backups, too.
 */
static bool repository_has_backups(int dir, const struct repository *repository)
{
    static const char *const files[] = {REPOSITORY_MANIFEST, REPOSITORY_IMAGE, REPOSITORY_SUMS};

    for (size_t i = 0; i < repository->count; i++) {
        for (size_t k = 0; k < ARRAY_SIZE(files); k++) {
            char name[BACKUP_ID_SIZE + 32];
            struct stat st;

            snprintf(name, sizeof(name), "%s/%s", repository->entries[i].id, files[k]);
            if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
                return true;
            }
        }
    }
    return false;
}

static int add_repository(struct catalogue *c, const char *path, struct repository *repository,
                          const char *problem)
{
    struct catalogue_entry *e = append_entry(c, path);

    if (!e) {
        repository_close(repository);
        return -ENOMEM;
    }
    e->repository = *repository;
    return problem ? take_problem(e, problem) : 0;
}

static int walk(struct catalogue *c, int dir, const char *path, unsigned depth);

/* Every directory in a directory. `dir` is consumed. */
static int walk_inside(struct catalogue *c, int dir, const char *path, unsigned depth)
{
    DIR *list = fdopendir(dir);
    struct dirent *d;
    int r = 0;

    if (!list) {
        close(dir);
        return -ENOMEM;
    }
    while (r == 0 && (d = readdir(list)) != NULL) {
        char *below AUTO_FREE = NULL;
        struct stat st;

        if (d->d_name[0] == '.' || fstatat(dirfd(list), d->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
            !S_ISDIR(st.st_mode)) {
            continue;
        }
        below = strcmp(path, ".") == 0 ? strdup(d->d_name) : files_join(path, d->d_name);
        r = below ? walk(c, files_open_dir_at(dirfd(list), d->d_name, below, NULL), below, depth)
                  : -ENOMEM;
    }
    closedir(list);
    return r;
}

/* A repository, or a directory to look into. `dir` is consumed; it may be an error. */
static int walk(struct catalogue *c, int dir, const char *path, unsigned depth)
{
    struct repository repository = REPOSITORY_INIT;
    char self[FILES_SELF_SIZE], *full AUTO_FREE = files_join(c->root, path);
    ERROR_AUTO(why);
    int r;

    if (!full) {
        return -ENOMEM;
    }
    if (dir < 0) {
        error_set_errno(&why, -dir, "Could not open directory '%s'", full);
        return add_repository(c, path, &repository, error_message(&why));
    }
    /* By the descriptor: no link that is put there meanwhile leads elsewhere. */
    files_self_path(dir, self);
    r = repository_open(self, &repository, &why);
    if (looks_like_repository(dir) || (r == 0 && repository_has_backups(dir, &repository))) {
        close(dir);
        return add_repository(c, path, &repository, r < 0 ? error_message(&why) : NULL);
    }
    repository_close(&repository);
    if (depth == CATALOGUE_DEPTH) {
        close(dir);
        return 0;
    }
    return walk_inside(c, dir, path, depth + 1);
}

static int compare_paths(const void *a, const void *b)
{
    const struct catalogue_entry *x = a, *y = b;

    return strcmp(x->path, y->path);
}

/* A copy that was made by hand has the id of the original: their backups disturb each other. */
static int find_copies(struct catalogue *c)
{
    for (size_t i = 0; i < c->count; i++) {
        struct catalogue_entry *e = &c->list[i];

        for (size_t k = 0; e->repository.id[0] && k < c->count; k++) {
            char *text AUTO_FREE = NULL;

            if (k == i || strcmp(c->list[k].repository.id, e->repository.id) != 0) {
                continue;
            }
            if (asprintf(&text,
                         "It has the id of '%s': give the copy another one, by 'tidemark "
                         "repair --new-id'",
                         c->list[k].path) < 0) {
                text = NULL;
                return -ENOMEM;
            }
            if (take_problem(e, text) < 0) {
                return -ENOMEM;
            }
        }
    }
    return 0;
}

int catalogue_read(const char *root, struct catalogue *ret_catalogue, struct error *err)
{
    int dir, r;

    *ret_catalogue = (struct catalogue){.root = realpath(root, NULL)};
    if (!ret_catalogue->root) {
        return error_set_errno(err, errno, "Could not open directory '%s'", root);
    }
    dir = files_open_dir(ret_catalogue->root, err);
    if (dir < 0) {
        return dir;
    }
    r = walk(ret_catalogue, dir, ".", 0);
    if (r == 0 && ret_catalogue->count > 0) {
        qsort(ret_catalogue->list, ret_catalogue->count, sizeof(*ret_catalogue->list),
              compare_paths);
        r = find_copies(ret_catalogue);
    }
    return r < 0 ? error_out_of_memory(err) : 0;
}

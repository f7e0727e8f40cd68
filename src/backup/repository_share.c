/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/repository_share.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/list.h"

/* Two changes within this time may leave a directory with the same time. */
#define SAME_TIME_SECONDS 2

struct shared {
    struct list link;
    struct repository repository;
    char *path; /* by which it was opened */
    unsigned users;
    bool stale;    /* the directory has changed */
    bool too_soon; /* it had changed just before it was read */
    struct stat stat;
};

static struct list all = LIST_INIT(all);
static unsigned holders;

static void free_shared(struct shared *s)
{
    list_remove(&s->link);
    repository_close(&s->repository);
    free(s->path);
    free(s);
}

static void free_unused(void)
{
    struct shared *s, *next;

    LIST_FOREACH_SAFE (s, next, &all, link) {
        if (s->users == 0 && (s->stale || holders == 0)) {
            free_shared(s);
        }
    }
}

/* Whether the path leads to the same directory, and nothing in that has got or lost its name. */
static bool is_current(const struct shared *s)
{
    struct stat now;

    return !s->too_soon && stat(s->path, &now) == 0 && now.st_dev == s->stat.st_dev &&
           now.st_ino == s->stat.st_ino && now.st_mtim.tv_sec == s->stat.st_mtim.tv_sec &&
           now.st_mtim.tv_nsec == s->stat.st_mtim.tv_nsec &&
           now.st_ctim.tv_sec == s->stat.st_ctim.tv_sec &&
           now.st_ctim.tv_nsec == s->stat.st_ctim.tv_nsec;
}

static int read_shared(const char *path, struct shared **ret_shared, struct error *err)
{
    struct shared *s = calloc(1, sizeof(*s));
    int r;

    if (!s) {
        return error_out_of_memory(err);
    }
    list_init(&s->link);
    s->repository = REPOSITORY_INIT;
    s->path = strdup(path);
    s->too_soon =
        stat(path, &s->stat) < 0 || s->stat.st_ctim.tv_sec + SAME_TIME_SECONDS > time(NULL);
    r = s->path ? repository_open(path, &s->repository, err) : error_out_of_memory(err);
    if (r < 0) {
        free_shared(s);
        return r;
    }
    list_append(&all, &s->link);
    *ret_shared = s;
    return 0;
}

int repository_share(const char *path, const struct repository **ret_repository, struct error *err)
{
    struct shared *s, *found = NULL;
    int r = 0;

    LIST_FOREACH (s, &all, link) {
        if (strcmp(s->path, path) == 0 && !s->stale) {
            s->stale = !is_current(s);
            found = s->stale ? found : s;
        }
    }
    if (!found) {
        r = read_shared(path, &found, err);
    }
    if (r == 0) {
        found->users++;
        *ret_repository = &found->repository;
    }
    free_unused();
    return r;
}

void repository_unshare(const struct repository *r)
{
    if (r) {
        container_of((struct repository *)r, struct shared, repository)->users--;
        free_unused();
    }
}

void repositories_hold(void)
{
    holders++;
}

void repositories_let_go(void)
{
    holders--;
    free_unused();
}

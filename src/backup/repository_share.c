/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/repository_share.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/list.h"
#include "loop/loop.h"

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
static int check_current(void *arg)
{
    const struct shared *s = arg;
    struct stat now;

    return !s->too_soon && stat(s->path, &now) == 0 && now.st_dev == s->stat.st_dev &&
           now.st_ino == s->stat.st_ino && now.st_mtim.tv_sec == s->stat.st_mtim.tv_sec &&
           now.st_mtim.tv_nsec == s->stat.st_mtim.tv_nsec &&
           now.st_ctim.tv_sec == s->stat.st_ctim.tv_sec &&
           now.st_ctim.tv_nsec == s->stat.st_ctim.tv_nsec;
}

/* One that was read and is current still, with one more user; NULL: none. */
static struct shared *co_find_current(const char *path)
{
    struct shared *s;

    LIST_FOREACH (s, &all, link) {
        if (strcmp(s->path, path) == 0 && !s->stale) {
            s->users++;
            if (loop_co_brief(check_current, s) > 0) {
                return s;
            }
            s->stale = true;
            s->users--;
            break;
        }
    }
    return NULL;
}

/* It is the latest of its directory: of those that were read at a time, too, one is kept. */
static void add_latest(struct shared *latest)
{
    struct shared *s;

    LIST_FOREACH (s, &all, link) {
        s->stale = s->stale || strcmp(s->path, latest->path) == 0;
    }
    list_append(&all, &latest->link);
}

struct shared_reading {
    struct shared *shared;
    struct error *err;
};

static int read_shared(void *arg)
{
    struct shared_reading *q = arg;
    struct shared *s = q->shared;

    s->too_soon =
        stat(s->path, &s->stat) < 0 || s->stat.st_ctim.tv_sec + SAME_TIME_SECONDS > time(NULL);
    return repository_open(s->path, &s->repository, q->err);
}

/* With one user. */
static int co_read_shared(const char *path, struct shared **ret_shared, struct error *err)
{
    struct shared *s = calloc(1, sizeof(*s));
    struct shared_reading q = {s, err};
    int r;

    if (!s) {
        return error_out_of_memory(err);
    }
    list_init(&s->link);
    s->repository = REPOSITORY_INIT;
    s->users = 1;
    s->path = strdup(path);
    r = s->path ? loop_co_brief(read_shared, &q) : error_out_of_memory(err);
    if (r < 0) {
        free_shared(s);
        return r;
    }
    add_latest(s);
    *ret_shared = s;
    return 0;
}

int repository_co_share(const char *path, const struct repository **ret_repository,
                        struct error *err)
{
    struct shared *s = co_find_current(path);
    int r = s ? 0 : co_read_shared(path, &s, err);

    if (r == 0) {
        *ret_repository = &s->repository;
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

struct opening {
    const char *path;
    struct backup_key_ring *ring;
    struct repository *repository;
    struct error *err;
};

static int run_opening(void *arg)
{
    const struct opening *o = arg;

    return repository_open_with(o->path, o->ring, o->repository, o->err);
}

int repository_co_open_with(const char *path, struct backup_key_ring *ring,
                            struct repository *ret_repository, struct error *err)
{
    struct opening o = {path, ring, ret_repository, err};

    return loop_co_brief(run_opening, &o);
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

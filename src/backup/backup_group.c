/* SPDX-License-Identifier: Apache-2.0 */
/* Disks that are backed up together: their sources and repositories. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/backup_internal.h"
#include "backup/files.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/time_units.h"
#include "loop/loop.h"

#define LOCK_TRIES 20
#define LOCK_POLL_NS (100 * NS_PER_MS)

static void begin_run(struct group *g, size_t i)
{
    g->runs[i] = (struct run){.options = g->options,
                              .set = g->set.id,
                              .source = g->sources[i],
                              .repository = REPOSITORY_INIT,
                              .draft = REPOSITORY_DRAFT_INIT,
                              .image_fd = -1,
                              .sums_fd = -1,
                              .started_ns = loop_now_ns()};
}

static void co_clear_run(struct run *run)
{
    source_co_close(run->source);
    chain_close(&run->parent);
    repository_discard(&run->repository, &run->draft);
    if (run->image_fd >= 0) {
        close(run->image_fd);
    }
    if (run->sums_fd >= 0) {
        close(run->sums_fd);
    }
    manifest_clear(&run->manifest);
    /* What may be left in the source has the id of the repository, and is for the next run. */
    if (!run->committed && !run->unsettled) {
        repository_unmake(&run->repository);
    }
    repository_close(&run->repository);
    free(run->reason);
    free(run->image);
    free(run->sums);
}

/* Every disk has a directory in the root. */
static int describe_set(struct group *g, struct error *err)
{
    const char *machine = g->options->quiesce.machine, *definition = g->options->definition;
    const char *slash = definition ? strrchr(definition, '/') : NULL;
    struct set *s = &g->set;
    int r = set_make_root(g->options->dir, &g->made, err);

    if (r == 0) {
        g->set_kept = set_reserve(g->options->dir, s->id, err);
        memcpy(g->set_id, s->id, sizeof(g->set_id));
        r = MIN(g->set_kept, 0);
    }
    if (r == 0 && definition) {
        r = set_read_definition(definition, &g->definition, err);
    } else if (r == 0 && g->sources[0]->ops->definition) {
        g->definition = g->sources[0]->ops->definition(g->sources[0]);
        definition = g->definition ? "domain.xml" : NULL;
    }
    if (r < 0) {
        return r;
    }
    s->machine = machine ? strdup(machine) : NULL;
    s->definition = definition ? strdup(slash ? slash + 1 : definition) : NULL;
    s->disks = calloc(g->count, sizeof(*s->disks));
    if (!s->disks || (machine && !s->machine) || (definition && !s->definition)) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i < g->count; i++) {
        const char *name = g->sources[i]->name;

        if (!set_name_is_valid(name)) {
            error_set(err, EINVAL, "The name of disk '%s' cannot be that of a directory", name);
            error_hint(err, "Name the disks with --node, by node, device or id.");
            return -EINVAL;
        }
        s->disks[i].directory = strdup(name);
        s->disks[i].node = strdup(name);
        s->count++;
        if (!s->disks[i].directory || !s->disks[i].node) {
            return error_out_of_memory(err);
        }
    }
    return 0;
}

/* The guard of a run that was killed just now holds the lock for a moment. */
static int co_open_repository(const char *path, struct repository *ret_repository,
                              struct error *err)
{
    for (int i = 1;; i++) {
        ERROR_AUTO(attempt);
        int r = repository_open_to_write(path, ret_repository, &attempt);

        if (r == 0) {
            return 0;
        }
        if (r != -EBUSY || i == LOCK_TRIES) {
            error_move(err, &attempt);
            return r;
        }
        loop_co_sleep(LOCK_POLL_NS);
    }
}

/* Open those repositories that exist, or those that are not open then: they are made. */
static int co_open_repositories(struct group *g, bool exist, struct error *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < g->count; i++) {
        char *path AUTO_FREE = g->options->is_set
                                   ? files_join(g->options->dir, g->set.disks[i].directory)
                                   : strdup(g->options->dir);

        if (!path) {
            r = error_out_of_memory(err);
        } else if (exist ? repository_is_described(path) : g->runs[i].repository.fd < 0) {
            r = co_open_repository(path, &g->runs[i].repository, err);
        }
    }
    /* A disk that joins a set later is stored as the others are. */
    for (size_t i = 0; r == 0 && exist && i < g->count; i++) {
        repository_be_joined(&g->runs[i].repository);
    }
    return r;
}

int group_co_open(const struct backup_options *options, struct group *ret_group, struct error *err)
{
    struct group *g = ret_group;
    int r;

    *g = (struct group){.options = options, .set_kept = -1, .guard = -1};
    r = source_co_open(&options->source, &g->sources, &g->count, err);
    if (r < 0) {
        return r;
    }
    g->runs = calloc(g->count, sizeof(*g->runs));
    if (!g->runs) {
        for (size_t i = 0; i < g->count; i++) {
            source_co_close(g->sources[i]);
        }
        g->count = 0;
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i < g->count; i++) {
        begin_run(g, i);
    }
    r = options->is_set ? describe_set(g, err) : 0;
    UNLESS_FAILED(r, co_open_repositories(g, true, err));
    UNLESS_FAILED(r, co_open_repositories(g, false, err));
    return r;
}

void group_co_give_up_attempts(void *none)
{
    nbd_client_give_up_attempts();
}

void group_co_clear(struct group *g)
{
    for (size_t i = 0; i < g->count; i++) {
        co_clear_run(&g->runs[i]);
    }
    if (g->guard >= 0) {
        close(g->guard);
    }
    set_release(g->options->dir, g->set_id, g->set_kept);
    set_unmake_root(g->options->dir, &g->made);
    set_clear(&g->set);
    free(g->definition);
    free(g->runs);
    free(g->sources);
    *g = (struct group){0};
}

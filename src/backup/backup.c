/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A backup, in order, of one disk or of several:
 *
 *   1. lock the repository; remove what a killed run has left there and in the source
 *   2. decide: incremental, or full and why
 *   3. checkpoint: one moment for all disks
 *   4. pull the point in time into an unfinished directory of the repository
 *   5. checksums, manifest, rename: now the backup exists
 *   6. settle the source: remove what the checkpoint made, and the frozen bitmap
 *
 * A failure before step 5 settles the source for the backup before, whose bitmap takes back the
 * changes recorded since the checkpoint. A kill at any point leaves a state that step 1 of the next
 * run recognises.
 */
#include "backup/backup.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "backup/backup_internal.h"
#include "backup/giving_up.h"
#include "backup/guard.h"
#include "backup/pull.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "loop/loop.h"

/* With less free space than this, a message guesses that a full file system is the cause. */
#define LITTLE_SPACE (1 * MiB)

/* --- the point in time --- */

static bool is_full(const char *dir)
{
    struct statvfs fs;

    return statvfs(dir, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < LITTLE_SPACE;
}

static int watch_source(void *arg, struct error *err)
{
    const struct run *run = arg;

    return run->source->ops->watch(run->source, err);
}

/* Name a full file system as the likely cause. */
static void co_guess_cause(const struct run *run, struct error *err)
{
    if ((run->view_failed || err->code == ENOSPC) && is_full(run->draft.path)) {
        error_hint(err, "There is no space left in '%s'.", run->repository.path);
    } else {
        run->source->ops->co_explain(run->source, run->view_failed, err);
    }
}

static int co_pull(struct run *run, struct error *err)
{
    char *backing AUTO_FREE = NULL;
    struct pull_input *input = NULL;
    struct pull_result result;
    int r;

    if (run->base && asprintf(&backing, "../%s/%s", run->base->id, REPOSITORY_IMAGE) < 0) {
        backing = NULL;
        return error_out_of_memory(err);
    }
    r = run->source->ops->co_open_view(run->source, &input, err);
    if (r == 0) {
        struct pull_config config = {
            .input = input,
            .parent = run->parent.count > 0 ? &run->parent : NULL,
            .disk_size = run->source->disk.size,
            .parent_size = run->base ? run->base->manifest.virtual_size : 0,
            .image_fd = run->image_fd,
            .image_path = run->image,
            .seal = run->draft.seal,
            .backing = backing,
            .sums_fd = run->sums_fd,
            .sums_path = run->sums,
            .rate = run->options->rate,
            .progress = run->options->progress,
            .stop = run->options->stop,
            .watch = watch_source,
            .watch_arg = run,
            .view_failed = &run->view_failed,
        };
        r = pull_co_run(&config, &result, err);
        pull_input_co_close(input);
    }
    if (r == 0) {
        run->manifest.cluster_size =
            manifest_is_full(&run->manifest) ? BACKUP_FULL_CLUSTER_SIZE : BACKUP_CLUSTER_SIZE;
        run->manifest.changed = result.changed;
        run->manifest.moved = result.moved;
    }
    return r;
}

static int co_complete_manifest(struct run *run, struct error *err)
{
    volatile sig_atomic_t *stop = run->options->stop;
    struct manifest *m = &run->manifest;
    int r = digest_co_complete(run->image_fd, run->image, stop, m->image_sha256, &m->image_size,
                               &m->stored, err);

    UNLESS_FAILED(r, digest_co_complete(run->sums_fd, run->sums, stop, m->sums_sha256,
                                        &m->sums_size, &m->stored, err));
    if (r < 0) {
        return r;
    }
    m->duration_ms = (uint64_t)(loop_now_ns() - run->started_ns) / NS_PER_MS;
    unlinkat(run->draft.fd, REPOSITORY_FLEECE, 0);
    return 0;
}

/* --- all disks --- */

/* Whether the daemon may have made a checkpoint without being able to say so. */
static bool has_no_answer(int r)
{
    return r == -EINTR || r == -ETIMEDOUT || r == -ECONNRESET;
}

/*
 * The moment of all disks, in which the guest may be frozen. `later` gets what goes wrong
 * afterwards, which does not concern the backup.
 */
static int co_make_checkpoint(struct group *g, struct error *later, struct error *err)
{
    struct quiesce quiesce;
    int r;

    guard_say(g->guard, GUARD_FROZEN);
    r = quiesce_co_begin(&quiesce, &g->options->quiesce, err);
    if (r < 0) {
        return r;
    }
    r = g->sources[0]->ops->co_checkpoint(g->sources, g->count, &g->set.begin, &g->set.end, err);
    if (has_no_answer(r) && !err->hint) {
        error_hint(err, "If it was made all the same, the next backup or --abort removes it.");
    }
    if ((r < 0 ? quiesce_co_give_up(&quiesce, r, err) : quiesce_co_end(&quiesce, r, later)) == 0) {
        guard_say(g->guard, GUARD_THAWED);
    }
    for (size_t i = 0; i < g->count; i++) {
        g->runs[i].manifest.begin = g->set.begin;
        g->runs[i].manifest.end = g->set.end;
    }
    return r;
}

/* A set is encrypted if any of its disks is. */
static struct set_key key_of_set(const struct group *g)
{
    struct set_key key = {.key = g->runs[0].repository.key};

    for (size_t i = 0; i < g->count && !key.seal; i++) {
        key.seal = repository_seal(&g->runs[i].repository);
        key.key = key.seal ? key.seal : key.key;
    }
    return key;
}

/*
 * The backups get their names when all of them are complete, and the set after that. What needs
 * room is done before the first name.
 */
static int commit_group(struct group *g, struct error *err)
{
    int r = 0;

    for (size_t i = 0; g->options->is_set && i < g->count; i++) {
        memcpy(g->set.disks[i].backup, g->runs[i].manifest.id, BACKUP_ID_SIZE);
    }
    for (size_t i = 0; r == 0 && i < g->count; i++) {
        struct run *run = &g->runs[i];

        r = repository_write_manifest(&run->repository, &run->draft, &run->manifest, err);
    }
    if (r == 0 && g->options->is_set) {
        const struct set_key key = key_of_set(g);

        r = set_write(g->options->dir, &g->set, g->definition, &key, err);
    }
    for (size_t i = 0; r == 0 && i < g->count; i++) {
        struct run *run = &g->runs[i];

        r = repository_commit_written(&run->repository, &run->draft, &run->manifest, err);
        run->committed = r == 0;
    }
    return r == 0 && g->options->is_set ? set_commit(g->options->dir, &g->set, err) : r;
}

/* Whether or not there is a backup, the source gets in order; the first error counts. */
static void co_end_runs(struct group *g, struct error *err)
{
    for (size_t i = 0; i < g->count; i++) {
        struct run *run = &g->runs[i];
        const char *last = run->committed ? run->manifest.bitmap : run_last_bitmap(run);
        ERROR_AUTO(attempt);

        run->unsettled = run->source->ops->co_end(run->source, last, &attempt) < 0;
        if (run->unsettled && !error_is_set(err)) {
            error_move(err, &attempt);
        }
    }
}

/*
 * After a checkpoint that failed there should be nothing in the sources, but a connection may have
 * ended before the answer came.
 */
static void co_end_without_checkpoint(struct group *g)
{
    for (size_t i = 0; i < g->count; i++) {
        struct run *run = &g->runs[i];

        run->unsettled = run->repository.is_new &&
                         run->source->ops->co_settle(run->source, run_last_bitmap(run), NULL) < 0;
    }
}

/* From the checkpoint on, the sources have to be settled in any case. */
static int co_take_backups(struct group *g, struct error *unsettled, struct error *err)
{
    struct run *failed = &g->runs[0];
    ERROR_AUTO(settle_err);
    int r;

    g->guard = g->options->guard ? guard_start(g->options->guard) : -1;
    r = co_make_checkpoint(g, unsettled, err);
    if (r < 0) {
        co_end_without_checkpoint(g);
        if (!has_no_answer(r)) {
            guard_say(g->guard, GUARD_DONE);
        }
        return r;
    }
    for (size_t i = 0; r == 0 && i < g->count; i++) {
        failed = &g->runs[i];
        r = co_pull(failed, err);
        UNLESS_FAILED(r, co_complete_manifest(failed, err));
    }
    UNLESS_FAILED(r, commit_group(g, err));
    co_end_runs(g, &settle_err);
    if (!error_is_set(&settle_err)) {
        guard_say(g->guard, GUARD_DONE);
    }
    if (r == 0 && error_is_set(&settle_err)) {
        error_hint(&settle_err, "Backup %s is complete; the next backup will try again.",
                   g->runs[0].manifest.id);
        error_move(unsettled, &settle_err);
    } else if (r < 0 && !error_is_set(&settle_err)) {
        co_guess_cause(failed, err);
    } else if (r < 0 && !err->hint) {
        /* Space is not the cause: the daemon is gone, or nearly so. */
        error_hint(err, "%s; the next backup will try again.", error_message(&settle_err));
    }
    return r;
}

/* Where the disks of a checkpoint have one bitmap name, all take that of the first. */
static int share_bitmap(struct group *g, struct error *err)
{
    const char *name = g->runs[0].manifest.bitmap;

    for (size_t i = 0; g->sources[0]->ops->one_bitmap && i < g->count; i++) {
        if (g->sources[i]->started && !name[0]) {
            name = g->sources[i]->started;
        }
    }
    for (size_t i = 0; g->sources[0]->ops->one_bitmap && i < g->count; i++) {
        struct manifest *m = &g->runs[i].manifest;
        char *copy = g->sources[i]->started && m->bitmap != name ? strdup(name) : NULL;

        if (copy) {
            free(m->bitmap);
            m->bitmap = copy;
            g->sources[i]->started = copy;
        } else if (g->sources[i]->started && m->bitmap != name) {
            return error_out_of_memory(err);
        }
    }
    return 0;
}

void backup_result_clear(struct backup_result *r)
{
    for (size_t i = 0; i < r->count; i++) {
        manifest_clear(&r->manifests[i]);
    }
    free(r->manifests);
    set_clear(&r->set);
    *r = (struct backup_result){0};
}

/* All that comes before the sources are changed. A stop ends connections that are being made. */
static int co_prepare_group(const struct backup_options *options, struct group *ret_group,
                            struct error *err)
{
    struct group *g = ret_group;
    struct giving_up giving_up;
    int r;

    giving_up_begin(&giving_up, options->stop, group_co_give_up_attempts, NULL);
    r = group_co_open(options, g, err);
    for (size_t i = 0; r == 0 && i < g->count; i++) {
        r = run_co_prepare(&g->runs[i], err);
    }
    UNLESS_FAILED(r, share_bitmap(g, err));
    return giving_up_co_end(&giving_up, r, "The backup was stopped", err);
}

int backup_co_take(const struct backup_options *options, struct backup_result *ret_result,
                   struct error *unsettled, struct error *err)
{
    struct backup_result result = {0};
    struct group g;
    int r = co_prepare_group(options, &g, err);

    if (r == 0) {
        result.manifests = calloc(g.count, sizeof(*result.manifests));
        r = result.manifests ? 0 : error_out_of_memory(err);
    }
    UNLESS_FAILED(r, co_take_backups(&g, unsettled, err));
    if (r == 0) {
        result.count = g.count;
        result.set = g.set;
        g.set = (struct set){0};
        for (size_t i = 0; result.manifests && i < g.count; i++) {
            result.manifests[i] = g.runs[i].manifest;
            g.runs[i].manifest = (struct manifest){0};
        }
        *ret_result = result;
    } else {
        free(result.manifests);
    }
    group_co_clear(&g);
    return r;
}

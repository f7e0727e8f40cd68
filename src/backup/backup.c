/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A backup, in order:
 *
 *   1. lock the repository; remove what a killed run has left there and in the daemon
 *   2. decide: incremental, or full and why
 *   3. checkpoint: one transaction in the daemon
 *   4. pull the point in time into an unfinished directory of the repository
 *   5. checksums, manifest, rename: now the backup exists
 *   6. settle the daemon: remove the filter and the frozen bitmap
 *
 * A failure before step 5 settles the daemon for the backup before, whose bitmap takes back the
 * changes recorded since the checkpoint. A kill at any point leaves a state that step 1 of the next
 * run recognises.
 */
#include "backup/backup.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "backup/backup_internal.h"
#include "backup/pull.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "loop/loop.h"

#define EXPORT_ATTEMPTS 50
#define EXPORT_RETRY_NS (20 * NS_PER_MS)
/* With less free space than this, a message guesses that a full file system is the cause. */
#define LITTLE_SPACE (1 * MiB)

/* --- the point in time --- */

static bool is_full(const char *dir)
{
    struct statvfs fs;

    return statvfs(dir, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < LITTLE_SPACE;
}

static int watch_space(void *arg, struct error *err)
{
    const struct run *run = arg;

    if (!fleece_is_short_of_space(&run->fleece)) {
        return 0;
    }
    error_set(err, ENOSPC, "Too little space is left in '%s', where the disk is",
              run->fleece.place);
    error_hint(err, "Old data of what the guest overwrites is kept there: name another place with "
                    "--fleece-dir.");
    return -ENOSPC;
}

/*
 * Name a full file system as the likely cause: a read of the view fails when the view is broken,
 * and the view breaks when the temporary image cannot be written.
 */
static void guess_cause(const struct run *run, struct error *err)
{
    const char *full = is_full(run->draft.path)     ? run->repository.path
                       : is_full(run->fleece.place) ? run->fleece.place
                                                    : NULL;

    if (full && (run->view_failed || err->code == ENOSPC)) {
        error_hint(err, "There is no space left in '%s'.", full);
    } else if (run->view_failed) {
        error_hint(err,
                   "If the daemon could not keep old data of what was overwritten meanwhile (in "
                   "'%s'), its log says so.",
                   run->fleece.place);
    }
}

/*
 * Find the NBD server. If a run has started it, lock its socket, and then check once more that it
 * still runs.
 */
static int co_find_server(struct run *run, struct socket_address *ret_address, struct error *err)
{
    const char *uri = run->options->nbd_uri, *socket = run->fleece.socket;
    struct socket_address first = {0};
    int r = source_co_nbd_address(&run->source, uri, socket, ret_address, err);

    if (r < 0 || uri || !ret_address->path || !fleece_is_socket(ret_address->path)) {
        return r;
    }
    run->server_fd = fleece_lock_socket(ret_address->path, false);
    first = *ret_address;
    *ret_address = (struct socket_address){0};
    r = source_co_nbd_address(&run->source, uri, socket, ret_address, err);
    if (r == 0 &&
        (run->server_fd < 0 || !ret_address->path || strcmp(ret_address->path, first.path) != 0)) {
        r = error_set(err, EIO, "The NBD server at '%s' was stopped", first.path);
    }
    socket_address_clear(&first);
    return r;
}

static void release_server(struct run *run)
{
    if (run->server_fd >= 0) {
        close(run->server_fd);
        run->server_fd = -1;
    }
}

/* Runs of other disks may start and stop a server of their own meanwhile: then query again. */
static int co_export(struct run *run, const char *frozen, struct socket_address *ret_address,
                     struct error *err)
{
    const char *uri = run->options->nbd_uri;
    int r = -EIO;

    for (int i = 1; r < 0 && i <= EXPORT_ATTEMPTS; i++) {
        ERROR_AUTO(attempt);

        socket_address_clear(ret_address);
        release_server(run);
        r = co_find_server(run, ret_address, &attempt);
        UNLESS_FAILED(r, source_co_export(&run->source, frozen, &attempt));
        if (r < 0 && (uri || r != -EIO || i == EXPORT_ATTEMPTS)) {
            error_move(err, &attempt);
            return r;
        }
        if (r < 0) {
            loop_co_sleep(EXPORT_RETRY_NS);
        }
    }
    return r;
}

static int co_pull(struct run *run, struct error *err)
{
    const char *frozen = run->base ? run->base->manifest.bitmap : NULL;
    struct socket_address address = {0};
    char *backing AUTO_FREE = NULL;
    struct pull_result result;
    int r;

    if (run->base && asprintf(&backing, "../%s/%s", run->base->id, REPOSITORY_IMAGE) < 0) {
        backing = NULL;
        return error_out_of_memory(err);
    }
    r = co_export(run, frozen, &address, err);
    if (r == 0) {
        struct pull_config config = {
            .address = &address,
            .tls = run->options->tls,
            .export_name = run->source.prefix,
            .bitmap = frozen,
            .disk_size = run->state.virtual_size,
            .image_fd = run->image_fd,
            .image_path = run->image,
            .backing = backing,
            .sums_fd = run->sums_fd,
            .sums_path = run->sums,
            .progress = run->options->progress,
            .stop = run->options->stop,
            .watch = watch_space,
            .watch_arg = run,
            .view_failed = &run->view_failed,
        };
        r = pull_co_run(&config, &result, err);
    }
    socket_address_clear(&address);
    if (r == 0) {
        run->manifest.changed = result.changed;
        run->manifest.moved = result.moved;
    }
    return r;
}

static int add_allocated(int fd, const char *shown, uint64_t *sum, struct error *err)
{
    struct stat st;

    if (fstat(fd, &st) < 0) {
        return error_set_errno(err, errno, "Could not inspect '%s'", shown);
    }
    *sum += (uint64_t)st.st_blocks * 512;
    return 0;
}

static int co_complete_manifest(struct run *run, struct error *err)
{
    volatile sig_atomic_t *stop = run->options->stop;
    struct manifest *m = &run->manifest;
    int r = digest_co_file(run->image_fd, run->image, stop, m->image_sha256, &m->image_size, err);

    UNLESS_FAILED(
        r, digest_co_file(run->sums_fd, run->sums, stop, m->sums_sha256, &m->sums_size, err));
    UNLESS_FAILED(r, add_allocated(run->image_fd, run->image, &m->stored, err));
    UNLESS_FAILED(r, add_allocated(run->sums_fd, run->sums, &m->stored, err));
    if (r < 0) {
        return r;
    }
    m->duration_ms = (uint64_t)(loop_now_ns() - run->started_ns) / NS_PER_MS;
    unlinkat(run->draft.fd, REPOSITORY_FLEECE, 0);
    return repository_commit(&run->repository, &run->draft, m, err);
}

/* Another run, to another directory, may have begun since the daemon was queried. */
static void co_hint_at_others(struct run *run, struct error *err)
{
    SOURCE_STATE_AUTO(state);

    if (source_co_inspect(&run->source, &state, NULL) == 0 && state.other_count > 0) {
        error_hint(err, "A backup of the disk to another directory (repository %s) is under way.",
                   state.others[0]);
    }
}

/* From the checkpoint on, the daemon has to be settled in any case. */
static int co_take_backup(struct run *run, struct error *unsettled, struct error *err)
{
    const struct source_checkpoint checkpoint = {
        .started = run->state.read_only ? NULL : run->manifest.bitmap,
        .frozen = run->base ? run->base->manifest.bitmap : NULL,
        .temp_path = run->fleece.image,
        .temp_is_qcow2 = run->fleece.is_qcow2,
        .timeout_s = run->options->cbw_timeout_s,
    };
    int r = source_co_checkpoint(&run->source, &run->state, &checkpoint, &run->manifest.begin,
                                 &run->manifest.end, err);

    if (r < 0) {
        co_hint_at_others(run, err);
        return r;
    }
    r = co_pull(run, err);
    UNLESS_FAILED(r, co_complete_manifest(run, err));
    release_server(run);
    if (r == 0) {
        if (source_co_settle(&run->source, run->manifest.bitmap, unsettled) < 0) {
            error_hint(unsettled, "Backup %s is complete; the next backup will try again.",
                       run->manifest.id);
        }
    } else {
        ERROR_AUTO(settle_err);

        /* If that fails too, space is not the cause: the daemon is gone, or nearly so. */
        if (source_co_settle(&run->source, run_last_bitmap(run), &settle_err) == 0) {
            guess_cause(run, err);
        } else if (!err->hint) {
            error_hint(err, "%s; the next backup will try again.", error_message(&settle_err));
        }
    }
    return r;
}

static void run_begin(struct run *run, const struct backup_options *options)
{
    *run = (struct run){.options = options,
                        .repository = REPOSITORY_INIT,
                        .draft = REPOSITORY_DRAFT_INIT,
                        .fleece = FLEECE_INIT,
                        .server_fd = -1,
                        .image_fd = -1,
                        .sums_fd = -1,
                        .started_ns = loop_now_ns()};
}

static void run_clear(struct run *run)
{
    release_server(run);
    fleece_clear(&run->fleece);
    repository_discard(&run->repository, &run->draft);
    if (run->image_fd >= 0) {
        close(run->image_fd);
    }
    if (run->sums_fd >= 0) {
        close(run->sums_fd);
    }
    source_state_clear(&run->state);
    manifest_clear(&run->manifest);
    repository_close(&run->repository);
    free(run->reason);
    free(run->image);
    free(run->sums);
}

int backup_co_take(const struct backup_options *options, struct manifest *ret_manifest,
                   struct error *unsettled, struct error *err)
{
    struct qmp_client *qmp AUTO_QMP = NULL;
    struct run run;
    int r;

    run_begin(&run, options);
    r = qmp_client_co_connect(options->qmp_socket, &qmp, err);
    UNLESS_FAILED(r, repository_open_to_write(options->dir, &run.repository, err));
    UNLESS_FAILED(r, run_co_prepare(&run, qmp, err));
    UNLESS_FAILED(r, co_take_backup(&run, unsettled, err));
    if (r == 0) {
        *ret_manifest = run.manifest;
        run.manifest = (struct manifest){0};
    }
    run_clear(&run);
    return r;
}

/* --- without a backup --- */

int backup_co_abort(const struct backup_options *options, struct error *err)
{
    struct qmp_client *qmp AUTO_QMP = NULL;
    struct run run;
    int r;

    run_begin(&run, options);
    r = qmp_client_co_connect(options->qmp_socket, &qmp, err);
    UNLESS_FAILED(r, repository_open_to_write(options->dir, &run.repository, err));
    UNLESS_FAILED(r, run_co_settle(&run, qmp, err));
    run_clear(&run);
    return r;
}

static int co_forget_one(struct qmp_client *qmp, const struct source_leftover *l, struct error *err)
{
    struct source source;
    int r;

    if (!l->node) {
        return error_set(err, ENOENT, "The disk of repository %s is not known: name it with --node",
                         l->repository);
    }
    if (l->temp_image && fleece_owner(l->temp_image) == FLEECE_ALIVE) {
        return error_set(err, EBUSY, "A backup of node '%s' to repository %s is under way", l->node,
                         l->repository);
    }
    source_init(&source, qmp, l->node, l->repository);
    r = source_co_settle(&source, NULL, err);
    if (r == 0 && l->temp_image) {
        fleece_remove_of_file(l->temp_image);
    }
    return r;
}

int backup_co_forget(const char *qmp_socket, const char *node, const char *repository,
                     struct error *err)
{
    struct qmp_client *qmp AUTO_QMP = NULL;
    struct source_leftovers all = {0};
    bool found = false;
    int r = qmp_client_co_connect(qmp_socket, &qmp, err);

    UNLESS_FAILED(r, source_co_leftovers(qmp, node, &all, err));
    for (size_t i = 0; r == 0 && i < all.count; i++) {
        struct source_leftover *l = &all.list[i];

        if (strcmp(l->repository, repository) != 0) {
            continue;
        }
        found = true;
        if (!l->node && node) {
            l->node = strdup(node);
        }
        r = co_forget_one(qmp, l, err);
    }
    source_leftovers_clear(&all);
    if (r == 0 && !found) {
        r = error_set(err, ENOENT, "The daemon at '%s' has nothing of repository '%s'", qmp_socket,
                      repository);
    }
    return r;
}

int backup_co_leftovers(const char *qmp_socket, const char *node,
                        struct source_leftovers *ret_leftovers, struct error *err)
{
    struct qmp_client *qmp AUTO_QMP = NULL;
    int r = qmp_client_co_connect(qmp_socket, &qmp, err);

    return r < 0 ? r : source_co_leftovers(qmp, node, ret_leftovers, err);
}

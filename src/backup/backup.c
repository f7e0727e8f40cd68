/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A backup, in order:
 *
 *   1. lock the repository; remove what a run that was cut off left there and in the daemon
 *   2. decide: incremental, or full and why
 *   3. checkpoint: one transaction in the daemon
 *   4. pull the point in time into an unfinished directory of the repository
 *   5. checksums, manifest, rename: now the backup exists
 *   6. settle the daemon: filter out, the frozen bitmap removed
 *
 * A failure before 5 settles the daemon for the backup before, which takes the changes recorded since the checkpoint
 * back into its bitmap. A kill at any point leaves what step 1 of the next run recognises.
 */
#include "backup/backup.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "backup/chain.h"
#include "backup/files.h"
#include "backup/pull.h"
#include "backup/source.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "loop/loop.h"

#define TEMP_FILE "fleece.raw"
#define NS_PER_MS 1000000
/* Below this a file system counts as full in a message that guesses at the cause. */
#define LITTLE_SPACE (1 * MiB)

struct run {
    const struct backup_options *options;
    struct repository repository;
    struct source source;
    struct source_state state;
    const struct repository_entry *base; /* NULL: a full backup */
    char *reason;                        /* why it is a full one */
    struct manifest manifest;
    struct repository_draft draft;
    char *temp_image; /* what copy-before-write writes to */
    int image_fd, sums_fd;
    char *image, *sums; /* their paths, for messages */
    int64_t started_ns;
};

static int out_of_memory(struct error *err)
{
    return error_set(err, ENOMEM, "Out of memory");
}

/* --- full or incremental --- */

static int say(char **ret, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Set the reason for a full backup. */
static int say(char **ret, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vasprintf(ret, fmt, ap);
    va_end(ap);
    if (n < 0) {
        *ret = NULL;
        return -ENOMEM;
    }
    return 0;
}

static int check_image(struct run *run, const struct repository_entry *e)
{
    char *shown AUTO_FREE = repository_file(&run->repository, e->id, REPOSITORY_IMAGE);
    int fd AUTO_CLOSE = -1;
    ERROR_AUTO(err);
    struct stat st;

    if (!shown) {
        return -ENOMEM;
    }
    fd = repository_open_file(&run->repository, e->id, REPOSITORY_IMAGE, &err);
    if (fd == -ENOENT) {
        return say(&run->reason, "file '%s' of an earlier backup is gone", shown);
    }
    if (fd < 0) {
        return say(&run->reason, "%s", error_message(&err));
    }
    if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != e->manifest.image_size) {
        return say(&run->reason, "file '%s' of an earlier backup was changed", shown);
    }
    return 0;
}

/*
 * The files that the next backup would build on: there, images of the right size, and checksums (without which nothing
 * can be restored) of the right contents.
 */
static int co_check_chain_files(struct run *run, const struct repository_entry *last)
{
    const struct repository_entry **chain AUTO_FREE = NULL;
    ERROR_AUTO(err);
    size_t count;
    int rc = 0;

    if (repository_chain(&run->repository, last, &chain, &count, &err) < 0) {
        return say(&run->reason, "%s", error_message(&err));
    }
    for (size_t i = 0; rc == 0 && !run->reason && i < count; i++) {
        rc = check_image(run, chain[i]);
        if (rc == 0 && !run->reason &&
            chain_co_check_sums(&run->repository, chain[i], NULL, &err) < 0) {
            rc = say(&run->reason, "%s", error_message(&err));
        }
    }
    return rc;
}

static int check_bitmap(struct run *run, const struct repository_entry *last)
{
    const struct source_bitmap *b = source_find_bitmap(&run->source, &run->state, last->id);
    const char *name = last->manifest.bitmap;

    if (!name[0]) {
        return say(&run->reason, "the disk was read-only at the last backup");
    }
    if (!b) {
        return say(&run->reason, "bitmap '%s' of the last backup is not on node '%s'", name,
                   run->options->node);
    }
    if (b->inconsistent) {
        return say(&run->reason,
                   "bitmap '%s' is inconsistent: the disk was not closed properly since", name);
    }
    if (b->busy) {
        return say(&run->reason, "bitmap '%s' is in use by something else", name);
    }
    if (!b->recording) {
        return say(&run->reason, "bitmap '%s' was disabled, so changes may be missing in it", name);
    }
    return 0;
}

/* Sets run->base, or run->reason. */
static int co_decide(struct run *run, struct error *err)
{
    const struct repository_entry *last = repository_last(&run->repository);
    const struct repository_entry *damaged = repository_damaged_last(&run->repository);
    int rc = 0;

    if (run->options->full) {
        rc = say(&run->reason, "asked for");
    } else if (last && damaged) {
        rc = say(&run->reason, "the last backup, %s, is damaged", damaged->id);
    } else if (!last) {
        rc = say(&run->reason, run->repository.count ? "the earlier backups are damaged"
                                                     : "there is no earlier backup");
    } else if (last->manifest.virtual_size != run->state.virtual_size) {
        char before[16], now[16];

        size_format(last->manifest.virtual_size, before, sizeof(before));
        size_format(run->state.virtual_size, now, sizeof(now));
        rc = say(&run->reason, "the disk was resized from %s to %s", before, now);
    } else {
        rc = check_bitmap(run, last);
        rc = rc < 0 || run->reason ? rc : co_check_chain_files(run, last);
    }
    if (rc < 0) {
        return out_of_memory(err);
    }
    run->base = run->reason ? NULL : last;
    return 0;
}

/* --- preparation --- */

static int check_node(struct run *run, struct error *err)
{
    const struct repository_entry *last = repository_last(&run->repository);
    const char *node = run->options->node;

    if (!run->state.found) {
        error_set(err, ENOENT, "The daemon at '%s' has no node '%s'", run->options->qmp_socket,
                  node);
        error_hint(err, "Nodes are named by --blockdev node-name=... or blockdev-add.");
        return -ENOENT;
    }
    if (run->state.virtual_size == 0) {
        return error_set(err, EINVAL, "Node '%s' is empty", node);
    }
    if (last && strcmp(last->manifest.node, node) != 0) {
        error_set(err, EINVAL, "'%s' holds backups of node '%s', not of '%s'", run->repository.path,
                  last->manifest.node, node);
        error_hint(err, "Use a directory of its own for each disk.");
        return -EINVAL;
    }
    return 0;
}

/* The file for old data; sparse, as large as the disk. */
static int make_temp_image(struct run *run, struct error *err)
{
    char *dir AUTO_FREE = NULL;
    int fd AUTO_CLOSE = -1;

    if (run->options->fleece_dir) {
        dir = realpath(run->options->fleece_dir, NULL);
        if (!dir) {
            return error_set_errno(err, errno, "Could not open directory '%s'",
                                   run->options->fleece_dir);
        }
    }
    if ((dir ? asprintf(&run->temp_image, "%s/%s-%s", dir, run->source.prefix, TEMP_FILE)
             : asprintf(&run->temp_image, "%s/%s", run->draft.path, TEMP_FILE)) < 0) {
        run->temp_image = NULL;
        return out_of_memory(err);
    }
    /* A run that was cut off may have left it; the daemon has let go of it by now. */
    unlink(run->temp_image);
    fd = open(run->temp_image, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)round_up(run->state.virtual_size, 512)) < 0) {
        return error_set_errno(err, errno, "Could not create '%s'", run->temp_image);
    }
    return 0;
}

static int make_manifest(struct run *run, struct error *err)
{
    struct manifest *m = &run->manifest;

    repository_new_id(&run->repository, m->id);
    m->sequence = repository_next_sequence(&run->repository);
    m->virtual_size = run->state.virtual_size;
    m->reason = TAKE_PTR(run->reason);
    memcpy(m->repository, run->repository.id, sizeof(m->repository));
    m->node = strdup(run->options->node);
    m->bitmap = run->state.read_only ? strdup("") : source_bitmap_name(&run->source, m->id);
    if (run->base) {
        memcpy(m->parent, run->base->id, sizeof(m->parent));
    }
    return m->node && m->bitmap ? 0 : out_of_memory(err);
}

static int make_files(struct run *run, struct error *err)
{
    run->image = files_join(run->draft.path, REPOSITORY_IMAGE);
    run->sums = files_join(run->draft.path, REPOSITORY_SUMS);
    if (!run->image || !run->sums) {
        return out_of_memory(err);
    }
    run->image_fd = files_create_at(run->draft.fd, REPOSITORY_IMAGE, run->image, err);
    if (run->image_fd < 0) {
        return run->image_fd;
    }
    run->sums_fd = files_create_at(run->draft.fd, REPOSITORY_SUMS, run->sums, err);
    return run->sums_fd < 0 ? run->sums_fd : 0;
}

static int co_prepare(struct run *run, struct qmp_client *qmp, struct error *err)
{
    const struct repository_entry *last = repository_last(&run->repository);
    int rc = source_init(&run->source, qmp, run->options->node, &run->repository, err);

    rc = rc < 0 ? rc : source_co_inspect(&run->source, &run->state, err);
    rc = rc < 0 ? rc : check_node(run, err);
    rc = rc < 0 ? rc : source_co_settle(&run->source, last ? last->id : NULL, err);
    source_state_clear(&run->state);
    rc = rc < 0 ? rc : source_co_inspect(&run->source, &run->state, err);
    rc = rc < 0 ? rc : co_decide(run, err);
    rc = rc < 0 ? rc : make_manifest(run, err);
    rc = rc < 0 ? rc : repository_begin(&run->repository, run->manifest.id, &run->draft, err);
    rc = rc < 0 ? rc : make_temp_image(run, err);
    return rc < 0 ? rc : make_files(run, err);
}

/* --- the point in time --- */

static bool is_full(const char *dir)
{
    struct statvfs fs;

    return statvfs(dir, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < LITTLE_SPACE;
}

/* A read of the view fails when it broke, and it breaks when the temporary image can't be written. */
static void guess_cause(const struct run *run, struct error *err)
{
    const char *fleece_dir = run->options->fleece_dir;

    if (err->code == EINTR) {
        return;
    }
    if (is_full(run->draft.path) || (fleece_dir && is_full(fleece_dir))) {
        error_hint(err, "There is no space left in '%s'.",
                   is_full(run->draft.path) ? run->repository.path : fleece_dir);
    } else {
        error_hint(err,
                   "If the daemon could not keep old data of what was overwritten meanwhile "
                   "(in '%s'), its log says so.",
                   fleece_dir ? fleece_dir : run->repository.path);
    }
}

static int co_pull(struct run *run, struct error *err)
{
    const char *base = run->base ? run->base->id : NULL;
    struct nbd_address address = {0};
    char *backing AUTO_FREE = NULL;
    struct pull_result result;
    int rc;

    if (base && asprintf(&backing, "../%s/%s", base, REPOSITORY_IMAGE) < 0) {
        backing = NULL;
        return out_of_memory(err);
    }
    rc = source_co_nbd_address(&run->source, run->options->nbd_uri, &address, err);
    rc = rc < 0 ? rc : source_co_export(&run->source, base, err);
    if (rc == 0) {
        struct pull_config config = {
            .address = &address,
            .export_name = run->source.prefix,
            .bitmap = base ? run->base->manifest.bitmap : NULL,
            .disk_size = run->state.virtual_size,
            .image_fd = run->image_fd,
            .image_path = run->image,
            .backing = backing,
            .sums_fd = run->sums_fd,
            .sums_path = run->sums,
            .progress = run->options->progress,
            .stop = run->options->stop,
        };
        rc = pull_co_run(&config, &result, err);
    }
    nbd_address_clear(&address);
    if (rc == 0) {
        run->manifest.changed = result.changed;
        run->manifest.moved = result.moved;
    } else {
        guess_cause(run, err);
    }
    return rc;
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

static int co_complete(struct run *run, struct error *err)
{
    volatile sig_atomic_t *stop = run->options->stop;
    struct manifest *m = &run->manifest;
    int rc = digest_co_file(run->image_fd, run->image, stop, m->image_sha256, &m->image_size, err);

    rc = rc < 0 ? rc
                : digest_co_file(run->sums_fd, run->sums, stop, m->sums_sha256, &m->sums_size, err);
    rc = rc < 0 ? rc : add_allocated(run->image_fd, run->image, &m->stored, err);
    rc = rc < 0 ? rc : add_allocated(run->sums_fd, run->sums, &m->stored, err);
    if (rc < 0) {
        return rc;
    }
    m->duration_ms = (uint64_t)(loop_now_ns() - run->started_ns) / NS_PER_MS;
    unlink(run->temp_image);
    return repository_commit(&run->repository, &run->draft, m, err);
}

/* From the checkpoint on the daemon has to be settled, whatever happens. */
static int co_take(struct run *run, struct error *err)
{
    const char *base = run->base ? run->base->id : NULL;
    const struct repository_entry *last = repository_last(&run->repository);
    int rc = source_co_checkpoint(&run->source, &run->state, run->manifest.id, base,
                                  run->temp_image, &run->manifest.begin, &run->manifest.end, err);

    if (rc < 0) {
        return rc;
    }
    rc = co_pull(run, err);
    rc = rc < 0 ? rc : co_complete(run, err);
    if (rc == 0) {
        rc = source_co_settle(&run->source, run->manifest.id, err);
        if (rc < 0) {
            error_hint(err, "Backup %s is complete; the next backup will try again.",
                       run->manifest.id);
        }
    } else {
        ERROR_AUTO(settle_err);

        if (source_co_settle(&run->source, last ? last->id : NULL, &settle_err) < 0 && !err->hint) {
            error_hint(err, "%s; the next backup will try again.", error_message(&settle_err));
        }
    }
    return rc;
}

static void clear(struct run *run)
{
    if (run->temp_image) {
        unlink(run->temp_image);
    }
    repository_discard(&run->repository, &run->draft);
    if (run->image_fd >= 0) {
        close(run->image_fd);
    }
    if (run->sums_fd >= 0) {
        close(run->sums_fd);
    }
    source_clear(&run->source);
    source_state_clear(&run->state);
    manifest_clear(&run->manifest);
    repository_close(&run->repository);
    free(run->reason);
    free(run->temp_image);
    free(run->image);
    free(run->sums);
}

int backup_co_take(const struct backup_options *options, struct manifest *ret, struct error *err)
{
    struct run run = {.options = options,
                      .repository = REPOSITORY_INIT,
                      .draft = REPOSITORY_DRAFT_INIT,
                      .image_fd = -1,
                      .sums_fd = -1,
                      .started_ns = loop_now_ns()};
    struct qmp_client *qmp AUTO_QMP = NULL;
    int rc = qmp_client_co_connect(options->qmp_socket, &qmp, err);

    rc = rc < 0 ? rc : repository_open_locked(options->dir, &run.repository, err);
    rc = rc < 0 ? rc : co_prepare(&run, qmp, err);
    rc = rc < 0 ? rc : co_take(&run, err);
    if (rc == 0) {
        *ret = run.manifest;
        run.manifest = (struct manifest){0};
    }
    clear(&run);
    return rc;
}

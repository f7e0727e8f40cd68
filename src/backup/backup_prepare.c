/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preparation of a backup: clean up after killed runs, decide full or incremental, and make the
 * files to write to.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/backup_internal.h"
#include "backup/chain.h"
#include "backup/files.h"
#include "base/cleanup.h"
#include "base/size.h"

/* --- full or incremental --- */

static int say(char **ret_text, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Set the reason for a full backup. */
static int say(char **ret_text, const char *fmt, ...)
{
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vasprintf(ret_text, fmt, ap);
    va_end(ap);
    if (n < 0) {
        *ret_text = NULL;
        return -ENOMEM;
    }
    return 0;
}

static int check_earlier_image(struct run *run, const struct repository_entry *e)
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
 * Check the files that the next backup would build on: images of the right size, and checksum files
 * (without which nothing can be restored) with the right contents.
 */
static int co_check_chain_files(struct run *run, const struct repository_entry *last)
{
    const struct repository_entry **chain AUTO_FREE = NULL;
    ERROR_AUTO(err);
    size_t count;
    int r = 0;

    if (repository_chain(&run->repository, last, &chain, &count, &err) < 0) {
        return say(&run->reason, "%s", error_message(&err));
    }
    for (size_t i = 0; r == 0 && !run->reason && i < count; i++) {
        r = check_earlier_image(run, chain[i]);
        if (r == 0 && !run->reason &&
            chain_co_check_sums(&run->repository, chain[i], NULL, &err) < 0) {
            r = say(&run->reason, "%s", error_message(&err));
        }
    }
    return r;
}

static int check_bitmap(struct run *run, const struct repository_entry *last)
{
    const char *name = last->manifest.bitmap;
    const struct source_bitmap *b = source_find_bitmap(&run->state, name);

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

/* Set run->base, or run->reason. */
static int co_decide(struct run *run, struct error *err)
{
    const struct repository_entry *last = repository_last(&run->repository);
    const struct repository_entry *damaged = repository_damaged_last(&run->repository);
    int r = 0;

    if (run->options->full) {
        r = say(&run->reason, "asked for");
    } else if (last && damaged) {
        r = say(&run->reason, "the last backup, %s, is damaged", damaged->id);
    } else if (!last) {
        r = say(&run->reason, run->repository.count ? "the earlier backups are damaged"
                                                    : "there is no earlier backup");
    } else if (last->manifest.virtual_size != run->state.virtual_size) {
        char before[16], now[16];

        size_format(last->manifest.virtual_size, before, sizeof(before));
        size_format(run->state.virtual_size, now, sizeof(now));
        r = say(&run->reason, "the disk was resized from %s to %s", before, now);
    } else {
        r = check_bitmap(run, last);
        r = r < 0 || run->reason ? r : co_check_chain_files(run, last);
    }
    if (r < 0) {
        return error_out_of_memory(err);
    }
    run->base = run->reason ? NULL : last;
    return 0;
}

/* --- preparation --- */

static int refuse_disk(struct run *run, struct error *err, const char *what, const char *before,
                       const char *now)
{
    error_set(err, EINVAL, "'%s' holds backups of %s '%s', not of '%s'", run->repository.path, what,
              before, now);
    error_hint(err, "Use a directory of its own for each disk. If it is the same disk, renamed or "
                    "moved, say so with --same-disk.");
    return -EINVAL;
}

/*
 * The bitmap of the last backup can only be on the disk that was backed up. Without the bitmap,
 * names are compared.
 */
static int check_same_disk(struct run *run, struct error *err)
{
    const struct repository_entry *last = repository_last(&run->repository);
    const struct manifest *m = last ? &last->manifest : NULL;

    if (!last || run->options->same_disk || source_find_bitmap(&run->state, m->bitmap)) {
        return 0;
    }
    if (strcmp(m->node, run->options->node) != 0) {
        return refuse_disk(run, err, "node", m->node, run->options->node);
    }
    if (m->disk && run->state.disk && strcmp(m->disk, run->state.disk) != 0) {
        return refuse_disk(run, err, "disk", m->disk, run->state.disk);
    }
    return 0;
}

static int check_node(struct run *run, struct error *err)
{
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
    return check_same_disk(run, err);
}

/* --- what other runs have left --- */

static int refuse_busy(const struct run *run, const char *repository, struct error *err)
{
    error_set(err, EBUSY, "Another backup of node '%s' is under way, to repository %s",
              run->options->node, repository);
    return -EBUSY;
}

/*
 * End a killed run to another directory, which has left its filter. Its bitmaps stay: with them the
 * next run to that directory continues.
 */
static int co_end_other(struct run *run, const char *repository, struct error *err)
{
    SOURCE_STATE_AUTO(state);
    struct source other;
    enum fleece_owner owner;
    int r;

    source_init(&other, run->source.qmp, run->options->node, repository);
    r = source_co_inspect(&other, &state, err);
    if (r < 0) {
        return r;
    }
    owner = state.temp_image ? fleece_owner(state.temp_image) : FLEECE_DEAD;
    if (owner == FLEECE_ALIVE) {
        return refuse_busy(run, repository, err);
    }
    if (owner == FLEECE_UNKNOWN) {
        refuse_busy(run, repository, err);
        error_hint(err,
                   "If it was killed, 'tidemark backup --qmp %s --forget %s' removes what it has "
                   "left.",
                   run->options->qmp_socket, repository);
        return -EBUSY;
    }
    r = source_co_take_down(&other, err);
    if (r == 0 && state.temp_image) {
        fleece_remove_of_file(state.temp_image);
    }
    return r;
}

int run_co_settle(struct run *run, struct qmp_client *qmp, struct error *err)
{
    struct source_state *state = &run->state;
    int r;

    source_init(&run->source, qmp, run->options->node, run->repository.id);
    r = source_co_inspect(&run->source, state, err);
    UNLESS_FAILED(r, check_node(run, err));
    if (r < 0) {
        return r;
    }
    /* The lock excludes runs to this directory, but a copy of the repository has the same id. */
    if (state->temp_image && fleece_owner(state->temp_image) == FLEECE_ALIVE) {
        return refuse_busy(run, run->repository.id, err);
    }
    r = source_co_settle(&run->source, run_last_bitmap(run), err);
    for (size_t i = 0; r == 0 && i < state->other_count; i++) {
        r = co_end_other(run, state->others[i], err);
    }
    if (r == 0 && state->temp_image) {
        fleece_remove_of_file(state->temp_image);
    }
    return r;
}

/* --- its own files --- */

/* Record the place of the temporary image before the image is made. */
static int co_make_fleece(struct run *run, struct error *err)
{
    const struct ucred daemon = qmp_client_peer(run->source.qmp);
    struct fleece *f = &run->fleece;
    char *shown AUTO_FREE = files_join(run->draft.path, REPOSITORY_FLEECE);
    int r = fleece_init(f, run->options->fleece_dir, run->state.disk, run->repository.id, err);

    if (r == 0 && !shown) {
        r = error_out_of_memory(err);
    }
    UNLESS_FAILED(r, files_write_at(run->draft.fd, REPOSITORY_FLEECE, f->dir, shown, err));
    return r < 0 ? r : fleece_co_make(f, run->state.virtual_size, daemon.uid, daemon.gid, err);
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
    m->bitmap = run->state.read_only ? strdup("") : source_new_bitmap_name(&run->source, m->id);
    m->disk = run->state.disk ? strdup(run->state.disk) : NULL;
    if (run->base) {
        memcpy(m->parent, run->base->id, sizeof(m->parent));
    }
    return m->node && m->bitmap && (m->disk || !run->state.disk) ? 0 : error_out_of_memory(err);
}

static int make_files(struct run *run, struct error *err)
{
    run->image = files_join(run->draft.path, REPOSITORY_IMAGE);
    run->sums = files_join(run->draft.path, REPOSITORY_SUMS);
    if (!run->image || !run->sums) {
        return error_out_of_memory(err);
    }
    run->image_fd = files_create_at(run->draft.fd, REPOSITORY_IMAGE, run->image, err);
    if (run->image_fd < 0) {
        return run->image_fd;
    }
    run->sums_fd = files_create_at(run->draft.fd, REPOSITORY_SUMS, run->sums, err);
    return run->sums_fd < 0 ? run->sums_fd : 0;
}

int run_co_prepare(struct run *run, struct qmp_client *qmp, struct error *err)
{
    int r = run_co_settle(run, qmp, err);

    source_state_clear(&run->state);
    UNLESS_FAILED(r, source_co_inspect(&run->source, &run->state, err));
    UNLESS_FAILED(r, co_decide(run, err));
    UNLESS_FAILED(r, make_manifest(run, err));
    UNLESS_FAILED(r, repository_begin(&run->repository, run->manifest.id, &run->draft, err));
    UNLESS_FAILED(r, co_make_fleece(run, err));
    return r < 0 ? r : make_files(run, err);
}

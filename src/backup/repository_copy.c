/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/repository_copy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/file_copy.h"
#include "backup/files.h"
#include "backup/giving_up.h"
#include "backup/merge.h"
#include "backup/upload.h"
#include "backup/upload_files.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/shell_word.h"

#define ATTEMPTS 5

struct repository_copy {
    const struct repository_copy_options *options;
    struct repository from, to; /* `to` is the mirror of an upload */
    struct upload *upload;      /* NULL: to a directory */
    bool *selected;             /* by index of the entry of `from` */
    struct progress progress;
    struct repository_copy_result *result;
};

/* --- what to copy --- */

static int select_one(struct repository_copy *c, struct error *err)
{
    const struct repository_entry *e = repository_find(&c->from, c->options->at, err);
    const struct repository_entry **chain AUTO_FREE = NULL;
    size_t count;

    if (!e) {
        return -ENOENT;
    }
    c->selected[e - c->from.entries] = true;
    return repository_chain(&c->from, e, &chain, &count, err);
}

static bool is_in_copy(const struct repository_copy_options *options, const char *id)
{
    for (size_t i = 0; i < options->id_count; i++) {
        if (strcmp(options->ids[i], id) == 0) {
            return true;
        }
    }
    return !options->ids;
}

/* All that can be restored, or the newest of them. */
static void select_newest(struct repository_copy *c)
{
    uint64_t most = c->options->last ? c->options->last : UINT64_MAX;

    for (size_t i = c->from.count; i-- > 0;) {
        const struct repository_entry **chain AUTO_FREE = NULL;
        size_t count;

        if (repository_chain(&c->from, &c->from.entries[i], &chain, &count, NULL) < 0) {
            c->result->damaged++;
        } else if (most > 0 && is_in_copy(c->options, c->from.entries[i].id)) {
            c->selected[i] = true;
            most--;
        }
    }
}

/*
 * Whether the copy has a backup, sound, and with the same point in time. -EEXIST: another one has
 * its id.
 */
static int find_in_copy(const struct repository_copy *c, const struct repository_entry *e,
                        bool *ret_found, struct error *err)
{
    const struct repository_entry *there = repository_get(&c->to, e->id);
    const struct repository_entry **chain AUTO_FREE = NULL;
    size_t count;

    *ret_found = there && !there->problem;
    if (*ret_found && (strcmp(there->manifest.begin.utc, e->manifest.begin.utc) != 0 ||
                       strcmp(there->manifest.bitmap, e->manifest.bitmap) != 0 ||
                       there->manifest.virtual_size != e->manifest.virtual_size)) {
        return error_set(err, EEXIST, "Backup %s in '%s' is another one than that in '%s'", e->id,
                         c->to.path, c->from.path);
    }
    *ret_found = *ret_found && repository_chain(&c->to, there, &chain, &count, NULL) == 0;
    return 0;
}

/* --- one backup --- */

static int co_copy_file(struct repository_copy *c, const struct repository_draft *draft,
                        const char *id, const char *name, uint64_t size, const char *sha256,
                        struct error *err)
{
    char *from_shown AUTO_FREE = repository_file(&c->from, id, name);
    char *to_shown AUTO_FREE = files_join(draft->path, name);
    int from AUTO_CLOSE = repository_open_file(&c->from, id, name, err), to AUTO_CLOSE = -1;
    uint64_t written = 0;
    int r;

    if (from < 0) {
        return from;
    }
    if (!from_shown || !to_shown) {
        return error_out_of_memory(err);
    }
    to = files_reopen_at(draft->fd, name, to_shown, err);
    if (to < 0) {
        return to;
    }
    r = file_copy_co_run(
        &(struct file_copy){
            .from = from,
            .to = to,
            .from_shown = from_shown,
            .to_shown = to_shown,
            .size = size,
            .sha256 = sha256,
            .progress = &c->progress,
            .stop = c->options->stop,
        },
        &written, err);
    c->result->bytes += written;
    return r;
}

/* What is written becomes a backup, in the place of a damaged one if need be. */
static int publish(struct repository_copy *c, struct repository_draft *draft,
                   const struct manifest *m, struct error *err)
{
    return repository_get(&c->to, m->id) ? repository_replace(&c->to, draft, m, err)
                                         : repository_commit_new(&c->to, draft, m, err);
}

/* Upload the files of a backup. */
static int co_upload(struct repository_copy *c, int dir, const char *shown,
                     const struct manifest *m, struct error *err)
{
    const struct upload_backup backup = {
        .dir = dir,
        .shown = shown,
        .manifest = m,
        .replaces = repository_get(&c->to, m->id) != NULL,
        .key = c->to.key,
        .seal = repository_seal(&c->to),
        .progress = &c->progress,
        .stop = c->options->stop,
    };
    uint64_t written = 0;
    int r = repository_get(&c->to, m->id)
                ? repository_may_change(&c->to, "no backup is replaced", err)
                : 0;

    UNLESS_FAILED(r, upload_co_backup(c->upload, &backup, &written, err));

    c->result->bytes += written;
    return r;
}

static int co_upload_as_it_is(struct repository_copy *c, const struct repository_entry *e,
                              struct error *err)
{
    char *shown AUTO_FREE = files_join(c->from.path, e->id);
    int dir AUTO_CLOSE = repository_open_backup(&c->from, e->id, err);
    struct repository_draft draft = REPOSITORY_DRAFT_INIT;
    int r;

    if (dir < 0 || !shown) {
        return dir < 0 ? dir : error_out_of_memory(err);
    }
    r = co_upload(c, dir, shown, &e->manifest, err);
    /* The mirror gets the manifest only. */
    UNLESS_FAILED(r, repository_begin(&c->to, e->id, &draft, err));
    UNLESS_FAILED(r, publish(c, &draft, &e->manifest, err));
    repository_discard(&c->to, &draft);
    return r;
}

/* The files as they are. If it fails, the draft stays, so that the next run continues it. */
static int co_copy_files(struct repository_copy *c, const struct repository_entry *e,
                         struct error *err)
{
    const struct manifest *m = &e->manifest;
    struct repository_draft draft;
    int r = repository_begin_part(&c->to, e->id, &draft, err);

    UNLESS_FAILED(
        r, co_copy_file(c, &draft, e->id, REPOSITORY_IMAGE, m->image_size, m->image_sha256, err));
    UNLESS_FAILED(
        r, co_copy_file(c, &draft, e->id, REPOSITORY_SUMS, m->sums_size, m->sums_sha256, err));
    UNLESS_FAILED(r, publish(c, &draft, m, err));
    if (r < 0) {
        repository_leave_part(&draft);
    }
    repository_discard(&c->to, &draft);
    return r;
}

static int co_copy_merged(struct repository_copy *c, const struct repository_entry *const *entries,
                          size_t count, struct error *err)
{
    const struct merge_config config = {
        .from = &c->from,
        .entries = entries,
        .count = count,
        .to = &c->to,
        .progress = c->options->progress,
        .stop = c->options->stop,
    };
    struct repository_draft draft;
    struct manifest m;
    int r;

    if (c->upload) {
        upload_keep_begin(c->upload);
    }
    r = merge_co_run(&config, &draft, &m, err);
    if (c->upload) {
        upload_co_keep_end(c->upload);
    }
    if (r == 0 && c->upload) {
        r = co_upload(c, draft.fd, draft.path, &m, err);
        unlinkat(draft.fd, REPOSITORY_IMAGE, 0);
        unlinkat(draft.fd, REPOSITORY_SUMS, 0);
    } else if (r == 0) {
        c->result->bytes += m.image_size + m.sums_size;
    }
    UNLESS_FAILED(r, publish(c, &draft, &m, err));
    c->result->merged += r == 0 && count > 1;
    repository_discard(&c->to, &draft);
    manifest_clear(&m);
    return r;
}

/* Copy a backup on top of the nearest one below it that the copy has. */
static int co_copy_one(struct repository_copy *c, const struct repository_entry *e,
                       struct error *err)
{
    const struct repository_entry **chain AUTO_FREE = NULL;
    size_t count, first;
    bool found = false;
    int r = repository_chain(&c->from, e, &chain, &count, err);

    UNLESS_FAILED(r, find_in_copy(c, e, &found, err));
    if (r < 0 || found) {
        c->result->present += r == 0;
        return r;
    }
    for (first = count - 1; r == 0 && !found && first > 0;) {
        r = find_in_copy(c, chain[first - 1], &found, err);
        first -= !found;
    }
    if (r < 0) {
        return r;
    }
    /* Files that are encrypted in another way are made again. */
    if (first < count - 1 || repository_seal(&c->from) != repository_seal(&c->to)) {
        r = co_copy_merged(c, chain + first, count - first, err);
    } else {
        r = c->upload ? co_upload_as_it_is(c, e, err) : co_copy_files(c, e, err);
    }
    c->result->copied += r == 0;
    return r;
}

/* --- both repositories --- */

static bool knows_id(const struct repository *r, const char *id)
{
    return strcmp(r->id, id) == 0 || (r->former && strstr(r->former, id));
}

/* The target is empty, or holds backups of the same disk from earlier copies only. */
static int check_copy_target(struct repository_copy *c, struct error *err)
{
    const struct repository *from = &c->from, *to = &c->to;
    size_t length = strlen(from->path);

    if (!c->upload && strcmp(from->path, to->path) == 0) {
        return error_set(err, EINVAL, "'%s' is the repository that is to be copied", to->path);
    }
    if (strcmp(from->id, to->id) == 0) {
        const char *path = c->upload ? upload_path(c->upload) : to->path;
        char *word AUTO_FREE = shell_word(path);

        error_set(err, EINVAL, "'%s' and '%s' have the same id, %s", from->path, to->path, to->id);
        error_hint(err, "%s'tidemark repair --new-id %s' makes it a repository of its own.",
                   c->upload ? "On the server, " : "", word ?: path);
        return -EINVAL;
    }
    if (strncmp(to->path, from->path, length) == 0 && to->path[length] == '/') {
        return error_set(err, EINVAL, "'%s' is in '%s'", to->path, from->path);
    }
    for (size_t i = 0; i < to->count; i++) {
        const struct manifest *m = &to->entries[i].manifest;

        if (!to->entries[i].problem && !knows_id(from, m->repository)) {
            return error_set(err, EINVAL, "'%s' holds backups that are not from '%s': %s", to->path,
                             from->path, m->id);
        }
    }
    return 0;
}

static int plan_copy(struct repository_copy *c, struct error *err)
{
    uint64_t total = 0;
    int r = 0;

    c->selected = calloc(c->from.count + 1, sizeof(*c->selected));
    if (!c->selected) {
        return error_out_of_memory(err);
    }
    if (c->options->at) {
        r = select_one(c, err);
    } else {
        select_newest(c);
    }
    for (size_t i = 0; i < c->from.count; i++) {
        const struct repository_entry *e = &c->from.entries[i];

        if (c->selected[i] && !repository_get(&c->to, e->id)) {
            total += e->manifest.image_size + e->manifest.sums_size;
        }
    }
    progress_begin(&c->progress, stderr, c->options->progress, "copy", total);
    return r;
}

/*
 * Copy what is selected. A damaged backup does not keep those from being copied that do not build
 * on it; its error is kept for the end.
 */
static int co_copy_selected(struct repository_copy *c, bool *ret_again, struct error *err)
{
    ERROR_AUTO(damage);
    int r = 0;

    for (size_t i = 0; r == 0 && i < c->from.count; i++) {
        ERROR_AUTO(one);

        r = c->selected[i] ? co_copy_one(c, &c->from.entries[i], &one) : 0;
        if ((r == -EBADMSG || r == -ENOENT) && repository_was_changed(&c->from)) {
            *ret_again = true;
            return 0;
        }
        if (r == -EBADMSG) {
            c->result->damaged++;
            if (!error_is_set(&damage)) {
                error_move(&damage, &one);
            }
            r = 0;
        } else if (r < 0) {
            error_move(err, &one);
        }
    }
    if (r == 0 && error_is_set(&damage)) {
        error_move(err, &damage);
        r = -EBADMSG;
    }
    return r;
}

static int co_open_copy_target(struct repository_copy *c, struct error *err)
{
    const char *to = c->options->to;
    int r = upload_is_address(to)
                ? upload_co_open(to, &c->from, c->options->stop, &c->upload, &c->to, err)
                : repository_open_to_copy(to, &c->from, &c->to, err);

    UNLESS_FAILED(r, check_copy_target(c, err));
    UNLESS_FAILED(r, repository_accept(&c->to, &c->from, err));
    if (r == 0 && c->upload) {
        r = upload_co_description(c->upload, &c->to, err);
    }
    return r;
}

/* One attempt. *ret_again: the source changed meanwhile. */
static int co_copy_repository(struct repository_copy *c, bool *ret_again, struct error *err)
{
    int r = repository_open(c->options->from, &c->from, err);

    *c->result = (struct repository_copy_result){0};
    UNLESS_FAILED(r, repository_refuse_denied(&c->from, err));
    if (r == 0 && c->from.count == 0) {
        r = error_set(err, ENOENT, "There is no backup in '%s'", c->from.path);
    }
    if (r == 0 && c->from.key_check[0] && !c->from.key) {
        r = error_set(err, ENOKEY,
                      "Repository '%s' has a key, without which its copy would have none",
                      c->from.path);
        error_hint(err, "Name its file with --key-file, or in TIDEMARK_KEY_FILE.");
    }
    UNLESS_FAILED(r, co_open_copy_target(c, err));
    UNLESS_FAILED(r, plan_copy(c, err));
    if (r == 0 && c->upload) {
        upload_co_drop_parts(c->upload, &c->from);
    } else if (r == 0) {
        repository_drop_parts(&c->to, &c->from);
    }
    if (r == 0) {
        r = co_copy_selected(c, ret_again, err);
        progress_end(&c->progress, r == 0 && !*ret_again);
    }
    memcpy(c->result->id, c->to.id, sizeof(c->result->id));
    if (r < 0 && !c->upload && c->result->copied == 0) {
        repository_unmake(&c->to);
    }
    free(c->selected);
    c->selected = NULL;
    repository_close(&c->from);
    repository_close(&c->to);
    upload_co_close(c->upload, err);
    c->upload = NULL;
    return r;
}

int repository_copy_co_run(const struct repository_copy_options *options,
                           struct repository_copy_result *ret_result, struct error *err)
{
    struct repository_copy c = {
        .options = options, .from = REPOSITORY_INIT, .to = REPOSITORY_INIT, .result = ret_result};
    int64_t stopped_ns = 0;
    bool again = false;
    int r;

    for (int i = 0; i < ATTEMPTS; i++) {
        struct giving_up giving_up;

        again = false;
        giving_up_begin(&giving_up, options->stop, upload_co_give_up, &stopped_ns);
        r = co_copy_repository(&c, &again, err);
        r = giving_up_co_end(&giving_up, r, "The copy was stopped", err);
        if (!again) {
            return r;
        }
    }
    return error_set(err, EAGAIN, "'%s' changes all the time", options->from);
}

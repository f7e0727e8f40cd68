/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replacing and removing backups. Each change is one rename, which is stable before anything that
 * has lost its name is removed.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/files.h"
#include "backup/repository.h"
#include "base/cleanup.h"
#include "base/shell_word.h"

int repository_may_change(const struct repository *r, const char *what, struct error *err)
{
    char *word AUTO_FREE = NULL;

    if (!r->append_only) {
        return 0;
    }
    word = shell_word(r->path);
    error_set(err, EPERM, "Repository '%s' only grows: %s", r->path, what);
    error_hint(err, "'tidemark repair --append-only=off %s' ends that.", word ?: r->path);
    return -EPERM;
}

/* Without an exchange in one step, the old backup has another name for a moment. */
static int exchange_by_steps(const struct repository *repository, const char *draft, const char *id,
                             struct error *err)
{
    char *old AUTO_FREE = NULL;
    int r;

    if (asprintf(&old, REPOSITORY_OLD "%s", id) < 0) {
        old = NULL;
        return error_out_of_memory(err);
    }
    if (renameat(repository->fd, id, repository->fd, old) < 0) {
        return error_set_errno(err, errno, "Could not rename '%s/%s'", repository->path, id);
    }
    r = files_sync(repository->fd, repository->path, err);
    if (r == 0 && renameat(repository->fd, draft, repository->fd, id) < 0) {
        r = error_set_errno(err, errno, "Could not rename '%s/%s'", repository->path, draft);
    }
    if (r < 0) {
        renameat(repository->fd, old, repository->fd, id);
        return r;
    }
    r = files_sync(repository->fd, repository->path, err);
    if (r == 0) {
        renameat(repository->fd, old, repository->fd, draft);
    }
    return r;
}

static struct repository_entry *entry_of(struct repository *r, const char *id)
{
    for (size_t i = 0; i < r->count; i++) {
        if (strcmp(r->entries[i].id, id) == 0) {
            return &r->entries[i];
        }
    }
    return NULL;
}

/* Append an entry, and move it down to its place. */
static int insert_entry(struct repository *r, const struct manifest *m, struct error *err)
{
    struct repository_entry *entries = realloc(r->entries, (r->count + 1) * sizeof(*entries));
    struct repository_entry e = {0};
    size_t at = r->count;

    if (!entries) {
        return error_out_of_memory(err);
    }
    r->entries = entries;
    memcpy(e.id, m->id, sizeof(e.id));
    if (manifest_copy(m, &e.manifest) < 0) {
        return error_out_of_memory(err);
    }
    while (at > 0 && (entries[at - 1].problem || entries[at - 1].manifest.sequence > m->sequence)) {
        at--;
    }
    memmove(&entries[at + 1], &entries[at], (r->count - at) * sizeof(e));
    entries[at] = e;
    r->count++;
    return 0;
}

int repository_commit_new(struct repository *r, struct repository_draft *draft,
                          const struct manifest *m, struct error *err)
{
    int status = repository_commit(r, draft, m, err);

    return status < 0 ? status : insert_entry(r, m, err);
}

int repository_replace(struct repository *repository, struct repository_draft *draft,
                       const struct manifest *m, struct error *err)
{
    struct repository_entry *e = entry_of(repository, m->id);
    struct manifest copy = {0};
    int r = repository_may_change(repository, "no backup is replaced", err);

    UNLESS_FAILED(r, repository_write_manifest(repository, draft, m, err));
    if (r == 0 && manifest_copy(m, &copy) < 0) {
        r = error_out_of_memory(err);
    }
    if (r < 0) {
        return r;
    }
    if (renameat2(repository->fd, draft->name, repository->fd, m->id, RENAME_EXCHANGE) == 0) {
        r = files_sync(repository->fd, repository->path, err);
        if (r < 0) {
            /* Perhaps the old one has its name again after a crash: a later run removes it. */
            free(draft->name);
            draft->name = NULL;
        }
    } else if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) {
        r = exchange_by_steps(repository, draft->name, m->id, err);
    } else {
        r = error_set_errno(err, errno, "Could not replace '%s/%s'", repository->path, m->id);
    }
    if (r < 0) {
        manifest_clear(&copy);
        return r;
    }
    manifest_clear(&e->manifest);
    e->manifest = copy;
    free(e->problem);
    e->problem = NULL;
    return 0;
}

/* -EBUSY: a sound backup builds on it. */
static int check_unused(const struct repository *r, const char *id, struct error *err)
{
    for (size_t i = 0; i < r->count; i++) {
        const struct repository_entry *e = &r->entries[i];

        if (!e->problem && strcmp(e->manifest.parent, id) == 0) {
            return error_set(err, EBUSY, "Backup %s can't be removed: backup %s builds on it", id,
                             e->id);
        }
    }
    return 0;
}

int repository_remove(struct repository *repository, const char *id, struct error *err)
{
    struct repository_entry *e = entry_of(repository, id);
    char *name AUTO_FREE = NULL;
    int r = repository_may_change(repository, "no backup is removed", err);

    UNLESS_FAILED(r, check_unused(repository, id, err));
    if (r < 0) {
        return r;
    }
    if (asprintf(&name, REPOSITORY_TMP "%s", id) < 0) {
        name = NULL;
        return error_out_of_memory(err);
    }
    if (renameat(repository->fd, id, repository->fd, name) < 0) {
        return error_set_errno(err, errno, "Could not remove '%s/%s'", repository->path, id);
    }
    /* Before its files go: after a crash the backup is whole, or has no name. */
    r = files_sync(repository->fd, repository->path, err);
    if (r < 0) {
        return r;
    }
    files_remove_at(repository->fd, name);
    manifest_clear(&e->manifest);
    free(e->problem);
    e->problem = strdup("it was removed");
    return e->problem ? 0 : error_out_of_memory(err);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* One backup of the list that repository.c has read, and the chain of those that it builds on. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/repository.h"
#include "base/cleanup.h"
#include "base/shell_word.h"

const struct repository_entry *repository_last(const struct repository *r)
{
    for (size_t i = r->count; i-- > 0;) {
        if (!r->entries[i].problem) {
            return &r->entries[i];
        }
    }
    return NULL;
}

const struct repository_entry *repository_damaged_last(const struct repository *r)
{
    return r->count > 0 && r->entries[r->count - 1].problem ? &r->entries[r->count - 1] : NULL;
}

/* Clocks mostly go forward, and then the ids ascend as the list does. NULL: perhaps elsewhere. */
static const struct repository_entry *get_in_order(const struct repository *r, const char *id)
{
    size_t low = 0, high = r->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int difference = strcmp(r->entries[middle].id, id);

        if (difference == 0) {
            return &r->entries[middle];
        }
        low = difference < 0 ? middle + 1 : low;
        high = difference < 0 ? high : middle;
    }
    return NULL;
}

const struct repository_entry *repository_get(const struct repository *r, const char *id)
{
    const struct repository_entry *found = get_in_order(r, id);

    if (found) {
        return found;
    }
    for (size_t i = 0; i < r->count; i++) {
        if (strcmp(r->entries[i].id, id) == 0) {
            return &r->entries[i];
        }
    }
    return NULL;
}

static const struct repository_entry *find_newest(const struct repository *r, struct error *err)
{
    const struct repository_entry *last = repository_last(r);
    const struct repository_entry *damaged = repository_damaged_last(r);

    if (!last && !damaged) {
        error_set(err, ENOENT, "There is no backup in '%s'", r->path);
        return NULL;
    }
    if (damaged && damaged->denied) {
        repository_refuse_denied(r, err);
        return NULL;
    }
    if (!last) {
        error_set(err, EBADMSG, "There is no sound backup in '%s'; the newest, %s: %s", r->path,
                  damaged->id, damaged->problem);
        error_hint(err, "'tidemark repair' makes again what is lost and can be made again.");
        return NULL;
    }
    if (damaged) {
        error_set(err, EBADMSG, "The newest backup, %s, is damaged: %s", damaged->id,
                  damaged->problem);
        error_hint(err, "The newest sound one is that of --at %s.", last->id);
        return NULL;
    }
    return last;
}

const struct repository_entry *repository_find(const struct repository *r, const char *id,
                                               struct error *err)
{
    const struct repository_entry *found = id ? repository_get(r, id) : find_newest(r, err);
    char *word AUTO_FREE = NULL;
    size_t matches = 0;

    if (found || !id) {
        return found;
    }
    for (size_t i = 0; i < r->count; i++) {
        if (backup_id_is_meant(r->entries[i].id, id)) {
            found = &r->entries[i];
            matches++;
        }
    }
    if (matches == 1) {
        return found;
    }
    word = shell_word(r->path);
    error_set(err, ENOENT, "%s backup '%s' in '%s'",
              matches ? "There is more than one" : "There is no", id, r->path);
    error_hint(err, "'tidemark backups %s' lists them.", word ?: r->path);
    return NULL;
}

/* The backup that `e` builds on, which mostly is the one before. */
static const struct repository_entry *find_parent(const struct repository *r,
                                                  const struct repository_entry *e)
{
    const char *parent = e->manifest.parent;

    return e > r->entries && strcmp(e[-1].id, parent) == 0 ? &e[-1] : repository_get(r, parent);
}

static int check_link(const struct repository_entry *e, const struct repository_entry *parent,
                      struct error *err)
{
    if (!parent) {
        return error_set(err, EINVAL, "Backup %s builds on backup %s, which is gone", e->id,
                         e->manifest.parent);
    }
    if (parent->problem) {
        return error_set(err, EINVAL, "Backup %s builds on backup %s, which is damaged: %s", e->id,
                         parent->id, parent->problem);
    }
    if (parent->manifest.sequence >= e->manifest.sequence) {
        return error_set(err, EINVAL, "Backup %s builds on backup %s, which is not older", e->id,
                         parent->id);
    }
    return 0;
}

int repository_check_parent(const struct repository *r, const struct repository_entry *e,
                            const struct repository_entry **ret_parent, struct error *err)
{
    const struct repository_entry *parent = find_parent(r, e);
    int result = check_link(e, parent, err);

    if (result == 0) {
        *ret_parent = parent;
    }
    return result;
}

int repository_chain(const struct repository *repository, const struct repository_entry *e,
                     const struct repository_entry ***ret_entries, size_t *ret_count,
                     struct error *err)
{
    const struct repository_entry **chain;
    size_t count = 0;

    if (e->problem) {
        return error_set(err, EINVAL, "Backup %s is damaged: %s", e->id, e->problem);
    }
    /* Sequence numbers decrease along a sound chain, so the chain is no longer than the list. */
    chain = calloc(repository->count, sizeof(struct repository_entry *));
    if (!chain) {
        return error_out_of_memory(err);
    }
    chain[count++] = e;
    while (!manifest_is_full(&e->manifest)) {
        const struct repository_entry *parent = find_parent(repository, e);
        int r = check_link(e, parent, err);

        if (r == 0 && count == repository->count) {
            r = error_set(err, EINVAL, "Backup %s builds on itself", e->id);
        }
        if (r < 0) {
            free(chain);
            return r;
        }
        chain[count++] = parent;
        e = parent;
    }
    for (size_t i = 0; i < count / 2; i++) {
        const struct repository_entry *swap = chain[i];
        chain[i] = chain[count - 1 - i];
        chain[count - 1 - i] = swap;
    }
    *ret_entries = chain;
    *ret_count = count;
    return 0;
}

bool repository_was_changed(const struct repository *before)
{
    REPOSITORY_AUTO(now);

    if (repository_open_with(before->path, before->ring, &now, NULL) < 0) {
        return false;
    }
    for (size_t i = 0; i < before->count; i++) {
        const struct repository_entry *old = &before->entries[i];
        const struct repository_entry *e = old->problem ? NULL : repository_get(&now, old->id);

        if (!old->problem &&
            (!e || strcmp(e->manifest.image_sha256, old->manifest.image_sha256) != 0)) {
            return true;
        }
    }
    return false;
}

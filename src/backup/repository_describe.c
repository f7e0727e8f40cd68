/* SPDX-License-Identifier: Apache-2.0 */
/* Writing repository.json: ids, and the code of the key. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "backup/files.h"
#include "backup/repository.h"
#include "backup/stored.h"
#include "base/cleanup.h"

static int add_former(struct repository *r, const char *id, struct error *err)
{
    char *former;

    if (asprintf(&former, "%s%s%s", r->former ? r->former : "", r->former ? " " : "", id) < 0) {
        return error_out_of_memory(err);
    }
    free(r->former);
    r->former = former;
    return 0;
}

static bool is_known(const struct repository *r, const char *id)
{
    return !id[0] || strcmp(id, r->id) == 0 || (r->former && strstr(r->former, id));
}

int repository_accept(struct repository *repository, const struct repository *other,
                      struct error *err)
{
    const char *former = other->former ? other->former : "";
    char id[REPOSITORY_ID_SIZE];
    bool changed = !is_known(repository, other->id);
    int r = changed ? add_former(repository, other->id, err) : 0;

    while (r == 0 && strlen(former) >= REPOSITORY_ID_SIZE - 1) {
        snprintf(id, sizeof(id), "%s", former);
        if (!is_known(repository, id)) {
            changed = true;
            r = add_former(repository, id, err);
        }
        former += REPOSITORY_ID_SIZE - 1;
        former += strspn(former, " ");
    }
    return r == 0 && changed ? repository_write_description(repository, err) : r;
}

/* Find earlier ids, which only older backups still name. */
static int find_former(struct repository *repository, struct error *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < repository->count; i++) {
        const char *id =
            repository->entries[i].problem ? "" : repository->entries[i].manifest.repository;

        if (!is_known(repository, id)) {
            r = add_former(repository, id, err);
        }
    }
    return r;
}

int repository_rewrite_manifest(const struct repository *repository, const struct manifest *m,
                                struct error *err)
{
    static const char new_name[] = REPOSITORY_OWN_PREFIX REPOSITORY_MANIFEST;
    char *text AUTO_FREE =
        repository_manifest_text(repository->key, repository_seal(repository), m);
    char *shown AUTO_FREE = repository_file(repository, m->id, REPOSITORY_MANIFEST);
    int dir AUTO_CLOSE = repository_open_backup(repository, m->id, err);
    int r;

    if (dir < 0 || !text || !shown) {
        return dir < 0 ? dir : error_out_of_memory(err);
    }
    files_remove_at(dir, new_name);
    r = stored_write_at(dir, new_name, text, repository_seal(repository), STORED_MANIFEST, shown,
                        err);
    if (r == 0 && renameat(dir, new_name, dir, REPOSITORY_MANIFEST) < 0) {
        r = error_set_errno(err, errno, "Could not replace '%s'", shown);
    }
    UNLESS_FAILED(r, files_sync(dir, shown, err));
    return r;
}

int repository_sign(struct repository *repository, struct error *err)
{
    int r = repository_take_key(repository, err);

    if (r == 0 && !repository->key) {
        r = error_set(err, EINVAL, "There is no key to sign with: name its file with --key-file");
    }
    for (size_t i = 0; r == 0 && i < repository->count; i++) {
        const struct repository_entry *e = &repository->entries[i];

        r = e->problem ? 0 : repository_rewrite_manifest(repository, &e->manifest, err);
    }
    /* Last: before that, the repository has no key, and signing can be repeated. */
    UNLESS_FAILED(r, repository_write_description(repository, err));
    UNLESS_FAILED(r, repository_load_under_lock(repository, true, err));
    return r;
}

int repository_set_append_only(struct repository *repository, bool append_only, struct error *err)
{
    if (repository->append_only == append_only) {
        return 0;
    }
    repository->append_only = append_only;
    return repository_write_description(repository, err);
}

int repository_describe(struct repository *repository, bool new_id, struct error *err)
{
    int r = repository->problem ? find_former(repository, err) : 0;

    if (r == 0 && new_id && repository->id[0]) {
        r = add_former(repository, repository->id, err);
    }
    if (r == 0 && (new_id || !repository->id[0])) {
        r = repository_make_id(repository, err);
    }
    if (r == 0 && repository->key) {
        memcpy(repository->key_check, repository->key->check, sizeof(repository->key_check));
        repository->kdf = repository->key->kdf;
    }
    UNLESS_FAILED(r, repository_write_description(repository, err));
    UNLESS_FAILED(r, repository_load_under_lock(repository, true, err));
    return r;
}

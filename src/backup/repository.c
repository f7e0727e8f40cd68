/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/repository.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/files.h"
#include "base/cleanup.h"

char *repository_file(const struct repository *r, const char *id, const char *file)
{
    char *s;

    return asprintf(&s, "%s/%s/%s", r->path, id, file) < 0 ? NULL : s;
}

static int open_backup(const struct repository *r, const char *id, struct error *err)
{
    char *shown AUTO_FREE = files_join(r->path, id);

    return shown ? files_open_dir_at(r->fd, id, shown, err) : error_out_of_memory(err);
}

int repository_open_file(const struct repository *r, const char *id, const char *file,
                         struct error *err)
{
    char *shown AUTO_FREE = repository_file(r, id, file);
    int dir AUTO_CLOSE = open_backup(r, id, err);

    if (dir < 0) {
        return dir;
    }
    return shown ? files_open_at(dir, file, shown, err) : error_out_of_memory(err);
}

/* --- what it is --- */

static bool is_repository_id(const char *id)
{
    return strlen(id) == REPOSITORY_ID_SIZE - 1 &&
           strspn(id, "0123456789abcdef") == REPOSITORY_ID_SIZE - 1;
}

int repository_description_sha256(struct json_object *o, char ret_text[static SHA256_HEX_SIZE])
{
    uint8_t digest[SHA256_SIZE];
    size_t size;
    const char *text;

    json_object_object_del(o, "sha256");
    text = json_object_to_json_string_length(o, JSON_C_TO_STRING_PLAIN, &size);
    if (!text || sha256_of_buffer(text, size, digest) < 0) {
        return -ENOMEM;
    }
    sha256_to_hex(digest, ret_text);
    return 0;
}

/* A string member; NULL if there is none. Borrowed. */
static const char *string_of(struct json_object *o, const char *key)
{
    struct json_object *v;

    return json_object_object_get_ex(o, key, &v) && json_object_is_type(v, json_type_string)
               ? json_object_get_string(v)
               : NULL;
}

/* Descriptions of earlier versions have no checksum. */
static bool checksum_is_right(struct json_object *o)
{
    const char *found = string_of(o, "sha256");
    char *stored AUTO_FREE = found ? strdup(found) : NULL;
    char actual[SHA256_HEX_SIZE];

    return !json_object_object_get_ex(o, "sha256", NULL) ||
           (stored && repository_description_sha256(o, actual) == 0 && strcmp(stored, actual) == 0);
}

static bool take_description(struct repository *r, struct json_object *o)
{
    const char *format = string_of(o, "format"), *former;
    struct json_object *version;

    if (!format || strcmp(format, REPOSITORY_FORMAT) != 0 || !checksum_is_right(o) ||
        !json_object_object_get_ex(o, "version", &version) || json_object_get_int64(version) != 1 ||
        !string_of(o, "id") || !is_repository_id(string_of(o, "id"))) {
        return false;
    }
    memcpy(r->id, string_of(o, "id"), REPOSITORY_ID_SIZE);
    former = string_of(o, "former");
    r->former = former ? strdup(former) : NULL;
    return !former || r->former;
}

static int read_description(struct repository *repository, struct error *err)
{
    char *shown AUTO_FREE = files_join(repository->path, REPOSITORY_DESCRIPTION);
    char *text AUTO_FREE = NULL;
    struct json_object *o;
    size_t size;
    bool good;
    int r;

    if (!shown) {
        return error_out_of_memory(err);
    }
    r = files_read_at(repository->fd, REPOSITORY_DESCRIPTION, MANIFEST_SIZE_MAX, shown, &text,
                      &size, err);
    if (r < 0) {
        return r;
    }
    o = strlen(text) == size ? json_tokener_parse(text) : NULL;
    good = json_object_is_type(o, json_type_object) && take_description(repository, o);
    json_object_put(o);
    return good ? 0 : error_set(err, EINVAL, "'%s' does not describe a repository", shown);
}

/* --- the list of backups --- */

static int load_manifest(struct repository *repository, struct repository_entry *e,
                         struct error *err)
{
    char *shown AUTO_FREE = repository_file(repository, e->id, REPOSITORY_MANIFEST);
    char *text AUTO_FREE = NULL;
    int dir AUTO_CLOSE = open_backup(repository, e->id, err);
    size_t size;
    int r;

    if (dir < 0 || !shown) {
        return dir < 0 ? dir : error_out_of_memory(err);
    }
    r = files_read_at(dir, REPOSITORY_MANIFEST, MANIFEST_SIZE_MAX, shown, &text, &size, err);
    if (r == 0) {
        r = manifest_parse(text, size, shown, &e->manifest, err);
    }
    if (r == 0 && strcmp(e->manifest.id, e->id) != 0) {
        r = error_set(err, EINVAL, "Manifest '%s' is that of backup %s", shown, e->manifest.id);
        manifest_clear(&e->manifest);
    }
    return r;
}

static int add_entry(struct repository *r, const char *id, struct error *err)
{
    ERROR_AUTO(problem);
    struct repository_entry *entries = realloc(r->entries, (r->count + 1) * sizeof(*r->entries));
    struct repository_entry *e;

    if (!entries) {
        return error_out_of_memory(err);
    }
    r->entries = entries;
    e = &entries[r->count];
    *e = (struct repository_entry){0};
    memcpy(e->id, id, strlen(id) + 1);
    if (load_manifest(r, e, &problem) < 0) {
        e->problem = strdup(error_message(&problem));
        if (!e->problem) {
            return error_out_of_memory(err);
        }
    }
    r->count++;
    return 0;
}

/* Sound ones by sequence, then damaged ones by id. */
static int compare_entries(const void *a, const void *b)
{
    const struct repository_entry *x = a, *y = b;

    if (!x->problem != !y->problem) {
        return x->problem ? 1 : -1;
    }
    if (!x->problem && x->manifest.sequence != y->manifest.sequence) {
        return x->manifest.sequence < y->manifest.sequence ? -1 : 1;
    }
    return strcmp(x->id, y->id);
}

/*
 * A damaged backup has no trusted sequence number. Its id is a time: it is placed after all backups
 * with an earlier id, so that in doubt it counts as newer.
 */
static void place_damaged(struct repository *r, size_t sound)
{
    for (size_t i = sound; i < r->count; i++) {
        struct repository_entry e = r->entries[i];
        size_t at = i;

        while (at > 0 && strcmp(r->entries[at - 1].id, e.id) > 0) {
            at--;
        }
        memmove(&r->entries[at + 1], &r->entries[at], (i - at) * sizeof(e));
        r->entries[at] = e;
    }
}

static void sort_entries(struct repository *r)
{
    size_t sound = 0;

    if (r->count > 0) {
        qsort(r->entries, r->count, sizeof(*r->entries), compare_entries);
    }
    while (sound < r->count && !r->entries[sound].problem) {
        sound++;
    }
    place_damaged(r, sound);
}

static int load_entries(struct repository *repository, struct error *err)
{
    int fd = files_open_dir_at(repository->fd, ".", repository->path, err);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *d;
    int r = 0;

    if (fd < 0) {
        return fd;
    }
    if (!dir) {
        close(fd);
        return error_out_of_memory(err);
    }
    while (r == 0 && (d = readdir(dir)) != NULL) {
        if (backup_id_is_valid(d->d_name)) {
            r = add_entry(repository, d->d_name, err);
        }
    }
    closedir(dir);
    sort_entries(repository);
    return r;
}

/* --- whose backups they are --- */

static bool is_own(const struct repository *r, const struct manifest *m)
{
    return !m->repository[0] || strcmp(m->repository, r->id) == 0 ||
           (r->former && strstr(r->former, m->repository));
}

/* Whether no manifest agrees with repository.json: then it was put here, or changed. */
static bool description_is_foreign(const struct repository *r)
{
    bool any = false;

    for (size_t i = 0; i < r->count; i++) {
        if (!r->entries[i].problem && is_own(r, &r->entries[i].manifest)) {
            return false;
        }
        any = any || !r->entries[i].problem;
    }
    return any;
}

/* Without a valid repository.json, the id is taken from the newest backup. */
static void take_id_of_manifests(struct repository *r)
{
    r->id[0] = '\0';
    for (size_t i = 0; i < r->count; i++) {
        const struct manifest *m = &r->entries[i].manifest;

        if (!r->entries[i].problem && m->repository[0]) {
            memcpy(r->id, m->repository, sizeof(r->id));
        }
    }
}

static int refuse_foreign(struct repository *r)
{
    for (size_t i = 0; i < r->count; i++) {
        struct repository_entry *e = &r->entries[i];

        if (e->problem || is_own(r, &e->manifest)) {
            continue;
        }
        if (asprintf(&e->problem, "It belongs to repository %s, and this is repository %s",
                     e->manifest.repository, r->id) < 0) {
            e->problem = NULL;
            return -ENOMEM;
        }
        manifest_clear(&e->manifest);
    }
    return 0;
}

/* Decide about the result of reading repository.json: `r`, with the sentence in `why`. */
static int judge_description(struct repository *repository, int r, struct error *why,
                             bool need_description, struct error *err)
{
    if (r == 0 && description_is_foreign(repository)) {
        r = error_set(why, EINVAL, "'%s/%s' is not that of the backups in it", repository->path,
                      REPOSITORY_DESCRIPTION);
    }
    if (r == 0) {
        r = refuse_foreign(repository);
        sort_entries(repository);
        return r < 0 ? error_out_of_memory(err) : 0;
    }
    if (r == -ENOMEM || repository->count == 0) {
        if (r == -ENOENT) {
            return error_set(err, ENOENT, "'%s' holds no backups: there is no '%s' in it",
                             repository->path, REPOSITORY_DESCRIPTION);
        }
        error_move(err, why);
        return r;
    }
    if (need_description) {
        error_move(err, why);
        error_hint(err, "'tidemark repair %s' writes it again.", repository->path);
        return -EINVAL;
    }
    take_id_of_manifests(repository);
    repository->problem = strdup(error_message(why));
    return repository->problem ? 0 : error_out_of_memory(err);
}

int repository_load(const char *path, bool need_description, struct repository *ret_repository,
                    struct error *err)
{
    REPOSITORY_AUTO(repository);
    ERROR_AUTO(why);
    int r;

    repository.path = realpath(path, NULL);
    if (!repository.path) {
        return error_set_errno(err, errno, "Could not open directory '%s'", path);
    }
    repository.fd = files_open_dir(repository.path, err);
    if (repository.fd < 0) {
        return repository.fd;
    }
    r = load_entries(&repository, err);
    if (r < 0) {
        return r;
    }
    r = judge_description(&repository, read_description(&repository, &why), &why, need_description,
                          err);
    if (r < 0) {
        return r;
    }
    *ret_repository = repository;
    repository = REPOSITORY_INIT;
    return 0;
}

int repository_open(const char *path, struct repository *ret_repository, struct error *err)
{
    return repository_load(path, false, ret_repository, err);
}

void repository_close(struct repository *r)
{
    for (size_t i = 0; i < r->count; i++) {
        manifest_clear(&r->entries[i].manifest);
        free(r->entries[i].problem);
    }
    free(r->entries);
    free(r->path);
    free(r->former);
    free(r->problem);
    if (r->fd >= 0) {
        close(r->fd);
    }
    if (r->lock_fd >= 0) {
        close(r->lock_fd);
    }
    *r = REPOSITORY_INIT;
}

/* --- finding --- */

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

const struct repository_entry *repository_get(const struct repository *r, const char *id)
{
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

    if (!last) {
        error_set(err, ENOENT, "There is no %sbackup in '%s'", r->count ? "sound " : "", r->path);
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
    size_t matches = 0;

    if (found || !id) {
        return found;
    }
    for (size_t i = 0; i < r->count; i++) {
        if (strncmp(r->entries[i].id, id, strlen(id)) == 0) {
            found = &r->entries[i];
            matches++;
        }
    }
    if (matches == 1) {
        return found;
    }
    error_set(err, ENOENT, "%s backup '%s' in '%s'",
              matches ? "There is more than one" : "There is no", id, r->path);
    error_hint(err, "'tidemark backups %s' lists them.", r->path);
    return NULL;
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
    if (parent->manifest.virtual_size != e->manifest.virtual_size) {
        return error_set(
            err, EINVAL,
            "Backup %s (a disk of %" PRIu64 " bytes) builds on backup %s (%" PRIu64 " bytes)",
            e->id, e->manifest.virtual_size, parent->id, parent->manifest.virtual_size);
    }
    return 0;
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
        const struct repository_entry *parent = repository_get(repository, e->manifest.parent);
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

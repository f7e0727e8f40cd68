/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/repository.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/files.h"
#include "backup/set.h"
#include "backup/stored.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/shell_word.h"

/* Reading a list that a prune changes meanwhile. */
#define ATTEMPTS 20
#define DENIED_HINT "Other users made backups here: give them to this one, by chown."

char *repository_file(const struct repository *r, const char *id, const char *file)
{
    char *s;

    return asprintf(&s, "%s/%s/%s", r->path, id, file) < 0 ? NULL : s;
}

/*
 * Where two directories can't change places in one step, a backup that is being replaced has
 * another name for a moment, or after a kill.
 */
int repository_open_backup(const struct repository *r, const char *id, struct error *err)
{
    char *shown AUTO_FREE = files_join(r->path, id);
    char *old AUTO_FREE = NULL;
    int fd;

    if (!shown || asprintf(&old, REPOSITORY_OLD "%s", id) < 0) {
        return error_out_of_memory(err);
    }
    fd = files_open_dir_at(r->fd, id, shown, NULL);
    if (fd == -ENOENT) {
        fd = files_open_dir_at(r->fd, old, old, NULL);
    }
    /* The new one may have come in between. */
    return fd < 0 ? files_open_dir_at(r->fd, id, shown, err) : fd;
}

int repository_open_file(const struct repository *r, const char *id, const char *file,
                         struct error *err)
{
    char *shown AUTO_FREE = repository_file(r, id, file);
    int dir AUTO_CLOSE = repository_open_backup(r, id, err);

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

/* Whether all members are ones that a description has. */
static bool members_are_known(struct json_object *o)
{
    static const char *const known[] = {"format", "version",     "id",           "former",
                                        "key",    "path",        "encryption",   "place",
                                        "mac",    "append-only", "scrypt-log-n", "scrypt-salt"};

    json_object_object_foreach(o, name, value)
    {
        size_t i = 0;

        (void)value;
        while (i < ARRAY_SIZE(known) && strcmp(known[i], name) != 0) {
            i++;
        }
        if (i == ARRAY_SIZE(known)) {
            return false;
        }
    }
    return true;
}

/*
 * Descriptions of earlier versions have no checksum. One whose name was damaged is a member that is
 * not known.
 */
static bool checksum_is_right(struct json_object *o)
{
    const char *found = string_of(o, "sha256");
    char *stored AUTO_FREE = found ? strdup(found) : NULL;
    char actual[SHA256_HEX_SIZE];

    return (!json_object_object_get_ex(o, "sha256", NULL) && members_are_known(o)) ||
           (stored && repository_description_sha256(o, actual) == 0 && strcmp(stored, actual) == 0);
}

/* Version 2 is encrypted, and other programs must not take it for damaged. */
static bool take_encryption(struct repository *r, struct json_object *o)
{
    const char *cipher = string_of(o, "encryption");
    struct json_object *version;

    if (!json_object_object_get_ex(o, "version", &version)) {
        return false;
    }
    r->encrypted = cipher != NULL;
    return cipher ? json_object_get_int64(version) == 2 && r->key_check[0] &&
                        strcmp(cipher, REPOSITORY_CIPHER) == 0
                  : json_object_get_int64(version) == 1;
}

static bool take_description(struct repository *r, struct json_object *o)
{
    const char *format = string_of(o, "format"), *former, *place;
    struct json_object *flag;

    if (!format || strcmp(format, REPOSITORY_FORMAT) != 0 || !checksum_is_right(o) ||
        !string_of(o, "id") || !is_repository_id(string_of(o, "id"))) {
        return false;
    }
    memcpy(r->id, string_of(o, "id"), REPOSITORY_ID_SIZE);
    former = string_of(o, "former");
    r->former = former ? strdup(former) : NULL;
    if (string_of(o, "key")) {
        snprintf(r->key_check, sizeof(r->key_check), "%s", string_of(o, "key"));
    }
    place = string_of(o, "path");
    r->place = place ? strdup(place) : NULL;
    backup_kdf_from_json(o, &r->kdf);
    r->append_only =
        json_object_object_get_ex(o, "append-only", &flag) && json_object_get_boolean(flag);
    return (!former || r->former) && (!place || r->place) && take_encryption(r, o);
}

/*
 * With the right key, the code of the description counts. Here, as the description is parsed: the
 * code is removed from `o`.
 */
static bool description_is_proved(const struct repository *r, struct json_object *o)
{
    return !r->key || !r->key_check[0] || strcmp(r->key->check, r->key_check) != 0 ||
           repository_code_is_right(r->key, o);
}

static int read_description(struct repository *repository, bool proves, struct error *err)
{
    char *shown AUTO_FREE = files_join(repository->path, REPOSITORY_DESCRIPTION);
    char *text AUTO_FREE = NULL;
    const char *sealed;
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
    r = good && proves
            ? backup_key_get_of(repository->ring, &repository->kdf, &repository->key, err)
            : 0;
    if (r == 0 && good) {
        sealed = string_of(o, "place");
        if (sealed && repository_seal(repository)) {
            repository->place = repository_open_place(repository, sealed);
        }
        good = description_is_proved(repository, o);
    }
    json_object_put(o);
    if (r < 0) {
        return r;
    }
    return good ? 0 : error_set(err, EINVAL, "'%s' does not describe a repository", shown);
}

/* --- the list of backups --- */

static int load_manifest(struct repository *repository, struct repository_entry *e,
                         struct error *err)
{
    char *shown AUTO_FREE = repository_file(repository, e->id, REPOSITORY_MANIFEST);
    char *text AUTO_FREE = NULL;
    int dir AUTO_CLOSE = repository_open_backup(repository, e->id, err);
    struct stat st;
    size_t size;
    int r;

    if (dir < 0 || !shown) {
        return dir < 0 ? dir : error_out_of_memory(err);
    }
    e->inode = fstat(dir, &st) == 0 ? st.st_ino : 0;
    r = stored_read_at(dir, REPOSITORY_MANIFEST, MANIFEST_SIZE_MAX, repository_seal(repository),
                       STORED_MANIFEST, shown, &text, &size, err);
    if (r == 0) {
        r = manifest_parse(text, size, shown, &e->manifest, err);
    }
    if (r == 0 && repository->key) {
        r = repository_check_code(repository->key, text, shown, err);
    }
    if (r == 0 && strcmp(e->manifest.id, e->id) != 0) {
        r = error_set(err, EINVAL, "Manifest '%s' is that of backup %s", shown, e->manifest.id);
    }
    if (r < 0) {
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
        e->denied = problem.code == EACCES;
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

static void clear_entries(struct repository *r)
{
    for (size_t i = 0; i < r->count; i++) {
        manifest_clear(&r->entries[i].manifest);
        free(r->entries[i].problem);
    }
    free(r->entries);
    r->entries = NULL;
    r->count = 0;
}

/* The ids of the backups in a directory. */
struct id_list {
    char (*list)[BACKUP_ID_SIZE];
    size_t count, capacity;
};

static int add_id(struct id_list *ids, const char *id)
{
    if (ids->count == ids->capacity) {
        size_t capacity = ids->capacity ? 2 * ids->capacity : 64;
        char(*list)[BACKUP_ID_SIZE] = realloc(ids->list, capacity * sizeof(*list));

        if (!list) {
            return -ENOMEM;
        }
        ids->list = list;
        ids->capacity = capacity;
    }
    memcpy(ids->list[ids->count++], id, strlen(id) + 1);
    return 0;
}

static int compare_ids(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* Find the ids, ascending; one that is being replaced is there twice. */
static int list_ids(const struct repository *repository, struct id_list *ids, struct error *err)
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
        size_t skip = strncmp(d->d_name, REPOSITORY_OLD, strlen(REPOSITORY_OLD)) == 0
                          ? strlen(REPOSITORY_OLD)
                          : 0;
        const char *id = d->d_name + skip;

        if (backup_id_is_valid(id) && !set_is_at(repository->fd, d->d_name)) {
            r = add_id(ids, id);
        }
    }
    closedir(dir);
    if (ids->count > 0) {
        qsort(ids->list, ids->count, sizeof(*ids->list), compare_ids);
    }
    return r < 0 ? error_out_of_memory(err) : 0;
}

static int load_entries(struct repository *repository, struct error *err)
{
    struct id_list ids = {0};
    int r = list_ids(repository, &ids, err);

    for (size_t i = 0; r == 0 && i < ids.count; i++) {
        if (i == 0 || strcmp(ids.list[i - 1], ids.list[i]) != 0) {
            r = add_entry(repository, ids.list[i], err);
        }
    }
    free(ids.list);
    sort_entries(repository);
    return r;
}

/*
 * Whether every directory that was read is still there. Else a prune has replaced or removed one
 * meanwhile, and manifests from before and after that may not fit together.
 */
static bool is_settled(const struct repository *r)
{
    for (size_t i = 0; i < r->count; i++) {
        const struct repository_entry *e = &r->entries[i];
        int dir AUTO_CLOSE = e->inode ? repository_open_backup(r, e->id, NULL) : -1;
        struct stat st;

        if (e->inode && (dir < 0 || fstat(dir, &st) < 0 || st.st_ino != e->inode)) {
            return false;
        }
        if (!e->inode && fstatat(r->fd, e->id, &st, AT_SYMLINK_NOFOLLOW) < 0 && errno == ENOENT) {
            return false;
        }
    }
    return true;
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

static int refuse_empty(const struct repository *repository, struct error *err)
{
    error_set(err, ENOENT, "'%s' holds no backups: there is no '%s' in it", repository->path,
              REPOSITORY_DESCRIPTION);
    if (faccessat(repository->fd, SET_DIRECTORY, F_OK, 0) == 0) {
        error_hint(err,
                   "It holds sets of several disks: name the directory of a disk in it, or see "
                   "'tidemark sets'.");
    }
    return -ENOENT;
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
    if (r == -EACCES) {
        /* Nobody would look for damage then, or mend it. */
        error_move(err, why);
        error_hint(err, DENIED_HINT);
        return r;
    }
    if (r == -ENOMEM || repository->count == 0) {
        if (r == -ENOENT) {
            return refuse_empty(repository, err);
        }
        error_move(err, why);
        return r;
    }
    if (need_description) {
        char *word AUTO_FREE = shell_word(repository->path);

        error_move(err, why);
        error_hint(err, "'tidemark repair %s' writes it again.", word ?: repository->path);
        return -EINVAL;
    }
    take_id_of_manifests(repository);
    repository->problem = strdup(error_message(why));
    return repository->problem ? 0 : error_out_of_memory(err);
}

int repository_refuse_denied(const struct repository *repository, struct error *err)
{
    for (size_t i = 0; i < repository->count; i++) {
        if (repository->entries[i].denied) {
            error_set(err, EACCES, "%s", repository->entries[i].problem);
            error_hint(err, DENIED_HINT);
            return -EACCES;
        }
    }
    return 0;
}

/* Without a valid repository.json: how the manifests are encrypted, if they are. */
static void take_encryption_of_manifests(struct repository *repository)
{
    int fd = files_open_dir_at(repository->fd, ".", repository->path, NULL);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *d;

    repository->encrypted = false;
    while (dir && !repository->encrypted && (d = readdir(dir)) != NULL) {
        int backup AUTO_CLOSE = backup_id_is_valid(d->d_name)
                                    ? files_open_dir_at(repository->fd, d->d_name, "", NULL)
                                    : -1;
        char *data AUTO_FREE = NULL;
        size_t size;

        repository->encrypted = backup >= 0 &&
                                files_read_at(backup, REPOSITORY_MANIFEST, MANIFEST_SIZE_MAX, "",
                                              &data, &size, NULL) == 0 &&
                                stored_is_sealed(data, size, &repository->kdf);
    }
    if (dir) {
        closedir(dir);
    }
}

/*
 * Read repository.json, and get the key. What is wrong with the description goes to `why`, and is
 * returned in *ret_described.
 */
static int open_description(struct repository *repository, bool proves, int *ret_described,
                            struct error *why, struct error *err)
{
    int r = read_description(repository, proves, why);

    *ret_described = r;
    if (r == -ENOKEY) {
        error_move(err, why);
        return r;
    }
    if (r < 0) {
        take_encryption_of_manifests(repository);
        r = proves ? backup_key_get_of(repository->ring, &repository->kdf, &repository->key, err)
                   : 0;
        if (r < 0) {
            return r;
        }
    }
    if (!repository->encrypted) {
        return 0;
    }
    return proves ? repository_judge_encryption(repository, *ret_described == 0, err)
                  : error_set(err, EINVAL, "'%s' is encrypted, so it has its key already",
                              repository->path);
}

static int load_all_entries(struct repository *repository, struct error *err)
{
    for (int i = 0; i < ATTEMPTS; i++) {
        int r;

        clear_entries(repository);
        r = load_entries(repository, err);
        if (r < 0) {
            return r;
        }
        if (is_settled(repository)) {
            break;
        }
    }
    return 0;
}

/* `proves`: with the program's key. */
static int load(const char *path, struct backup_key_ring *ring, bool need_description, bool proves,
                struct repository *ret_repository, struct error *err)
{
    REPOSITORY_AUTO(repository);
    ERROR_AUTO(why);
    int r, described = 0;

    repository.ring = ring;
    repository.path = realpath(path, NULL);
    if (!repository.path) {
        return error_set_errno(err, errno, "Could not open directory '%s'", path);
    }
    repository.fd = files_open_dir(repository.path, err);
    if (repository.fd < 0) {
        return repository.fd;
    }
    r = open_description(&repository, proves, &described, &why, err);
    UNLESS_FAILED(r, load_all_entries(&repository, err));
    if (r == 0 && need_description) {
        r = repository_refuse_denied(&repository, err);
    }
    UNLESS_FAILED(r, judge_description(&repository, described, &why, need_description, err));
    if (r < 0) {
        return r;
    }
    *ret_repository = repository;
    repository = REPOSITORY_INIT;
    return 0;
}

static int load_proved(const char *path, struct backup_key_ring *ring, bool need_description,
                       struct repository *ret_repository, struct error *err)
{
    REPOSITORY_AUTO(repository);
    int r = load(path, ring, need_description, true, &repository, err);

    UNLESS_FAILED(r, repository_judge_key(&repository, need_description, err));
    if (r == 0) {
        *ret_repository = repository;
        repository = REPOSITORY_INIT;
    }
    return r;
}

int repository_load_unproved(const char *path, bool need_description,
                             struct repository *ret_repository, struct error *err)
{
    return load(path, NULL, need_description, false, ret_repository, err);
}

int repository_load(const char *path, bool need_description, struct repository *ret_repository,
                    struct error *err)
{
    return load_proved(path, NULL, need_description, ret_repository, err);
}

int repository_open(const char *path, struct repository *ret_repository, struct error *err)
{
    return repository_load(path, false, ret_repository, err);
}

int repository_open_with(const char *path, struct backup_key_ring *ring,
                         struct repository *ret_repository, struct error *err)
{
    return load_proved(path, ring, false, ret_repository, err);
}

void repository_close(struct repository *r)
{
    clear_entries(r);
    free(r->path);
    free(r->place);
    free(r->former);
    free(r->problem);
    if (r->fd >= 0) {
        close(r->fd);
    }
    if (r->lock_fd >= 0) {
        close(r->lock_fd);
    }
    if (r->work_fd >= 0) {
        close(r->work_fd);
    }
    *r = REPOSITORY_INIT;
}

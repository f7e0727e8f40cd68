/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changing a repository. A backup is published in this order, each step synced before the next: the
 * data of its two files (by the caller), the manifest, the names in its directory, the rename to
 * its final name, the name in the repository.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backup/files.h"
#include "backup/fleece.h"
#include "backup/repository.h"
#include "base/cleanup.h"

#define LOCK_FILE ".tidemark-lock"
#define NEW_DESCRIPTION REPOSITORY_OWN_PREFIX REPOSITORY_DESCRIPTION

/* --- what it is --- */

static char *describe_repository(const struct repository *r)
{
    struct json_object *o = json_object_new_object();
    char sha256[SHA256_HEX_SIZE], *text = NULL;

    json_object_object_add(o, "format", json_object_new_string(REPOSITORY_FORMAT));
    json_object_object_add(o, "version", json_object_new_int(1));
    json_object_object_add(o, "id", json_object_new_string(r->id));
    if (r->former) {
        json_object_object_add(o, "former", json_object_new_string(r->former));
    }
    if (repository_description_sha256(o, sha256) == 0) {
        json_object_object_add(o, "sha256", json_object_new_string(sha256));
        if (asprintf(&text, "%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN)) <
            0) {
            text = NULL;
        }
    }
    json_object_put(o);
    return text;
}

static int write_description(struct repository *repository, struct error *err)
{
    char *text AUTO_FREE = describe_repository(repository);
    char *shown AUTO_FREE = files_join(repository->path, REPOSITORY_DESCRIPTION);
    int r;

    if (!text || !shown) {
        return error_out_of_memory(err);
    }
    files_remove_at(repository->fd, NEW_DESCRIPTION);
    r = files_write_at(repository->fd, NEW_DESCRIPTION, text, shown, err);
    if (r == 0 &&
        renameat(repository->fd, NEW_DESCRIPTION, repository->fd, REPOSITORY_DESCRIPTION) < 0) {
        r = error_set_errno(err, errno, "Could not create '%s'", shown);
    }
    return r < 0 ? r : files_sync(repository->fd, repository->path, err);
}

static int make_id(struct repository *r, struct error *err)
{
    uint32_t id;

    if (getrandom(&id, sizeof(id), 0) != sizeof(id)) {
        return error_set_errno(err, errno, "No random number for the repository's id");
    }
    snprintf(r->id, sizeof(r->id), "%08" PRIx32, id);
    return 0;
}

/* --- opening --- */

/*
 * Whether the directory is empty but for what a killed first run has left: then a repository may be
 * made in it.
 */
static int check_empty(const struct repository *repository, struct error *err)
{
    int fd = files_open_dir_at(repository->fd, ".", repository->path, err);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *d;
    int r = 0;

    if (!dir) {
        return fd < 0 ? fd : error_out_of_memory(err);
    }
    while (r == 0 && (d = readdir(dir)) != NULL) {
        if (strcmp(d->d_name, ".") != 0 && strcmp(d->d_name, "..") != 0 &&
            strcmp(d->d_name, "lost+found") != 0 &&
            strncmp(d->d_name, REPOSITORY_OWN_PREFIX, strlen(REPOSITORY_OWN_PREFIX)) != 0) {
            r = error_set(err, ENOTEMPTY,
                          "Directory '%s' is not empty ('%s' is in it) and holds no backups; "
                          "name an empty or a new one",
                          repository->path, d->d_name);
        }
    }
    closedir(dir);
    return r;
}

static int lock(struct repository *r, struct error *err)
{
    char *shown AUTO_FREE = files_join(r->path, LOCK_FILE);

    if (!shown) {
        return error_out_of_memory(err);
    }
    r->lock_fd =
        openat(r->fd, LOCK_FILE, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (r->lock_fd < 0) {
        return error_set_errno(err, errno, "Could not open '%s'", shown);
    }
    if (flock(r->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno == EWOULDBLOCK) {
            return error_set(err, EBUSY, "Another backup to '%s' is under way", r->path);
        }
        return error_set_errno(err, errno, "Could not lock '%s'", shown);
    }
    return 0;
}

/* Remove the temporary image that an unfinished backup names. */
static void remove_draft(const struct repository *r, const char *name)
{
    int dir AUTO_CLOSE = files_open_dir_at(r->fd, name, name, NULL);
    char *fleece AUTO_FREE = NULL;
    size_t size;

    if (dir >= 0 && files_read_at(dir, REPOSITORY_FLEECE, PATH_MAX, REPOSITORY_FLEECE, &fleece,
                                  &size, NULL) == 0) {
        fleece_remove(fleece, r->id);
    }
    files_remove_at(r->fd, name);
}

static void remove_leftovers(const struct repository *r)
{
    ERROR_AUTO(err);
    int fd = files_open_dir_at(r->fd, ".", r->path, &err);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *d;

    while (dir && (d = readdir(dir)) != NULL) {
        if (strncmp(d->d_name, REPOSITORY_TMP, strlen(REPOSITORY_TMP)) == 0) {
            remove_draft(r, d->d_name);
        }
    }
    if (dir) {
        closedir(dir);
    }
}

/*
 * Make the directory, and sync its parent: the name has to be stable before anything in it counts.
 */
static int make_directory(const char *path, struct error *err)
{
    char *copy AUTO_FREE = NULL;
    int parent AUTO_CLOSE = -1;

    if (mkdir(path, 0700) < 0) {
        return errno == EEXIST ? 0
                               : error_set_errno(err, errno, "Could not make directory '%s'", path);
    }
    copy = strdup(path);
    if (!copy) {
        return error_out_of_memory(err);
    }
    parent = files_open_dir(dirname(copy), err);
    return parent < 0 ? parent : files_sync(parent, path, err);
}

/* Open the directory and lock it; nothing is read yet. */
static int open_and_lock(const char *path, struct repository *r, struct error *err)
{
    r->path = realpath(path, NULL);
    if (!r->path) {
        return error_set_errno(err, errno, "Could not open directory '%s'", path);
    }
    r->fd = files_open_dir(r->path, err);
    return r->fd < 0 ? r->fd : lock(r, err);
}

static bool has_description(const struct repository *r)
{
    return faccessat(r->fd, REPOSITORY_DESCRIPTION, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

static bool has_backups(const struct repository *r)
{
    REPOSITORY_AUTO(read);

    return repository_load(r->path, false, &read, NULL) == 0 && read.count > 0;
}

/* Load into a repository that is open and locked; the lock is kept. */
static int load_under_lock(struct repository *repository, bool need_description, struct error *err)
{
    REPOSITORY_AUTO(loaded);
    int r = repository_load(repository->path, need_description, &loaded, err);

    if (r == 0) {
        loaded.lock_fd = TAKE_FD(repository->lock_fd);
        repository_close(repository);
        *repository = loaded;
        loaded = REPOSITORY_INIT;
    }
    return r;
}

int repository_open_to_write(const char *path, struct repository *ret_repository, struct error *err)
{
    REPOSITORY_AUTO(repository);
    int r = make_directory(path, err);

    UNLESS_FAILED(r, open_and_lock(path, &repository, err));
    if (r == 0 && !has_description(&repository) && !has_backups(&repository)) {
        r = check_empty(&repository, err);
        UNLESS_FAILED(r, make_id(&repository, err));
        UNLESS_FAILED(r, write_description(&repository, err));
    }
    UNLESS_FAILED(r, load_under_lock(&repository, true, err));
    if (r < 0) {
        return r;
    }
    remove_leftovers(&repository);
    *ret_repository = repository;
    repository = REPOSITORY_INIT;
    return 0;
}

/* --- repair --- */

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

/* Find earlier ids, which only older backups still name. */
static int find_former(struct repository *repository, struct error *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < repository->count; i++) {
        const char *id =
            repository->entries[i].problem ? "" : repository->entries[i].manifest.repository;

        if (id[0] && strcmp(id, repository->id) != 0 &&
            (!repository->former || !strstr(repository->former, id))) {
            r = add_former(repository, id, err);
        }
    }
    return r;
}

int repository_repair(const char *path, bool new_id, struct repository *ret_repository,
                      struct error *err)
{
    REPOSITORY_AUTO(repository);
    int r = open_and_lock(path, &repository, err);

    UNLESS_FAILED(r, load_under_lock(&repository, false, err));
    if (r < 0) {
        return r;
    }
    if (!repository.problem && !new_id) {
        error_set(err, EINVAL, "'%s/%s' needs no repair", repository.path, REPOSITORY_DESCRIPTION);
        error_hint(err, "--new-id gives a copy of a repository an id of its own.");
        return -EINVAL;
    }
    if (repository.problem) {
        r = find_former(&repository, err);
    }
    if (r == 0 && new_id && repository.id[0]) {
        r = add_former(&repository, repository.id, err);
    }
    if (r == 0 && (new_id || !repository.id[0])) {
        r = make_id(&repository, err);
    }
    UNLESS_FAILED(r, write_description(&repository, err));
    UNLESS_FAILED(r, load_under_lock(&repository, true, err));
    if (r == 0) {
        *ret_repository = repository;
        repository = REPOSITORY_INIT;
    }
    return r;
}

/* --- a new backup --- */

void repository_new_id(const struct repository *r, char ret_text[static BACKUP_ID_SIZE])
{
    time_t now = time(NULL);
    char stamp[20];
    struct tm tm;

    gmtime_r(&now, &tm);
    strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%SZ", &tm);
    snprintf(ret_text, BACKUP_ID_SIZE, "%s", stamp);
    for (unsigned n = 2; repository_get(r, ret_text) && n < 1000000; n++) {
        snprintf(ret_text, BACKUP_ID_SIZE, "%s-%u", stamp, n);
    }
}

uint64_t repository_next_sequence(const struct repository *r)
{
    uint64_t highest = 0, damaged = 0;

    for (size_t i = 0; i < r->count; i++) {
        if (r->entries[i].problem) {
            damaged++;
        } else if (r->entries[i].manifest.sequence > highest) {
            highest = r->entries[i].manifest.sequence;
        }
    }
    /* Each damaged backup may have had a number above all that can be read. */
    return highest + damaged + 1;
}

int repository_begin(const struct repository *r, const char *id, struct repository_draft *ret_draft,
                     struct error *err)
{
    *ret_draft = REPOSITORY_DRAFT_INIT;
    if (asprintf(&ret_draft->name, "%s%s", REPOSITORY_TMP, id) < 0) {
        ret_draft->name = NULL;
        return error_out_of_memory(err);
    }
    ret_draft->path = files_join(r->path, ret_draft->name);
    if (!ret_draft->path) {
        return error_out_of_memory(err);
    }
    ret_draft->fd = files_make_dir_at(r->fd, ret_draft->name, ret_draft->path, err);
    return ret_draft->fd < 0 ? ret_draft->fd : 0;
}

int repository_commit(const struct repository *repository, struct repository_draft *draft,
                      const struct manifest *m, struct error *err)
{
    struct json_object *json = manifest_to_json(m);
    char *manifest AUTO_FREE = files_join(draft->path, REPOSITORY_MANIFEST);
    const char *text = json ? json_object_to_json_string_ext(
                                  json, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE)
                            : NULL;
    int r;

    if (!text || !manifest) {
        json_object_put(json);
        return error_out_of_memory(err);
    }
    r = files_write_at(draft->fd, REPOSITORY_MANIFEST, text, manifest, err);
    json_object_put(json);
    UNLESS_FAILED(r, files_sync(draft->fd, draft->path, err));
    if (r == 0 && renameat(repository->fd, draft->name, repository->fd, m->id) < 0) {
        r = error_set_errno(err, errno, "Could not rename '%s' to '%s'", draft->path, m->id);
    }
    if (r < 0) {
        return r;
    }
    free(draft->name);
    draft->name = NULL;
    return files_sync(repository->fd, repository->path, err);
}

void repository_discard(const struct repository *r, struct repository_draft *draft)
{
    if (draft->fd >= 0) {
        close(draft->fd);
        if (draft->name) {
            files_remove_at(r->fd, draft->name);
        }
    }
    free(draft->name);
    free(draft->path);
    *draft = REPOSITORY_DRAFT_INIT;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/repository.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"

#define DESCRIPTION "repository.json"
#define LOCK_FILE ".tidemark-lock"
#define OWN_PREFIX ".tidemark-"
#define FORMAT "tidemark-repository"

static void cleanup_dir(DIR **d)
{
    if (*d) {
        closedir(*d);
    }
}
#define AUTO_DIR CLEANUP(cleanup_dir)

static char *join(const char *a, const char *b)
{
    char *s;

    return asprintf(&s, "%s/%s", a, b) < 0 ? NULL : s;
}

char *repository_file(const struct repository *r, const char *id, const char *file)
{
    char *s;

    return asprintf(&s, "%s/%s/%s", r->path, id, file) < 0 ? NULL : s;
}

static int out_of_memory(struct error *err)
{
    return error_set(err, ENOMEM, "Out of memory");
}

/* --- small files --- */

static int read_small_file(const char *path, char **ret, size_t *ret_size, struct error *err)
{
    int fd AUTO_CLOSE = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    char *buf AUTO_FREE = malloc(MANIFEST_SIZE_MAX + 1);
    size_t size = 0;

    if (fd < 0) {
        return error_set_errno(err, errno, "Could not open '%s'", path);
    }
    if (!buf) {
        return out_of_memory(err);
    }
    while (size <= MANIFEST_SIZE_MAX) {
        ssize_t n = read(fd, buf + size, MANIFEST_SIZE_MAX + 1 - size);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return error_set_errno(err, errno, "Could not read '%s'", path);
        }
        if (n == 0) {
            *ret = TAKE_PTR(buf);
            *ret_size = size;
            return 0;
        }
        size += (size_t)n;
    }
    return error_set(err, EINVAL, "'%s' is longer than %lu bytes", path, MANIFEST_SIZE_MAX);
}

static int fsync_path(const char *path, int flags, struct error *err)
{
    int fd AUTO_CLOSE = open(path, O_RDONLY | O_CLOEXEC | flags);

    if (fd < 0 || fsync(fd) < 0) {
        return error_set_errno(err, errno, "Could not make '%s' stable", path);
    }
    return 0;
}

/* Write `text` to a new file, stable when it returns. */
static int write_small_file(const char *path, const char *text, struct error *err)
{
    int fd AUTO_CLOSE = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    size_t size = strlen(text), done = 0;

    if (fd < 0) {
        return error_set_errno(err, errno, "Could not create '%s'", path);
    }
    while (done < size) {
        ssize_t n = write(fd, text + done, size - done);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return error_set_errno(err, n < 0 ? errno : EIO, "Could not write '%s'", path);
        }
        done += (size_t)n;
    }
    if (fsync(fd) < 0) {
        return error_set_errno(err, errno, "Could not write '%s'", path);
    }
    return 0;
}

/* --- what it is --- */

static int make_description(struct repository *r, const char *path, struct error *err)
{
    char *tmp AUTO_FREE = join(r->path, OWN_PREFIX DESCRIPTION);
    char text[128];
    uint32_t id;

    if (!tmp) {
        return out_of_memory(err);
    }
    if (getrandom(&id, sizeof(id), 0) != sizeof(id)) {
        return error_set_errno(err, errno, "No random number for the repository's id");
    }
    snprintf(text, sizeof(text), "{\"format\":\"%s\",\"version\":1,\"id\":\"%08" PRIx32 "\"}\n",
             FORMAT, id);
    if (write_small_file(tmp, text, err) < 0) {
        return -EIO;
    }
    if (rename(tmp, path) < 0) {
        return error_set_errno(err, errno, "Could not create '%s'", path);
    }
    return fsync_path(r->path, O_DIRECTORY, err);
}

static int read_description(struct repository *r, const char *path, struct error *err)
{
    char *text AUTO_FREE = NULL;
    struct json_object *o, *v;
    size_t size;
    int rc = read_small_file(path, &text, &size, err);

    if (rc < 0) {
        return rc;
    }
    text[size] = '\0';
    o = json_tokener_parse(text);
    rc = -EINVAL;
    if (json_object_object_get_ex(o, "format", &v) && json_object_is_type(v, json_type_string) &&
        !strcmp(json_object_get_string(v), FORMAT) && json_object_object_get_ex(o, "version", &v) &&
        json_object_get_int64(v) == 1 && json_object_object_get_ex(o, "id", &v) &&
        json_object_is_type(v, json_type_string)) {
        const char *id = json_object_get_string(v);

        if (strlen(id) == REPOSITORY_ID_SIZE - 1 &&
            strspn(id, "0123456789abcdef") == REPOSITORY_ID_SIZE - 1) {
            memcpy(r->id, id, REPOSITORY_ID_SIZE);
            rc = 0;
        }
    }
    json_object_put(o);
    return rc == 0 ? 0 : error_set(err, EINVAL, "'%s' does not describe a repository", path);
}

/* --- the list of backups --- */

static int load_manifest(struct repository *r, struct repository_entry *e, struct error *err)
{
    char *path AUTO_FREE = repository_file(r, e->id, REPOSITORY_MANIFEST);
    char *text AUTO_FREE = NULL;
    size_t size;
    int rc;

    if (!path) {
        return out_of_memory(err);
    }
    rc = read_small_file(path, &text, &size, err);
    if (rc == 0) {
        rc = manifest_parse(text, size, path, &e->manifest, err);
    }
    if (rc == 0 && strcmp(e->manifest.id, e->id) != 0) {
        rc = error_set(err, EINVAL, "Manifest '%s' is that of backup %s", path, e->manifest.id);
        manifest_clear(&e->manifest);
    }
    return rc;
}

static int add_entry(struct repository *r, const char *id, struct error *err)
{
    ERROR_AUTO(problem);
    struct repository_entry *entries = realloc(r->entries, (r->count + 1) * sizeof(*r->entries));
    struct repository_entry *e;

    if (!entries) {
        return out_of_memory(err);
    }
    r->entries = entries;
    e = &entries[r->count];
    *e = (struct repository_entry){0};
    memcpy(e->id, id, strlen(id) + 1);
    if (load_manifest(r, e, &problem) < 0) {
        e->problem = strdup(error_message(&problem));
        if (!e->problem) {
            return out_of_memory(err);
        }
    }
    r->count++;
    return 0;
}

static int compare_entries(const void *a, const void *b)
{
    const struct repository_entry *x = a, *y = b;

    if (!x->problem != !y->problem) {
        return x->problem ? -1 : 1;
    }
    if (!x->problem && x->manifest.sequence != y->manifest.sequence) {
        return x->manifest.sequence < y->manifest.sequence ? -1 : 1;
    }
    return strcmp(x->id, y->id);
}

static int load_entries(struct repository *r, struct error *err)
{
    DIR *dir AUTO_DIR = opendir(r->path);
    struct dirent *d;

    if (!dir) {
        return error_set_errno(err, errno, "Could not read directory '%s'", r->path);
    }
    while ((d = readdir(dir)) != NULL) {
        if (backup_id_is_valid(d->d_name)) {
            int rc = add_entry(r, d->d_name, err);
            if (rc < 0) {
                return rc;
            }
        }
    }
    if (r->count > 0) {
        qsort(r->entries, r->count, sizeof(*r->entries), compare_entries);
    }
    return 0;
}

/* --- opening --- */

static int set_path(struct repository *r, const char *path, struct error *err)
{
    r->path = realpath(path, NULL);
    if (!r->path) {
        return error_set_errno(err, errno, "Could not open directory '%s'", path);
    }
    return 0;
}

int repository_open(const char *path, struct repository *ret, struct error *err)
{
    REPOSITORY_AUTO(r);
    char *description AUTO_FREE = NULL;
    int rc = set_path(&r, path, err);

    if (rc < 0) {
        return rc;
    }
    description = join(r.path, DESCRIPTION);
    if (!description) {
        return out_of_memory(err);
    }
    if (access(description, F_OK) < 0) {
        return error_set(err, ENOENT, "'%s' holds no backups: there is no '%s' in it", path,
                         DESCRIPTION);
    }
    rc = read_description(&r, description, err);
    rc = rc < 0 ? rc : load_entries(&r, err);
    if (rc < 0) {
        return rc;
    }
    *ret = r;
    r = REPOSITORY_INIT;
    return 0;
}

/* A directory that a repository may be made in holds nothing but what a cut off first run left. */
static int check_empty(const char *path, struct error *err)
{
    DIR *dir AUTO_DIR = opendir(path);
    struct dirent *d;

    if (!dir) {
        return error_set_errno(err, errno, "Could not read directory '%s'", path);
    }
    while ((d = readdir(dir)) != NULL) {
        if (strcmp(d->d_name, ".") != 0 && strcmp(d->d_name, "..") != 0 &&
            strcmp(d->d_name, "lost+found") != 0 &&
            strncmp(d->d_name, OWN_PREFIX, strlen(OWN_PREFIX)) != 0) {
            return error_set(err, ENOTEMPTY,
                             "Directory '%s' is not empty ('%s' is in it) and holds no backups; "
                             "name an empty or a new one",
                             path, d->d_name);
        }
    }
    return 0;
}

static int lock(struct repository *r, struct error *err)
{
    char *path AUTO_FREE = join(r->path, LOCK_FILE);

    if (!path) {
        return out_of_memory(err);
    }
    r->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (r->lock_fd < 0) {
        return error_set_errno(err, errno, "Could not open '%s'", path);
    }
    if (flock(r->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno == EWOULDBLOCK) {
            return error_set(err, EBUSY, "Another backup to '%s' is under way", r->path);
        }
        return error_set_errno(err, errno, "Could not lock '%s'", path);
    }
    return 0;
}

static void remove_leftovers(const struct repository *r)
{
    DIR *dir AUTO_DIR = opendir(r->path);
    struct dirent *d;

    while (dir && (d = readdir(dir)) != NULL) {
        if (strncmp(d->d_name, REPOSITORY_TMP, strlen(REPOSITORY_TMP)) == 0) {
            char *path AUTO_FREE = join(r->path, d->d_name);
            if (path) {
                repository_discard(path);
            }
        }
    }
}

int repository_open_locked(const char *path, struct repository *ret, struct error *err)
{
    REPOSITORY_AUTO(r);
    char *description AUTO_FREE = NULL;
    int rc;

    if (mkdir(path, 0755) < 0 && errno != EEXIST) {
        return error_set_errno(err, errno, "Could not make directory '%s'", path);
    }
    rc = set_path(&r, path, err);
    if (rc < 0) {
        return rc;
    }
    description = join(r.path, DESCRIPTION);
    if (!description) {
        return out_of_memory(err);
    }
    if (access(description, F_OK) < 0) {
        rc = check_empty(r.path, err);
        rc = rc < 0 ? rc : lock(&r, err);
        if (rc == 0 && access(description, F_OK) < 0) {
            rc = make_description(&r, description, err);
        }
    } else {
        rc = lock(&r, err);
    }
    rc = rc < 0 ? rc : read_description(&r, description, err);
    if (rc < 0) {
        return rc;
    }
    remove_leftovers(&r);
    rc = load_entries(&r, err);
    if (rc < 0) {
        return rc;
    }
    *ret = r;
    r = REPOSITORY_INIT;
    return 0;
}

void repository_close(struct repository *r)
{
    for (size_t i = 0; i < r->count; i++) {
        manifest_clear(&r->entries[i].manifest);
        free(r->entries[i].problem);
    }
    free(r->entries);
    free(r->path);
    if (r->lock_fd >= 0) {
        close(r->lock_fd);
    }
    *r = REPOSITORY_INIT;
}

/* --- finding --- */

const struct repository_entry *repository_last(const struct repository *r)
{
    if (r->count == 0 || r->entries[r->count - 1].problem) {
        return NULL;
    }
    return &r->entries[r->count - 1];
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

const struct repository_entry *repository_find(const struct repository *r, const char *id,
                                               struct error *err)
{
    const struct repository_entry *found = id ? repository_get(r, id) : repository_last(r);
    size_t matches = 0;

    if (found) {
        return found;
    }
    if (!id) {
        error_set(err, ENOENT, "There is no %sbackup in '%s'", r->count ? "sound " : "", r->path);
        return NULL;
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

int repository_chain(const struct repository *r, const struct repository_entry *e,
                     const struct repository_entry ***ret, size_t *ret_count, struct error *err)
{
    const struct repository_entry **chain;
    size_t count = 0;

    if (e->problem) {
        return error_set(err, EINVAL, "Backup %s is damaged: %s", e->id, e->problem);
    }
    /* Sequence numbers fall along a sound chain, so it is no longer than the list. */
    chain = calloc(r->count, sizeof(struct repository_entry *));
    if (!chain) {
        return out_of_memory(err);
    }
    chain[count++] = e;
    while (!manifest_is_full(&e->manifest)) {
        const struct repository_entry *parent = repository_get(r, e->manifest.parent);
        int rc = check_link(e, parent, err);

        if (rc == 0 && count == r->count) {
            rc = error_set(err, EINVAL, "Backup %s builds on itself", e->id);
        }
        if (rc < 0) {
            free(chain);
            return rc;
        }
        chain[count++] = parent;
        e = parent;
    }
    for (size_t i = 0; i < count / 2; i++) {
        const struct repository_entry *swap = chain[i];
        chain[i] = chain[count - 1 - i];
        chain[count - 1 - i] = swap;
    }
    *ret = chain;
    *ret_count = count;
    return 0;
}

/* --- a new backup --- */

void repository_new_id(const struct repository *r, char ret[static BACKUP_ID_SIZE])
{
    time_t now = time(NULL);
    char stamp[20];
    struct tm tm;

    gmtime_r(&now, &tm);
    strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%SZ", &tm);
    snprintf(ret, BACKUP_ID_SIZE, "%s", stamp);
    for (unsigned n = 2; repository_get(r, ret) && n < 1000000; n++) {
        snprintf(ret, BACKUP_ID_SIZE, "%s-%u", stamp, n);
    }
}

uint64_t repository_next_sequence(const struct repository *r)
{
    const struct repository_entry *last = repository_last(r);

    return last ? last->manifest.sequence + 1 : 1;
}

int repository_begin(const struct repository *r, const char *id, char **ret, struct error *err)
{
    char *path AUTO_FREE = NULL;

    if (asprintf(&path, "%s/%s%s", r->path, REPOSITORY_TMP, id) < 0) {
        path = NULL;
        return out_of_memory(err);
    }
    if (mkdir(path, 0755) < 0) {
        return error_set_errno(err, errno, "Could not make directory '%s'", path);
    }
    *ret = TAKE_PTR(path);
    return 0;
}

int repository_commit(const struct repository *r, const char *tmp_path, const struct manifest *m,
                      struct error *err)
{
    struct json_object *json = manifest_to_json(m);
    char *manifest AUTO_FREE = join(tmp_path, REPOSITORY_MANIFEST);
    char *final AUTO_FREE = join(r->path, m->id);
    const char *text = json ? json_object_to_json_string_ext(json, JSON_C_TO_STRING_PRETTY) : NULL;
    int rc;

    if (!text || !manifest || !final) {
        json_object_put(json);
        return out_of_memory(err);
    }
    rc = write_small_file(manifest, text, err);
    json_object_put(json);
    rc = rc < 0 ? rc : fsync_path(tmp_path, O_DIRECTORY, err);
    if (rc == 0 && rename(tmp_path, final) < 0) {
        rc = error_set_errno(err, errno, "Could not rename '%s' to '%s'", tmp_path, final);
    }
    return rc < 0 ? rc : fsync_path(r->path, O_DIRECTORY, err);
}

void repository_discard(const char *tmp_path)
{
    DIR *dir AUTO_DIR = opendir(tmp_path);
    struct dirent *d;

    while (dir && (d = readdir(dir)) != NULL) {
        unlinkat(dirfd(dir), d->d_name, 0);
    }
    rmdir(tmp_path);
}

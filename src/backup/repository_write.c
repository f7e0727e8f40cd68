/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changing a repository. A backup is published in this order, each step synced before the next: the
 * data of its two files (by the caller), the manifest, the names in its directory, the rename to
 * its final name, the name in the repository.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backup/files.h"
#include "backup/fleece.h"
#include "backup/repository.h"
#include "backup/stored.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/shell_word.h"

#define LOCK_FILE ".tidemark-lock"
/* Backups that may begin in one second. */
#define SECOND_MAX 999999ul
#define PROBE_PREFIX REPOSITORY_OWN_PREFIX "probe-"

bool repository_new_append_only;

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

/* Whether the name still leads to the lock: a first run that fails removes its lock. */
static bool lock_has_its_name(const struct repository *r)
{
    struct stat held, named;

    return fstat(r->lock_fd, &held) == 0 &&
           fstatat(r->fd, LOCK_FILE, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
           held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

static int refuse_locked(const struct repository *r, struct error *err)
{
    return error_set(err, EBUSY, "Another backup to '%s', or a prune or a copy of it, is under way",
                     r->path);
}

static int lock(struct repository *r, struct error *err)
{
    char *shown AUTO_FREE = files_join(r->path, LOCK_FILE);

    if (!shown) {
        return error_out_of_memory(err);
    }
    r->lock_fd =
        openat(r->fd, LOCK_FILE, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (r->lock_fd < 0 && errno == EPERM) { /* it can't be written any more */
        r->lock_fd = openat(r->fd, LOCK_FILE, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    }
    if (r->lock_fd < 0) {
        /* A first run that fails removes its directory, too. */
        return errno == ENOENT ? refuse_locked(r, err)
                               : error_set_errno(err, errno, "Could not open '%s'", shown);
    }
    if (flock(r->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        return errno == EWOULDBLOCK ? refuse_locked(r, err)
                                    : error_set_errno(err, errno, "Could not lock '%s'", shown);
    }
    return lock_has_its_name(r) ? 0 : refuse_locked(r, err);
}

/* Where drafts are. */
static int draft_directory(const struct repository *r)
{
    return r->append_only ? r->work_fd : r->fd;
}

/* Remove the temporary image that an unfinished backup names. */
static void remove_draft(const struct repository *r, const char *name)
{
    int dir AUTO_CLOSE = files_open_dir_at(draft_directory(r), name, name, NULL);
    char *fleece AUTO_FREE = NULL;
    size_t size;

    if (dir >= 0 &&
        stored_read_at(dir, REPOSITORY_FLEECE, PATH_MAX, repository_seal(r), STORED_TEMPORARY,
                       REPOSITORY_FLEECE, &fleece, &size, NULL) == 0) {
        fleece_remove(fleece, r->id);
    }
    files_remove_at(draft_directory(r), name);
}

/* Complete or undo a replacement that was cut short: the new backup exists, or the old one does. */
static void end_replacement(const struct repository *r, const char *old)
{
    const char *id = old + strlen(REPOSITORY_OLD);
    struct stat st;

    if (!backup_id_is_valid(id) || fstatat(r->fd, old, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
        !S_ISDIR(st.st_mode) || faccessat(r->fd, id, F_OK, AT_SYMLINK_NOFOLLOW) == 0 ||
        renameat(r->fd, old, r->fd, id) < 0) {
        files_remove_at(r->fd, old);
    }
}

static bool begins_with(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

static bool is_leftover(const struct repository *r, const char *name, bool keep_parts)
{
    return begins_with(name, REPOSITORY_TMP) ||
           (begins_with(name, REPOSITORY_OLD) && !r->append_only) ||
           (begins_with(name, REPOSITORY_PART) && !keep_parts);
}

static void remove_leftover(const struct repository *r, const char *name)
{
    if (begins_with(name, REPOSITORY_TMP)) {
        remove_draft(r, name);
    } else if (begins_with(name, REPOSITORY_OLD)) {
        end_replacement(r, name);
    } else {
        files_remove_at(draft_directory(r), name);
    }
}

/*
 * What a killed run was about to remove has lost its name to another backup, perhaps not stably:
 * nothing is removed before a sync.
 */
static void remove_leftovers(const struct repository *r, bool keep_parts)
{
    ERROR_AUTO(err);
    int fd = files_open_dir_at(draft_directory(r), ".", r->path, &err);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    bool synced = false;
    struct dirent *d;

    while (dir && (d = readdir(dir)) != NULL) {
        if (!is_leftover(r, d->d_name, keep_parts)) {
            continue;
        }
        if (!synced && files_sync(r->fd, r->path, NULL) < 0) {
            break;
        }
        synced = true;
        remove_leftover(r, d->d_name);
    }
    if (dir) {
        closedir(dir);
    }
}

void repository_drop_parts(const struct repository *r, const struct repository *from)
{
    int fd = files_open_dir_at(draft_directory(r), ".", r->path, NULL);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *d;

    while (dir && (d = readdir(dir)) != NULL) {
        if (begins_with(d->d_name, REPOSITORY_PART) &&
            !repository_get(from, d->d_name + strlen(REPOSITORY_PART))) {
            files_remove_at(draft_directory(r), d->d_name);
        }
    }
    if (dir) {
        closedir(dir);
    }
}

/* Open the directory for what changes in a repository that only grows; it is made if need be. */
static int open_work(struct repository *r, struct error *err)
{
    char *shown AUTO_FREE = files_join(r->path, REPOSITORY_WORK);

    if (!shown) {
        return error_out_of_memory(err);
    }
    if (!r->append_only || r->work_fd >= 0) {
        return 0;
    }
    r->work_fd = faccessat(r->fd, REPOSITORY_WORK, F_OK, AT_SYMLINK_NOFOLLOW) == 0
                     ? files_open_dir_at(r->fd, REPOSITORY_WORK, shown, err)
                     : files_make_dir_at(r->fd, REPOSITORY_WORK, shown, err);
    return r->work_fd < 0 ? r->work_fd : 0;
}

static int make_directory(const char *path, bool *ret_made, struct error *err)
{
    int r;

    *ret_made = mkdir(path, 0700) == 0;
    r = *ret_made || errno == EEXIST ? 0 : -errno;
    if (r < 0) {
        error_set_errno(err, -r, "Could not make directory '%s'", path);
    }
    if (r == -ENOENT) {
        error_hint(err, "The directory above it has to exist: is its file system mounted?");
    }
    return r;
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

int repository_load_under_lock(struct repository *repository, bool need_description,
                               struct error *err)
{
    REPOSITORY_AUTO(loaded);
    int r = repository_load(repository->path, need_description, &loaded, err);

    if (r == 0) {
        loaded.lock_fd = TAKE_FD(repository->lock_fd);
        loaded.is_new = repository->is_new;
        loaded.has_new_directory = repository->has_new_directory;
        repository_close(repository);
        *repository = loaded;
        loaded = REPOSITORY_INIT;
    }
    return r;
}

/* Whether a directory shows the same files as another one, perhaps on another mount. */
static bool has_same_files(int a, int b)
{
    char name[sizeof(PROBE_PREFIX) + 12] = PROBE_PREFIX;
    struct stat x, y;
    int fd;
    bool same;

    if (fstat(a, &x) < 0 || fstat(b, &y) < 0 || (x.st_dev == y.st_dev && x.st_ino == y.st_ino) ||
        files_random_name(name + sizeof(PROBE_PREFIX) - 1, 13, NULL) < 0) {
        return true;
    }
    fd = files_create_at(a, name, name, NULL);
    same = fd < 0 || faccessat(b, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
    if (fd >= 0) {
        close(fd);
        unlinkat(a, name, 0);
    }
    return same;
}

static bool is_same_repository(const struct repository *r, const struct repository *other)
{
    int work AUTO_CLOSE = -1;

    if (!r->append_only) {
        return has_same_files(r->fd, other->fd);
    }
    work = files_open_dir_at(other->fd, REPOSITORY_WORK, REPOSITORY_WORK, NULL);
    return work >= 0 && has_same_files(r->work_fd, work);
}

/*
 * A repository that is not where it was has been moved or, if the other one is still there, copied.
 * Backups to both would take each other's bitmaps away.
 */
static int check_place(struct repository *repository, struct error *err)
{
    REPOSITORY_AUTO(other);
    const char *place = repository->place;

    if (place && strcmp(place, repository->path) == 0) {
        return 0;
    }
    if (place && place[0] == '/' && repository_load(place, false, &other, NULL) == 0 &&
        strcmp(other.id, repository->id) == 0 && !is_same_repository(repository, &other)) {
        char *word AUTO_FREE = shell_word(repository->path);

        error_set(err, EINVAL, "'%s' is a copy of '%s', and both have the id %s", repository->path,
                  other.path, repository->id);
        error_hint(err, "'tidemark repair --new-id %s' makes it a repository of its own.",
                   word ?: repository->path);
        return -EINVAL;
    }
    /* The description of a repository that only grows stays as it is. */
    return repository->append_only ? 0 : repository_write_description(repository, err);
}

static int load_to_write(struct repository *repository, bool keep_parts,
                         struct repository *ret_repository, struct error *err)
{
    int r = repository_load_under_lock(repository, true, err);

    UNLESS_FAILED(r, open_work(repository, err));
    if (r == 0) {
        remove_leftovers(repository, keep_parts);
        *ret_repository = *repository;
        *repository = REPOSITORY_INIT;
    }
    return r;
}

int repository_take_key(struct repository *r, struct error *err)
{
    int status =
        r->kdf.log_n ? backup_key_get(&r->kdf, &r->key, err) : backup_key_make(&r->key, err);

    if (status == 0 && r->key) {
        memcpy(r->key_check, r->key->check, sizeof(r->key_check));
        r->kdf = r->key->kdf;
    }
    return status;
}

bool repository_is_described(const char *path)
{
    char *description AUTO_FREE = files_join(path, REPOSITORY_DESCRIPTION);
    struct stat st;

    return description && lstat(description, &st) == 0;
}

void repository_be_joined(const struct repository *r)
{
    backup_key_encrypts = backup_key_encrypts || r->encrypted;
    repository_new_append_only = repository_new_append_only || r->append_only;
}

/* What a new repository is: as `like` is, or as the program is asked for. */
static int make_choices(struct repository *r, const struct repository *like, struct error *err)
{
    int status;

    r->kdf = like ? like->kdf : r->kdf;
    status = repository_take_key(r, err);
    r->encrypted = (like && like->encrypted) || backup_key_encrypts;
    r->append_only = repository_new_append_only;
    if (status == 0 && r->encrypted && !r->key) {
        error_set(err, ENOKEY, "A repository that is encrypted needs a key");
        error_hint(err, "Name it with --key-file, --passphrase-file or --key-command.");
        status = -ENOKEY;
    }
    return status;
}

/* What is asked for when a repository is made can't be asked for later. */
static int check_choices(const struct repository *r, const struct repository *like,
                         struct error *err)
{
    if (repository_new_append_only && !r->append_only) {
        char *word AUTO_FREE = shell_word(r->path);

        error_set(err, EINVAL, "'%s' is a repository that can be changed", r->path);
        error_hint(err, "'tidemark repair --append-only=on %s' makes it one that only grows.",
                   word ?: r->path);
        return -EINVAL;
    }
    if (r->encrypted || (!backup_key_encrypts && !(like && like->encrypted))) {
        return 0;
    }
    if (like && like->encrypted) {
        return error_set(err, EINVAL, "'%s' is encrypted, and '%s' is not", like->path, r->path);
    }
    error_set(err, EINVAL, "'%s' is not encrypted, which is decided when a repository is made",
              r->path);
    error_hint(err, "'tidemark copy --encrypt' makes an encrypted copy.");
    return -EINVAL;
}

static int make_repository(struct repository *r, const struct repository *like, struct error *err)
{
    int status = check_empty(r, err);

    r->is_new = status == 0;
    /* The name has to be stable before anything in it counts. */
    UNLESS_FAILED(status, files_sync_parent(r->path, err));
    UNLESS_FAILED(status, make_choices(r, like, err));
    UNLESS_FAILED(status, repository_make_id(r, err));
    UNLESS_FAILED(status, repository_write_description(r, err));
    return status;
}

/* Whether nothing is in the directory but what belongs to a repository without backups. */
static bool is_unused(const struct repository *r)
{
    int fd = files_open_dir_at(r->fd, ".", r->path, NULL);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    bool unused = dir != NULL;
    struct dirent *d;

    while (unused && (d = readdir(dir)) != NULL) {
        unused = strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0 ||
                 strcmp(d->d_name, "lost+found") == 0 || strcmp(d->d_name, LOCK_FILE) == 0 ||
                 strcmp(d->d_name, REPOSITORY_DESCRIPTION) == 0 ||
                 strcmp(d->d_name, REPOSITORY_NEW_DESCRIPTION) == 0;
    }
    if (dir) {
        closedir(dir);
    } else if (fd >= 0) {
        close(fd);
    }
    return unused;
}

void repository_unmake(struct repository *r)
{
    if (r->is_new) {
        unlinkat(r->fd, REPOSITORY_WORK, AT_REMOVEDIR);
    }
    if (r->is_new && is_unused(r)) {
        unlinkat(r->fd, REPOSITORY_NEW_DESCRIPTION, 0);
        unlinkat(r->fd, REPOSITORY_DESCRIPTION, 0);
        unlinkat(r->fd, LOCK_FILE, 0);
    }
    if (r->has_new_directory) {
        rmdir(r->path);
    }
    r->is_new = false;
    r->has_new_directory = false;
}

static int open_to_write(const char *path, bool keep_parts, const struct repository *like,
                         struct repository *ret_repository, struct error *err)
{
    REPOSITORY_AUTO(repository);
    bool made = false;
    int r = make_directory(path, &made, err);

    UNLESS_FAILED(r, open_and_lock(path, &repository, err));
    repository.has_new_directory = made && repository.path;
    if (r == 0 && !has_description(&repository) && !has_backups(&repository)) {
        r = make_repository(&repository, like, err);
    }
    UNLESS_FAILED(r, load_to_write(&repository, keep_parts, ret_repository, err));
    if (r < 0) {
        repository_unmake(&repository);
        return r;
    }
    return check_choices(ret_repository, like, err);
}

int repository_open_to_write(const char *path, struct repository *ret_repository, struct error *err)
{
    int r = open_to_write(path, false, NULL, ret_repository, err);

    return r < 0 ? r : check_place(ret_repository, err);
}

int repository_open_to_copy(const char *path, const struct repository *like,
                            struct repository *ret_repository, struct error *err)
{
    int r = open_to_write(path, true, like, ret_repository, err);

    return r < 0 ? r : check_place(ret_repository, err);
}

int repository_open_mirror(const char *path, const struct repository *like,
                           struct repository *ret_repository, struct error *err)
{
    return open_to_write(path, true, like, ret_repository, err);
}

int repository_open_existing(const char *path, struct repository *ret_repository, struct error *err)
{
    REPOSITORY_AUTO(repository);
    int r = repository_load(path, true, &repository, err);

    /* Now that it is one, a file for the lock may be made. */
    repository_close(&repository);
    UNLESS_FAILED(r, open_and_lock(path, &repository, err));
    UNLESS_FAILED(r, load_to_write(&repository, false, ret_repository, err));
    return r;
}

/* --- repair --- */

int repository_open_to_repair(const char *path, struct repository *ret_repository,
                              struct error *err)
{
    REPOSITORY_AUTO(repository);
    int r = repository_load(path, false, &repository, err);

    /* Now that it is one, a file for the lock may be made. */
    repository_close(&repository);
    UNLESS_FAILED(r, open_and_lock(path, &repository, err));
    UNLESS_FAILED(r, repository_load_under_lock(&repository, false, err));
    if (r == 0) {
        remove_leftovers(&repository, false);
        *ret_repository = repository;
        repository = REPOSITORY_INIT;
    }
    return r;
}

int repository_open_to_sign(const char *path, struct repository *ret_repository, struct error *err)
{
    REPOSITORY_AUTO(repository);
    int fd = -1, r = repository_load_unproved(path, true, &repository, err);

    repository_close(&repository);
    UNLESS_FAILED(r, open_and_lock(path, &repository, err));
    fd = TAKE_FD(repository.lock_fd);
    UNLESS_FAILED(r, repository_load_unproved(path, true, ret_repository, err));
    if (r == 0) {
        ret_repository->lock_fd = TAKE_FD(fd);
        remove_leftovers(ret_repository, false);
    }
    if (fd >= 0) {
        close(fd);
    }
    return r;
}

/* --- a new backup --- */

/* Which one of that second an id is: 1, 2 ...; 0: it is of another second. */
static unsigned number_in_second(const char *id, const char *stamp)
{
    size_t size = strlen(stamp);

    if (strncmp(id, stamp, size) != 0) {
        return 0;
    }
    return id[size] == '-' ? (unsigned)MIN(strtoul(id + size + 1, NULL, 10), SECOND_MAX) : 1;
}

/*
 * The newest backup is never removed, so an id after all others of its second is not that of a
 * backup that was removed, which a copy may still have.
 */
void repository_new_id(const struct repository *r, char ret_text[static BACKUP_ID_SIZE])
{
    time_t now = time(NULL);
    unsigned highest = 0;
    char stamp[20];
    struct tm tm;

    gmtime_r(&now, &tm);
    strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%SZ", &tm);
    snprintf(ret_text, BACKUP_ID_SIZE, "%s", stamp);
    for (size_t i = 0; i < r->count; i++) {
        highest = MAX(highest, number_in_second(r->entries[i].id, stamp));
    }
    if (highest > 0) {
        snprintf(ret_text, BACKUP_ID_SIZE, "%s-%u", stamp, highest + 1);
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

static int begin(const struct repository *r, const char *prefix, const char *id,
                 struct repository_draft *ret_draft, struct error *err)
{
    struct stat st;

    *ret_draft = REPOSITORY_DRAFT_INIT;
    ret_draft->seal = repository_seal(r);
    ret_draft->dir = draft_directory(r);
    if (asprintf(&ret_draft->name, "%s%s", prefix, id) < 0) {
        ret_draft->name = NULL;
        return error_out_of_memory(err);
    }
    ret_draft->path = r->append_only ? repository_file(r, REPOSITORY_WORK, ret_draft->name)
                                     : files_join(r->path, ret_draft->name);
    if (!ret_draft->path) {
        return error_out_of_memory(err);
    }
    ret_draft->fd = strcmp(prefix, REPOSITORY_PART) == 0 &&
                            fstatat(ret_draft->dir, ret_draft->name, &st, AT_SYMLINK_NOFOLLOW) == 0
                        ? files_open_dir_at(ret_draft->dir, ret_draft->name, ret_draft->path, err)
                        : files_make_dir_at(ret_draft->dir, ret_draft->name, ret_draft->path, err);
    return ret_draft->fd < 0 ? ret_draft->fd : 0;
}

int repository_begin(const struct repository *r, const char *id, struct repository_draft *ret_draft,
                     struct error *err)
{
    return begin(r, REPOSITORY_TMP, id, ret_draft, err);
}

int repository_begin_part(const struct repository *r, const char *id,
                          struct repository_draft *ret_draft, struct error *err)
{
    int r_begun = begin(r, REPOSITORY_PART, id, ret_draft, err);

    /* A kill may have left the last file as well, which is always made again. */
    if (r_begun == 0) {
        unlinkat(ret_draft->fd, REPOSITORY_MANIFEST, 0);
    }
    return r_begun;
}

void repository_leave_part(struct repository_draft *draft)
{
    free(draft->name);
    draft->name = NULL;
}

char *repository_manifest_text(const struct backup_key *key, const struct backup_key *seal,
                               const struct manifest *m)
{
    struct manifest copy = *m; /* what it points to is not changed */
    struct json_object *o;
    const char *text;
    char *result = NULL;
    int r = 0;

    copy.protection = seal ? "aes-256-gcm" : key ? "authenticated" : "none";
    if (key) {
        o = manifest_to_json(&copy);
        r = o ? backup_key_authenticate(key, o, copy.mac) : -ENOMEM;
        json_object_put(o);
    }
    o = r == 0 ? manifest_to_json(&copy) : NULL;
    text = o ? json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY |
                                                     JSON_C_TO_STRING_NOSLASHESCAPE)
             : NULL;
    if (text) {
        result = strdup(text);
    }
    json_object_put(o);
    return result;
}

int repository_manifest_data(const struct backup_key *key, const struct backup_key *seal,
                             const struct manifest *m, uint8_t **ret_data, size_t *ret_size)
{
    char *text AUTO_FREE = repository_manifest_text(key, seal, m);

    if (!text) {
        return -ENOMEM;
    }
    if (seal) {
        return stored_seal_text(seal, STORED_MANIFEST, text, strlen(text), ret_data, ret_size);
    }
    *ret_size = strlen(text);
    *ret_data = (uint8_t *)TAKE_PTR(text);
    return 0;
}

int repository_write_manifest(const struct repository *repository,
                              const struct repository_draft *draft, const struct manifest *m,
                              struct error *err)
{
    char *manifest AUTO_FREE = files_join(draft->path, REPOSITORY_MANIFEST);
    char *text AUTO_FREE =
        repository_manifest_text(repository->key, repository_seal(repository), m);
    struct manifest parsed = {0};
    int r;

    if (!text || !manifest) {
        return error_out_of_memory(err);
    }
    /* A number may be out of range, if other manifests led to it: then nobody could read it. */
    r = manifest_parse(text, strlen(text), manifest, &parsed, err);
    manifest_clear(&parsed);
    UNLESS_FAILED(r, stored_write_at(draft->fd, REPOSITORY_MANIFEST, text,
                                     repository_seal(repository), STORED_MANIFEST, manifest, err));
    UNLESS_FAILED(r, files_sync(draft->fd, draft->path, err));
    return r;
}

int repository_commit(const struct repository *repository, struct repository_draft *draft,
                      const struct manifest *m, struct error *err)
{
    int r = repository_write_manifest(repository, draft, m, err);

    return r < 0 ? r : repository_commit_written(repository, draft, m, err);
}

int repository_commit_written(const struct repository *repository, struct repository_draft *draft,
                              const struct manifest *m, struct error *err)
{
    if (renameat(draft->dir, draft->name, repository->fd, m->id) < 0) {
        return error_set_errno(err, errno, "Could not rename '%s' to '%s'", draft->path, m->id);
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
            files_remove_at(draft->dir, draft->name);
        }
    }
    free(draft->name);
    free(draft->path);
    *draft = REPOSITORY_DRAFT_INIT;
}

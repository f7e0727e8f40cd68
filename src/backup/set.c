/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/set.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backup/files.h"
#include "backup/repository.h"
#include "backup/stored.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/sha256.h"

#define SET_TMP ".tidemark-tmp-"
#define SET_OLD SET_TMP "old-"
#define SET_TMP_SIZE (sizeof(SET_TMP) + BACKUP_ID_SIZE)
/* Names that a run tries for its set: this number of runs may begin in one second. */
#define SET_TRIES 100
#define SET_SIZE_MAX ((size_t)1024 * 1024)
#define DEFINITION_MAX ((size_t)16 * 1024 * 1024)

/* --- writing --- */

static int open_sets(const char *root, char **ret_shown, struct error *err)
{
    int dir AUTO_CLOSE = files_open_dir(root, err);
    struct stat st;

    *ret_shown = files_join(root, SET_DIRECTORY);
    if (!*ret_shown) {
        return error_out_of_memory(err);
    }
    if (dir >= 0 && fstatat(dir, SET_DIRECTORY, &st, AT_SYMLINK_NOFOLLOW) < 0 && errno == ENOENT) {
        error_set(err, ENOENT, "There are no sets in '%s'", root);
        error_hint(err, "Name the directory that has one for each disk, and 'sets'.");
        return -ENOENT;
    }
    return dir < 0 ? dir : files_open_dir_at(dir, SET_DIRECTORY, *ret_shown, err);
}

int set_make_root(const char *root, struct set_root_made *ret_made, struct error *err)
{
    char *description AUTO_FREE = files_join(root, "repository.json");
    char *shown AUTO_FREE = files_join(root, SET_DIRECTORY);
    int dir AUTO_CLOSE = -1, sets AUTO_CLOSE = -1, r = 0;
    struct stat st;

    if (!description || !shown) {
        return error_out_of_memory(err);
    }
    ret_made->root = mkdir(root, 0700) == 0;
    if (!ret_made->root && errno != EEXIST) {
        r = error_set_errno(err, errno, "Could not make directory '%s'", root);
        if (r == -ENOENT) {
            error_hint(err, "The directory above it has to exist: is its file system mounted?");
        }
        return r;
    }
    if (lstat(description, &st) == 0) {
        error_set(err, EINVAL, "'%s' holds the backups of one disk", root);
        error_hint(err, "Several disks go to a directory that has one for each of them.");
        return -EINVAL;
    }
    dir = files_open_dir(root, err);
    if (dir < 0) {
        return dir;
    }
    if (fstatat(dir, SET_DIRECTORY, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        /* The name has to be stable before anything in it counts. */
        r = files_sync_parent(root, err);
    }
    if (r < 0) {
        return r;
    }
    sets = files_make_dir_at(dir, SET_DIRECTORY, shown, NULL);
    ret_made->sets = sets >= 0;
    if (sets == -EEXIST) {
        sets = files_open_dir_at(dir, SET_DIRECTORY, shown, err);
    } else if (sets < 0) {
        return error_set_errno(err, -sets, "Could not make directory '%s'", shown);
    }
    return sets < 0 ? sets : files_sync(dir, root, err);
}

void set_unmake_root(const char *root, const struct set_root_made *made)
{
    char *sets AUTO_FREE = files_join(root, SET_DIRECTORY);

    if (made->sets && sets) {
        rmdir(sets);
    }
    if (made->root) {
        rmdir(root);
    }
}

/*
 * Make the directory in which set `id` is made, and lock it: a lock ends with its process, a
 * directory does not. -EAGAIN: it is there, or was taken for one of a killed run.
 */
static int keep_directory(int sets, const char *id, const char *shown, struct error *err)
{
    char tmp[SET_TMP_SIZE];
    struct stat st, named;
    int fd;

    snprintf(tmp, sizeof(tmp), SET_TMP "%s", id);
    fd = files_make_dir_at(sets, tmp, shown, NULL);
    if (fd == -ENOENT && fstat(sets, &st) == 0 && st.st_nlink == 0) {
        return error_set(err, ENOENT, "Directory '%s' was removed", shown);
    }
    if (fd == -EEXIST || fd == -ENOENT) {
        return -EAGAIN;
    }
    if (fd < 0) {
        return error_set_errno(err, -fd, "Could not make set '%s' in '%s'", id, shown);
    }
    if (flock(fd, LOCK_EX | LOCK_NB) < 0 || fstat(fd, &st) < 0 ||
        fstatat(sets, tmp, &named, AT_SYMLINK_NOFOLLOW) < 0 || named.st_ino != st.st_ino) {
        close(fd);
        return -EAGAIN;
    }
    return fd;
}

/* The same for an id that no set has. -EEXIST: another run has it. */
static int keep_id(int sets, const char *id, const char *shown, struct error *err)
{
    char tmp[SET_TMP_SIZE];
    struct stat st;
    int fd;

    if (fstatat(sets, id, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        return -EEXIST;
    }
    fd = keep_directory(sets, id, shown, err);
    /* Another run may have given its directory this name between the first look and mkdir(). */
    if (fd >= 0 && fstatat(sets, id, &st, AT_SYMLINK_NOFOLLOW) == 0) {
        snprintf(tmp, sizeof(tmp), SET_TMP "%s", id);
        files_remove_at(sets, tmp);
        close(fd);
        return -EEXIST;
    }
    return fd;
}

/* Remove the directories of runs that were killed: nobody has a lock on them. */
static int remove_left_sets(int sets, const char *shown, struct error *err)
{
    int fd = files_open_dir_at(sets, ".", shown, err);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *d;

    if (!dir) {
        return fd < 0 ? fd : (close(fd), error_out_of_memory(err));
    }
    while ((d = readdir(dir)) != NULL) {
        int left AUTO_CLOSE = strncmp(d->d_name, SET_TMP, strlen(SET_TMP)) == 0
                                  ? files_open_dir_at(sets, d->d_name, shown, NULL)
                                  : -1;

        if (left >= 0 && flock(left, LOCK_EX | LOCK_NB) == 0) {
            files_remove_at(sets, d->d_name);
        }
    }
    closedir(dir);
    return 0;
}

int set_reserve(const char *root, char ret_id[static BACKUP_ID_SIZE], struct error *err)
{
    char *shown AUTO_FREE = NULL;
    int dir AUTO_CLOSE = open_sets(root, &shown, err);
    time_t now = time(NULL);
    char stamp[20];
    struct tm tm;
    int r = dir < 0 ? dir : remove_left_sets(dir, shown, err);

    if (r < 0) {
        return r;
    }
    gmtime_r(&now, &tm);
    strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%SZ", &tm);
    snprintf(ret_id, BACKUP_ID_SIZE, "%s", stamp);
    r = keep_id(dir, ret_id, shown, err);
    for (unsigned n = 2; (r == -EEXIST || r == -EAGAIN) && n <= SET_TRIES; n++) {
        snprintf(ret_id, BACKUP_ID_SIZE, "%s-%u", stamp, n);
        r = keep_id(dir, ret_id, shown, err);
    }
    if (r == -EEXIST || r == -EAGAIN) {
        error_set(err, -r, "Could not make a set in '%s': %s after %d attempts", shown,
                  r == -EEXIST ? "all names are taken" : "its directories can't be locked",
                  SET_TRIES);
    }
    return r;
}

void set_release(const char *root, const char *id, int kept)
{
    char *shown AUTO_FREE = NULL;
    int sets AUTO_CLOSE = kept < 0 ? -1 : open_sets(root, &shown, NULL);
    char tmp[SET_TMP_SIZE];

    if (sets >= 0) {
        snprintf(tmp, sizeof(tmp), SET_TMP "%s", id);
        files_remove_at(sets, tmp);
    }
    if (kept >= 0) {
        close(kept);
    }
}

int set_read_definition(const char *path, char **ret_text, struct error *err)
{
    char *parent AUTO_FREE = strdup(path);
    const char *base = strrchr(path, '/');
    int dir AUTO_CLOSE = -1;
    size_t size;

    if (!parent) {
        return error_out_of_memory(err);
    }
    parent[base ? base - path + 1 : 0] = '\0';
    dir = files_open_dir(base ? parent : ".", err);
    return dir < 0 ? dir
                   : files_read_at(dir, base ? base + 1 : path, DEFINITION_MAX, path, ret_text,
                                   &size, err);
}

static int write_description(int dir, const char *name, const struct set *s,
                             const struct set_key *key, const char *shown, struct error *err)
{
    struct json_object *o = set_to_json(s, key->key);
    const char *text = o ? json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY |
                                                                 JSON_C_TO_STRING_NOSLASHESCAPE)
                         : NULL;
    int r = text ? stored_write_at(dir, name, text, key->seal, STORED_SET, shown, err)
                 : error_out_of_memory(err);

    json_object_put(o);
    return r;
}

static int digest_definition(const char *text, char ret_hex[static SHA256_HEX_SIZE])
{
    uint8_t digest[SHA256_SIZE];
    int r = sha256_of_buffer(text, strlen(text), digest);

    if (r == 0) {
        sha256_to_hex(digest, ret_hex);
    }
    return r;
}

static int fill_set(int dir, const struct set *s, const char *definition, const struct set_key *key,
                    const char *shown, struct error *err)
{
    struct set described = *s;
    int r;

    if (definition && digest_definition(definition, described.definition_sha256) < 0) {
        return error_out_of_memory(err);
    }
    r = write_description(dir, SET_FILE, &described, key, shown, err);
    if (r == 0 && definition) {
        r = stored_write_at(dir, SET_DEFINITION, definition, key->seal, STORED_DEFINITION, shown,
                            err);
    }
    UNLESS_FAILED(r, files_sync(dir, shown, err));
    return r;
}

int set_write(const char *root, const struct set *s, const char *definition,
              const struct set_key *key, struct error *err)
{
    char *shown AUTO_FREE = NULL;
    int sets AUTO_CLOSE = open_sets(root, &shown, err);
    int dir AUTO_CLOSE = -1;
    char tmp[SET_TMP_SIZE];

    if (sets < 0) {
        return sets;
    }
    snprintf(tmp, sizeof(tmp), SET_TMP "%s", s->id);
    dir = files_open_dir_at(sets, tmp, shown, err);
    return dir < 0 ? dir : fill_set(dir, s, definition, key, shown, err);
}

int set_commit(const char *root, const struct set *s, struct error *err)
{
    char *shown AUTO_FREE = NULL;
    int sets AUTO_CLOSE = open_sets(root, &shown, err);
    char tmp[SET_TMP_SIZE];

    if (sets < 0) {
        return sets;
    }
    snprintf(tmp, sizeof(tmp), SET_TMP "%s", s->id);
    if (renameat(sets, tmp, sets, s->id) < 0) {
        return error_set_errno(err, errno, "Could not make set '%s' in '%s'", s->id, shown);
    }
    return files_sync(sets, shown, err);
}

int set_add(const char *root, const struct set *s, const char *definition,
            const struct set_key *key, struct error *err)
{
    char *shown AUTO_FREE = NULL;
    int sets AUTO_CLOSE = open_sets(root, &shown, err);
    int dir AUTO_CLOSE = -1;
    int r;

    if (sets < 0) {
        return sets;
    }
    dir = keep_id(sets, s->id, shown, err);
    if (dir == -EEXIST || dir == -EAGAIN) {
        return error_set(err, EBUSY, "Another run makes set '%s' in '%s'", s->id, shown);
    }
    r = dir < 0 ? dir : fill_set(dir, s, definition, key, shown, err);
    return r < 0 ? r : set_commit(root, s, err);
}

/* The set that is made in `tmp` gets its name; what had it before is removed. */
static int exchange_sets(int sets, const char *tmp, const char *id, const char *shown,
                         struct error *err)
{
    char old[sizeof(SET_OLD) + BACKUP_ID_SIZE];
    const char *left = tmp;
    int r = renameat2(sets, tmp, sets, id, RENAME_EXCHANGE) == 0 ? 0 : -errno;

    if (r == -EINVAL || r == -ENOSYS || r == -EOPNOTSUPP) {
        /* If a kill comes in between, the next copy makes the set again. */
        snprintf(old, sizeof(old), SET_OLD "%s", id);
        files_remove_at(sets, old);
        r = renameat(sets, id, sets, old) == 0 && renameat(sets, tmp, sets, id) == 0 ? 0 : -errno;
        left = old;
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Could not replace set '%s' in '%s'", id, shown);
    }
    r = files_sync(sets, shown, err);
    if (r == 0) {
        files_remove_at(sets, left);
    }
    return r;
}

int set_replace(const char *root, const struct set *s, const char *definition,
                const struct set_key *key, struct error *err)
{
    char *shown AUTO_FREE = NULL;
    int sets AUTO_CLOSE = open_sets(root, &shown, err);
    int dir AUTO_CLOSE = -1;
    char tmp[SET_TMP_SIZE];
    int r;

    if (sets < 0) {
        return sets;
    }
    snprintf(tmp, sizeof(tmp), SET_TMP "%s", s->id);
    dir = keep_directory(sets, s->id, shown, err);
    if (dir == -EAGAIN) {
        return error_set(err, EBUSY, "Another run makes set '%s' in '%s'", s->id, shown);
    }
    r = dir < 0 ? dir : fill_set(dir, s, definition, key, shown, err);
    if (dir >= 0 && r < 0) {
        files_remove_at(sets, tmp);
    }
    return r < 0 ? r : exchange_sets(sets, tmp, s->id, shown, err);
}

int set_remove_left(const char *root, struct error *err)
{
    char *shown AUTO_FREE = NULL;
    int sets AUTO_CLOSE = open_sets(root, &shown, err);

    return sets < 0 ? sets : remove_left_sets(sets, shown, err);
}

int set_rewrite(const char *root, const struct set *s, const struct set_key *key, struct error *err)
{
    static const char new_name[] = ".tidemark-" SET_FILE;
    char *shown AUTO_FREE = NULL;
    int sets AUTO_CLOSE = open_sets(root, &shown, err);
    int dir AUTO_CLOSE = sets < 0 ? sets : files_open_dir_at(sets, s->id, shown, err);
    int r;

    if (dir < 0) {
        return dir;
    }
    files_remove_at(dir, new_name);
    r = write_description(dir, new_name, s, key, shown, err);
    if (r == 0 && renameat(dir, new_name, dir, SET_FILE) < 0) {
        r = error_set_errno(err, errno, "Could not replace the description of set '%s'", s->id);
    }
    UNLESS_FAILED(r, files_sync(dir, shown, err));
    return r;
}

static int read_definition(const char *root, const char *id, char **ret_text, struct error *err)
{
    char *shown AUTO_FREE = NULL, *data AUTO_FREE = NULL;
    int sets AUTO_CLOSE = open_sets(root, &shown, err);
    int dir AUTO_CLOSE = sets < 0 ? sets : files_open_dir_at(sets, id, shown, err);
    const struct backup_key *key;
    struct backup_kdf kdf;
    size_t size;
    int r = dir < 0 ? dir
                    : files_read_at(dir, SET_DEFINITION, DEFINITION_MAX + STORED_HEADER_SIZE + 64,
                                    shown, &data, &size, err);

    if (r < 0 || !stored_is_sealed(data, size, &kdf)) {
        *ret_text = TAKE_PTR(data);
        return r;
    }
    r = backup_key_get(&kdf, &key, err);
    if (r == 0 && !key) {
        r = error_set(err, ENOKEY, "The definition of set '%s' is encrypted", id);
    }
    UNLESS_FAILED(r,
                  stored_open_text(key, STORED_DEFINITION, data, size, id, ret_text, &size, err));
    return r;
}

static bool set_exists(const char *root, const char *id)
{
    char *shown AUTO_FREE = NULL;
    int sets AUTO_CLOSE = open_sets(root, &shown, NULL);

    return sets >= 0 && faccessat(sets, id, F_OK, 0) == 0;
}

int set_load_definition(const char *root, const struct set *s, char **ret_text, struct error *err)
{
    char *text AUTO_FREE = NULL;
    char actual[SHA256_HEX_SIZE];
    ERROR_AUTO(why);
    int r = read_definition(root, s->id, &text, &why);

    if (r == -ENOENT && set_exists(root, s->id)) {
        r = error_set(err, EBADMSG, "The definition of set '%s' is lost", s->id);
    } else if (r < 0) {
        error_move(err, &why);
    }
    if (r == 0 && digest_definition(text, actual) < 0) {
        r = error_out_of_memory(err);
    }
    if (r == 0 && s->definition_sha256[0] && strcmp(actual, s->definition_sha256) != 0) {
        r = error_set(err, EBADMSG,
                      "The definition of set '%s' was changed: its SHA-256 is not that of the set",
                      s->id);
    }
    if (r == 0) {
        *ret_text = TAKE_PTR(text);
    }
    return r;
}

int set_sum_definition(const char *root, struct set *s, struct error *err)
{
    char *text AUTO_FREE = NULL;
    int r;

    if (!s->definition || s->definition_sha256[0]) {
        return 0;
    }
    r = set_load_definition(root, s, &text, err);
    if (r == 0 && digest_definition(text, s->definition_sha256) < 0) {
        r = error_out_of_memory(err);
    }
    return r;
}

int set_remove(const char *root, const char *id, struct error *err)
{
    char *shown AUTO_FREE = NULL;
    int sets AUTO_CLOSE = open_sets(root, &shown, err);
    char tmp[SET_TMP_SIZE];
    int r;

    if (sets < 0) {
        return sets;
    }
    /* In one step, so that neither a kill nor a crash leaves a damaged set. */
    snprintf(tmp, sizeof(tmp), SET_TMP "%s", id);
    files_remove_at(sets, tmp);
    if (renameat(sets, id, sets, tmp) < 0 && errno != ENOENT) {
        return error_set_errno(err, errno, "Could not remove set '%s' in '%s'", id, shown);
    }
    r = files_sync(sets, shown, err);
    if (r == 0) {
        files_remove_at(sets, tmp);
    }
    return r;
}

const struct set_disk *set_problem_disk(const struct set *s)
{
    for (size_t i = 0; i < s->count; i++) {
        if (s->disks[i].problem) {
            return &s->disks[i];
        }
    }
    return NULL;
}

bool set_is_at(int dir, const char *id)
{
    static const char *const of_backups[] = {"manifest.json", "checksums", "disk.qcow2"};
    int backup AUTO_CLOSE = files_open_dir_at(dir, id, id, NULL);
    struct stat st;

    if (backup < 0 || fstatat(backup, SET_FILE, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        return false;
    }
    for (size_t i = 0; i < ARRAY_SIZE(of_backups); i++) {
        if (fstatat(backup, of_backups[i], &st, AT_SYMLINK_NOFOLLOW) == 0) {
            return false;
        }
    }
    return true;
}

/* --- reading --- */

/* How many sets are encrypted, and how many of these could be decrypted. */
struct sealed_sets {
    size_t found, opened;
};

/* The text of a set; one that is encrypted is decrypted. */
static int read_set_text(int dir, const char *id, char **ret_text, struct sealed_sets *sealed,
                         struct error *err)
{
    const struct backup_key *key;
    struct backup_kdf kdf;
    char *data AUTO_FREE = NULL;
    size_t size;
    int r = files_read_at(dir, SET_FILE, SET_SIZE_MAX, id, &data, &size, err);

    if (r < 0) {
        return r;
    }
    if (!stored_is_sealed(data, size, &kdf)) {
        *ret_text = TAKE_PTR(data);
        return 0;
    }
    sealed->found++;
    r = backup_key_get(&kdf, &key, err);
    if (r == 0 && !key) {
        error_set(err, ENOKEY, "The sets are encrypted, and need the key");
        error_hint(err, "Name its file with --key-file, or in TIDEMARK_KEY_FILE.");
        r = -ENOKEY;
    }
    UNLESS_FAILED(r, stored_open_text(key, STORED_SET, data, size, id, ret_text, &size, err));
    sealed->opened += r == 0;
    return r;
}

/*
 * Read a set, and judge its code (*ret_code: 0, or -EBADMSG). -EBADMSG: its description is damaged.
 */
static int read_described_set(int sets, const char *id, struct set *ret_set, int *ret_code,
                              struct sealed_sets *sealed, struct error *err)
{
    int dir AUTO_CLOSE = files_open_dir_at(sets, id, id, NULL);
    char *text AUTO_FREE = NULL;
    ERROR_AUTO(why);
    struct json_object *o;
    int r = dir < 0 ? dir : read_set_text(dir, id, &text, sealed, &why);

    *ret_set = (struct set){0};
    if (r == -ENOMEM || r == -ENOKEY) {
        error_move(err, &why);
        return r;
    }
    o = r == 0 ? json_tokener_parse(text) : NULL;
    if (r == -EACCES) {
        error_move(err, &why);
        return r;
    }
    r = o ? set_from_json(o, id, ret_set, ret_code, err) : -EBADMSG;
    json_object_put(o);
    return r;
}

static int read_set(int sets, const char *id, struct set *ret_set, struct sealed_sets *sealed,
                    struct error *err)
{
    ERROR_AUTO(why);
    int code = 0, r = read_described_set(sets, id, ret_set, &code, sealed, &why);

    if (r == -EBADMSG || r == -EACCES || code < 0) {
        set_clear(ret_set);
        memcpy(ret_set->id, id, strlen(id) + 1);
        ret_set->damaged = true;
        ret_set->denied = r == -EACCES;
    }
    if (r == -EBADMSG || r == -EACCES) {
        return 0;
    }
    error_move(err, &why);
    return r;
}

int set_read_unproved(const char *root, const char *id, struct set *ret_set, struct error *err)
{
    struct sealed_sets sealed = {0};
    char *shown AUTO_FREE = NULL;
    int sets AUTO_CLOSE = open_sets(root, &shown, err);
    int code = 0;
    int r = sets < 0 ? sets : read_described_set(sets, id, ret_set, &code, &sealed, err);

    return r == -EBADMSG ? error_set(err, EBADMSG, "The description of set '%s' is damaged", id)
                         : r;
}

const char *set_describe_damage(const struct set *s)
{
    return s->denied    ? "its description may not be read by this user"
           : s->damaged ? "its description is damaged"
                        : NULL;
}

static bool set_is_damaged(const struct set *s)
{
    return s->damaged || set_problem_disk(s);
}

void set_list_drop_removed(struct set_list *list, const char *root)
{
    char *shown AUTO_FREE = NULL;
    int sets AUTO_CLOSE = open_sets(root, &shown, NULL);
    size_t kept = 0;
    struct stat st;

    for (size_t i = 0; sets >= 0 && i < list->count; i++) {
        struct set *s = &list->list[i];

        if (set_is_damaged(s) && fstatat(sets, s->id, &st, AT_SYMLINK_NOFOLLOW) < 0 &&
            errno == ENOENT) {
            set_clear(s);
        } else {
            list->list[kept++] = *s;
        }
    }
    list->count = sets < 0 ? list->count : kept;
}

static int compare_sets(const void *a, const void *b)
{
    const struct set *x = a, *y = b;

    return strcmp(x->id, y->id);
}

int set_read_all(const char *root, struct set_list *ret_list, struct error *err)
{
    struct set_list all = {0};
    struct sealed_sets sealed = {0};
    char *shown AUTO_FREE = NULL;
    int fd = open_sets(root, &shown, err), r = fd < 0 ? fd : 0;
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *d;

    while (r == 0 && dir && (d = readdir(dir)) != NULL) {
        struct set *grown;

        if (!backup_id_is_valid(d->d_name)) {
            continue;
        }
        grown = realloc(all.list, (all.count + 1) * sizeof(*grown));
        if (!grown) {
            r = error_out_of_memory(err);
            break;
        }
        all.list = grown;
        r = read_set(fd, d->d_name, &all.list[all.count], &sealed, err);
        all.count += r == 0;
    }
    if (r == 0 && sealed.found > 0 && sealed.opened == 0) {
        r = error_set(err, EKEYREJECTED, "The sets in '%s' are encrypted with another key", shown);
    }
    if (dir) {
        closedir(dir);
    }
    if (r < 0) {
        set_list_clear(&all);
        return r;
    }
    set_list_drop_removed(&all, root);
    if (all.count > 1) {
        qsort(all.list, all.count, sizeof(*all.list), compare_sets);
    }
    *ret_list = all;
    return 0;
}

void set_list_clear(struct set_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        set_clear(&list->list[i]);
    }
    free(list->list);
    *list = (struct set_list){0};
}

const struct set *set_find(const struct set_list *list, const char *id, struct error *err)
{
    const struct set *found = NULL;
    size_t matches = 0;

    if (list->count == 0) {
        error_set(err, ENOENT, "There is no set");
        return NULL;
    }
    for (size_t i = 0; i < list->count; i++) {
        bool exact = id && strcmp(list->list[i].id, id) == 0;

        if (!id || backup_id_is_meant(list->list[i].id, id)) {
            found = &list->list[i];
            matches = exact || !id ? 1 : matches + 1;
            if (exact) {
                break;
            }
        }
    }
    if (matches != 1) {
        error_set(err, ENOENT,
                  matches ? "More than one set begins with '%s'" : "There is no set '%s'", id);
    } else if (found->denied) {
        error_set(err, EACCES, "The description of set '%s' may not be read by this user",
                  found->id);
        return NULL;
    } else if (found->damaged) {
        error_set(err, EBADMSG, "The description of set '%s' is damaged", found->id);
        return NULL;
    }
    return matches == 1 ? found : NULL;
}

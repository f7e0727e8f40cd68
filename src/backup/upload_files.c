/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/upload_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/files.h"
#include "backup/repository.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "base/time_units.h"
#include "block/options.h"
#include "loop/loop.h"
#include "ssh/remote_fetch.h"

/* From this number of files on, a second channel saves time. */
#define FETCH_MIN 4
/* How long a server may take to end a copy in order. */
#define STOPPED_TIMEOUT_NS (5 * NS_PER_SECOND)

/* --- addresses --- */

bool upload_is_address(const char *target)
{
    return strncmp(target, "sftp://", 7) == 0 || strncmp(target, "ssh://", 6) == 0;
}

int upload_take_address(const char *address, struct ssh_target *ret_target, struct error *err)
{
    AUTO_OPTIONS struct options *opts = options_new();
    int r = opts ? ssh_target_parse_filename(address, opts, err) : error_out_of_memory(err);

    UNLESS_FAILED(r, ssh_target_take(opts, ret_target, err));
    return r;
}

char *upload_join_address(const char *address, const char *name)
{
    int length = (int)strcspn(address, "?");
    char *s;

    while (length > 0 && address[length - 1] == '/') {
        length--;
    }
    return asprintf(&s, "%.*s/%s%s", length, address, name, address + strcspn(address, "?")) < 0
               ? NULL
               : s;
}

void upload_name_in_error(struct error *err, const char *mirror, const char *address)
{
    char *shown AUTO_FREE = strndup(address, strcspn(address, "?"));

    if (err && (err->code == ENOSPC || err->code == EDQUOT)) {
        error_hint(err,
                   "A copy keeps what the server has in '%.*s' on this machine; TMPDIR names "
                   "another place.",
                   (int)(strrchr(mirror, '/') - mirror), mirror);
    } else if (shown) {
        files_replace_in_error(err, mirror, shown);
    }
}

void upload_co_give_up(void *arg)
{
    int64_t *stopped_ns = arg;

    *stopped_ns = *stopped_ns ?: loop_now_ns();
    if (loop_now_ns() - *stopped_ns >= STOPPED_TIMEOUT_NS) {
        remote_give_up_all();
    }
}

/* --- small files --- */

int upload_fetch_file(struct remote_dir *d, const char *name, size_t max, char **ret_text,
                      size_t *ret_size, struct error *err)
{
    struct remote_file *f = NULL;
    char *text AUTO_FREE = NULL;
    uint64_t size = 0;
    struct iovec vec;
    int r = remote_dir_open_file(d, name, O_RDONLY, &f, err);

    UNLESS_FAILED(r, remote_file_size(f, &size, err));
    if (r == 0 && size > max) {
        r = error_set(err, EINVAL, "'%s' on the server is too large", name);
    }
    if (r == 0) {
        text = calloc(1, size + 1);
        r = text ? 0 : error_out_of_memory(err);
    }
    if (r == 0 && remote_file_read(f, 0, iov_from_buf(&vec, text, size)) < 0) {
        r = error_set(err, EIO, "Could not read '%s' on the server", name);
    }
    remote_file_close(f);
    if (r == 0) {
        *ret_text = TAKE_PTR(text);
        *ret_size = size;
    }
    return r;
}

int upload_put_file(struct remote_dir *d, const char *name, const void *data, size_t size,
                    struct error *err)
{
    struct remote_file *f = NULL;
    struct iovec vec;
    int r = remote_dir_open_file(d, name, O_RDWR | O_CREAT | O_TRUNC, &f, err);

    if (r == 0) {
        r = remote_file_write(f, 0, iov_from_buf(&vec, (void *)data, size));
        UNLESS_FAILED(r, remote_file_can_sync(f) ? remote_file_sync(f) : 0);
        if (r < 0) {
            error_set_errno(err, -r, "Could not write '%s' on the server", name);
        }
    }
    remote_file_close(f);
    return r;
}

/* --- the mirror of a repository --- */

static char *name_there(const struct upload_mirror *m, const char *name)
{
    return m->dir[0] ? files_join(m->dir, name) : strdup(name);
}

/* Files that are mirrored, each in a directory of its own, which is made. */
struct mirrored_files {
    const struct upload_mirror *mirror;
    const char *file;   /* the name of each */
    const char **ids;   /* the names of their directories; borrowed */
    const char **names; /* on the server; owned */
    bool *done;
    size_t count;
};

/* A file that cannot be read leaves an empty directory, which is a damaged backup, or set. */
static int take_mirrored(void *arg, size_t index, int r, const char *text, size_t size,
                         struct error *err)
{
    const struct mirrored_files *all = arg;
    const struct upload_mirror *m = all->mirror;
    int alive = m->alive ? m->alive(m->arg, err) : 0;
    int dir AUTO_CLOSE =
        alive < 0 ? alive : files_make_dir_at(m->fd, all->ids[index], all->ids[index], err);

    return dir < 0 || r < 0
               ? MIN(dir, 0)
               : files_write_temporary_at(dir, all->file, text, size, all->names[index], err);
}

/* A server may have only a few files open at a time: what fails is asked for again, alone. */
static int take_fetched(void *arg, size_t index, int r, const char *text, size_t size,
                        struct error *err)
{
    struct mirrored_files *all = arg;

    if (r < 0) {
        return all->mirror->alive ? all->mirror->alive(all->mirror->arg, err) : 0;
    }
    all->done[index] = true;
    return take_mirrored(all, index, r, text, size, err);
}

/* What is left: a few files, or all where the server has one channel for a connection. */
static int mirror_one_by_one(struct mirrored_files *all, size_t max, struct error *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < all->count; i++) {
        char *text AUTO_FREE = NULL;
        size_t size = 0;
        ERROR_AUTO(why);

        if (all->done[i]) {
            continue;
        }
        r = upload_fetch_file(all->mirror->remote, all->names[i], max, &text, &size, &why);
        if (r == -ENOMEM || r == -EIO) {
            error_move(err, &why);
        } else {
            r = take_mirrored(all, i, r, text, size, err);
        }
    }
    return r;
}

static int name_mirrored(struct mirrored_files *all, char *const *names, size_t count)
{
    all->ids = calloc(count + 1, sizeof(*all->ids));
    all->names = calloc(count + 1, sizeof(*all->names));
    all->done = calloc(count + 1, sizeof(*all->done));
    for (size_t i = 0; all->ids && all->names && i < count; i++) {
        char *path AUTO_FREE = NULL;

        if (!backup_id_is_valid(names[i])) {
            continue;
        }
        path = name_there(all->mirror, names[i]);
        all->ids[all->count] = names[i];
        all->names[all->count] = path ? files_join(path, all->file) : NULL;
        if (!all->names[all->count]) {
            return -ENOMEM;
        }
        all->count++;
    }
    return all->ids && all->names && all->done ? 0 : -ENOMEM;
}

int upload_mirror_files(const struct upload_mirror *m, char *const *names, size_t count,
                        const char *file, size_t max, struct error *err)
{
    struct mirrored_files all = {.mirror = m, .file = file};
    int r = name_mirrored(&all, names, count) < 0 ? error_out_of_memory(err) : 0;
    const struct remote_fetch fetch = {
        .names = all.names, .count = all.count, .max = max, .take = take_fetched, .arg = &all};

    if (r == 0) {
        r = all.count < FETCH_MIN ? 0 : remote_dir_fetch(m->remote, &fetch, err);
    }
    if (r == 0 || r == -EOPNOTSUPP) {
        r = mirror_one_by_one(&all, max, err);
    }
    for (size_t i = 0; i < all.count; i++) {
        free((char *)all.names[i]);
    }
    free(all.names);
    free(all.done);
    free(all.ids);
    return r;
}

static int mirror_description(const struct upload_mirror *m, const char *file, struct error *err)
{
    char *name AUTO_FREE = name_there(m, file), *text AUTO_FREE = NULL;
    size_t size = 0;
    int r = name ? upload_fetch_file(m->remote, name, MANIFEST_SIZE_MAX, &text, &size, err)
                 : error_out_of_memory(err);

    UNLESS_FAILED(r,
                  files_write_temporary_at(m->fd, REPOSITORY_DESCRIPTION, text, size, name, err));
    return r;
}

/*
 * Whether the new description is all that a kill has left, where a rename does not replace a file:
 * the first one of a repository may be cut short, and is made again.
 */
static bool is_new_description_alone(char **names, size_t count)
{
    bool described = false, has_new = false, has_backup = false;

    for (size_t i = 0; i < count; i++) {
        described = described || strcmp(names[i], REPOSITORY_DESCRIPTION) == 0;
        has_new = has_new || strcmp(names[i], REPOSITORY_NEW_DESCRIPTION) == 0;
        has_backup = has_backup || backup_id_is_valid(names[i]);
    }
    return has_new && has_backup && !described;
}

int upload_mirror_names(const struct upload_mirror *m, char **names, size_t count,
                        struct error *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < count; i++) {
        if (strcmp(names[i], REPOSITORY_DESCRIPTION) == 0) {
            r = mirror_description(m, names[i], err);
        }
    }
    if (!m->no_backups) {
        UNLESS_FAILED(
            r, upload_mirror_files(m, names, count, REPOSITORY_MANIFEST, MANIFEST_SIZE_MAX, err));
    }
    if (r == 0 && is_new_description_alone(names, count)) {
        r = mirror_description(m, REPOSITORY_NEW_DESCRIPTION, err);
    }
    return r;
}

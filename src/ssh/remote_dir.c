/* SPDX-License-Identifier: Apache-2.0 */
#include "ssh/remote_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "ssh/remote_internal.h"

#define DIR_MODE 0700
#define FILE_MODE 0600

char *remote_dir_path_of(const struct remote_dir *d, const char *name)
{
    char *s;

    return asprintf(&s, "%s%s%s", d->path, name[0] ? "/" : "", name) < 0 ? NULL : s;
}

static int dir_error(const struct remote_dir *d, const char *what, const char *name,
                     struct error *err)
{
    int code = sftp_get_error(d->connection.sftp);

    return error_set(err,
                     code == SSH_FX_PERMISSION_DENIED ? EACCES
                     : code == SSH_FX_NO_SUCH_FILE    ? ENOENT
                                                      : EIO,
                     "Could not %s '%s/%s' on the server: %s (sftp error code: %d)", what, d->path,
                     name, ssh_get_error(d->connection.session), code);
}

/*
 * Sync a directory of the server. Not every server can: some have no such request, and some open
 * files only. `shown` is for errors.
 */
static int sync_path(struct remote_dir *d, const char *path, const char *shown, struct error *err)
{
    sftp_file f = remote_file_can_sync(&d->connection)
                      ? sftp_open(d->connection.sftp, path, O_RDONLY, 0)
                      : NULL;
    int r = 0;

    if (!f) {
        return 0;
    }
    /* A file system that does not sync directories has another code. */
    if (sftp_fsync(f) < 0 && sftp_get_error(d->connection.sftp) == SSH_FX_FAILURE) {
        r = dir_error(d, "sync", shown, err);
    }
    sftp_close(f);
    return r;
}

/* The name of what was made in a directory. */
static int sync_parent(struct remote_dir *d, const char *path, const char *shown, struct error *err)
{
    char *copy AUTO_FREE = strdup(path);

    return copy ? sync_path(d, dirname(copy), shown, err) : error_out_of_memory(err);
}

int remote_dir_make(struct remote_dir *d, const char *name, struct error *err)
{
    char *path AUTO_FREE = remote_dir_path_of(d, name);
    ERROR_AUTO(why);
    sftp_attributes a;
    bool is_dir;
    int r;

    if (!path) {
        return error_out_of_memory(err);
    }
    if (sftp_mkdir(d->connection.sftp, path, DIR_MODE) == 0) {
        return sync_parent(d, path, name, err);
    }
    r = dir_error(d, "make directory", name, &why);
    a = sftp_lstat(d->connection.sftp, path);
    is_dir = a && a->type == SSH_FILEXFER_TYPE_DIRECTORY;
    if (a) {
        sftp_attributes_free(a);
    }
    if (is_dir) {
        return 0;
    }
    error_move(err, &why);
    return r;
}

int remote_dir_open(const struct ssh_target *t, struct remote_dir **ret_dir, struct error *err)
{
    struct remote_dir *d = calloc(1, sizeof(*d));
    int r;

    if (!d) {
        return error_out_of_memory(err);
    }
    d->path = strdup(t->path);
    r = d->path ? remote_file_connect(&d->connection, t, err) : error_out_of_memory(err);
    UNLESS_FAILED(r, remote_dir_make(d, "", err));
    if (r < 0) {
        remote_dir_close(d);
        return r;
    }
    *ret_dir = d;
    return 0;
}

void remote_dir_close(struct remote_dir *d)
{
    if (!d) {
        return;
    }
    if (d->connection.sftp) {
        sftp_free(d->connection.sftp);
    }
    remote_file_end_session(&d->connection);
    free(d->path);
    free(d);
}

/* --- lists --- */

void remote_dir_free_names(char **names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(names[i]);
    }
    free(names);
}

static int add_name(char ***names, size_t *count, const char *name)
{
    char **list;

    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strchr(name, '/')) {
        return 0;
    }
    list = realloc(*names, (*count + 1) * sizeof(*list));
    if (!list) {
        return -ENOMEM;
    }
    *names = list;
    list[*count] = strdup(name);
    if (!list[*count]) {
        return -ENOMEM;
    }
    ++*count;
    return 0;
}

int remote_dir_list(struct remote_dir *d, const char *name, char ***ret_names, size_t *ret_count,
                    struct error *err)
{
    char *path AUTO_FREE = remote_dir_path_of(d, name), **names = NULL;
    sftp_dir dir = path ? sftp_opendir(d->connection.sftp, path) : NULL;
    sftp_attributes a;
    size_t count = 0;
    int r = 0;

    if (!dir) {
        return path ? dir_error(d, "list", name, err) : error_out_of_memory(err);
    }
    while (r == 0 && (a = sftp_readdir(d->connection.sftp, dir)) != NULL) {
        r = a->name ? add_name(&names, &count, a->name) : 0;
        sftp_attributes_free(a);
    }
    if (r == 0 && !sftp_dir_eof(dir)) {
        r = dir_error(d, "list", name, err);
    } else if (r < 0) {
        error_out_of_memory(err);
    }
    sftp_closedir(dir);
    if (r < 0) {
        remote_dir_free_names(names, count);
        return r;
    }
    *ret_names = names;
    *ret_count = count;
    return 0;
}

/* --- changes --- */

int remote_dir_sync(struct remote_dir *d, const char *name, struct error *err)
{
    char *path AUTO_FREE = remote_dir_path_of(d, name);

    return path ? sync_path(d, path, name, err) : error_out_of_memory(err);
}

int remote_dir_rename(struct remote_dir *d, const char *from, const char *to, struct error *err)
{
    char *a AUTO_FREE = remote_dir_path_of(d, from), *b AUTO_FREE = remote_dir_path_of(d, to);
    ERROR_AUTO(why);
    int r;

    if (!a || !b) {
        return error_out_of_memory(err);
    }
    if (sftp_rename(d->connection.sftp, a, b) == 0) {
        return 0;
    }
    r = dir_error(d, "rename", from, &why);
    /* Servers without posix-rename do not replace. */
    if (sftp_unlink(d->connection.sftp, b) == 0) {
        return sftp_rename(d->connection.sftp, a, b) == 0 ? 0 : dir_error(d, "rename", from, err);
    }
    error_move(err, &why);
    return r;
}

void remote_dir_remove(struct remote_dir *d, const char *name)
{
    char *path AUTO_FREE = remote_dir_path_of(d, name), **names = NULL;
    size_t count = 0;

    if (!path || sftp_unlink(d->connection.sftp, path) == 0) {
        return;
    }
    /* Not through a link: that was just removed, or cannot be. */
    if (remote_dir_list(d, name, &names, &count, NULL) == 0) {
        for (size_t i = 0; i < count; i++) {
            char *inner AUTO_FREE = NULL;

            if (asprintf(&inner, "%s/%s", path, names[i]) >= 0) {
                sftp_unlink(d->connection.sftp, inner);
            }
        }
        remote_dir_free_names(names, count);
    }
    sftp_rmdir(d->connection.sftp, path);
}

int remote_dir_open_file(struct remote_dir *d, const char *name, int flags,
                         struct remote_file **ret_file, struct error *err)
{
    char *path AUTO_FREE = remote_dir_path_of(d, name);
    struct remote_file *f = calloc(1, sizeof(*f));
    int r;

    if (!f || !path) {
        free(f);
        return error_out_of_memory(err);
    }
    f->session = d->connection.session;
    f->sftp = d->connection.sftp;
    f->shares = true;
    r = remote_file_open_path(f, path, flags, FILE_MODE, err);
    if (r < 0) {
        remote_file_close(f);
        return r;
    }
    *ret_file = f;
    return 0;
}

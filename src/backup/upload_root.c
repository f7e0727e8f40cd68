/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/upload_root.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/files.h"
#include "backup/giving_up.h"
#include "backup/repository.h"
#include "backup/scratch.h"
#include "backup/set.h"
#include "backup/upload_files.h"
#include "backup/upload_lock.h"
#include "base/cleanup.h"
#include "loop/loop.h"
#include "ssh/remote_dir.h"

/* Of a file of a set: a definition of 16 MiB, encrypted. */
#define SET_FILE_MAX ((size_t)20 * 1024 * 1024)
#define STOPPED "The copy was stopped"

struct upload_root {
    struct ssh_target target;
    const char *address; /* borrowed */
    volatile sig_atomic_t *stop;
    struct scratch mirror;
    char **sets; /* those of the server that are in the mirror */
    size_t set_count;
    char **replaced; /* of these, those that are damaged on the server, and sound in the mirror */
    size_t replaced_count;
};

/* A session on the server, in the offload pool. */
struct root_job {
    struct upload_root *root;
    char *const *disks; /* to be mirrored */
    size_t count;
    bool descriptions_only;
    struct remote_dir *remote;
    struct upload_lock lock;
    int (*fn)(struct root_job *job);
    struct error *err;
};

static bool names_have(char **names, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(names[i], name) == 0) {
            return true;
        }
    }
    return false;
}

/* Before each file: what a server does in time would hide a stop until the end. */
static int look_for_root_stop(void *arg, struct error *err)
{
    const struct upload_root *root = arg;

    return root->stop && *root->stop ? error_set(err, EINTR, STOPPED) : 0;
}

/* --- the mirror --- */

static int mirror_disk(struct root_job *job, const char *disk)
{
    struct upload_mirror mirror = {
        .remote = job->remote,
        .dir = disk,
        .no_backups = job->descriptions_only,
        .alive = look_for_root_stop,
        .arg = job->root,
    };
    char **names = NULL;
    size_t count = 0;
    int fd AUTO_CLOSE = -1;
    int r = remote_dir_list(job->remote, disk, &names, &count, job->err);

    if (r == 0) {
        mirror.fd = fd = files_make_dir_at(job->root->mirror.fd, disk, disk, job->err);
        r = fd < 0 ? fd : upload_mirror_names(&mirror, names, count, job->err);
    }
    remote_dir_free_names(names, count);
    return r;
}

static int mirror_sets(struct root_job *job)
{
    struct upload_root *root = job->root;
    int sets AUTO_CLOSE =
        files_make_dir_at(root->mirror.fd, SET_DIRECTORY, SET_DIRECTORY, job->err);
    int r = sets < 0 ? sets
                     : remote_dir_list(job->remote, SET_DIRECTORY, &root->sets, &root->set_count,
                                       job->err);

    UNLESS_FAILED(r, upload_mirror_files(
                         &(struct upload_mirror){
                             .remote = job->remote,
                             .dir = SET_DIRECTORY,
                             .fd = sets,
                             .alive = look_for_root_stop,
                             .arg = root,
                         },
                         root->sets, root->set_count, SET_FILE, SET_FILE_MAX, job->err));
    return r;
}

static int mirror_root_run(struct root_job *job)
{
    char **names = NULL;
    size_t count = 0;
    int r = remote_dir_list(job->remote, "", &names, &count, job->err);

    if (r == 0 && names_have(names, count, REPOSITORY_DESCRIPTION)) {
        r = error_set(job->err, EINVAL, "'%s' holds the backups of one disk", job->root->address);
        error_hint(job->err, "Several disks go to a directory that has one for each of them.");
    }
    UNLESS_FAILED(r, remote_dir_make(job->remote, SET_DIRECTORY, job->err));
    UNLESS_FAILED(r, job->descriptions_only ? 0 : mirror_sets(job));
    for (size_t i = 0; r == 0 && i < job->count; i++) {
        r = names_have(names, count, job->disks[i]) ? mirror_disk(job, job->disks[i]) : 0;
    }
    remote_dir_free_names(names, count);
    return r;
}

/* --- sets --- */

/* One of the two files; a set need not have the second. */
static int put_set_file(struct root_job *job, int dir, const char *part, const char *file)
{
    char *name AUTO_FREE = files_join(part, file), *data AUTO_FREE = NULL;
    size_t size;
    int r = name ? upload_lock_keep(&job->lock, job->err) : error_out_of_memory(job->err);

    UNLESS_FAILED(r, files_read_at(dir, file, SET_FILE_MAX, file, &data, &size, job->err));
    UNLESS_FAILED(r, upload_put_file(job->remote, name, data, size, job->err));
    return r;
}

/* Fill `part` on the server; the set appears when that becomes `name`, where nothing is. */
static int put_set_as(struct root_job *job, int dir, const char *part, const char *name,
                      bool replaces)
{
    int r = upload_lock_confirm(&job->lock, job->err);

    UNLESS_FAILED(r, remote_dir_make(job->remote, part, job->err));
    UNLESS_FAILED(r, put_set_file(job, dir, part, SET_FILE));
    if (r == 0 && faccessat(dir, SET_DEFINITION, F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
        r = put_set_file(job, dir, part, SET_DEFINITION);
    }
    UNLESS_FAILED(r, remote_dir_sync(job->remote, part, job->err));
    UNLESS_FAILED(r, upload_lock_confirm(&job->lock, job->err));
    if (r == 0 && replaces) {
        remote_dir_remove(job->remote, name);
    }
    UNLESS_FAILED(r, remote_dir_rename(job->remote, part, name, job->err));
    return r;
}

static int put_set(struct root_job *job, int sets, const char *id)
{
    char *part AUTO_FREE = NULL, *name AUTO_FREE = files_join(SET_DIRECTORY, id);
    int dir AUTO_CLOSE = files_open_dir_at(sets, id, id, job->err);

    if (dir < 0) {
        return dir;
    }
    if (asprintf(&part, "%s/%s%s", SET_DIRECTORY, REPOSITORY_PART, id) < 0 || !name) {
        part = NULL;
        return error_out_of_memory(job->err);
    }
    return put_set_as(job, dir, part, name,
                      names_have(job->root->replaced, job->root->replaced_count, id));
}

/* One that the server had before was removed there meanwhile, and does not come back. */
static bool is_set_to_put(const struct root_job *job, const char *name, char **names, size_t count)
{
    const struct upload_root *root = job->root;
    bool there = names_have(names, count, name);

    return backup_id_is_valid(name) &&
           (names_have(root->sets, root->set_count, name)
                ? there && names_have(root->replaced, root->replaced_count, name)
                : !there);
}

/* What killed copies have left: a set is always begun again. */
static void remove_parts_of_sets(struct root_job *job, char **names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        char *name AUTO_FREE = strncmp(names[i], REPOSITORY_PART, strlen(REPOSITORY_PART)) == 0
                                   ? files_join(SET_DIRECTORY, names[i])
                                   : NULL;

        if (name) {
            remote_dir_remove(job->remote, name);
        }
    }
}

/* `names` is what the server has now. */
static int put_new_sets_of(struct root_job *job, DIR *dir, char **names, size_t count)
{
    struct dirent *d;
    int r = 0;

    while (r == 0 && (d = readdir(dir)) != NULL) {
        if (is_set_to_put(job, d->d_name, names, count)) {
            r = look_for_root_stop(job->root, job->err);
            UNLESS_FAILED(r, put_set(job, dirfd(dir), d->d_name));
        }
    }
    return r;
}

static int put_new_sets(struct root_job *job)
{
    char **names = NULL;
    size_t count = 0;
    int sets = files_open_dir_at(job->root->mirror.fd, SET_DIRECTORY, SET_DIRECTORY, job->err);
    DIR *dir = sets < 0 ? NULL : fdopendir(sets);
    int r;

    if (!dir) {
        return sets < 0 ? sets : (close(sets), error_out_of_memory(job->err));
    }
    r = remote_dir_list(job->remote, SET_DIRECTORY, &names, &count, job->err);
    if (r == 0) {
        remove_parts_of_sets(job, names, count);
    }
    UNLESS_FAILED(r, put_new_sets_of(job, dir, names, count));
    UNLESS_FAILED(r, remote_dir_sync(job->remote, SET_DIRECTORY, job->err));
    remote_dir_free_names(names, count);
    closedir(dir);
    return r;
}

static int put_sets_run(struct root_job *job)
{
    struct upload_root *root = job->root;
    int r = upload_lock_take(&job->lock, job->remote, root->address, root->stop, job->err);

    UNLESS_FAILED(r, put_new_sets(job));
    upload_lock_release(&job->lock);
    return r;
}

static void clear_mirror(struct upload_root *root)
{
    remote_dir_free_names(root->sets, root->set_count);
    remote_dir_free_names(root->replaced, root->replaced_count);
    root->sets = root->replaced = NULL;
    root->set_count = root->replaced_count = 0;
    scratch_remove(&root->mirror);
}

/* --- sessions --- */

/* Connections are not kept while disks are uploaded: a server may cut those that do nothing. */
static int session_run(void *arg)
{
    struct root_job *job = arg;
    int r = remote_dir_open(&job->root->target, &job->remote, job->err);

    UNLESS_FAILED(r, job->fn(job));
    remote_dir_close(job->remote);
    return r;
}

static int co_run_session(struct root_job *job)
{
    struct giving_up giving_up;
    int64_t stopped_ns = 0;
    int r;

    giving_up_begin(&giving_up, job->root->stop, upload_co_give_up, &stopped_ns);
    r = loop_co_offload(session_run, job);
    return giving_up_co_end(&giving_up, r, STOPPED, job->err);
}

static int co_mirror(struct upload_root *root, char *const *disks, size_t count,
                     bool descriptions_only, struct error *err)
{
    struct root_job job = {
        .root = root,
        .disks = disks,
        .count = count,
        .descriptions_only = descriptions_only,
        .fn = mirror_root_run,
        .err = err,
    };
    int r;

    clear_mirror(root);
    r = scratch_make(NULL, "copy", &root->mirror, err);
    return r < 0 ? r : co_run_session(&job);
}

int upload_root_co_mirror(struct upload_root *root, char *const *disks, size_t count,
                          struct error *err)
{
    return co_mirror(root, disks, count, false, err);
}

int upload_root_co_open(const char *address, char *const *disks, size_t count,
                        volatile sig_atomic_t *stop, struct upload_root **ret_root,
                        struct error *err)
{
    struct upload_root *root = calloc(1, sizeof(*root));
    int r;

    if (!root) {
        return error_out_of_memory(err);
    }
    root->address = address;
    root->stop = stop;
    root->mirror = SCRATCH_INIT;
    r = upload_take_address(address, &root->target, err);
    UNLESS_FAILED(r, co_mirror(root, disks, count, true, err));
    if (r < 0) {
        upload_root_close(root, err);
        return r;
    }
    *ret_root = root;
    return 0;
}

const char *upload_root_path(const struct upload_root *root)
{
    return root->mirror.path;
}

int upload_root_replace(struct upload_root *root, const char *id, struct error *err)
{
    char **list = realloc(root->replaced, (root->replaced_count + 1) * sizeof(*list));
    char *copy = strdup(id);

    root->replaced = list ?: root->replaced;
    if (!list || !copy) {
        free(copy);
        return error_out_of_memory(err);
    }
    list[root->replaced_count++] = copy;
    return 0;
}

int upload_root_co_put_sets(struct upload_root *root, struct error *err)
{
    return co_run_session(&(struct root_job){.root = root, .fn = put_sets_run, .err = err});
}

void upload_root_close(struct upload_root *root, struct error *err)
{
    if (root) {
        if (root->mirror.path) {
            upload_name_in_error(err, root->mirror.path, root->address);
        }
        clear_mirror(root);
        ssh_target_clear(&root->target);
        free(root);
    }
}

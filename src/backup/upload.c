/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/upload.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/file_copy.h"
#include "backup/files.h"
#include "backup/scratch.h"
#include "backup/upload_files.h"
#include "backup/upload_lock.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "base/time_units.h"
#include "block/options.h"
#include "co/sync.h"
#include "loop/loop.h"
#include "ssh/remote_dir.h"

#define KEEP_POLL_NS (100 * NS_PER_MS)

struct upload {
    struct ssh_target target;
    const char *address; /* borrowed */
    struct remote_dir *remote;
    struct upload_lock lock;
    struct co_group keeper; /* between upload_keep_begin() and upload_co_keep_end() */
    bool keep_over;
    struct scratch mirror;
    char **names; /* what the server has, when it was mirrored */
    size_t name_count;
};

/* --- the mirror ------------------------------------------------------------------------------- */

/* Nothing is written to a directory of something else. */
static int check_names(const struct upload *u, char **names, size_t count, struct error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (!backup_id_is_valid(names[i]) && strcmp(names[i], REPOSITORY_DESCRIPTION) != 0 &&
            strncmp(names[i], REPOSITORY_OWN_PREFIX, strlen(REPOSITORY_OWN_PREFIX)) != 0) {
            return error_set(err, ENOTEMPTY, "'%s' holds other things than backups: '%s'",
                             u->address, names[i]);
        }
    }
    return 0;
}

static int keep_lock(void *arg, struct error *err)
{
    struct upload *u = arg;

    return upload_lock_keep(&u->lock, err);
}

static int mirror_all(struct upload *u, struct error *err)
{
    struct upload_mirror mirror = {.remote = u->remote, .dir = "", .alive = keep_lock, .arg = u};
    int r = scratch_make(NULL, "copy", &u->mirror, err);

    mirror.fd = u->mirror.fd;
    UNLESS_FAILED(r, remote_dir_list(u->remote, "", &u->names, &u->name_count, err));
    UNLESS_FAILED(r, check_names(u, u->names, u->name_count, err));
    UNLESS_FAILED(r, upload_mirror_names(&mirror, u->names, u->name_count, err));
    return r;
}

/* --- opening and closing ---------------------------------------------------------------------- */

static int lock_upload(struct upload *u, volatile sig_atomic_t *stop, struct error *err)
{
    char **names = NULL;
    size_t count = 0;
    int r = remote_dir_list(u->remote, "", &names, &count, err);

    UNLESS_FAILED(r, check_names(u, names, count, err));
    UNLESS_FAILED(r, upload_lock_take(&u->lock, u->remote, u->address, stop, err));
    remote_dir_free_names(names, count);
    return r;
}

struct upload_job {
    struct upload *upload;
    const struct repository *from;
    const struct repository *mirror;
    const struct upload_backup *backup;
    volatile sig_atomic_t *stop;
    struct error *err;
};

static int open_job_run(void *arg)
{
    struct upload_job *job = arg;
    int r = remote_dir_open(&job->upload->target, &job->upload->remote, job->err);

    UNLESS_FAILED(r, lock_upload(job->upload, job->stop, job->err));
    UNLESS_FAILED(r, mirror_all(job->upload, job->err));
    return r;
}

int upload_co_open(const char *address, const struct repository *like, volatile sig_atomic_t *stop,
                   struct upload **ret_upload, struct repository *ret_mirror, struct error *err)
{
    struct upload *u = calloc(1, sizeof(*u));
    int r;

    if (!u) {
        return error_out_of_memory(err);
    }
    u->address = address;
    u->mirror = SCRATCH_INIT;
    r = upload_take_address(address, &u->target, err);
    UNLESS_FAILED(r, loop_co_offload(open_job_run,
                                     &(struct upload_job){.upload = u, .stop = stop, .err = err}));
    UNLESS_FAILED(r, repository_open_mirror(u->mirror.path, like, ret_mirror, err));
    if (r < 0) {
        upload_co_close(u, err);
        return r;
    }
    *ret_upload = u;
    return 0;
}

static int close_job_run(void *arg)
{
    struct upload *u = arg;

    upload_lock_release(&u->lock);
    remote_dir_close(u->remote);
    scratch_remove(&u->mirror);
    return 0;
}

void upload_co_close(struct upload *u, struct error *err)
{
    if (u) {
        if (u->mirror.path) {
            upload_name_in_error(err, u->mirror.path, u->address);
        }
        loop_co_offload(close_job_run, u);
        remote_dir_free_names(u->names, u->name_count);
        ssh_target_clear(&u->target);
        free(u);
    }
}

const char *upload_path(const struct upload *u)
{
    return u->target.path;
}

/* --- while nothing is sent -------------------------------------------------------------------- */

static int keep_job_run(void *arg)
{
    struct upload *u = arg;

    return upload_lock_keep(&u->lock, NULL);
}

/* That another copy has begun is reported when something is sent. */
static void co_keep(void *arg)
{
    struct upload *u = arg;

    while (!u->keep_over && loop_co_offload(keep_job_run, u) == 0) {
        loop_co_sleep(KEEP_POLL_NS);
    }
    co_group_done(&u->keeper);
}

void upload_keep_begin(struct upload *u)
{
    u->keep_over = false;
    co_group_init(&u->keeper);
    co_group_add(&u->keeper);
    if (co_spawn(reactor_home(reactor_main()), co_keep, u) < 0) {
        co_group_done(&u->keeper);
    }
}

void upload_co_keep_end(struct upload *u)
{
    u->keep_over = true;
    co_group_wait(&u->keeper);
    co_group_destroy(&u->keeper);
}

/* --- uploading -------------------------------------------------------------------------------- */

static int description_job_run(void *arg)
{
    struct upload_job *job = arg;
    char *text AUTO_FREE = NULL, *there AUTO_FREE = NULL;
    size_t size, there_size;
    int r = files_read_at(job->mirror->fd, REPOSITORY_DESCRIPTION, MANIFEST_SIZE_MAX,
                          REPOSITORY_DESCRIPTION, &text, &size, job->err);

    /* A server that refuses to replace files need not be asked. */
    if (r == 0 &&
        upload_fetch_file(job->upload->remote, REPOSITORY_DESCRIPTION, MANIFEST_SIZE_MAX, &there,
                          &there_size, NULL) == 0 &&
        size == there_size && memcmp(text, there, size) == 0) {
        return 0;
    }
    UNLESS_FAILED(r, upload_lock_confirm(&job->upload->lock, job->err));
    UNLESS_FAILED(
        r, upload_put_file(job->upload->remote, REPOSITORY_NEW_DESCRIPTION, text, size, job->err));
    UNLESS_FAILED(r, remote_dir_rename(job->upload->remote, REPOSITORY_NEW_DESCRIPTION,
                                       REPOSITORY_DESCRIPTION, job->err));
    UNLESS_FAILED(r, remote_dir_sync(job->upload->remote, "", job->err));
    return r;
}

int upload_co_description(struct upload *u, const struct repository *mirror, struct error *err)
{
    return loop_co_offload(description_job_run,
                           &(struct upload_job){.upload = u, .mirror = mirror, .err = err});
}

static int drop_parts_job_run(void *arg)
{
    const struct upload_job *job = arg;
    struct upload *u = job->upload;

    for (size_t i = 0; i < u->name_count; i++) {
        if (strncmp(u->names[i], REPOSITORY_PART, strlen(REPOSITORY_PART)) == 0 &&
            !repository_get(job->from, u->names[i] + strlen(REPOSITORY_PART))) {
            remote_dir_remove(u->remote, u->names[i]);
        }
    }
    return 0;
}

void upload_co_drop_parts(struct upload *u, const struct repository *from)
{
    loop_co_offload(drop_parts_job_run, &(struct upload_job){.upload = u, .from = from});
}

/* A file that is uploaded; the functions of a struct file_copy_target. */
struct open_file_job {
    struct upload *upload;
    const char *name;
    struct remote_file *file;
    struct error *err;
};

static int remote_get_size(void *arg, uint64_t *ret_size)
{
    const struct open_file_job *job = arg;

    return remote_file_size(job->file, ret_size, NULL);
}

static int remote_set_size(void *arg, uint64_t size)
{
    struct open_file_job *job = arg;
    uint64_t now;
    int r = remote_file_size(job->file, &now, NULL);

    return r < 0 || now == size ? r : remote_file_resize(job->file, size);
}

static int remote_read(void *arg, char *buf, size_t size, uint64_t offset)
{
    struct open_file_job *job = arg;
    struct iovec vec;
    int r = upload_lock_keep(&job->upload->lock, NULL);

    UNLESS_FAILED(r, remote_file_read(job->file, offset, iov_from_buf(&vec, buf, size)));
    return r;
}

static int remote_write(void *arg, const char *buf, size_t size, uint64_t offset)
{
    struct open_file_job *job = arg;
    struct iovec vec;
    int r = upload_lock_keep(&job->upload->lock, NULL);

    UNLESS_FAILED(r, remote_file_write(job->file, offset, iov_from_buf(&vec, (void *)buf, size)));
    return r;
}

static int remote_sync(void *arg)
{
    struct open_file_job *job = arg;

    return remote_file_can_sync(job->file) ? remote_file_sync(job->file) : 0;
}

static const struct file_copy_target remote_target = {
    .get_size = remote_get_size,
    .set_size = remote_set_size,
    .read = remote_read,
    .write = remote_write,
    .sync = remote_sync,
};

static void name_part(const struct manifest *m, const char *file, char *ret_name, size_t size)
{
    snprintf(ret_name, size, "%s%s%s%s", REPOSITORY_PART, m->id, file[0] ? "/" : "", file);
}

#define PART_NAME_SIZE (sizeof(REPOSITORY_PART) + BACKUP_ID_SIZE + 32)

static int open_file_job_run(void *arg)
{
    struct open_file_job *job = arg;

    return remote_dir_open_file(job->upload->remote, job->name, O_RDWR | O_CREAT, &job->file,
                                job->err);
}

static int close_file_job_run(void *arg)
{
    remote_file_close(arg);
    return 0;
}

static int co_upload_file(struct upload *u, const struct upload_backup *backup, const char *name,
                          uint64_t size, const char *sha256, uint64_t *written, struct error *err)
{
    char part[PART_NAME_SIZE], *shown AUTO_FREE = files_join(backup->shown, name);
    int from AUTO_CLOSE = -1;
    struct open_file_job job = {.upload = u, .name = part, .err = err};
    uint64_t done = 0;
    int r;

    if (!shown) {
        return error_out_of_memory(err);
    }
    name_part(backup->manifest, name, part, sizeof(part));
    from = files_open_at(backup->dir, name, shown, err);
    r = from < 0 ? from : loop_co_offload(open_file_job_run, &job);
    if (r < 0) {
        return r;
    }
    r = file_copy_co_run(
        &(struct file_copy){
            .from = from,
            .to = -1,
            .target = &remote_target,
            .target_arg = &job,
            .from_shown = shown,
            .to_shown = part,
            .size = size,
            .sha256 = sha256,
            .progress = backup->progress,
            .stop = backup->stop,
        },
        &done, err);
    loop_co_offload(close_file_job_run, job.file);
    *written += done;
    return r;
}

static int begin_job_run(void *arg)
{
    struct upload_job *job = arg;
    char part[PART_NAME_SIZE];
    int r = upload_lock_confirm(&job->upload->lock, job->err);

    name_part(job->backup->manifest, "", part, sizeof(part));
    UNLESS_FAILED(r, remote_dir_make(job->upload->remote, part, job->err));
    return r;
}

/* The manifest, and the name. A backup that is there already is a damaged one. */
static int publish_job_run(void *arg)
{
    struct upload_job *job = arg;
    const struct manifest *m = job->backup->manifest;
    uint8_t *data AUTO_FREE = NULL;
    size_t size;
    char part[PART_NAME_SIZE], manifest[PART_NAME_SIZE];
    int r;

    name_part(m, "", part, sizeof(part));
    name_part(m, REPOSITORY_MANIFEST, manifest, sizeof(manifest));
    r = repository_manifest_data(job->backup->key, job->backup->seal, m, &data, &size);
    r = r == 0 ? upload_put_file(job->upload->remote, manifest, data, size, job->err)
               : error_out_of_memory(job->err);
    UNLESS_FAILED(r, remote_dir_sync(job->upload->remote, part, job->err));
    UNLESS_FAILED(r, upload_lock_confirm(&job->upload->lock, job->err));
    if (r == 0) {
        if (job->backup->replaces) {
            remote_dir_remove(job->upload->remote, m->id);
        }
        r = remote_dir_rename(job->upload->remote, part, m->id, job->err);
    }
    UNLESS_FAILED(r, remote_dir_sync(job->upload->remote, "", job->err));
    return r;
}

int upload_co_backup(struct upload *u, const struct upload_backup *backup, uint64_t *ret_written,
                     struct error *err)
{
    const struct manifest *m = backup->manifest;
    struct upload_job job = {.upload = u, .backup = backup, .err = err};
    int r = loop_co_offload(begin_job_run, &job);

    *ret_written = 0;
    UNLESS_FAILED(r, co_upload_file(u, backup, REPOSITORY_IMAGE, m->image_size, m->image_sha256,
                                    ret_written, err));
    UNLESS_FAILED(r, co_upload_file(u, backup, REPOSITORY_SUMS, m->sums_size, m->sums_sha256,
                                    ret_written, err));
    UNLESS_FAILED(r, loop_co_offload(publish_job_run, &job));
    return r;
}

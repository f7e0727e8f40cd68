/* SPDX-License-Identifier: Apache-2.0 */
/* Actions of transactions, and commands of the same names, that start backup jobs. */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/block.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "block/device.h"
#include "job/backup.h"
#include "qmp/jobs.h"
#include "qmp/schema.h"
#include "qmp/transaction.h"

struct backup_state {
    struct block_node *source, *target; /* each referenced */
    struct block_node *filter;          /* referenced; hidden at first */
    struct job *job;                    /* NULL: not made, or started */
};

/* --- arguments -------------------------------------------------------------------------------- */

/* A node by its name, or that of a device. */
static struct block_node *find_disk(const char *name, struct error *err)
{
    struct block_node *node = block_node_find(name);

    if (!node) {
        error_set(err, ENOENT, "Cannot find device='%s' nor node-name='%s'", name, name);
    }
    return node;
}

static enum backup_sync get_sync(struct json_object *data)
{
    const char *sync = qmp_get_str(data, "sync");

    return strcmp(sync, "full") == 0   ? BACKUP_FULL
           : strcmp(sync, "top") == 0  ? BACKUP_TOP
           : strcmp(sync, "none") == 0 ? BACKUP_NONE
                                       : BACKUP_BITMAP;
}

/* `mode`: NULL if the argument is absent. */
static int check_bitmap_mode(const char *sync, const char *mode, bool has_bitmap, struct error *err)
{
    bool incremental = strcmp(sync, "incremental") == 0;

    if ((incremental || strcmp(sync, "bitmap") == 0) && !has_bitmap) {
        return error_set(err, EINVAL, "must provide a valid bitmap name for '%s' sync mode", sync);
    }
    if (mode && !has_bitmap) {
        return error_set(err, EINVAL, "Cannot specify bitmap sync mode without a bitmap");
    }
    if (incremental && mode && strcmp(mode, "on-success") != 0) {
        return error_set(err, EINVAL, "Bitmap sync mode must be '%s' when using sync mode '%s'",
                         "on-success", sync);
    }
    return 0;
}

/* What QEMU checks only once the bitmap is found. */
static int check_bitmap_use(const char *sync, const char *mode, struct error *err)
{
    if (!mode && strcmp(sync, "incremental") != 0) {
        return error_set(err, EINVAL, "Bitmap sync mode must be given when providing a bitmap");
    }
    if (strcmp(sync, "none") == 0) {
        return error_set(err, EINVAL, "sync mode '%s' does not produce meaningful bitmap outputs",
                         sync);
    }
    if (mode && strcmp(mode, "never") == 0 && strcmp(sync, "bitmap") != 0) {
        return error_set(err, EINVAL,
                         "Bitmap sync mode '%s' has no meaningful effect when combined with sync "
                         "mode '%s'",
                         mode, sync);
    }
    return 0;
}

static int get_bitmap(struct json_object *data, struct block_node *source,
                      struct backup_config *config, struct error *err)
{
    const char *sync = qmp_get_str(data, "sync"), *mode = qmp_get_str(data, "bitmap-mode");
    const char *name = qmp_get_str(data, "bitmap");
    int r = check_bitmap_mode(sync, mode, name, err);

    if (r < 0) {
        return r;
    }
    if (!name) {
        return 0;
    }
    config->bitmap = block_bitmap_find(source, name);
    if (!config->bitmap) {
        return error_set(err, ENOENT, "Bitmap '%s' could not be found", name);
    }
    config->bitmap_mode = !mode || strcmp(mode, "on-success") == 0 ? BACKUP_ON_SUCCESS
                          : strcmp(mode, "never") == 0             ? BACKUP_NEVER
                                                                   : BACKUP_ALWAYS;
    return check_bitmap_use(sync, mode, err);
}

static int get_perf(struct json_object *data, struct backup_config *config, struct error *err)
{
    struct json_object *perf = qmp_get(data, "x-perf"), *workers, *chunk;
    int64_t value;

    if (!perf) {
        return 0;
    }
    config->use_copy_range = qmp_get_bool(perf, "use-copy-range", false);
    workers = qmp_get(perf, "max-workers");
    value = workers ? json_object_get_int64(workers) : 1;
    if (value < 1 || value > INT_MAX) {
        return error_set(err, EINVAL, "max-workers must be between 1 and %d", INT_MAX);
    }
    config->max_workers = workers ? (unsigned)value : 0;
    chunk = qmp_get(perf, "max-chunk");
    value = chunk ? json_object_get_int64(chunk) : 0;
    if (value < 0) {
        return error_set(err, EINVAL, "max-chunk must be zero (which means no limit) or positive");
    }
    config->max_chunk = (uint64_t)value;
    return 0;
}

static int check_compress(struct json_object *data, struct block_node *target, struct error *err)
{
    if (qmp_get_bool(data, "compress", false) &&
        !(block_node_traits(block_node_skip_filters(target)) & BLOCK_DRIVER_COMPRESSES)) {
        return error_set(err, ENOTSUP, "Compression is not supported for this drive %s",
                         block_node_device_name(target));
    }
    return 0;
}

/* --- steps that both have --------------------------------------------------------------------- */

static int co_open_backup(struct backup_state *s, struct json_object *data, struct error *err)
{
    struct json_object *perf = qmp_get(data, "x-perf");
    struct backup_config unused = {0};
    /* The bitmap is looked up later: another action of the transaction may add it. */
    int r = check_bitmap_mode(qmp_get_str(data, "sync"), qmp_get_str(data, "bitmap-mode"),
                              qmp_get_str(data, "bitmap"), err);

    UNLESS_FAILED(r, get_perf(data, &unused, err));
    UNLESS_FAILED(r, check_compress(data, s->target, err));
    return r < 0
               ? r
               : backup_co_open_filter(s->source, s->target, qmp_get_str(data, "filter-node-name"),
                                       perf ? qmp_get_uint(perf, "min-cluster-size", 0) : 0,
                                       &s->filter, err);
}

static void backup_concerns(void *state, struct json_object *data, struct qmp_concern *concern)
{
    struct backup_state *s = state;

    qmp_concern_add(concern, s->source);
    qmp_concern_add(concern, s->target);
}

static int co_backup_prepare(void *state, struct json_object *data, struct error *err)
{
    struct backup_state *s = state;
    struct backup_config config = {
        .source = s->source,
        .sync = get_sync(data),
        .compress = qmp_get_bool(data, "compress", false),
        .discard_source = qmp_get_bool(data, "discard-source", false),
        .on_source_error = qmp_get_on_error(data, "on-source-error"),
        .on_target_error = qmp_get_on_error(data, "on-target-error"),
    };
    int r = qmp_get_job_config(data, &config.job, err);

    UNLESS_FAILED(r, get_perf(data, &config, err));
    UNLESS_FAILED(r, get_bitmap(data, s->source, &config, err));
    UNLESS_FAILED(r, backup_co_new(s->filter, &config, &s->job, err));
    return r;
}

static void co_backup_commit(void *state)
{
    struct backup_state *s = state;

    job_start_drained(s->job);
}

static void backup_undrained(void *state)
{
    struct backup_state *s = state;

    job_end_drained_start(s->job);
    s->job = NULL;
}

static void co_backup_abort(void *state)
{
    struct backup_state *s = state;

    job_co_undo(s->job);
    s->job = NULL;
}

static void co_backup_refused(void *state)
{
    struct backup_state *s = state;

    job_co_discard(s->job);
    s->job = NULL;
}

/* Closing what was opened in vain may take long. */
static void co_backup_clean(void *state)
{
    struct backup_state *s = state;

    block_control_unlock();
    block_co_unref(s->filter);
    block_co_unref(s->target);
    block_co_unref(s->source);
    block_co_control_lock();
}

/* --- blockdev-backup -------------------------------------------------------------------------- */

static int co_blockdev_backup_open(void *state, struct json_object *data, struct error *err)
{
    struct backup_state *s = state;
    struct block_node *source = find_disk(qmp_get_str(data, "device"), err);
    struct block_node *target = source ? find_disk(qmp_get_str(data, "target"), err) : NULL;

    if (!target) {
        return -ENOENT;
    }
    s->source = block_node_ref(source);
    s->target = block_node_ref(target);
    return co_open_backup(s, data, err);
}

const struct qmp_action qmp_action_blockdev_backup = {
    .name = "blockdev-backup",
    .state_size = sizeof(struct backup_state),
    .starts_job = true,
    .co_open = co_blockdev_backup_open,
    .concerns = backup_concerns,
    .co_prepare = co_backup_prepare,
    .co_commit = co_backup_commit,
    .co_abort = co_backup_abort,
    .co_refused = co_backup_refused,
    .undrained = backup_undrained,
    .co_clean = co_backup_clean,
};

/* --- drive-backup: the target is a file ------------------------------------------------------- */

/*
 * The node that a new target has as its backing file; NULL: none. A copy of the top image is one of
 * all that is there if nothing is below.
 */
static struct block_node *target_backing(struct json_object *data, struct block_node *source)
{
    enum backup_sync sync = get_sync(data);

    return sync == BACKUP_NONE ? source : sync == BACKUP_TOP ? block_node_backing(source) : NULL;
}

static int co_create_backup_target(struct json_object *data, const char *format,
                                   struct block_node *source, struct error *err)
{
    struct block_node *backing = target_backing(data, source);
    const struct block_driver *driver = block_find_driver(format);
    AUTO_FREE char *name = NULL;
    struct options *opts;

    if (backing && driver && !(block_driver_traits(driver) & BLOCK_DRIVER_BACKING)) {
        return error_set(err, EINVAL, "Backing file not supported for file format '%s'", format);
    }
    if (backing) {
        block_node_ref(backing);
        name = block_node_co_filename_to_record(backing);
    }
    opts = options_new();
    if (opts && name) {
        options_set_str(opts, "backing_file", name);
        options_set_str(opts, "backing_fmt", block_node_format(block_node_skip_filters(backing)));
    }
    block_co_unref(backing);
    if (!opts || (backing && !name)) {
        options_free(opts);
        return error_out_of_memory(err);
    }
    return block_co_create_image(format, qmp_get_str(data, "target"), block_node_size(source), opts,
                                 err);
}

static int co_open_backup_target(struct backup_state *s, struct json_object *data,
                                 const char *format, bool is_new, struct error *err)
{
    struct options *opts = options_new();

    if (!opts) {
        return error_out_of_memory(err);
    }
    options_set_str(opts, "discard", "unmap");
    if (is_new && get_sync(data) == BACKUP_NONE) {
        options_set_str(opts, "backing", block_node_name(s->source));
    }
    return block_co_open_filename(qmp_get_str(data, "target"), format, opts,
                                  BLOCK_OPEN_RDWR | BLOCK_OPEN_PROBE, &s->target, err);
}

static int co_drive_backup_open(void *state, struct json_object *data, struct error *err)
{
    const char *format = qmp_get_str(data, "format"), *mode = qmp_get_str(data, "mode");
    bool is_new = !mode || strcmp(mode, "existing") != 0;
    struct backup_state *s = state;
    struct block_node *source = find_disk(qmp_get_str(data, "device"), err);
    int r = 0;

    if (!source) {
        return -ENOENT;
    }
    s->source = block_node_ref(source);
    if (is_new) {
        format = format ?: block_node_format(block_node_skip_filters(source));
        r = co_create_backup_target(data, format, source, err);
    }
    UNLESS_FAILED(r, co_open_backup_target(s, data, format, is_new, err));
    UNLESS_FAILED(r, co_open_backup(s, data, err));
    return r;
}

const struct qmp_action qmp_action_drive_backup = {
    .name = "drive-backup",
    .state_size = sizeof(struct backup_state),
    .starts_job = true,
    .co_open = co_drive_backup_open,
    .concerns = backup_concerns,
    .co_prepare = co_backup_prepare,
    .co_commit = co_backup_commit,
    .co_abort = co_backup_abort,
    .co_refused = co_backup_refused,
    .undrained = backup_undrained,
    .co_clean = co_backup_clean,
};

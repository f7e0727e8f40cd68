/* SPDX-License-Identifier: Apache-2.0 */
/* Backup jobs: how they begin and end. */
#include "job/backup.h"

#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/log.h"
#include "block/control.h"
#include "block/gate.h"
#include "job/backup_internal.h"

/* Bounce buffers: twice what the job's pieces take, so that guest writes find free ones. */
#define MIN_MEMORY (32 * MiB)
#define MAX_MEMORY (256 * MiB)
/*
 * What guests overwrite is held in memory up to this. A guest fills half of it in a second, or
 * less, and the job goes through some 1 GiB in that time.
 */
#define HOLD_MEMORY (64 * MiB)

/* --- the end ---------------------------------------------------------------------------------- */

/* Everything was copied when the job had done its work, unless a guest's write broke that. */
static int backup_co_prepare(struct job *job, void *state, struct error *err)
{
    struct backup *b = state;
    bool reading;
    int r = cbw_error(b->cbw, &reading);

    return r < 0 ? error_set(err, -r, "%s", strerror(-r)) : 0;
}

static void backup_co_commit(struct job *job, void *state)
{
    struct backup *b = state;

    if (b->bitmap && b->bitmap_mode == BACKUP_NEVER) {
        block_co_bitmap_reclaim(b->bitmap);
    } else if (b->bitmap) {
        block_co_bitmap_abdicate(b->bitmap);
    }
    b->bitmap = NULL;
}

/* Clear in `bits` what is not set in `left`. */
static void keep_only(struct dirty_bitmap *bits, const struct dirty_bitmap *left)
{
    uint64_t pos = 0, size = dirty_bitmap_size(left), run;

    while (pos < size) {
        if (!dirty_bitmap_status(left, pos, size, &run)) {
            dirty_bitmap_clear(bits, pos, run);
        }
        pos += run;
    }
}

/* BACKUP_ALWAYS: the frozen bits become those that have not been copied. */
static void set_left(struct backup *b)
{
    struct dirty_bitmap *bits = block_bitmap_frozen_bits(b->bitmap);

    if (b->sync == BACKUP_BITMAP) {
        keep_only(bits, b->left);
    } else if (dirty_bitmap_merge(bits, b->left) == 0) {
        /* A full copy lacks other areas than those that the bitmap named. */
        keep_only(bits, b->left);
    }
}

static void backup_co_abort(struct job *job, void *state)
{
    struct backup *b = state;

    if (!b->bitmap) {
        return;
    }
    if (b->bitmap_mode == BACKUP_ALWAYS && b->has_run && !b->left) {
        /* It had done its work: all was copied and flushed. */
        backup_co_note_left(b);
    }
    if (b->left) {
        set_left(b);
    }
    block_co_bitmap_reclaim(b->bitmap);
    b->bitmap = NULL;
}

/*
 * Take the filter out: its users move to the node below, which is the source, or the filter of a
 * job that has begun later. Called in the graph change of a transaction that is undone, too.
 */
static void co_take_filter_out(struct job *job, struct backup *b)
{
    struct block_node *nodes[] = {b->source, b->target}, *below;
    struct block_root *root = b->root, *target_root = b->target_root;
    ERROR_AUTO(err);

    /*
     * The target may not be above the source any more, by a reopen; its requests may have locked
     * ranges. Both at once: guests of the source do not wait for those of the target.
     */
    job_co_drain(job, nodes, ARRAY_SIZE(nodes));
    below = block_node_child(b->filter, "file");
    block_co_change_begin();
    /* From now on others find no root: the rest of the end may wait for the target's storage. */
    b->root = b->target_root = NULL;
    block_co_root_release(root);
    block_co_root_release(target_root);
    if (b->in_place && block_co_node_replace(b->filter, below, &err) < 0) {
        log_error("node '%s' stays above '%s': %s", block_node_name(b->filter),
                  block_node_name(below), error_message(&err));
    }
    block_node_set_serialising(b->target, NULL);
    if (!b->has_run) {
        block_unpublish(b->filter); /* no client has seen it */
    }
    if (block_co_change_settle(&err) < 0) {
        log_error("permissions on node '%s' can't be taken back: %s", block_node_name(b->source),
                  error_message(&err));
    }
    block_co_change_end();
    block_drain_end(b->target);
    block_drain_end(b->source);
}

static void backup_co_clean(struct job *job, void *state)
{
    struct backup *b = state;
    struct block_node *target;

    if (b->filter) {
        cbw_stop(b->cbw);
        co_take_filter_out(job, b);
    }
    block_co_unref(b->filter);
    target = b->target;
    b->target = NULL;
    block_co_unref(target);
    block_co_unref(b->source);
    flush_behind_destroy(&b->flushes);
    dirty_bitmap_free(b->todo);
    dirty_bitmap_free(b->left);
}

/* Guests wait for copies no longer, and requests that a server or a limit holds up end soon. */
static void backup_cancelled(struct job *job, void *state)
{
    struct backup *b = state;

    if (b->root) {
        block_root_begin_end(b->root);
    }
    if (b->target_root) {
        block_root_begin_end(b->target_root);
    }
    cbw_stop(b->cbw);
}

static const struct block_root *backup_reader(const void *state, const struct block_node *node)
{
    const struct backup *b = state;

    return node == b->source || node == b->filter ? b->root : NULL;
}

static struct block_node *backup_given_up(const void *state)
{
    return ((const struct backup *)state)->target;
}

static const struct job_driver backup_driver = {
    .type = "backup",
    .state_size = sizeof(struct backup),
    .block_job = true,
    .co_run = backup_co_run,
    .co_prepare = backup_co_prepare,
    .co_commit = backup_co_commit,
    .co_abort = backup_co_abort,
    .co_clean = backup_co_clean,
    .cancelled = backup_cancelled,
    .given_up = backup_given_up,
    .reader = backup_reader,
};

/* --- the start -------------------------------------------------------------------------------- */

/* Whether the job may use these, and put its filter above the source. */
static int check_backup_nodes(const struct block_node *source, const struct block_node *target,
                              struct error *err)
{
    int r = job_check_node(source, err);

    UNLESS_FAILED(r, job_check_node(target, err));
    if (r == 0) {
        r = job_check_links_to(source, err);
        if (r < 0) {
            error_prepend(err, "Could not replace node: ");
        }
    }
    return r;
}

int backup_co_open_filter(struct block_node *source, struct block_node *target,
                          const char *filter_name, uint64_t min_cluster_size,
                          struct block_node **ret_filter, struct error *err)
{
    struct options *opts;
    int r;

    if (source == target) {
        return error_set(err, EINVAL, "Source and target cannot be the same");
    }
    if (block_node_size(source) != block_node_size(target)) {
        return error_set(err, EINVAL, "Source and target image have different sizes");
    }
    r = check_backup_nodes(source, target, err);
    if (r >= 0 && block_node_is_read_only(target)) {
        r = error_set(err, EACCES, "Could not create node: Block node is read-only");
    }
    if (r < 0) {
        return r;
    }
    opts = options_new();
    if (!opts) {
        return error_out_of_memory(err);
    }
    options_set_str(opts, "driver", "copy-before-write");
    options_set_str(opts, "file", block_node_name(source));
    options_set_str(opts, "target", block_node_name(target));
    options_set_str(opts, "on-cbw-error", "break-snapshot");
    options_set_uint(opts, "min-cluster-size", min_cluster_size);
    options_set_bool(opts, "read-only", block_node_is_read_only(source));
    if (filter_name) {
        options_set_str(opts, "node-name", filter_name);
    }
    r = block_co_open_hidden(opts, BLOCK_OPEN_RDWR, ret_filter, err);
    if (r < 0) {
        error_prepend(err, "Could not create node: ");
    }
    return r;
}

static void ignore_copied(void *arg, uint64_t bytes, bool by_guest)
{
}

static void ignore_broken(void *arg)
{
}

static int check_backup_config(struct block_node *filter, const struct backup_config *config,
                               struct error *err)
{
    uint32_t cluster = cbw_cluster_size(cbw_of_node(filter));
    int r = check_backup_nodes(config->source, block_node_child(filter, "target"), err);

    if (r < 0) {
        return r;
    }
    if (config->max_chunk > 0 && config->max_chunk < cluster) {
        return error_set(err, EINVAL,
                         "Required max-chunk (%llu) is less than backup cluster size (%u)",
                         (unsigned long long)config->max_chunk, cluster);
    }
    return 0;
}

/*
 * Whether guests' writes may leave old data to the job. Nobody else goes to where they write if the
 * job only watches them. And who reads the target meanwhile, through its backing files where it has
 * nothing, sees the point in time.
 */
static bool may_hold(const struct backup *b)
{
    return b->sync != BACKUP_NONE && !block_node_reaches(b->target, b->source);
}

static int set_up_filter(struct backup *b, const struct backup_config *config, struct error *err)
{
    uint64_t pieces = MIN(2 * (uint64_t)b->loop.workers, MAX_MEMORY / b->loop.chunk);
    struct cbw_job params = {
        .compress = config->compress,
        .discard_source = config->discard_source,
        .use_copy_range = config->use_copy_range,
        .skip_unallocated = config->sync == BACKUP_TOP,
        .hold_bytes = may_hold(b) ? HOLD_MEMORY : 0,
        .max_memory = MAX(pieces * b->loop.chunk, MIN_MEMORY),
        .copied = ignore_copied,
        .broken = ignore_broken,
        .arg = b,
    };

    return cbw_set_job(b->cbw, &params, err);
}

/* Freeze the bitmap, and let the filter and the loop know what is to be copied. */
static int co_set_contents(struct backup *b, const struct backup_config *config, struct error *err)
{
    int r = config->bitmap ? block_co_bitmap_freeze(config->bitmap, "a backup job", err) : 0;

    if (r < 0) {
        return r;
    }
    b->bitmap = config->bitmap;
    b->todo = dirty_bitmap_new(block_node_size(b->source), cbw_cluster_size(b->cbw));
    b->loop.todo = b->todo;
    if (!b->todo) {
        return error_out_of_memory(err);
    }
    if (b->sync != BACKUP_BITMAP) {
        dirty_bitmap_set(b->todo, 0, dirty_bitmap_size(b->todo));
        return 0;
    }
    r = cbw_restrict(b->cbw, block_bitmap_bits(b->bitmap), err);
    if (r == 0 && dirty_bitmap_merge(b->todo, block_bitmap_bits(b->bitmap)) < 0) {
        r = error_out_of_memory(err);
    }
    return r;
}

/* Put the filter in its place, and attach the job to it. */
static int co_put_filter_in(struct backup *b, struct error *err)
{
    int r = block_co_publish(b->filter, err);

    UNLESS_FAILED(r, block_co_node_replace(block_node_child(b->filter, "file"), b->filter, err));
    b->in_place = r == 0;
    if (r == 0) {
        block_node_set_serialising(b->target, b->source);
    }
    UNLESS_FAILED(r, block_co_root_new(b->filter, "block job: backup", BLOCK_PERM_CONSISTENT_READ,
                                       BLOCK_PERM_ALL, &b->root, err));
    UNLESS_FAILED(r, block_co_root_new(b->target, "block job: backup", 0, BLOCK_PERM_ALL,
                                       &b->target_root, err));
    return r;
}

static int co_set_up_backup(struct backup *b, const struct backup_config *config, struct error *err)
{
    int r = job_add_node(b->job, b->filter, err);

    backup_set_loop(b, config);
    UNLESS_FAILED(r, job_add_node(b->job, b->target, err));
    UNLESS_FAILED(r, set_up_filter(b, config, err));
    UNLESS_FAILED(r, co_put_filter_in(b, err));
    UNLESS_FAILED(r, co_set_contents(b, config, err));
    if (r == 0) {
        job_progress_set_total(b->job, cbw_uncopied_bytes(b->cbw));
    }
    return r;
}

int backup_co_new(struct block_node *filter, const struct backup_config *config,
                  struct job **ret_job, struct error *err)
{
    struct backup *b;
    struct job *job;
    int r = check_backup_config(filter, config, err);

    UNLESS_FAILED(r, job_new(&backup_driver, &config->job, &job, err));
    if (r < 0) {
        return r;
    }
    b = job_state(job);
    b->job = job;
    b->sync = config->sync;
    b->bitmap_mode = config->bitmap_mode;
    b->filter = block_node_ref(filter);
    b->source = block_node_ref(config->source);
    b->target = block_node_ref(block_node_child(filter, "target"));
    b->cbw = cbw_of_node(filter);
    r = co_set_up_backup(b, config, err);
    if (r < 0) {
        job_co_discard(job);
        return r;
    }
    *ret_job = job;
    return 0;
}

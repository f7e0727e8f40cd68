/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/pull.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/files.h"
#include "backup/pull_internal.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "base/progress.h"
#include "base/time_units.h"
#include "block/block.h"
#include "block/gate.h"
#include "co/sync.h"
#include "loop/loop.h"
#include "nbd/proto.h"

#define CONNECT_TIMEOUT_NS (30 * NS_PER_SECOND)
#define WORKERS 24
#define CONNECTIONS 2
/*
 * Timeout of all connections but the first: a server may have a limit, and then a connection waits.
 */
#define FURTHER_TIMEOUT_NS (2 * NS_PER_SECOND)
#define WATCH_NS (NS_PER_SECOND / 5)

struct pull {
    const struct pull_config *config;
    struct nbd_client *clients[CONNECTIONS];
    unsigned client_count, next_client;
    struct pull_plan plan;
    struct pull_cursor cursor;
    struct block_node *node;
    struct block_root *root;
    struct progress progress;
    uint64_t moved;
    int64_t watched_ns;
    struct error *err; /* gets the first failure */
    int status;
    struct co_group group;
};

/* --- one chunk --- */

static int fail_at(struct pull *p, int r, const char *what, const char *name, uint64_t offset)
{
    if (p->status == 0) {
        p->status = r;
        error_set_errno(p->err, -r, "Could not %s '%s' at offset %" PRIu64, what, name, offset);
    }
    return r;
}

/* Write the clusters [from, to) of a chunk, which are all data. */
static int co_write_data_chunk(struct pull *p, const struct pull_chunk *chunk, uint8_t *buf,
                               uint64_t from, uint64_t to)
{
    uint64_t first = chunk->first + from;
    uint64_t size = pull_bytes(p->config->disk_size, first, to - from);
    struct iovec vec;
    struct iov iov = iov_from_buf(&vec, buf + from * BACKUP_CLUSTER_SIZE, size);

    return block_co_pwritev(block_root_edge(p->root), first * BACKUP_CLUSTER_SIZE, iov,
                            BLOCK_REQ_COMPRESSED);
}

static int co_write_zero_chunk(struct pull *p, uint64_t first, uint64_t count)
{
    /* A new image reads as zeroes, so a full backup need not write them. */
    if (!p->config->backing) {
        return 0;
    }
    return block_co_write_zeroes(block_root_edge(p->root), first * BACKUP_CLUSTER_SIZE,
                                 pull_bytes(p->config->disk_size, first, count), 0);
}

/* Write what was read: each cluster as data, or as zeroes if it holds only zeroes. */
static int co_store_chunk(struct pull *p, const struct pull_chunk *chunk, uint8_t *buf)
{
    uint8_t *kinds = p->plan.kinds + chunk->kind_index;
    int r = 0;

    for (uint64_t i = 0; i < chunk->count; i++) {
        if (buffer_is_zero(buf + i * BACKUP_CLUSTER_SIZE, BACKUP_CLUSTER_SIZE)) {
            kinds[i] = PULL_ZERO;
        }
    }
    for (uint64_t i = 0, end; r == 0 && i < chunk->count; i = end) {
        for (end = i + 1; end < chunk->count && kinds[end] == kinds[i]; end++) {
        }
        r = kinds[i] == PULL_DATA ? co_write_data_chunk(p, chunk, buf, i, end)
                                  : co_write_zero_chunk(p, chunk->first + i, end - i);
    }
    return r;
}

static int co_pull_data(struct pull *p, struct nbd_client *client, const struct pull_chunk *chunk,
                        uint8_t *buf)
{
    uint64_t offset = chunk->first * BACKUP_CLUSTER_SIZE;
    uint64_t size = pull_bytes(p->config->disk_size, chunk->first, chunk->count);
    uint8_t digests[PULL_CHUNK_CLUSTERS * SUMS_DIGEST_SIZE];
    uint8_t *kinds = p->plan.kinds + chunk->kind_index;
    int r = nbd_client_co_pread(client, offset, buf, size);

    if (r < 0) {
        *p->config->view_failed = true;
        return fail_at(p, r, "read export", p->config->export_name, offset);
    }
    memset(buf + size, 0, chunk->count * BACKUP_CLUSTER_SIZE - size);
    p->moved += size;
    r = sums_co_digest_clusters(buf, chunk->count * BACKUP_CLUSTER_SIZE, digests);
    UNLESS_FAILED(r, co_store_chunk(p, chunk, buf));
    if (r < 0) {
        return fail_at(p, r, "write", p->config->image_path, offset);
    }
    for (uint64_t i = 0; i < chunk->count; i++) {
        if (kinds[i] != PULL_DATA) {
            memset(digests + i * SUMS_DIGEST_SIZE, 0, SUMS_DIGEST_SIZE);
        }
    }
    r = sums_write_digests(p->config->sums_fd, chunk->slot, digests, chunk->count);
    return r < 0 ? fail_at(p, r, "write", p->config->sums_path, offset) : 0;
}

static int co_pull_chunk(struct pull *p, const struct pull_chunk *chunk, uint8_t *buf)
{
    struct nbd_client *client = p->clients[p->next_client++ % p->client_count];
    uint64_t offset = chunk->first * BACKUP_CLUSTER_SIZE;
    uint64_t size = pull_bytes(p->config->disk_size, chunk->first, chunk->count);
    int r;

    if (chunk->kind == PULL_DATA) {
        r = co_pull_data(p, client, chunk, buf);
        progress_add(&p->progress, size);
    } else {
        r = co_write_zero_chunk(p, chunk->first, chunk->count);
        if (r < 0) {
            r = fail_at(p, r, "write", p->config->image_path, offset);
        }
    }
    if (r == 0 && (nbd_client_flags(client) & NBD_FLAG_SEND_TRIM) &&
        !(nbd_client_flags(client) & NBD_FLAG_READ_ONLY)) {
        /*
         * It need not be kept for us any longer. Only a hint: if it fails, more is copied than need
         * be.
         */
        nbd_client_co_trim(client, offset, size);
    }
    return r;
}

/* Call config->watch() when it is due. False: the pull has to end. */
static bool may_continue(struct pull *p)
{
    int64_t now = loop_now_ns();

    if (now - p->watched_ns >= WATCH_NS) {
        int r = p->config->watch(p->config->watch_arg, p->status == 0 ? p->err : NULL);

        p->watched_ns = now;
        p->status = p->status == 0 && r < 0 ? r : p->status;
    }
    return p->status == 0;
}

static void co_pull_worker(void *arg)
{
    struct pull *p = arg;
    uint8_t *buf = malloc((size_t)PULL_CHUNK_CLUSTERS * BACKUP_CLUSTER_SIZE);
    struct pull_chunk chunk;

    if (!buf && p->status == 0) {
        p->status = error_out_of_memory(p->err);
    }
    while (buf && p->status == 0 && pull_plan_next(&p->plan, &p->cursor, &chunk)) {
        if (p->config->stop && *p->config->stop) {
            p->status = error_set(p->err, EINTR, "The backup was stopped");
            break;
        }
        if (!may_continue(p)) {
            break;
        }
        co_pull_chunk(p, &chunk, buf);
    }
    free(buf);
    co_group_done(&p->group);
}

static int co_run_workers(struct pull *p)
{
    co_group_init(&p->group);
    for (int i = 0; i < WORKERS; i++) {
        int r;

        co_group_add(&p->group);
        r = co_spawn(reactor_home(reactor_main()), co_pull_worker, p);
        if (r < 0) {
            co_group_done(&p->group);
            if (i == 0) {
                p->status = error_set_errno(p->err, -r, "Could not start the backup");
            }
            break;
        }
    }
    co_group_wait(&p->group);
    co_group_destroy(&p->group);
    return p->status;
}

/* --- begin and end --- */

static int check_pulled_export(struct pull *p, const struct nbd_client *client)
{
    const struct pull_config *config = p->config;

    if (nbd_client_size(client) < config->disk_size) {
        return error_set(p->err, EIO, "Export '%s' has %" PRIu64 " bytes, the disk has %" PRIu64,
                         config->export_name, nbd_client_size(client), config->disk_size);
    }
    if (!nbd_client_context(client, 0)) {
        return error_set(p->err, ENOTSUP, "Export '%s' does not tell what is allocated",
                         config->export_name);
    }
    return 0;
}

static int co_connect_to_view(struct pull *p)
{
    static const char *const contexts[] = {NBD_CONTEXT_BASE_ALLOCATION};
    const struct pull_config *config = p->config;

    for (unsigned i = 0; i < CONNECTIONS; i++) {
        ERROR_AUTO(err);
        int r = nbd_client_co_connect(config->address, config->tls, config->export_name, contexts,
                                      1, i == 0 ? CONNECT_TIMEOUT_NS : FURTHER_TIMEOUT_NS,
                                      &p->clients[i], &err);
        if (r < 0 && i > 0) {
            break;
        }
        if (r < 0) {
            if (r == -ETIMEDOUT) {
                error_hint(&err, "Has the server reached its number of connections "
                                 "(max-connections)?");
            }
            error_move(p->err, &err);
            return r;
        }
        p->client_count++;
        r = check_pulled_export(p, p->clients[i]);
        if (r < 0) {
            return r;
        }
        if (!(nbd_client_flags(p->clients[i]) & NBD_FLAG_CAN_MULTI_CONN)) {
            break;
        }
    }
    return 0;
}

static int co_make_backup_image(struct pull *p)
{
    const struct pull_config *config = p->config;
    struct options *opts = options_new();
    char self[FILES_SELF_SIZE];
    int r;

    if (!opts) {
        return error_out_of_memory(p->err);
    }
    options_set_str(opts, "compression_type", "zstd");
    options_set_uint(opts, "cluster_size", BACKUP_CLUSTER_SIZE);
    if (config->backing) {
        options_set_str(opts, "backing_file", config->backing);
        options_set_str(opts, "backing_fmt", "qcow2");
    }
    files_self_path(config->image_fd, self);
    r = block_co_create_image("qcow2", self, config->disk_size, opts, p->err);
    /*
     * Without its backing file: that is never read, however long the chain, and whatever it may
     * name.
     */
    UNLESS_FAILED(r, block_co_open_filename(self, "qcow2", NULL,
                                            BLOCK_OPEN_RDWR | BLOCK_OPEN_NO_BACKING, &p->node,
                                            p->err));
    UNLESS_FAILED(r, block_co_root_new(p->node, "backup",
                                       BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                                       BLOCK_PERM_CONSISTENT_READ, &p->root, p->err));
    files_name_in_error(p->err, config->image_fd, config->image_path);
    return r;
}

static int sync_job_run(void *arg)
{
    return fsync(*(const int *)arg) < 0 ? -errno : 0;
}

static int co_finish_pull(struct pull *p)
{
    struct sums_runs runs = {0};
    int r = block_co_flush(block_root_edge(p->root));

    UNLESS_FAILED(r, block_co_inactivate(p->node, p->err));
    if (r < 0) {
        return error_set_errno(p->err, -r, "Could not write '%s'", p->config->image_path);
    }
    r = pull_plan_to_sums(&p->plan, &runs);
    UNLESS_FAILED(r, sums_write_finish(p->config->sums_fd, &runs, p->config->disk_size));
    UNLESS_FAILED(r, loop_co_offload(sync_job_run, (void *)&p->config->sums_fd));
    sums_runs_clear(&runs);
    if (r < 0) {
        return error_set_errno(p->err, -r, "Could not write '%s'", p->config->sums_path);
    }
    return 0;
}

static void co_close_image(struct pull *p)
{
    for (unsigned i = 0; i < CONNECTIONS; i++) {
        nbd_client_co_close(p->clients[i]);
    }
    block_co_root_release(p->root);
    block_co_unref(p->node);
    pull_plan_clear(&p->plan);
}

int pull_co_run(const struct pull_config *config, struct pull_result *ret_result, struct error *err)
{
    struct pull p = {.config = config, .err = err};
    uint64_t changed = 0;
    int r = pull_co_plan_areas(config, &p.plan, err);

    UNLESS_FAILED(r, co_connect_to_view(&p));
    UNLESS_FAILED(r, pull_co_plan_kinds(config, p.clients[0], &p.plan, err));
    UNLESS_FAILED(r, co_make_backup_image(&p));
    if (r == 0) {
        uint64_t clusters = config->bitmap ? p.plan.runs.digests : p.plan.data_clusters;

        changed = MIN(clusters * BACKUP_CLUSTER_SIZE, config->disk_size);
        progress_begin(&p.progress, stderr, config->progress, config->backing ? "changed" : "disk",
                       p.plan.data_clusters * BACKUP_CLUSTER_SIZE);
        r = co_run_workers(&p);
        UNLESS_FAILED(r, co_finish_pull(&p));
        progress_end(&p.progress, r == 0);
    }
    co_close_image(&p);
    if (r == 0) {
        *ret_result = (struct pull_result){.changed = changed, .moved = p.moved};
    }
    return r;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/pull.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/giving_up.h"
#include "backup/pull_internal.h"
#include "backup/stored_node.h"
#include "backup/writeback.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "base/pacer.h"
#include "base/progress.h"
#include "block/block.h"
#include "block/gate.h"
#include "co/sync.h"

#define WORKERS 12

/* --- one chunk --- */

/* Clusters of the plan in one of the image. */
static unsigned group_of(const struct pull *p)
{
    return p->config->backing ? 1 : BACKUP_FULL_CLUSTER_PARTS;
}

static int fail_read(struct pull *p, int r, uint64_t offset)
{
    if (p->status == 0) {
        p->status = r;
        error_set_errno(p->err, -r, "Could not read %s at offset %" PRIu64, p->config->input->shown,
                        offset);
    }
    return r;
}

static int fail_write(struct pull *p, int r, const char *path, uint64_t offset)
{
    if (p->status == 0) {
        p->status = r;
        error_set_errno(p->err, -r, "Could not write '%s' at offset %" PRIu64, path, offset);
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
    return block_co_write_zeroes(block_root_edge(p->root), first * BACKUP_CLUSTER_SIZE,
                                 pull_bytes(p->config->disk_size, first, count), 0);
}

/* What was read becomes data, zeroes if it holds only zeroes, or the same as in the parent. */
static int judge_chunk(struct pull *p, const struct pull_chunk *chunk, const uint8_t *buf,
                       uint8_t *digests, uint8_t *ret_kinds)
{
    int r = 0;

    for (uint64_t i = 0; i < chunk->count; i++) {
        bool zero =
            chunk->is_hole[i] || buffer_is_zero(buf + i * BACKUP_CLUSTER_SIZE, BACKUP_CLUSTER_SIZE);

        ret_kinds[i] = chunk->is_hole[i] ? PULL_SKIP : zero ? PULL_ZERO : PULL_DATA;
        if (zero) {
            memset(digests + i * SUMS_DIGEST_SIZE, 0, SUMS_DIGEST_SIZE);
        }
    }
    if (p->config->parent) {
        pull_compare_kinds(chunk, digests, ret_kinds);
    }
    for (uint64_t i = 0; r == 0 && i < chunk->count; i++) {
        r = kind_map_set(&p->plan.kinds, chunk->kind_index + i, 1, ret_kinds[i]);
    }
    return r;
}

/* Whole clusters of the image, where one has data. A new image reads as zeroes. */
static int co_store_full_chunk(struct pull *p, const struct pull_chunk *chunk, const uint8_t *kinds,
                               uint8_t *buf)
{
    const uint64_t group = BACKUP_FULL_CLUSTER_PARTS;
    uint64_t first = 0;
    int r = 0;

    for (uint64_t i = 0; r == 0 && i < chunk->count; i += group) {
        uint64_t end = MIN(i + group, chunk->count);

        if (!memchr(kinds + i, PULL_DATA, end - i)) {
            r = first < i ? co_write_data_chunk(p, chunk, buf, first, i) : 0;
            first = end;
        }
    }
    return r == 0 && first < chunk->count ? co_write_data_chunk(p, chunk, buf, first, chunk->count)
                                          : r;
}

static int co_store_chunk(struct pull *p, const struct pull_chunk *chunk, const uint8_t *kinds,
                          uint8_t *buf)
{
    int r = 0;

    if (!p->config->backing) {
        return co_store_full_chunk(p, chunk, kinds, buf);
    }

    for (uint64_t i = 0, end; r == 0 && i < chunk->count; i = end) {
        for (end = i + 1; end < chunk->count && kinds[end] == kinds[i]; end++) {
        }
        if (kinds[i] == PULL_DATA) {
            r = co_write_data_chunk(p, chunk, buf, i, end);
        } else if (kinds[i] == PULL_ZERO) {
            r = co_write_zero_chunk(p, chunk->first + i, end - i);
        }
    }
    return r;
}

static bool is_all_the_same(const uint8_t *kinds, uint64_t count)
{
    uint64_t i = 0;

    while (i < count && kinds[i] == PULL_SAME) {
        i++;
    }
    return i == count;
}

/* Read clusters [from, to) of a chunk, and make their digests. */
static int co_read_data_run(struct pull *p, const struct pull_chunk *chunk, uint64_t from,
                            uint64_t to, uint8_t *buf, uint8_t *digests)
{
    struct pull_input *input = p->config->input;
    uint64_t offset = (chunk->first + from) * BACKUP_CLUSTER_SIZE;
    uint64_t size = pull_bytes(p->config->disk_size, chunk->first + from, to - from);
    uint64_t room = (to - from) * BACKUP_CLUSTER_SIZE;
    int r;

    buf += from * BACKUP_CLUSTER_SIZE;
    pull_co_await_turn(p, size);
    r = input->ops->co_read(input, offset, buf, size);
    if (r < 0) {
        *p->config->view_failed = true;
        return fail_read(p, r, offset);
    }
    memset(buf + size, 0, room - size);
    p->moved += size;
    progress_add(&p->progress, size);
    r = sums_co_digest_clusters(buf, room, digests + from * SUMS_DIGEST_SIZE);
    return r < 0 ? fail_write(p, r, p->config->image_path, offset) : 0;
}

/* Read what the plan has as data; the rest is zeroes. */
static int co_read_pull_chunk(struct pull *p, const struct pull_chunk *chunk, uint8_t *buf,
                              uint8_t *digests)
{
    int r = 0;

    for (uint64_t i = 0, end; r == 0 && i < chunk->count; i = end) {
        for (end = i + 1; end < chunk->count && chunk->is_hole[end] == chunk->is_hole[i]; end++) {
        }
        if (chunk->is_hole[i]) {
            memset(buf + i * BACKUP_CLUSTER_SIZE, 0, (end - i) * BACKUP_CLUSTER_SIZE);
        } else {
            r = co_read_data_run(p, chunk, i, end, buf, digests);
        }
    }
    return r;
}

/* The digests of a chunk in a row. Returns how many. */
static size_t close_up_digests(const struct pull_chunk *chunk, uint8_t *digests)
{
    size_t count = 0;

    for (uint64_t i = 0; i < chunk->count; i++) {
        if (!chunk->is_hole[i]) {
            memmove(digests + count++ * SUMS_DIGEST_SIZE, digests + i * SUMS_DIGEST_SIZE,
                    SUMS_DIGEST_SIZE);
        }
    }
    return count;
}

static int co_pull_data(struct pull *p, const struct pull_chunk *chunk, uint8_t *buf)
{
    uint64_t offset = chunk->first * BACKUP_CLUSTER_SIZE;
    uint8_t digests[PULL_CHUNK_CLUSTERS * SUMS_DIGEST_SIZE] = {0}, kinds[PULL_CHUNK_CLUSTERS];
    int r = co_read_pull_chunk(p, chunk, buf, digests);

    if (r < 0) {
        return r;
    }
    r = judge_chunk(p, chunk, buf, digests, kinds);
    UNLESS_FAILED(r, co_store_chunk(p, chunk, kinds, buf));
    if (r < 0) {
        return fail_write(p, r, p->config->image_path, offset);
    }
    writeback_co_push_all(&p->writeback);
    r = is_all_the_same(kinds, chunk->count)
            ? 0
            : sums_write_digests(p->sums, chunk->slot, digests, close_up_digests(chunk, digests));
    return r < 0 ? fail_write(p, r, p->config->sums_path, offset) : 0;
}

static int co_pull_chunk(struct pull *p, const struct pull_chunk *chunk, uint8_t *buf)
{
    struct pull_input *input = p->config->input;
    uint64_t offset = chunk->first * BACKUP_CLUSTER_SIZE;
    uint64_t size = pull_bytes(p->config->disk_size, chunk->first, chunk->count);
    int r;

    if (chunk->kind == PULL_DATA) {
        r = co_pull_data(p, chunk, buf);
    } else {
        r = co_write_zero_chunk(p, chunk->first, chunk->count);
        if (r < 0) {
            r = fail_write(p, r, p->config->image_path, offset);
        }
    }
    if (r == 0) {
        input->ops->co_release(input, offset, size);
    }
    return r;
}

/* The next chunk, with what the parent has there. False: there is none, or an error. */
static bool next_pull_chunk(struct pull *p, struct pull_chunk *ret_chunk)
{
    struct chain *parent = p->config->parent;
    int r;

    if (!pull_plan_next(&p->plan, group_of(p), &p->cursor, ret_chunk)) {
        return false;
    }
    r = parent && ret_chunk->kind == PULL_DATA ? pull_compare_look_up(parent, ret_chunk) : 0;
    if (r < 0 && p->status == 0) {
        p->status = error_set_errno(p->err, -r, "Could not read checksums of the last backup");
    }
    return r == 0;
}

static void co_pull_worker(void *arg)
{
    struct pull *p = arg;
    uint8_t *buf = malloc((size_t)PULL_CHUNK_CLUSTERS * BACKUP_CLUSTER_SIZE);
    struct pull_chunk chunk;

    if (!buf && p->status == 0) {
        p->status = error_out_of_memory(p->err);
    }
    while (buf && p->status == 0 && next_pull_chunk(p, &chunk) && pull_may_continue(p)) {
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

static int co_make_backup_image(struct pull *p)
{
    const struct pull_config *config = p->config;
    const struct stored_image image = {
        .shown = config->image_path,
        .fd = config->image_fd,
        .seal = config->seal,
        .size = config->disk_size,
        .backing = config->backing,
    };
    int r = stored_node_co_create(&image, &p->node, p->err);

    p->sums = stored_create(config->sums_fd, config->seal, STORED_SUMS);
    if (r == 0 && !p->sums) {
        r = error_out_of_memory(p->err);
    }
    UNLESS_FAILED(r, block_co_root_new(p->node, "backup",
                                       BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                                       BLOCK_PERM_CONSISTENT_READ, &p->root, p->err));
    return r;
}

static int co_finish_pull(struct pull *p)
{
    struct sums_runs runs = {0};
    int r = block_co_inactivate(p->node, p->err);

    if (r < 0) {
        return error_set_errno(p->err, -r, "Could not write '%s'", p->config->image_path);
    }
    r = p->config->parent ? pull_compare_close_gaps(&p->plan, p->sums) : 0;
    UNLESS_FAILED(r, pull_plan_to_sums(&p->plan, &runs));
    if (p->config->parent) {
        p->stored = runs.digests;
    }
    UNLESS_FAILED(r, sums_write_finish(p->sums, &runs, p->config->disk_size));
    sums_runs_clear(&runs);
    if (r < 0) {
        return error_set_errno(p->err, -r, "Could not write '%s'", p->config->sums_path);
    }
    return 0;
}

static void co_close_image(struct pull *p)
{
    block_co_root_release(p->root);
    block_co_unref(p->node);
    stored_free(p->sums);
    pull_plan_clear(&p->plan);
}

static void co_give_up_input(void *arg)
{
    struct pull_input *input = arg;

    input->ops->co_give_up(input);
}

int pull_co_run(const struct pull_config *config, struct pull_result *ret_result, struct error *err)
{
    struct pull p = {.config = config,
                     .pacer = {.rate = config->rate},
                     .writeback = {.fd = config->image_fd},
                     .err = err};
    struct giving_up giving_up;
    uint64_t clusters = 0;
    int r;

    giving_up_begin(&giving_up, config->stop, co_give_up_input, config->input);
    r = pull_co_plan_areas(config, &p.plan, err);
    UNLESS_FAILED(r, config->input->ops->co_begin(config->input, config->disk_size, err));
    UNLESS_FAILED(r, pull_co_plan_kinds(config, &p.plan, err));
    UNLESS_FAILED(r, co_make_backup_image(&p));
    if (r == 0) {
        clusters = p.plan.data_clusters;
        progress_begin(&p.progress, stderr, config->progress,
                       config->input->has_bitmap ? "changed" : "disk",
                       p.plan.data_clusters * BACKUP_CLUSTER_SIZE);
        pull_co_compare_ahead(&p);
        r = co_run_workers(&p);
        UNLESS_FAILED(r, co_finish_pull(&p));
        progress_end(&p.progress, r == 0);
    }
    co_close_image(&p);
    r = giving_up_co_end(&giving_up, r, PULL_STOPPED, err);
    if (r == -EINTR) {
        *config->view_failed = false; /* reads were given up */
    }
    if (r == 0) {
        clusters = config->parent ? p.stored : clusters;
        *ret_result = (struct pull_result){
            .changed = MIN(clusters * BACKUP_CLUSTER_SIZE, config->disk_size),
            .moved = p.moved,
        };
    }
    return r;
}

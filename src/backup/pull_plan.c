/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plan of a pull. The bitmap is queried first, on a connection of its own: outside the areas
 * that it marks, the view refuses even block status. Then the marked areas are queried for zeroes,
 * several at a time.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "backup/pull_internal.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/time_units.h"
#include "co/sync.h"
#include "loop/loop.h"
#include "nbd/proto.h"

#define CONNECT_TIMEOUT_NS (30 * NS_PER_SECOND)
/* Bytes per status request: a length that fits into 32 bits, with room for alignment. */
#define STATUS_BYTES (1ULL << 30)
#define ASKERS 16

void pull_plan_clear(struct pull_plan *plan)
{
    sums_runs_clear(&plan->runs);
    free(plan->kinds);
    *plan = (struct pull_plan){0};
}

/* Add the clusters that [offset, offset + length) touches; offsets ascend from call to call. */
static int add_dirty(struct sums_runs *runs, uint64_t offset, uint64_t length)
{
    uint64_t first = offset / BACKUP_CLUSTER_SIZE;
    uint64_t end = div_round_up(offset + length, BACKUP_CLUSTER_SIZE);

    if (runs->count > 0) {
        const struct sums_run *last = &runs->list[runs->count - 1];
        first = MAX(first, last->first + last->count);
    }
    return first < end ? sums_runs_add(runs, first, end - first, SUMS_DATA) : 0;
}

static int co_read_bitmap(const struct pull_config *config, struct nbd_client *client,
                          struct sums_runs *runs, struct error *err)
{
    uint64_t offset = 0;

    while (offset < config->disk_size) {
        struct nbd_extents extents = {0};
        uint64_t ask = MIN(config->disk_size - offset, STATUS_BYTES);
        int r = nbd_client_co_block_status(client, offset, ask, false, &extents);

        if (r == 0 && extents.count == 0) {
            r = -EPROTO;
        }
        for (size_t i = 0; r == 0 && i < extents.count; i++) {
            if (extents.list[i].flags & NBD_STATE_DIRTY) {
                r = add_dirty(runs, offset, extents.list[i].length);
            }
            offset += extents.list[i].length;
        }
        nbd_extents_clear(&extents);
        if (r < 0) {
            return error_set_errno(err, -r, "Could not read bitmap '%s' of export '%s'",
                                   config->bitmap, config->export_name);
        }
    }
    return 0;
}

static int co_plan_dirty(const struct pull_config *config, struct sums_runs *runs,
                         struct error *err)
{
    struct nbd_client *client;
    char *context AUTO_FREE = NULL;
    const char *contexts[1];
    int r;

    if (asprintf(&context, NBD_CONTEXT_DIRTY_BITMAP "%s", config->bitmap) < 0) {
        context = NULL;
        return error_out_of_memory(err);
    }
    contexts[0] = context;
    r = nbd_client_co_connect(config->address, config->tls, config->export_name, contexts, 1,
                              CONNECT_TIMEOUT_NS, &client, err);
    if (r < 0) {
        return r;
    }
    r = nbd_client_context(client, 0)
            ? co_read_bitmap(config, client, runs, err)
            : error_set(err, ENOENT, "Export '%s' does not offer bitmap '%s'", config->export_name,
                        config->bitmap);
    nbd_client_co_close(client);
    return r;
}

/* --- allocation --- */

struct ask {
    const struct pull_config *config;
    struct nbd_client *client;
    struct pull_plan *plan;
    size_t run; /* the next area to query */
    uint64_t in_run;
    int status; /* the first failure */
    struct co_group group;
};

static void mark_data(struct pull_plan *plan, const struct sums_run *run, uint64_t offset,
                      uint64_t length)
{
    uint64_t first = offset / BACKUP_CLUSTER_SIZE;
    uint64_t end = div_round_up(offset + length, BACKUP_CLUSTER_SIZE);

    for (uint64_t c = first; c < end; c++) {
        plan->kinds[run->digest + (c - run->first)] = PULL_DATA;
    }
}

static int co_ask_area(struct ask *a, const struct sums_run *run, uint64_t offset, uint64_t length)
{
    while (length > 0) {
        struct nbd_extents extents = {0};
        int r = nbd_client_co_block_status(a->client, offset, length, false, &extents);

        if (r == 0 && extents.count == 0) {
            r = -EPROTO;
        }
        for (size_t i = 0; r == 0 && i < extents.count; i++) {
            uint64_t n = MIN(length, extents.list[i].length);

            if (!(extents.list[i].flags & NBD_STATE_ZERO)) {
                mark_data(a->plan, run, offset, n);
            }
            offset += n;
            length -= n;
        }
        nbd_extents_clear(&extents);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static void co_ask_worker(void *arg)
{
    struct ask *a = arg;

    while (a->status == 0 && a->run < a->plan->runs.count) {
        const struct sums_run *run = &a->plan->runs.list[a->run];
        uint64_t count = MIN(run->count - a->in_run, STATUS_BYTES / BACKUP_CLUSTER_SIZE);
        uint64_t first = run->first + a->in_run;
        int r;

        a->in_run += count;
        if (a->in_run == run->count) {
            a->run++;
            a->in_run = 0;
        }
        r = co_ask_area(a, run, first * BACKUP_CLUSTER_SIZE,
                        pull_bytes(a->config->disk_size, first, count));
        if (r < 0 && a->status == 0) {
            a->status = r;
        }
    }
    co_group_done(&a->group);
}

static int co_ask_kinds(const struct pull_config *config, struct nbd_client *client,
                        struct pull_plan *plan)
{
    struct ask a = {.config = config, .client = client, .plan = plan};

    co_group_init(&a.group);
    for (int i = 0; i < ASKERS; i++) {
        int r;

        co_group_add(&a.group);
        r = co_spawn(reactor_home(reactor_main()), co_ask_worker, &a);
        if (r < 0) {
            co_group_done(&a.group);
            a.status = i == 0 ? r : a.status;
            break;
        }
    }
    co_group_wait(&a.group);
    co_group_destroy(&a.group);
    return a.status;
}

static void settle_kinds(struct pull_plan *plan, bool keep_zeroes)
{
    for (uint64_t i = 0; i < plan->runs.digests; i++) {
        if (plan->kinds[i] == PULL_DATA) {
            plan->data_clusters++;
        } else if (keep_zeroes) {
            plan->kinds[i] = PULL_ZERO;
        }
    }
}

int pull_co_plan_areas(const struct pull_config *config, struct pull_plan *ret_plan,
                       struct error *err)
{
    uint64_t clusters = div_round_up(config->disk_size, BACKUP_CLUSTER_SIZE);

    if (config->bitmap) {
        return co_plan_dirty(config, &ret_plan->runs, err);
    }
    return sums_runs_add(&ret_plan->runs, 0, clusters, SUMS_DATA) < 0 ? error_out_of_memory(err)
                                                                      : 0;
}

int pull_co_plan_kinds(const struct pull_config *config, struct nbd_client *client,
                       struct pull_plan *plan, struct error *err)
{
    int r;

    plan->kinds = calloc(plan->runs.digests + 1, 1);
    r = plan->kinds ? co_ask_kinds(config, client, plan) : -ENOMEM;
    if (r < 0) {
        return error_set_errno(err, -r, "Could not ask export '%s' what is allocated",
                               config->export_name);
    }
    settle_kinds(plan, config->bitmap != NULL);
    return 0;
}

/* --- walking --- */

bool pull_plan_next(const struct pull_plan *plan, struct pull_cursor *cursor,
                    struct pull_chunk *ret_chunk)
{
    while (cursor->run < plan->runs.count) {
        const struct sums_run *run = &plan->runs.list[cursor->run];
        const uint8_t *kinds = plan->kinds + run->digest;
        uint64_t start = cursor->in_run, end = start;
        enum pull_kind kind = kinds[start];
        uint64_t most = kind == PULL_DATA ? PULL_CHUNK_CLUSTERS : run->count;

        while (end < run->count && end - start < most && kinds[end] == kind) {
            end++;
        }
        cursor->in_run = end;
        if (end == run->count) {
            cursor->run++;
            cursor->in_run = 0;
        }
        if (kind == PULL_SKIP) {
            continue;
        }
        *ret_chunk = (struct pull_chunk){run->first + start, end - start, run->digest + start,
                                         cursor->slot, kind};
        cursor->slot += end - start;
        return true;
    }
    return false;
}

int pull_plan_to_sums(const struct pull_plan *plan, struct sums_runs *ret_runs)
{
    for (size_t i_run = 0; i_run < plan->runs.count; i_run++) {
        const struct sums_run *run = &plan->runs.list[i_run];

        for (uint64_t i = 0; i < run->count; i++) {
            uint8_t kind = plan->kinds[run->digest + i];
            int r = kind == PULL_SKIP ? 0
                                      : sums_runs_add(ret_runs, run->first + i, 1,
                                                      kind == PULL_DATA ? SUMS_DATA : SUMS_ZERO);
            if (r < 0) {
                return r;
            }
        }
    }
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plan of a pull. The bitmap is queried first; then the areas that it marks are queried for
 * zeroes, several at a time.
 */
#include <errno.h>
#include <stdlib.h>

#include "backup/pull_internal.h"
#include "base/checked.h"
#include "co/sync.h"
#include "loop/loop.h"

/* Bytes that are asked about at once. */
#define STATUS_BYTES (1ULL << 30)
#define ASKERS 16

void pull_plan_clear(struct pull_plan *plan)
{
    sums_runs_clear(&plan->runs);
    sums_runs_clear(&plan->marked);
    kind_map_clear(&plan->kinds);
    *plan = (struct pull_plan){0};
}

struct find_areas {
    struct sums_runs *runs;
    uint64_t limit; /* bytes */
};

/* Add the clusters that [offset, offset + length) touches; offsets ascend from call to call. */
static int add_changed_area(void *arg, uint64_t offset, uint64_t length)
{
    const struct find_areas *f = arg;
    uint64_t first = offset / BACKUP_CLUSTER_SIZE;
    uint64_t end = div_round_up(MIN(offset + length, f->limit), BACKUP_CLUSTER_SIZE);

    if (f->runs->count > 0) {
        const struct sums_run *last = &f->runs->list[f->runs->count - 1];
        first = MAX(first, last->first + last->count);
    }
    return first < end ? sums_runs_add(f->runs, first, end - first, SUMS_DATA) : 0;
}

/* --- allocation --- */

struct ask {
    const struct pull_config *config;
    struct pull_plan *plan;
    size_t run; /* the next area to query */
    uint64_t in_run;
    int status; /* the first failure */
    struct co_group group;
};

/* Of one query. */
struct ask_area {
    struct pull_plan *plan;
    const struct sums_run *run;
};

static int mark_data(void *arg, uint64_t offset, uint64_t length)
{
    const struct ask_area *a = arg;
    uint64_t first = offset / BACKUP_CLUSTER_SIZE;
    uint64_t end = div_round_up(offset + length, BACKUP_CLUSTER_SIZE);

    return kind_map_set(&a->plan->kinds, a->run->digest + (first - a->run->first), end - first,
                        PULL_DATA);
}

static void co_ask_worker(void *arg)
{
    struct ask *a = arg;
    struct pull_input *input = a->config->input;

    while (a->status == 0 && a->run < a->plan->runs.count) {
        struct ask_area area = {a->plan, &a->plan->runs.list[a->run]};
        uint64_t count = MIN(area.run->count - a->in_run, STATUS_BYTES / BACKUP_CLUSTER_SIZE);
        uint64_t first = area.run->first + a->in_run;
        int r;

        a->in_run += count;
        if (a->in_run == area.run->count) {
            a->run++;
            a->in_run = 0;
        }
        r = input->ops->co_data(input, first * BACKUP_CLUSTER_SIZE,
                                pull_bytes(a->config->disk_size, first, count), mark_data, &area);
        if (r < 0 && a->status == 0) {
            a->status = r;
        }
    }
    co_group_done(&a->group);
}

static int co_ask_kinds(const struct pull_config *config, struct pull_plan *plan)
{
    struct ask a = {.config = config, .plan = plan};

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

static void count_data_of_run(struct pull_plan *plan, const struct sums_run *run)
{
    for (uint64_t i = 0, end; i < run->count; i = end) {
        uint64_t index = run->digest + i;
        unsigned kind = kind_map_get(&plan->kinds, index);

        end = kind_map_run_end(&plan->kinds, index, run->digest + run->count) - run->digest;
        plan->data_clusters += kind == PULL_DATA ? end - i : 0;
    }
}

/* Whether zeroes are looked for everywhere, and not only where the bitmap marks changes. */
static bool looks_at_all(const struct pull_config *config)
{
    return !config->input->has_bitmap || config->disk_size > config->parent_size;
}

/*
 * Of a plan of the whole disk, leave out data that the bitmap does not mark. If the disk was cut
 * off meanwhile within a cluster, the rest of that cluster is zero, which its status does not show;
 * but then all data after it is marked. So the last cluster that is not is read all the same.
 */
static int leave_out_unmarked(struct pull_plan *plan)
{
    uint64_t cluster = 0, last = 0, next;
    bool any = false;
    int r = 0;

    for (size_t n = 0; r == 0 && n <= plan->marked.count; n++) {
        const struct sums_run *run = n < plan->marked.count ? &plan->marked.list[n] : NULL;
        uint64_t end = run ? run->first : plan->runs.digests;

        for (; r == 0 && cluster < end; cluster = next) {
            next = kind_map_run_end(&plan->kinds, cluster, end);
            if (kind_map_get(&plan->kinds, cluster) == PULL_DATA) {
                any = true;
                last = next - 1;
                r = kind_map_set(&plan->kinds, cluster, next - cluster, PULL_UNMARKED);
            }
        }
        cluster += run ? run->count : 0;
    }
    return r == 0 && any ? kind_map_set(&plan->kinds, last, 1, PULL_DATA) : r;
}

/*
 * What the bitmap marks, and what the disk has grown by, with the cluster that was short before:
 * programs do not agree whether a bitmap marks that.
 */
static int co_plan_changed(const struct pull_config *config, struct sums_runs *runs,
                           struct error *err)
{
    uint64_t clusters = div_round_up(config->disk_size, BACKUP_CLUSTER_SIZE);
    uint64_t grown_from = config->parent_size / BACKUP_CLUSTER_SIZE;
    bool grown = config->disk_size > config->parent_size;
    struct find_areas find = {runs, grown ? grown_from * BACKUP_CLUSTER_SIZE : config->disk_size};
    int r = config->input->ops->co_changed(config->input, add_changed_area, &find, err);

    if (r == 0 && grown && sums_runs_add(runs, grown_from, clusters - grown_from, SUMS_DATA) < 0) {
        r = error_out_of_memory(err);
    }
    return r;
}

int pull_co_plan_areas(const struct pull_config *config, struct pull_plan *ret_plan,
                       struct error *err)
{
    uint64_t clusters = div_round_up(config->disk_size, BACKUP_CLUSTER_SIZE);
    bool all = looks_at_all(config);

    if (config->input->has_bitmap) {
        int r = co_plan_changed(config, all ? &ret_plan->marked : &ret_plan->runs, err);

        if (r < 0 || !all) {
            return r;
        }
    }
    return sums_runs_add(&ret_plan->runs, 0, clusters, SUMS_DATA) < 0 ? error_out_of_memory(err)
                                                                      : 0;
}

int pull_co_plan_kinds(const struct pull_config *config, struct pull_plan *plan, struct error *err)
{
    int r;

    if (kind_map_init(&plan->kinds, plan->runs.digests) < 0) {
        return error_out_of_memory(err);
    }
    r = co_ask_kinds(config, plan);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not ask %s what is allocated", config->input->shown);
    }
    if (config->input->has_bitmap && looks_at_all(config)) {
        r = leave_out_unmarked(plan);
    }
    for (size_t n = 0; n < plan->runs.count; n++) {
        count_data_of_run(plan, &plan->runs.list[n]);
    }
    if (config->parent) {
        UNLESS_FAILED(r, pull_compare_zeroes(config->parent, plan));
    }
    return r < 0 ? error_out_of_memory(err) : 0;
}

/* --- walking --- */

/* Whether a cluster of the image has data. */
static bool has_data(const struct pull_plan *plan, uint64_t first, uint64_t end)
{
    while (first < end && kind_map_get(&plan->kinds, first) != PULL_DATA) {
        first = kind_map_run_end(&plan->kinds, first, end);
    }
    return first < end;
}

/*
 * From a cluster with data on, whole clusters of the image that have some; the plan is of the whole
 * disk, so its indices are numbers of clusters. Returns where they end.
 */
static uint64_t take_groups(const struct pull_plan *plan, unsigned group, uint64_t cluster,
                            uint64_t slot, struct pull_chunk *ret_chunk)
{
    uint64_t first = cluster / group * group, end = first, all = plan->runs.digests;

    do {
        end = MIN(end + group, all);
    } while (end < all && end - first + group <= PULL_CHUNK_CLUSTERS &&
             has_data(plan, end, MIN(end + group, all)));
    *ret_chunk = (struct pull_chunk){
        .first = first, .count = end - first, .kind_index = first, .slot = slot, .kind = PULL_DATA};
    for (uint64_t i = first; i < end; i++) {
        ret_chunk->is_hole[i - first] = kind_map_get(&plan->kinds, i) != PULL_DATA;
    }
    return end;
}

static void go_to(const struct pull_plan *plan, struct pull_cursor *cursor, uint64_t index)
{
    const struct sums_run *run = &plan->runs.list[cursor->run];

    if (index >= run->digest + run->count) {
        cursor->run++;
        run++;
    }
    cursor->in_run = cursor->run < plan->runs.count ? index - run->digest : 0;
}

uint64_t pull_chunk_digests(const struct pull_chunk *chunk)
{
    uint64_t count = chunk->count;

    for (uint64_t i = 0; chunk->kind == PULL_DATA && i < chunk->count; i++) {
        count -= chunk->is_hole[i];
    }
    return count;
}

bool pull_plan_next(const struct pull_plan *plan, unsigned group, struct pull_cursor *cursor,
                    struct pull_chunk *ret_chunk)
{
    while (cursor->run < plan->runs.count) {
        const struct sums_run *run = &plan->runs.list[cursor->run];
        uint64_t start = cursor->in_run, index = run->digest + start, end;
        enum pull_kind kind = (enum pull_kind)kind_map_get(&plan->kinds, index);
        uint64_t most = run->count - start;

        if (group > 1 && kind == PULL_DATA) {
            end = take_groups(plan, group, index, cursor->slot, ret_chunk);
            go_to(plan, cursor, end);
            cursor->slot += pull_chunk_digests(ret_chunk);
            return true;
        }
        most = kind == PULL_DATA ? MIN(most, PULL_CHUNK_CLUSTERS) : most;
        end = kind_map_run_end(&plan->kinds, index, index + most) - run->digest;
        cursor->in_run = end;
        if (end == run->count) {
            cursor->run++;
            cursor->in_run = 0;
        }
        if (kind == PULL_SKIP || kind == PULL_UNMARKED) {
            continue;
        }
        if (kind == PULL_SAME) {
            cursor->slot += end - start;
            continue;
        }
        *ret_chunk = (struct pull_chunk){.first = run->first + start,
                                         .count = end - start,
                                         .kind_index = index,
                                         .slot = cursor->slot,
                                         .kind = kind};
        cursor->slot += end - start;
        return true;
    }
    return false;
}

static int add_to_sums(const struct pull_plan *plan, const struct sums_run *run,
                       struct sums_runs *runs)
{
    uint64_t i = 0, end;
    int r = 0;

    for (; r == 0 && i < run->count; i = end) {
        uint64_t index = run->digest + i;
        unsigned kind = kind_map_get(&plan->kinds, index);

        end = kind_map_run_end(&plan->kinds, index, run->digest + run->count) - run->digest;
        if (kind == PULL_DATA || kind == PULL_ZERO) {
            r = sums_runs_add(runs, run->first + i, end - i,
                              kind == PULL_DATA ? SUMS_DATA : SUMS_ZERO);
        }
    }
    return r;
}

int pull_plan_to_sums(const struct pull_plan *plan, struct sums_runs *ret_runs)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < plan->runs.count; i++) {
        r = add_to_sums(plan, &plan->runs.list[i], ret_runs);
    }
    return r;
}

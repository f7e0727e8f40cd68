/* SPDX-License-Identifier: Apache-2.0 */
/* query-blockstats, as QEMU has it, and x-tidemark-query-stats, with all figures there are. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/block.h"
#include "block/stats.h"
#include "export/export.h"
#include "loop/loop.h"
#include "qmp/commands.h"
#include "qmp/latency.h"
#include "stats/stats.h"

/* --- query-blockstats ------------------------------------------------------------------------- */

/* The sum of two figures, the second of which may be NULL: none. */
static void put_sum(struct json_object *to, const char *name, const struct stats_object *o,
                    const char *first, const char *second)
{
    uint64_t sum = stats_value(o, first) + (second ? stats_value(o, second) : 0);

    qmp_put_new(to, name, json_object_new_uint64(sum));
}

/* QEMU's name of a histogram, and of the sum of its durations, and ours. */
static const struct latency {
    const char *histogram, *time, *ours;
} latencies[] = {
    {"rd_latency_histogram", "rd_total_time_ns", "read_latency"},
    {"wr_latency_histogram", "wr_total_time_ns", "write_latency"},
    {NULL, "unmap_total_time_ns", "zap_latency"},
    {"flush_latency_histogram", "flush_total_time_ns", "flush_latency"},
};

/* {"boundaries": [...], "bins": [...]}: bin i counts from boundary i - 1 to below boundary i. */
static struct json_object *histogram_json(const uint64_t *values)
{
    struct json_object *o = json_object_new_object();
    struct json_object *boundaries = json_object_new_array(), *bins = json_object_new_array();

    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        if (i > 0) {
            json_object_array_add(boundaries, json_object_new_uint64(UINT64_C(1) << i));
        }
        json_object_array_add(bins, json_object_new_uint64(values[i]));
    }
    json_object_object_add(o, "boundaries", boundaries);
    json_object_object_add(o, "bins", bins);
    return o;
}

/* Members that nodes and exports have; `times` are put by the caller. */
static struct json_object *block_stats_json(bool account_invalid)
{
    struct json_object *o = json_object_new_object();

    /* Requests are never merged here. */
    qmp_put_new(o, "rd_merged", json_object_new_uint64(0));
    qmp_put_new(o, "wr_merged", json_object_new_uint64(0));
    qmp_put_new(o, "unmap_merged", json_object_new_uint64(0));
    qmp_put_zone_figures(o);
    qmp_put_new(o, "account_invalid", json_object_new_boolean(account_invalid));
    qmp_put_new(o, "account_failed", json_object_new_boolean(true));
    qmp_put_new(o, "timed_stats", json_object_new_array());
    return o;
}

/* What nodes and exports count by the same names. */
static void put_common_stats(struct json_object *to, const struct stats_object *o)
{
    put_sum(to, "rd_bytes", o, "read_bytes", NULL);
    put_sum(to, "failed_rd_operations", o, "read_failed", NULL);
    put_sum(to, "invalid_rd_operations", o, "read_invalid", NULL);
    put_sum(to, "wr_bytes", o, "write_bytes", "zeroes_bytes");
    put_sum(to, "failed_wr_operations", o, "write_failed", "zeroes_failed");
    put_sum(to, "invalid_wr_operations", o, "write_invalid", "zeroes_invalid");
    put_sum(to, "failed_flush_operations", o, "flush_failed", NULL);
    put_sum(to, "invalid_flush_operations", o, "flush_invalid", NULL);
}

static void put_node_stats(const struct stats_object *o, void *arg)
{
    struct json_object *to = arg;

    /* What a driver adds has no place in QEMU's structure. */
    if (strcmp(o->group, "node") != 0) {
        return;
    }
    put_common_stats(to, o);
    put_sum(to, "rd_operations", o, "read_operations", NULL);
    put_sum(to, "rd_total_time_ns", o, "read_time", NULL);
    put_sum(to, "wr_operations", o, "write_operations", "zeroes_operations");
    put_sum(to, "wr_total_time_ns", o, "write_time", "zeroes_time");
    put_sum(to, "wr_highest_offset", o, "write_highest_offset", NULL);
    put_sum(to, "unmap_operations", o, "discard_operations", NULL);
    put_sum(to, "unmap_bytes", o, "discard_bytes", NULL);
    put_sum(to, "unmap_total_time_ns", o, "discard_time", NULL);
    put_sum(to, "failed_unmap_operations", o, "discard_failed", NULL);
    put_sum(to, "invalid_unmap_operations", o, "discard_invalid", NULL);
    put_sum(to, "flush_operations", o, "flush_operations", NULL);
    put_sum(to, "flush_total_time_ns", o, "flush_time", NULL);
}

/* Of a leaf that is a file or a device. */
static struct json_object *file_stats_json(const char *driver, struct json_object *stats)
{
    struct json_object *o = json_object_new_object();

    qmp_put_str(o, "driver", driver);
    json_object_object_add(o, "discard-nb-ok",
                           json_object_get(json_object_object_get(stats, "unmap_operations")));
    json_object_object_add(
        o, "discard-nb-failed",
        json_object_get(json_object_object_get(stats, "failed_unmap_operations")));
    json_object_object_add(o, "discard-bytes-ok",
                           json_object_get(json_object_object_get(stats, "unmap_bytes")));
    return o;
}

/* Nodes below one another that are reported. */
#define DEPTH_MAX 256

/* What of the nodes below is reported, besides the storage. */
enum stats_chain { STATS_ALONE, STATS_CHAIN, STATS_CHAIN_OF_DISK };

/*
 * A node, the storage below it as "parent", and with `chain` its backing file; that of a disk is
 * without the filters that no user has named.
 */
static struct json_object *node_stats_json(struct block_node *node, enum stats_chain chain,
                                           unsigned depth)
{
    struct json_object *o = json_object_new_object(), *stats = block_stats_json(false);
    const char *driver = block_node_format(node);
    struct block_node *below = depth < DEPTH_MAX ? block_node_child(node, "file") : NULL;
    struct block_node *backing =
        chain != STATS_ALONE && depth < DEPTH_MAX ? block_node_child(node, "backing") : NULL;

    qmp_put_str(o, "node-name", block_node_name(node));
    stats_visit_node(node, put_node_stats, stats);
    qmp_put_latencies(stats, block_node_latencies(node));
    json_object_object_add(o, "stats", stats);
    if (strcmp(driver, "file") == 0 || strcmp(driver, "host_device") == 0) {
        json_object_object_add(o, "driver-specific", file_stats_json(driver, stats));
    }
    if (below) {
        json_object_object_add(o, "parent", node_stats_json(below, chain, depth + 1));
    }
    if (backing) {
        if (chain == STATS_CHAIN_OF_DISK) {
            backing = block_node_skip_implicit(backing);
        }
        json_object_object_add(o, "backing", node_stats_json(backing, chain, depth + 1));
    }
    return o;
}

static void put_export_stats(const struct stats_object *o, void *arg)
{
    struct json_object *to = arg;
    uint64_t latest = stats_value(o, "latest_request"), now = (uint64_t)loop_now_ns();

    put_common_stats(to, o);
    put_sum(to, "rd_operations", o, "read_requests", NULL);
    put_sum(to, "wr_operations", o, "write_requests", "zeroes_requests");
    put_sum(to, "unmap_operations", o, "trim_requests", NULL);
    put_sum(to, "unmap_bytes", o, "trim_bytes", NULL);
    put_sum(to, "failed_unmap_operations", o, "trim_failed", NULL);
    put_sum(to, "invalid_unmap_operations", o, "trim_invalid", NULL);
    put_sum(to, "flush_operations", o, "flush_requests", NULL);
    if (latest > 0) {
        qmp_put_uint(to, "idle_time_ns", now > latest ? now - latest : 0);
    }
    for (size_t i = 0; i < ARRAY_SIZE(latencies); i++) {
        const uint64_t *values = stats_histogram(o, latencies[i].ours);

        qmp_put_uint(to, latencies[i].time, values ? values[HISTOGRAM_BUCKETS] : 0);
        if (values && latencies[i].histogram) {
            json_object_object_add(to, latencies[i].histogram, histogram_json(values));
        }
    }
}

struct json_object *qmp_node_stats_json(struct block_node *node)
{
    return node_stats_json(node, STATS_CHAIN_OF_DISK, 0);
}

/* An export, as QEMU reports a disk of a guest. */
static bool add_export_blockstats(const struct export_info *info, void *arg)
{
    struct json_object *o = node_stats_json(info->node, STATS_CHAIN, 0),
                       *stats = block_stats_json(true);
    struct json_object *node_stats = json_object_object_get(o, "stats");

    if (!info->stats) {
        json_object_put(o);
        json_object_put(stats);
        return true;
    }
    json_object_object_add(
        stats, "wr_highest_offset",
        json_object_get(json_object_object_get(node_stats, "wr_highest_offset")));
    stats_visit_export(info, put_export_stats, stats);
    qmp_put_latencies(stats, info->latencies);
    json_object_object_add(o, "stats", stats);
    qmp_put_str(o, "qdev", info->id);
    qmp_list_add(arg, o);
    return true;
}

int qmp_co_query_blockstats(struct qmp_call *call, struct json_object *args,
                            struct json_object **ret_json, struct error *err)
{
    struct block_node *node = NULL;
    struct qmp_list list;

    qmp_list_begin(&list, call);
    if (!json_object_get_boolean(json_object_object_get(args, "query-nodes"))) {
        export_foreach(add_export_blockstats, &list);
    } else {
        while ((node = block_node_next(node))) {
            qmp_list_add(&list, node_stats_json(node, STATS_ALONE, 0));
        }
    }
    *ret_json = qmp_list_end(&list);
    return *ret_json ? 0 : error_out_of_memory(err);
}

/* --- x-tidemark-query-stats ------------------------------------------------------------------- */

/* "read_bytes" as QMP writes it: "read-bytes"; durations and moments end in "-ns". To be freed. */
static char *member_name(const struct stat_desc *desc)
{
    char *name;

    if (asprintf(&name, "%s%s", desc->name, desc->unit >= STAT_NANOSECONDS ? "-ns" : "") < 0) {
        return NULL;
    }
    for (char *p = name; *p; p++) {
        *p = *p == '_' ? '-' : *p;
    }
    return name;
}

static struct json_object *figures_json(const struct stats_object *o)
{
    struct json_object *to = json_object_new_object();
    const uint64_t *values = o->values;

    for (const struct stat_desc *desc = o->table; desc->name; desc++) {
        AUTO_FREE char *name = member_name(desc);

        if (name && desc->kind == STAT_HISTOGRAM) {
            struct json_object *histogram = histogram_json(values);

            qmp_put_uint(histogram, "sum", values[HISTOGRAM_BUCKETS]);
            json_object_object_add(to, name, histogram);
        } else if (name) {
            qmp_put_uint(to, name, *values);
        }
        values += stat_width(desc);
    }
    return to;
}

static void add_object(const struct stats_object *o, void *arg)
{
    struct json_object *to = json_object_new_object(), *labels = json_object_new_object();

    qmp_put_str(to, "target", stats_target_names[o->target]);
    qmp_put_str(to, "group", o->group);
    for (size_t i = 0; i < o->label_count; i++) {
        qmp_put_str(labels, o->labels[i].name, o->labels[i].value);
    }
    json_object_object_add(to, "labels", labels);
    json_object_object_add(to, "stats", figures_json(o));
    json_object_array_add(arg, to);
}

int qmp_co_x_tidemark_query_stats(struct qmp_call *call, struct json_object *args,
                                  struct json_object **ret_json, struct error *err)
{
    struct json_object *wanted = json_object_object_get(args, "target");

    *ret_json = json_object_new_array();
    for (unsigned target = 0; target < STATS_TARGETS; target++) {
        const char *name = stats_target_names[target];

        if (!wanted || strcmp(json_object_get_string(wanted), name) == 0) {
            stats_visit((enum stats_target)target, add_object, *ret_json);
        }
    }
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/latency.h"

#include <errno.h>

#include "base/checked.h"
#include "base/latency.h"
#include "block/node.h"
#include "block/stats.h"
#include "export/export.h"
#include "qmp/commands.h"

/* By enum latency_kind: QEMU's argument, its word in errors, and the member of the answer. */
static const struct kind_names {
    const char *argument, *word, *member;
} names[LATENCY_KINDS] = {
    [LATENCY_READ] = {"boundaries-read", "read", "rd_latency_histogram"},
    [LATENCY_WRITE] = {"boundaries-write", "write", "wr_latency_histogram"},
    [LATENCY_ZONE_APPEND] = {"boundaries-zap", "append write", "zone_append_latency_histogram"},
    [LATENCY_FLUSH] = {"boundaries-flush", "flush", "flush_latency_histogram"},
};

struct boundaries {
    uint64_t values[LATENCY_BOUNDARIES_MAX];
    size_t count;
};

/* -EINVAL: they can't be used. */
static int get_boundaries(struct json_object *list, struct boundaries *ret_boundaries)
{
    size_t count = json_object_array_length(list);

    if (count > LATENCY_BOUNDARIES_MAX) {
        return -EINVAL;
    }
    for (size_t i = 0; i < count; i++) {
        ret_boundaries->values[i] = json_object_get_uint64(json_object_array_get_idx(list, i));
    }
    ret_boundaries->count = count;
    return latency_check_boundaries(ret_boundaries->values, count);
}

static int refuse_boundaries(struct json_object *args, const char *word, struct error *err)
{
    return error_set(err, EINVAL, "Device '%s' set %s boundaries fail", qmp_get_str(args, "id"),
                     word);
}

/* The list for a kind; NULL: it keeps what it has, or none if there is no list at all. */
static struct json_object *list_for(struct json_object *args, enum latency_kind kind)
{
    return qmp_get(args, names[kind].argument) ?: qmp_get(args, "boundaries");
}

static int check_all(struct json_object *args, struct error *err)
{
    struct json_object *all = qmp_get(args, "boundaries"), *list;
    struct boundaries b;

    if (all && get_boundaries(all, &b) < 0) {
        return refuse_boundaries(args, "default", err);
    }
    for (int kind = 0; kind < LATENCY_KINDS; kind++) {
        list = qmp_get(args, names[kind].argument);
        if (list && get_boundaries(list, &b) < 0) {
            return refuse_boundaries(args, names[kind].word, err);
        }
    }
    return 0;
}

int qmp_set_latencies(struct latency_set *set, struct json_object *args, struct error *err)
{
    bool any = qmp_get(args, "boundaries");
    struct boundaries b;
    int r = check_all(args, err);

    for (int kind = 0; kind < LATENCY_KINDS; kind++) {
        any = any || qmp_get(args, names[kind].argument);
    }
    if (r == 0 && !any) {
        latency_set_clear(set);
    }
    for (int kind = 0; kind < LATENCY_KINDS && r == 0; kind++) {
        struct json_object *list = list_for(args, (enum latency_kind)kind);

        r = list ? get_boundaries(list, &b) : 0;
        if (list && r == 0) {
            r = latency_set_make(set, (enum latency_kind)kind, b.values, b.count);
            r = r < 0 ? error_out_of_memory(err) : 0;
        }
    }
    return r;
}

/* --- answers ---------------------------------------------------------------------------------- */

/* Called if there is a histogram. */
static void histogram_to_json(const struct latency_histogram *h, void *arg)
{
    struct json_object **o = arg;
    struct json_object *boundaries = json_object_new_array(), *bins = json_object_new_array();

    for (size_t i = 0; i <= h->count; i++) {
        if (i < h->count) {
            json_object_array_add(boundaries, json_object_new_uint64(h->boundaries[i]));
        }
        json_object_array_add(bins, json_object_new_uint64(h->bins[i]));
    }
    *o = json_object_new_object();
    json_object_object_add(*o, "boundaries", boundaries);
    json_object_object_add(*o, "bins", bins);
}

void qmp_put_latencies(struct json_object *to, struct latency_set *set)
{
    for (int kind = 0; kind < LATENCY_KINDS; kind++) {
        struct json_object *o = NULL;

        latency_set_read(set, (enum latency_kind)kind, histogram_to_json, &o);
        if (o) {
            json_object_object_add(to, names[kind].member, o);
        }
    }
}

void qmp_put_zone_figures(struct json_object *to)
{
    static const char *const members[] = {
        "zone_append_bytes",  "zone_append_operations",        "zone_append_total_time_ns",
        "zone_append_merged", "failed_zone_append_operations", "invalid_zone_append_operations"};

    for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
        qmp_put_new(to, members[i], json_object_new_uint64(0));
    }
}

/* --- the command for exports and nodes -------------------------------------------------------- */

int qmp_co_block_latency_histogram_set(struct qmp_call *call, struct json_object *args,
                                       struct json_object **ret_value, struct error *err)
{
    const char *id = qmp_get_str(args, "id");
    struct export_info info;
    struct block_node *node;
    int r;

    if (export_find(id, &info)) {
        return qmp_set_latencies(info.latencies, args, err);
    }
    node = block_node_find(id);
    if (!node) {
        return error_set_class(err, ERROR_CLASS_DEVICE_NOT_FOUND, ENOENT, "Device '%s' not found",
                               id);
    }
    r = qmp_set_latencies(block_node_latencies(node), args, err);
    block_node_latencies_changed(node);
    return r;
}

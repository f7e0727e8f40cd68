/* SPDX-License-Identifier: Apache-2.0 */
#include "stats/stats.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "block/block.h"
#include "block/stats.h"
#include "export/export.h"
#include "export/export_type.h"
#include "loop/stats.h"

const char *const stats_target_names[STATS_TARGETS] = {
    [STATS_NODE] = "node",
    [STATS_EXPORT] = "export",
    [STATS_CONNECTION] = "connection",
    [STATS_REACTOR] = "reactor",
};

/* What a visit of a target carries. */
struct visit {
    stats_visit_fn *fn;
    void *arg;
    const struct export_info *export;
};

static void add_label(struct stats_object *o, const char *name, const char *value)
{
    assert(o->label_count < STATS_LABELS_MAX);
    o->labels[o->label_count++] = (struct stats_label){.name = name, .value = value};
}

/* --- nodes ------------------------------------------------------------------------------------ */

void stats_visit_node(struct block_node *node, stats_visit_fn *fn, void *arg)
{
    uint64_t values[BLOCK_STATS], driver_values[BLOCK_DRIVER_STATS_MAX];
    const struct stat_desc *driver_table = block_node_driver_stats(node);
    const char *driver = block_driver_name(block_node_driver(node));
    struct stats_object o = {
        .target = STATS_NODE, .group = "node", .table = block_node_stats, .values = values};

    add_label(&o, "node", block_node_name(node));
    add_label(&o, "driver", driver);
    block_node_read_stats(node, values);
    fn(&o, arg);
    if (driver_table) {
        o.group = driver;
        o.table = driver_table;
        o.values = driver_values;
        /* The name of the group says it. */
        o.label_count = 1;
        block_node_read_driver_stats(node, driver_values);
        fn(&o, arg);
    }
}

static void visit_nodes(const struct visit *v)
{
    struct block_node *node = NULL;

    while ((node = block_node_next(node))) {
        stats_visit_node(node, v->fn, v->arg);
    }
}

/* --- exports and their clients ---------------------------------------------------------------- */

static void add_export_labels(struct stats_object *o, const struct export_info *info)
{
    add_label(o, "export", info->id);
    add_label(o, "type", info->type);
    add_label(o, "node", block_node_name(info->node));
}

void stats_visit_export(const struct export_info *info, stats_visit_fn *fn, void *arg)
{
    uint64_t values[EXPORT_STATS_WIDTH_MAX];
    struct stats_object o = {
        .target = STATS_EXPORT, .group = info->stats_group, .table = info->stats, .values = values};

    if (info->stats) {
        add_export_labels(&o, info);
        export_read_stats(info->id, values);
        fn(&o, arg);
    }
}

static bool visit_one_export(const struct export_info *info, void *arg)
{
    const struct visit *v = arg;

    stats_visit_export(info, v->fn, v->arg);
    return true;
}

static void visit_client(const struct export_client *client, void *arg)
{
    const struct visit *v = arg;
    struct stats_object o = {.target = STATS_CONNECTION,
                             .group = "connection",
                             .table = v->export->client_stats,
                             .values = client->values};
    char serial[24];

    snprintf(serial, sizeof(serial), "%" PRIu64, client->serial);
    add_label(&o, "export", v->export->id);
    add_label(&o, "client", client->peer);
    add_label(&o, "connection", serial);
    v->fn(&o, v->arg);
}

static bool visit_clients(const struct export_info *info, void *arg)
{
    struct visit v = *(const struct visit *)arg;

    v.export = info;
    if (info->client_stats) {
        export_foreach_client(info->id, visit_client, &v);
    }
    return true;
}

/* --- reactors --------------------------------------------------------------------------------- */

static void visit_reactors(const struct visit *v)
{
    for (unsigned i = 0; i < REACTOR_MAX; i++) {
        const struct reactor *r = reactor_at(i);
        uint64_t values[REACTOR_STATS];
        struct stats_object o = {
            .target = STATS_REACTOR, .group = "reactor", .table = reactor_stats, .values = values};
        char index[8];

        if (r) {
            snprintf(index, sizeof(index), "%u", i);
            add_label(&o, "reactor", reactor_name(r));
            add_label(&o, "index", index);
            reactor_read_stats(r, values);
            v->fn(&o, v->arg);
        }
    }
}

/* --- all of them ------------------------------------------------------------------------------ */

void stats_visit(enum stats_target target, stats_visit_fn *fn, void *arg)
{
    struct visit v = {.fn = fn, .arg = arg};

    switch (target) {
    case STATS_NODE:
        visit_nodes(&v);
        break;
    case STATS_EXPORT:
        export_foreach(visit_one_export, &v);
        break;
    case STATS_CONNECTION:
        export_foreach(visit_clients, &v);
        break;
    default:
        visit_reactors(&v);
    }
}

bool stats_object_continues(const struct stats_object *object)
{
    return object->target == STATS_NODE && strcmp(object->group, "node") != 0;
}

/* --- tables ----------------------------------------------------------------------------------- */

void stats_visit_tables(stats_table_fn *fn, void *arg)
{
    const struct block_driver *driver = NULL;
    const struct export_type *type;

    fn(STATS_NODE, "node", block_node_stats, arg);
    while ((driver = block_next_driver(driver))) {
        const struct stat_desc *table = block_driver_stats(driver);

        if (table) {
            fn(STATS_NODE, block_driver_name(driver), table, arg);
        }
    }
    for (size_t i = 0; (type = export_type_at(i)); i++) {
        if (type->stats) {
            fn(STATS_EXPORT, type->stats_group, type->stats, arg);
        }
        if (type->client_stats) {
            fn(STATS_CONNECTION, "connection", type->client_stats, arg);
        }
    }
    fn(STATS_REACTOR, "reactor", reactor_stats, arg);
}

/* --- rows ------------------------------------------------------------------------------------- */

static const uint64_t *find_row(const struct stats_object *object, const char *name, bool histogram)
{
    const uint64_t *value = object->values;

    for (const struct stat_desc *desc = object->table; desc->name; desc++) {
        /* Most names differ in the first letter: no call for those. */
        if (desc->name[0] == name[0] && strcmp(desc->name, name) == 0 &&
            (desc->kind == STAT_HISTOGRAM) == histogram) {
            return value;
        }
        value += stat_width(desc);
    }
    return NULL;
}

uint64_t stats_value(const struct stats_object *object, const char *name)
{
    const uint64_t *value = find_row(object, name, false);

    return value ? *value : 0;
}

const uint64_t *stats_histogram(const struct stats_object *object, const char *name)
{
    return find_row(object, name, true);
}

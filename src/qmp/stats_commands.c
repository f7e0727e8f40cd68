/* SPDX-License-Identifier: Apache-2.0 */
/*
 * query-stats and query-stats-schemas, in the form that QEMU's system emulator gives them: a list
 * of names and values for each object, and what kind of figure and which unit each name stands for.
 * The targets are those of stats.h, and the provider is Tidemark.
 */
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "qmp/answer.h"
#include "qmp/commands.h"
#include "qmp/schema.h"
#include "stats/stats.h"

#define PROVIDER "tidemark"

/* --- names ------------------------------------------------------------------------------------ */

/*
 * The name of a row without its unit: "read-bytes"; behind the name of the group if that is not the
 * target: "qcow2-commits". To be freed; NULL: no memory.
 */
static char *name_of_row(enum stats_target target, const char *group, const struct stat_desc *desc,
                         const char *suffix)
{
    bool own = strcmp(group, stats_target_names[target]) == 0;
    char *name;

    if (asprintf(&name, "%s%s%s%s", own ? "" : group, own ? "" : "-", desc->name, suffix) < 0) {
        return NULL;
    }
    for (char *p = name; *p; p++) {
        *p = *p == '_' ? '-' : *p;
    }
    return name;
}

static const char *unit_suffix(const struct stat_desc *desc)
{
    return desc->unit >= STAT_NANOSECONDS ? "-ns" : "";
}

/* --- query-stats ------------------------------------------------------------------------------ */

struct answer {
    struct json_object *results;
    /* Of a request for single figures: their names. NULL: all. */
    struct json_object *names;
    /* The `stats` of the latest result, which figures of a node's driver join. */
    struct json_object *latest;
};

static bool is_wanted(const struct answer *a, const char *name)
{
    size_t count = a->names ? json_object_array_length(a->names) : 0;

    for (size_t i = 0; i < count; i++) {
        if (strcmp(json_object_get_string(json_object_array_get_idx(a->names, i)), name) == 0) {
            return true;
        }
    }
    return !a->names;
}

/* `value` is consumed. */
static void add_figure(struct answer *a, const char *name, struct json_object *value)
{
    if (name && is_wanted(a, name)) {
        struct json_object *o = json_object_new_object();

        qmp_put_str(o, "name", name);
        json_object_object_add(o, "value", value);
        json_object_array_add(a->latest, o);
    } else {
        json_object_put(value);
    }
}

/*
 * Bin 0 is for 0, and bin i for 2^(i-1) to 2^i - 1, as QEMU has it. Ours count 0 with 1: bin 0 is
 * empty.
 */
static struct json_object *bins_json(const uint64_t *values)
{
    struct json_object *list = json_object_new_array();

    json_object_array_add(list, json_object_new_uint64(0));
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        json_object_array_add(list, json_object_new_uint64(values[i]));
    }
    return list;
}

static void add_figures(struct answer *a, const struct stats_object *o)
{
    const uint64_t *values = o->values;

    for (const struct stat_desc *desc = o->table; desc->name; desc++) {
        AUTO_FREE char *name = name_of_row(o->target, o->group, desc, unit_suffix(desc));

        if (desc->kind == STAT_HISTOGRAM) {
            AUTO_FREE char *sum = name_of_row(o->target, o->group, desc, "-sum-ns");

            add_figure(a, name, bins_json(values));
            add_figure(a, sum, json_object_new_uint64(values[HISTOGRAM_BUCKETS]));
        } else {
            add_figure(a, name, json_object_new_uint64(*values));
        }
        values += stat_width(desc);
    }
}

static void add_stats_object(const struct stats_object *o, void *arg)
{
    struct answer *a = arg;

    if (!stats_object_continues(o)) {
        struct json_object *result = json_object_new_object();
        struct json_object *labels = json_object_new_object();

        a->latest = json_object_new_array();
        for (size_t i = 0; i < o->label_count; i++) {
            qmp_put_str(labels, o->labels[i].name, o->labels[i].value);
        }
        qmp_put_str(result, "provider", PROVIDER);
        json_object_object_add(result, "labels", labels);
        json_object_object_add(result, "stats", a->latest);
        json_object_array_add(a->results, result);
    }
    add_figures(a, o);
}

static enum stats_target find_target(const char *name)
{
    unsigned i = 0;

    while (i < STATS_TARGETS - 1 && strcmp(stats_target_names[i], name) != 0) {
        i++;
    }
    return (enum stats_target)i;
}

int qmp_co_query_stats(struct qmp_call *call, struct json_object *args,
                       struct json_object **ret_json, struct error *err)
{
    struct json_object *providers = qmp_get(args, "providers");
    size_t count = providers ? json_object_array_length(providers) : 0;
    struct answer a = {.results = json_object_new_array()};

    *ret_json = a.results;
    if (providers && count == 0) {
        return 0;
    }
    /* A provider that is named twice counts as the last one says. */
    if (count > 0) {
        a.names = qmp_get(json_object_array_get_idx(providers, count - 1), "names");
    }
    stats_visit(find_target(qmp_get_str(args, "target")), add_stats_object, &a);
    return 0;
}

/* --- query-stats-schemas ---------------------------------------------------------------------- */

static const char *const kind_names[] = {
    [STAT_COUNTER] = "cumulative",
    [STAT_GAUGE] = "instant",
    [STAT_PEAK] = "peak",
    [STAT_HISTOGRAM] = "log2-histogram",
};

/* `name` may be NULL: no memory. */
static void add_row(struct json_object *rows, const char *name, const struct stat_desc *desc,
                    const char *kind)
{
    struct json_object *o = json_object_new_object();

    qmp_put_str(o, "name", name ? name : desc->name);
    qmp_put_str(o, "type", kind);
    qmp_put_str(o, "unit",
                desc->unit == STAT_COUNT   ? NULL
                : desc->unit == STAT_BYTES ? "bytes"
                                           : "seconds");
    if (desc->unit >= STAT_NANOSECONDS) {
        json_object_object_add(o, "base", json_object_new_int(10));
    }
    json_object_object_add(o, "exponent",
                           json_object_new_int(desc->unit >= STAT_NANOSECONDS ? -9 : 0));
    json_object_array_add(rows, o);
}

static void add_table(enum stats_target target, const char *group, const struct stat_desc *table,
                      void *arg)
{
    struct json_object *const *rows = arg;

    for (const struct stat_desc *desc = table; desc->name; desc++) {
        AUTO_FREE char *name = name_of_row(target, group, desc, unit_suffix(desc));

        add_row(rows[target], name, desc, kind_names[desc->kind]);
        if (desc->kind == STAT_HISTOGRAM) {
            AUTO_FREE char *sum = name_of_row(target, group, desc, "-sum-ns");

            add_row(rows[target], sum, desc, kind_names[STAT_COUNTER]);
        }
    }
}

int qmp_co_query_stats_schemas(struct qmp_call *call, struct json_object *args,
                               struct json_object **ret_json, struct error *err)
{
    struct json_object *rows[STATS_TARGETS];

    *ret_json = json_object_new_array();
    for (unsigned target = 0; target < STATS_TARGETS; target++) {
        struct json_object *o = json_object_new_object();

        rows[target] = json_object_new_array();
        qmp_put_str(o, "provider", PROVIDER);
        qmp_put_str(o, "target", stats_target_names[target]);
        json_object_object_add(o, "stats", rows[target]);
        json_object_array_add(*ret_json, o);
    }
    stats_visit_tables(add_table, rows);
    return 0;
}

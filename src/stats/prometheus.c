/* SPDX-License-Identifier: Apache-2.0 */
#include "stats/prometheus.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/time_units.h"
#include "loop/loop.h"

/*
 * Buckets that are written: those below 2^10 ns are summed up in the first, as are those above 2^36
 * in the last.
 */
#define FIRST_BUCKET 9
#define LAST_BUCKET 35

/* --- names ------------------------------------------------------------------------------------ */

static bool ends_with(const char *s, const char *end)
{
    size_t length = strlen(s), size = strlen(end);

    return length >= size && strcmp(s + length - size, end) == 0;
}

/*
 * Write the name of a metric: tidemark_GROUP_NAME, with the unit (_bytes, _seconds) and for a
 * counter with _total.
 */
static void put_metric_name(struct strbuf *text, const char *group, const struct stat_desc *desc)
{
    strbuf_puts(text, "tidemark_");
    for (; *group; group++) {
        char c = *group == '-' ? '_' : *group;

        strbuf_append(text, &c, 1);
    }
    strbuf_printf(text, "_%s", desc->name);
    if (desc->unit == STAT_BYTES && !ends_with(desc->name, "_bytes")) {
        strbuf_puts(text, "_bytes");
    } else if (desc->unit == STAT_NANOSECONDS) {
        strbuf_puts(text, "_seconds");
    } else if (desc->unit == STAT_MOMENT) {
        strbuf_puts(text, "_timestamp_seconds");
    }
    if (desc->kind == STAT_COUNTER) {
        strbuf_puts(text, "_total");
    }
}

/* Write a label's value as it stands between quotes. */
static void put_escaped(struct strbuf *text, const char *value)
{
    for (; *value; value++) {
        if (*value == '\\' || *value == '"') {
            strbuf_puts(text, "\\");
        }
        if (*value == '\n') {
            strbuf_puts(text, "\\n");
        } else {
            strbuf_append(text, value, 1);
        }
    }
}

static const char *metric_type_of(const struct stat_desc *desc)
{
    switch (desc->kind) {
    case STAT_COUNTER:
        return "counter";
    case STAT_HISTOGRAM:
        return "histogram";
    default:
        return "gauge";
    }
}

/* --- one value -------------------------------------------------------------------------------- */

static void put_labels(struct strbuf *text, const struct stats_object *o, const char *le)
{
    const char *before = "{";

    for (size_t i = 0; i < o->label_count; i++) {
        strbuf_printf(text, "%s%s=\"", before, o->labels[i].name);
        put_escaped(text, o->labels[i].value);
        strbuf_puts(text, "\"");
        before = ",";
    }
    if (le) {
        strbuf_printf(text, "%sle=\"%s\"", before, le);
    }
    strbuf_puts(text, "} ");
}

static void put_seconds(struct strbuf *text, uint64_t ns)
{
    strbuf_printf(text, "%" PRIu64 ".%09" PRIu64 "\n", ns / (uint64_t)NS_PER_SECOND,
                  ns % (uint64_t)NS_PER_SECOND);
}

/* When the process looks at clocks: on both of them at the same moment. */
struct clocks {
    int64_t now_ns;
    double now_unix;
};

static void put_value(struct strbuf *text, const struct stat_desc *desc, uint64_t value,
                      const struct clocks *clocks)
{
    if (desc->unit == STAT_NANOSECONDS) {
        put_seconds(text, value);
    } else if (desc->unit == STAT_MOMENT && value > 0) {
        strbuf_printf(text, "%.3f\n",
                      clocks->now_unix - (double)(clocks->now_ns - (int64_t)value) / 1e9);
    } else {
        strbuf_printf(text, "%" PRIu64 "\n", value);
    }
}

static void put_scalar(struct strbuf *text, const struct stats_object *o,
                       const struct stat_desc *desc, uint64_t value, const struct clocks *clocks)
{
    put_metric_name(text, o->group, desc);
    put_labels(text, o, NULL);
    put_value(text, desc, value, clocks);
}

/* Buckets are cumulative, and named by the duration that they end at, in seconds. */
static void put_histogram(struct strbuf *text, const struct stats_object *o,
                          const struct stat_desc *desc, const uint64_t *values)
{
    uint64_t count = 0;
    char le[32];

    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        count += values[i];
        if (i >= FIRST_BUCKET && i <= LAST_BUCKET) {
            snprintf(le, sizeof(le), "%.12g", (double)(UINT64_C(2) << i) / 1e9);
            put_metric_name(text, o->group, desc);
            strbuf_puts(text, "_bucket");
            put_labels(text, o, le);
            strbuf_printf(text, "%" PRIu64 "\n", count);
        }
    }
    put_metric_name(text, o->group, desc);
    strbuf_puts(text, "_bucket");
    put_labels(text, o, "+Inf");
    strbuf_printf(text, "%" PRIu64 "\n", count);
    put_metric_name(text, o->group, desc);
    strbuf_puts(text, "_sum");
    put_labels(text, o, NULL);
    put_seconds(text, values[HISTOGRAM_BUCKETS]);
    put_metric_name(text, o->group, desc);
    strbuf_puts(text, "_count");
    put_labels(text, o, NULL);
    strbuf_printf(text, "%" PRIu64 "\n", count);
}

/* --- all of them ------------------------------------------------------------------------------ */

/* A metric of all objects of a group, whose values lie at `at`. */
static void put_metric(struct strbuf *text, const struct snapshot_group *group,
                       const struct stat_desc *desc, size_t at, const struct clocks *clocks)
{
    struct snapshot_object *o = LIST_FIRST(&group->objects, struct snapshot_object, link);
    const char *name = o->object.group;

    strbuf_puts(text, "# HELP ");
    put_metric_name(text, name, desc);
    strbuf_printf(text, " %s\n# TYPE ", desc->help);
    put_metric_name(text, name, desc);
    strbuf_printf(text, " %s\n", metric_type_of(desc));
    LIST_FOREACH (o, &group->objects, link) {
        if (desc->kind == STAT_HISTOGRAM) {
            put_histogram(text, &o->object, desc, o->object.values + at);
        } else {
            put_scalar(text, &o->object, desc, o->object.values[at], clocks);
        }
    }
}

static void put_group(struct strbuf *text, const struct snapshot_group *group,
                      const struct clocks *clocks)
{
    size_t at = 0;

    for (const struct stat_desc *desc = group->table; desc->name; desc++) {
        put_metric(text, group, desc, at, clocks);
        at += stat_width(desc);
    }
}

void prometheus_put_all(struct strbuf *text, const struct snapshot *s, int64_t now_ns,
                        double now_unix)
{
    const struct clocks clocks = {.now_ns = now_ns, .now_unix = now_unix};
    struct snapshot_group *group;

    strbuf_puts(text, "# HELP tidemark_build_info The version of Tidemark that runs\n"
                      "# TYPE tidemark_build_info gauge\n");
    strbuf_printf(text, "tidemark_build_info{version=\"%s\",loop=\"%s\"} 1\n", TIDEMARK_VERSION,
                  reactor_engine());
    LIST_FOREACH (group, &s->groups, link) {
        if (!list_is_empty(&group->objects)) {
            put_group(text, group, &clocks);
        }
    }
    prometheus_put_process(text);
}

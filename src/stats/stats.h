/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All figures of the process, for QMP and the metrics endpoint: which objects there are, and what
 * each counts. Knows neither drivers nor types of exports; they describe their figures by tables
 * (base/counters.h).
 *
 * Everything here runs on the main reactor, and does not yield.
 */
#ifndef TIDEMARK_STATS_STATS_H
#define TIDEMARK_STATS_STATS_H

#include <stdbool.h>

#include "base/counters.h"

enum stats_target {
    /*
     * Nodes; labels "node" and "driver". Where the driver has figures, an object of its own
     * follows.
     */
    STATS_NODE,
    /* Exports; labels "export", "type" and "node". */
    STATS_EXPORT,
    /*
     * Clients of exports; labels "export", "client" and "connection", a number that is not used
     * again.
     */
    STATS_CONNECTION,
    /* Reactors; labels "reactor" and "index". */
    STATS_REACTOR,
    STATS_TARGETS
};

/* "node", "export", ...; by target. */
extern const char *const stats_target_names[STATS_TARGETS];

enum {
    STATS_LABELS_MAX = 3,
};

struct stats_label {
    const char *name;
    const char *value;
};

/* An object with its figures. All of it is borrowed for the time of the call. */
struct stats_object {
    enum stats_target target;
    /* What the figures belong to: the name of the target, or of a driver. */
    const char *group;
    struct stats_label labels[STATS_LABELS_MAX];
    size_t label_count;
    const struct stat_desc *table;
    const uint64_t *values;
};

typedef void stats_visit_fn(const struct stats_object *object, void *arg);

/* Visit all objects of a target: nodes, exports and connections oldest first. */
void stats_visit(enum stats_target target, stats_visit_fn *fn, void *arg);

/* The same for one node, and for one export. */
struct block_node;
struct export_info;
void stats_visit_node(struct block_node *node, stats_visit_fn *fn, void *arg);
void stats_visit_export(const struct export_info *info, stats_visit_fn *fn, void *arg);

/*
 * Whether an object has more figures of the one before it: those of a node's driver follow the
 * node.
 */
bool stats_object_continues(const struct stats_object *object);

typedef void stats_table_fn(enum stats_target target, const char *group,
                            const struct stat_desc *table, void *arg);

/* Visit the tables of all targets, drivers and types of exports that there are, each once. */
void stats_visit_tables(stats_table_fn *fn, void *arg);

/* The value of the row `name`, not of a histogram; 0 if the table has none. */
uint64_t stats_value(const struct stats_object *object, const char *name);
/* The HISTOGRAM_VALUES values of the histogram `name`; NULL if the table has none. */
const uint64_t *stats_histogram(const struct stats_object *object, const char *name);

#endif

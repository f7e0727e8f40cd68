/* SPDX-License-Identifier: Apache-2.0 */
#include "stats/snapshot.h"

#include <stdlib.h>
#include <string.h>

/* Bytes of an object's copy: the struct, its values, its strings. */
static size_t copy_size(const struct stats_object *o)
{
    size_t size = sizeof(struct snapshot_object);

    size += stat_table_width(o->table) * sizeof(*o->values) + strlen(o->group) + 1;
    for (size_t i = 0; i < o->label_count; i++) {
        size += strlen(o->labels[i].value) + 1;
    }
    return size;
}

static const char *put_string(char **at, const char *s)
{
    size_t size = strlen(s) + 1;
    char *copy = memcpy(*at, s, size);

    *at += size;
    return copy;
}

static struct snapshot_object *copy_object(const struct stats_object *o)
{
    struct snapshot_object *copy = malloc(copy_size(o));
    size_t values = stat_table_width(o->table) * sizeof(*o->values);
    char *at;

    if (!copy) {
        return NULL;
    }
    copy->object = *o;
    copy->object.values = memcpy(copy + 1, o->values, values);
    at = (char *)(copy + 1) + values;
    copy->object.group = put_string(&at, o->group);
    for (size_t i = 0; i < o->label_count; i++) {
        copy->object.labels[i].value = put_string(&at, o->labels[i].value);
    }
    return copy;
}

/* There are a few of them: one for each target, and one for each driver that has figures. */
static struct snapshot_group *group_for(struct snapshot *s, const struct stat_desc *table)
{
    struct snapshot_group *g;

    LIST_FOREACH (g, &s->groups, link) {
        if (g->table == table) {
            return g;
        }
    }
    g = malloc(sizeof(*g));
    if (g) {
        g->table = table;
        list_init(&g->objects);
        list_append(&s->groups, &g->link);
    }
    return g;
}

static void add(const struct stats_object *o, void *arg)
{
    struct snapshot *s = arg;
    struct snapshot_group *group = group_for(s, o->table);
    struct snapshot_object *copy = group ? copy_object(o) : NULL;

    if (copy) {
        list_append(&group->objects, &copy->link);
    } else {
        s->failed = true;
    }
}

struct snapshot *snapshot_take(void)
{
    struct snapshot *s = calloc(1, sizeof(*s));

    if (!s) {
        return NULL;
    }
    list_init(&s->groups);
    stats_visit(STATS_NODE, add, s);
    stats_visit(STATS_EXPORT, add, s);
    stats_visit(STATS_REACTOR, add, s);
    if (s->failed) {
        snapshot_free(s);
        return NULL;
    }
    return s;
}

static void group_free(struct snapshot_group *group)
{
    struct snapshot_object *o, *next;

    LIST_FOREACH_SAFE (o, next, &group->objects, link) {
        free(o);
    }
    free(group);
}

void snapshot_free(struct snapshot *s)
{
    struct snapshot_group *group, *next;

    if (s) {
        LIST_FOREACH_SAFE (group, next, &s->groups, link) {
            group_free(group);
        }
        free(s);
    }
}

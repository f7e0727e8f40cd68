/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The full name of an image whose plain filename would open something else: json: with the options
 * of all its nodes.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json_write.h"
#include "block/internal.h"
#include "loop/loop.h"

/*
 * Most nodes in a full name. A bound is needed because a node that is used twice is listed twice.
 */
#define NODES_MAX 64u
/* Groups below one another in the options of a node. */
#define DEPTH_MAX 8u

/* Options that say how an image is used, not which image; "..." stands for any rest. */
static bool is_of_use(const char *key)
{
    static const char *const keys[] = {
        "node-name", "read-only", "auto-read-only", "force-share", "cache", "discard",
        "detect-zeroes", "driver", "backing", "active",
        /* of files */
        "locking", "aio", "aio-max-batch", "drop-cache", "x-check-cache-dropped",
        /* of null-co */
        "latency-ns",
        /* of qcow2 */
        "lazy-refcounts", "pass-discard-...", "discard-no-unref", "overlap-check...", "cache-size",
        "l2-cache-...", "refcount-cache-size", "cache-clean-interval", "durable-bitmaps...",
        "encrypt.format",
        /* of nbd, http and filters */
        "reconnect-delay", "open-timeout", "x-connections", "readahead", "timeout", "bottom",
        "prealloc-...", NULL};
    const char *const *k = keys;

    for (; *k; k++) {
        const char *dots = strstr(*k, "...");

        if (dots ? strncmp(*k, key, (size_t)(dots - *k)) == 0 : strcmp(*k, key) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_child(const struct block_node *node, const char *key)
{
    const struct block_edge *edge;
    size_t length = strlen(key);

    LIST_FOREACH (edge, &node->children, sibling) {
        /* The edges of a list are named LIST.INDEX. */
        if (strncmp(edge->name, key, length) == 0 &&
            (edge->name[length] == '\0' || edge->name[length] == '.')) {
            return true;
        }
    }
    return false;
}

/* Filters of jobs show what is their backing file to QEMU. */
static const char *child_name(const struct block_edge *edge)
{
    return edge->parent->driver->is_internal ? "backing" : edge->name;
}

static void add_child(struct json_object *to, const struct block_edge *edge,
                      struct json_object *child /* consumed */)
{
    const char *dot = strchr(edge->name, '.');
    AUTO_FREE char *list_name = dot ? strndup(edge->name, (size_t)(dot - edge->name)) : NULL;
    struct json_object *list = NULL;

    if (!list_name) {
        json_object_object_add(to, child_name(edge), child);
        return;
    }
    if (!json_object_object_get_ex(to, list_name, &list)) {
        list = json_object_new_array();
        json_object_object_add(to, list_name, list);
    }
    json_object_array_add(list, child);
}

/* Groups and lists are written as dotted keys, which is how QEMU has them in file names. */
static void add_flat(struct json_object *to, const char *key, struct json_object *value,
                     unsigned depth)
{
    bool is_list = json_object_is_type(value, json_type_array);
    size_t count = is_list ? json_object_array_length(value) : 0;

    if (is_of_use(key)) {
        return;
    }
    if (depth == 0 || (!is_list && !json_object_is_type(value, json_type_object))) {
        json_object_object_add(to, key, json_object_get(value));
        return;
    }
    for (size_t i = 0; i < count; i++) {
        AUTO_FREE char *longer = NULL;

        if (asprintf(&longer, "%s.%zu", key, i) >= 0) {
            add_flat(to, longer, json_object_array_get_idx(value, i), depth - 1);
        }
    }
    if (is_list) {
        return;
    }
    json_object_object_foreach(value, name, member)
    {
        AUTO_FREE char *longer = NULL;

        if (asprintf(&longer, "%s.%s", key, name) >= 0) {
            add_flat(to, longer, member, depth - 1);
        }
    }
}

static void add_options(struct json_object *to, const struct block_node *node)
{
    if (!node->options) {
        return;
    }
    json_object_object_foreach(node->options, key, value)
    {
        if (!is_child(node, key)) {
            add_flat(to, key, value, DEPTH_MAX);
        }
    }
}

/* --- what a node is called -------------------------------------------------------------------- */

/*
 * An image and those below it. `other[i]`: opening the filename of images[i] would give it another
 * backing image than it has; `needs[i]`: its filename does not lead to it.
 */
struct chain_names {
    const struct block_node **images;
    bool *other, *needs;
    size_t count;
};

/*
 * Where names of files lead, for a name that goes into an image: filters between images come and
 * go, and another name of the file that is recorded says nothing new. The graph may change while
 * the file system is asked. So a name is made again, without a yield, until it needs no new answer.
 */
struct real_names {
    struct real_name {
        char *name, *real; /* NULL: to nothing, or that is not known */
    } * list;
    size_t count, asked; /* those from `asked` on are to be asked for */
    bool failed;         /* no memory */
};

/* Filenames are described with at most NODES_MAX nodes; `nodes` counts them. */
struct naming {
    unsigned nodes;
    bool failed;               /* no memory */
    struct real_names *record; /* NULL: the name does not go into an image */
};

static bool chain_names_init(struct chain_names *c, const struct block_node *node,
                             struct naming *naming);

static void chain_names_free(struct chain_names *c)
{
    free(c->images);
    free(c->other);
    free(c->needs);
}

/* A filter that no user has named is in no name. */
static const struct block_node *skip_implicit(const struct block_node *node)
{
    return block_node_skip_implicit((struct block_node *)node);
}

static const struct block_node *next_in_chain(const struct block_node *node,
                                              const struct naming *naming)
{
    struct block_node *next = node->backing ? node->backing->node : NULL;

    return !next ? NULL : naming->record ? block_node_skip_filters(next) : skip_implicit(next);
}

static struct json_object *chain_json(const struct chain_names *c, size_t i, struct naming *naming);
static char *name_of_node(const struct block_node *node, struct real_names *record);

/* The options of a child that is no backing image; NULL: there are too many. */
static struct json_object *child_json(const struct block_node *node, struct naming *naming)
{
    struct chain_names c;
    struct json_object *o = NULL;

    if (naming->nodes < NODES_MAX && chain_names_init(&c, node, naming)) {
        o = chain_json(&c, 0, naming);
        chain_names_free(&c);
    }
    return o;
}

/* The options of images[i], with those of its backing image where that is not the recorded one. */
static struct json_object *chain_json(const struct chain_names *c, size_t i, struct naming *naming)
{
    const struct block_node *node = c->images[i];
    struct json_object *o = json_object_new_object();
    const struct block_edge *edge;

    naming->nodes++;
    json_object_object_add(o, "driver", json_object_new_string(node->driver->name));
    add_options(o, node);
    LIST_FOREACH (edge, &node->children, sibling) {
        if (!node->backing || edge != node->backing) {
            add_child(o, edge, child_json(skip_implicit(edge->node), naming));
        }
    }
    if (c->other[i] && i + 1 == c->count) {
        json_object_object_add(o, "backing", NULL);
    } else if (c->other[i] && naming->nodes < NODES_MAX) {
        json_object_object_add(o, "backing", chain_json(c, i + 1, naming));
    }
    return o;
}

/* The name of images[i]. NULL: no memory. */
static char *chain_name(const struct chain_names *c, size_t i, struct real_names *record)
{
    struct naming naming = {.record = record};
    struct json_object *o;
    struct strbuf text = STRBUF_INIT;

    if (!c->needs[i]) {
        return strdup(block_node_filename(c->images[i]));
    }
    if (block_node_shows_filename(c->images[i]) && c->images[i]->file) {
        return name_of_node(c->images[i]->file->node, record);
    }
    o = chain_json(c, i, &naming);
    if (naming.failed || naming.nodes >= NODES_MAX) {
        json_object_put(o);
        return strdup(block_node_filename(c->images[i]));
    }
    strbuf_puts(&text, "json:");
    json_write(&text, o, false);
    json_object_put(o);
    return strbuf_take(&text);
}

/* Where a name leads, as far as that is known. NULL: to nothing, or not known. */
static const char *real_name_of(struct real_names *names, const char *name)
{
    struct real_name *list;

    for (size_t i = 0; i < names->count; i++) {
        if (strcmp(names->list[i].name, name) == 0) {
            return names->list[i].real;
        }
    }
    list = realloc(names->list, (names->count + 1) * sizeof(*list));
    names->list = list ?: names->list;
    if (list && (list[names->count].name = strdup(name))) {
        list[names->count++].real = NULL;
    } else {
        names->failed = true;
    }
    return NULL;
}

static bool is_file_of_name(struct real_names *names, const char *filename, const char *name)
{
    const char *real_file = real_name_of(names, filename), *real_name = real_name_of(names, name);

    return real_file && real_name && strcmp(real_file, real_name) == 0;
}

/* Whether the name that `node` records leads to the file of `backing`. */
static bool is_recorded(struct real_names *names, const struct block_node *node,
                        const struct block_node *backing)
{
    AUTO_FREE char *path = block_node_resolve_backing(node, node->auto_backing);

    return path && (is_file_of_name(names, block_node_filename(backing), path) ||
                    is_file_of_name(names, block_node_filename(backing), node->auto_backing));
}

static bool has_other_backing(const struct chain_names *c, size_t i, struct real_names *record)
{
    const struct block_node *node = c->images[i];
    AUTO_FREE char *name = NULL;

    if (i + 1 == c->count) {
        return node->auto_backing && !(node->open_flags & BLOCK_OPEN_NO_BACKING);
    }
    if (!node->auto_backing) {
        return true;
    }
    name = c->needs[i + 1] ? chain_name(c, i + 1, record) : NULL;
    return strcmp(name ? name : block_node_filename(c->images[i + 1]), node->auto_backing) != 0 &&
           (!record || name || !is_recorded(record, node, c->images[i + 1]));
}

static bool child_needs_options(const struct block_node *node, struct naming *naming)
{
    struct chain_names c;
    bool needs = node->beyond_filename;

    if (!list_is_empty(&node->children) && naming->nodes++ < NODES_MAX &&
        chain_names_init(&c, node, naming)) {
        needs = c.needs[0];
        chain_names_free(&c);
    }
    return needs;
}

/*
 * Whether the filename does not lead to a node whose backing image is the recorded one. A format is
 * guessed from what a protocol has, and a filter never; some filters have filenames of their own.
 */
static bool needs_options(const struct block_node *node, struct naming *naming)
{
    const struct block_node *file = node->file ? node->file->node : NULL;
    const struct block_driver *d = node->driver;
    const struct block_edge *edge;

    if (node->beyond_filename) {
        return true;
    }
    LIST_FOREACH (edge, &node->children, sibling) {
        if ((!node->backing || edge != node->backing) &&
            (!block_node_shows_filename(node) || (node->file && edge == node->file)) &&
            child_needs_options(skip_implicit(edge->node), naming)) {
            return true;
        }
    }
    if (block_node_shows_filename(node)) {
        return false;
    }
    if (d->parse_filename || d->is_filter) {
        return !d->parse_filename || !node->filename;
    }
    return file && !file->driver->parse_filename &&
           (!file->driver->is_protocol || file->driver->is_filter);
}

static bool chain_names_init(struct chain_names *c, const struct block_node *node,
                             struct naming *naming)
{
    size_t count = 0;

    for (const struct block_node *n = node; n; n = next_in_chain(n, naming)) {
        count++;
    }
    *c = (struct chain_names){calloc(count, sizeof(struct block_node *)),
                              calloc(count, sizeof(bool)), calloc(count, sizeof(bool)), count};
    if (!c->images || !c->other || !c->needs) {
        chain_names_free(c);
        naming->failed = true;
        return false;
    }
    for (size_t i = 0; i < count; i++, node = next_in_chain(node, naming)) {
        c->images[i] = node;
    }
    for (size_t i = count; i-- > 0;) {
        struct naming below = {.record = naming->record};

        c->other[i] = has_other_backing(c, i, naming->record);
        c->needs[i] = c->other[i] || needs_options(c->images[i], &below);
    }
    return true;
}

static char *name_of_node(const struct block_node *node, struct real_names *record)
{
    struct naming naming = {.record = record};
    struct chain_names c;
    char *name = NULL;

    if (chain_names_init(&c, skip_implicit(node), &naming)) {
        name = chain_name(&c, 0, record);
        chain_names_free(&c);
    }
    return name;
}

char *block_node_full_filename(const struct block_node *node)
{
    return name_of_node(node, NULL);
}

static void real_names_clear(struct real_names *names)
{
    for (size_t i = 0; i < names->count; i++) {
        free(names->list[i].name);
        free(names->list[i].real);
    }
    free(names->list);
}

/* Ask where the new names lead. Whether there were any, and there is an answer. Yields. */
static bool co_ask_names(struct real_names *names)
{
    size_t count = names->count - names->asked;
    AUTO_FREE const char **paths = calloc(count + 1, sizeof(char *));
    AUTO_FREE char **real = calloc(count + 1, sizeof(char *));
    int r = paths && real && !names->failed ? 0 : -ENOMEM;

    for (size_t i = 0; r == 0 && i < count; i++) {
        paths[i] = names->list[names->asked + i].name;
    }
    if (r == 0 && count > 0) {
        r = loop_co_real_paths_soon(paths, count, real);
    }
    for (size_t i = 0; r == 0 && i < count; i++) {
        names->list[names->asked + i].real = real[i];
    }
    names->asked = names->count;
    return r == 0 && count > 0;
}

char *block_node_co_filename_to_record(const struct block_node *node)
{
    struct real_names names = {0};
    char *name = name_of_node(node, &names);

    while (co_ask_names(&names)) {
        free(name);
        name = name_of_node(node, &names);
    }
    real_names_clear(&names);
    return name;
}

void block_set_auto_backing(struct block_node *node, const char *filename)
{
    free(node->auto_backing);
    node->auto_backing = filename ? strdup(filename) : NULL;
}

void block_note_recorded_backing(struct block_node *node, const struct block_node *backing)
{
    free(node->auto_backing);
    node->auto_backing = block_node_full_filename(backing);
}

char *block_node_resolve_backing(const struct block_node *node, const char *name)
{
    return !node->filename && node->beyond_filename && block_is_relative(name)
               ? NULL
               : block_resolve_relative(block_node_filename(node), name);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Planning to reopen nodes: which nodes, with which options and children. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/reopen_plan.h"

const char *const block_no_options[] = {NULL};

struct block_reopen *block_reopen_new(void)
{
    struct block_reopen *plan = calloc(1, sizeof(*plan));

    if (plan) {
        list_init(&plan->entries);
        list_init(&plan->sorted);
    }
    return plan;
}

static void co_entry_free(struct reopen_entry *e)
{
    list_remove(&e->link);
    if (e->drained) {
        block_drain_end(e->node);
    }
    options_free(e->driver_options);
    json_object_put(e->options);
    block_co_unref(e->file.was);
    block_co_unref(e->file.next);
    block_co_unref(e->backing.was);
    block_co_unref(e->backing.next);
    block_co_unref(e->node);
    free(e);
}

void block_co_reopen_free(struct block_reopen *plan)
{
    while (plan && !list_is_empty(&plan->entries)) {
        co_entry_free(LIST_FIRST(&plan->entries, struct reopen_entry, link));
    }
    free(plan);
}

static struct reopen_entry *find_entry(const struct block_reopen *plan,
                                       const struct block_node *node)
{
    struct reopen_entry *e;

    LIST_FOREACH (e, &plan->entries, link) {
        if (e->node == node) {
            return e;
        }
    }
    return NULL;
}

/* The entry of a node; a new one is empty. NULL: no memory. */
static struct reopen_entry *get_entry(struct block_reopen *plan, struct block_node *node)
{
    struct reopen_entry *e = find_entry(plan, node);

    if (!e && (e = calloc(1, sizeof(*e)))) {
        e->node = block_node_ref(node);
        e->was = e->next = block_get_use(node);
        e->explicit_use = node->explicit_use;
        list_append(&plan->entries, &e->link);
    }
    return e;
}

static int check_reopens(const struct block_node *node, struct error *err)
{
    return node->driver->reopen_options
               ? 0
               : error_set(err, ENOTSUP,
                           "Block format '%s' used by node '%s' does not support reopening files",
                           node->driver->name, node->name);
}

static int refuse_change(const char *key, struct error *err)
{
    return error_set(err, EINVAL, "Cannot change the option '%s'", key);
}

/* --- children that follow --------------------------------------------------------------------- */

/* The generic options of a node that follows `parent`, which gets those of its entry. */
static int follow_use(const struct reopen_entry *parent, const struct block_node *node,
                      struct block_use *ret_use, struct error *err)
{
    AUTO_OPTIONS struct options *opts = options_new();
    struct block_use was = block_get_use(node), use;
    int r;

    if (!opts) {
        return error_out_of_memory(err);
    }
    block_inherit_use(parent->node, &parent->next, opts, node->inherit_role);
    r = block_take_use(opts, BLOCK_OPEN_RDWR, &use, err);
    if (r < 0) {
        return r;
    }
    *ret_use = was;
    if (!(node->explicit_use & BLOCK_USE_READ_ONLY)) {
        ret_use->read_only = use.read_only;
    }
    if (!(node->explicit_use & BLOCK_USE_AUTO_READ_ONLY)) {
        ret_use->auto_read_only = use.auto_read_only;
    }
    if (!(node->explicit_use & BLOCK_USE_DISCARD) && !node->driver->is_filter) {
        ret_use->discard_unmap = use.discard_unmap;
    }
    if (!(node->explicit_use & BLOCK_USE_CACHE_DIRECT)) {
        ret_use->cache_direct = use.cache_direct;
    }
    if (!(node->explicit_use & BLOCK_USE_CACHE_NO_FLUSH)) {
        ret_use->cache_no_flush = use.cache_no_flush;
    }
    return 0;
}

static bool is_same_use(const struct block_use *a, const struct block_use *b)
{
    return a->read_only == b->read_only && a->auto_read_only == b->auto_read_only &&
           a->force_share == b->force_share && a->cache_direct == b->cache_direct &&
           a->cache_no_flush == b->cache_no_flush && a->discard_unmap == b->discard_unmap &&
           a->detect_zeroes == b->detect_zeroes;
}

static int add_follower(struct block_reopen *plan, const struct reopen_entry *parent,
                        struct block_node *child, struct error *err)
{
    struct reopen_entry *e;
    struct block_use was, use;
    int r;

    if (child->inherits_from != parent->node || find_entry(plan, child)) {
        return 0;
    }
    was = block_get_use(child);
    r = follow_use(parent, child, &use, err);
    if (r < 0 || is_same_use(&was, &use)) {
        return r;
    }
    r = check_reopens(child, err);
    e = r == 0 ? get_entry(plan, child) : NULL;
    if (!e) {
        return r < 0 ? r : error_out_of_memory(err);
    }
    e->next = use;
    return 0;
}

/* Add the nodes that follow those of the plan. */
static int expand(struct block_reopen *plan, struct error *err)
{
    struct reopen_entry *e;
    struct block_edge *edge;
    int r = 0;

    LIST_FOREACH (e, &plan->entries, link) {
        if (e->is_expanded) {
            continue;
        }
        e->is_expanded = true;
        LIST_FOREACH (edge, &e->node->children, sibling) {
            bool leaves = (edge == e->node->backing && e->backing.changes) ||
                          (edge == e->node->file && e->file.changes);

            UNLESS_FAILED(r, leaves ? 0 : add_follower(plan, e, edge->node, err));
        }
    }
    return r;
}

/* --- options of a user ------------------------------------------------------------------------ */

static int co_add_with_options(struct block_reopen *plan, struct block_node *node,
                               const struct reopen_entry *parent, struct options *opts,
                               struct error *err);

static void set_link(struct reopen_link *link, const struct block_edge *edge,
                     struct block_node *next)
{
    link->was = edge ? block_node_ref(edge->node) : NULL;
    link->next = next ? block_node_ref(next) : NULL;
    link->changes = link->was != link->next;
}

/* Whether the image names a backing file, or has a backing node. */
static bool co_has_backing(struct block_node *node)
{
    struct block_info info;

    return node->backing || (node->driver->co_get_info &&
                             node->driver->co_get_info(node, &info) == 0 && info.backing_filename);
}

/* Another node, or none (NULL), in the place of the child at `edge`; NULL: there is none yet. */
static int co_plan_link(struct reopen_entry *e, struct reopen_link *link, struct block_edge *edge,
                        struct block_node *next, struct error *err)
{
    struct block_node *below = edge ? block_node_skip_implicit(edge->node) : NULL;

    if (edge && next == below && below != edge->node) {
        return 0; /* a job has put its filter in between */
    }
    if (edge && below != edge->node) {
        return error_set(err, EPERM, "Cannot replace implicit %s child of %s", edge->name,
                         e->node->name);
    }
    if (link == &e->backing && next && !(block_node_traits(e->node) & BLOCK_DRIVER_BACKING) &&
        !co_has_backing(e->node)) {
        return error_set(err, EINVAL, "Driver '%s' of node '%s' does not support backing files",
                         e->node->driver->name, e->node->name);
    }
    set_link(link, edge, next);
    return 0;
}

/* What option `name` of a node says about its child: the one at `edge`, NULL if there is none. */
static int co_plan_child(struct block_reopen *plan, struct reopen_entry *e, struct options *opts,
                         const char *name, struct block_edge *edge, struct error *err)
{
    struct reopen_link *link = strcmp(name, "file") == 0      ? &e->file
                               : strcmp(name, "backing") == 0 ? &e->backing
                                                              : NULL;
    AUTO_OPTIONS struct options *child_opts = NULL;
    AUTO_FREE char *node_name = NULL;
    struct block_node *found;
    int r;

    if (link == &e->backing && options_is_null(opts, name)) {
        options_drop(opts, name);
        return co_plan_link(e, link, edge, NULL, err);
    }
    r = options_take_child(opts, name, &child_opts, &node_name, err);
    if (r < 0) {
        return r;
    }
    if (child_opts && edge && edge->node->inherits_from == e->node) {
        return co_add_with_options(plan, edge->node, e, TAKE_PTR(child_opts), err);
    }
    if (!node_name || (edge && strcmp(edge->node->name, node_name) == 0)) {
        return 0;
    }
    if (!link || (link == &e->file && !e->node->driver->exchanges_file)) {
        return refuse_change(name, err);
    }
    found = block_node_find(node_name);
    if (!found) {
        return error_set(err, ENOENT, "Cannot find device='' nor node-name='%s'", node_name);
    }
    return co_plan_link(e, link, edge, found, err);
}

static int co_plan_children(struct block_reopen *plan, struct reopen_entry *e, struct options *opts,
                            struct error *err)
{
    struct block_edge *edge;
    int r = 0;

    LIST_FOREACH (edge, &e->node->children, sibling) {
        if (r == 0 && edge != e->node->backing && !options_has(opts, edge->name) &&
            json_object_object_get_ex(e->node->options, edge->name, NULL)) {
            r = options_missing(opts, edge->name, err);
        }
        if (r == 0 && edge != e->node->backing && options_has(opts, edge->name)) {
            r = co_plan_child(plan, e, opts, edge->name, edge, err);
        }
    }
    if (r < 0) {
        return r;
    }
    if (options_has(opts, "backing")) {
        return co_plan_child(plan, e, opts, "backing", e->node->backing, err);
    }
    return co_has_backing(e->node)
               ? error_set(err, EINVAL, "backing is missing for '%s'", e->node->name)
               : 0;
}

static bool driver_can_change(const struct block_driver *driver, const char *key)
{
    const char *const *k = driver->reopen_options;

    while (*k && strcmp(*k, key) != 0) {
        k++;
    }
    return *k != NULL;
}

static bool is_generic(const char *key)
{
    static const char *const keys[] = {"node-name",     "read-only", "auto-read-only",
                                       "force-share",   "cache",     "discard",
                                       "detect-zeroes", "active",    NULL};
    const char *const *k = keys;

    while (*k && strcmp(*k, key) != 0) {
        k++;
    }
    return *k != NULL;
}

/* --- options that can't change ---------------------------------------------------------------- */

/*
 * Of several options that can't change QEMU names the one that its table of options has first, and
 * the places there follow from the keys: this is the place of a key.
 */
static unsigned place_of_option(const char *key)
{
    uint32_t value = 0x238F13AFu * (uint32_t)strlen(key);

    for (size_t i = 0; key[i] != '\0'; i++) {
        value += (uint32_t)(unsigned char)key[i] << (i * 5 % 24);
    }
    return (1103515243u * value + 12345u) % 512;
}

/* The option that the message names; `key` is empty if all may stay as they are. */
struct refused_option {
    char key[256];
};

static void note_refused(struct refused_option *refused, const char *key)
{
    if (!refused->key[0] || place_of_option(key) < place_of_option(refused->key)) {
        snprintf(refused->key, sizeof(refused->key), "%s", key);
    }
}

/* All options within a value: those of a child that does not follow, or elements of a list. */
static void note_all_refused(struct refused_option *refused, const char *key,
                             struct json_object *value)
{
    char name[sizeof(refused->key)];

    if (json_object_is_type(value, json_type_object) && json_object_object_length(value) > 0) {
        json_object_object_foreach(value, inner_key, inner)
        {
            snprintf(name, sizeof(name), "%s.%s", key, inner_key);
            note_all_refused(refused, name, inner);
        }
    } else if (json_object_is_type(value, json_type_array) && json_object_array_length(value) > 0) {
        for (size_t i = 0; i < json_object_array_length(value); i++) {
            snprintf(name, sizeof(name), "%s.%zu", key, i);
            note_all_refused(refused, name, json_object_array_get_idx(value, i));
        }
    } else {
        note_refused(refused, key);
    }
}

/* Whether the node may get this value of an option; a child that follows is looked at itself. */
static bool may_have_option(const struct block_node *node, const char *key,
                            struct json_object *value)
{
    const struct block_node *child = block_node_child(node, key);
    const char *text = value ? json_object_get_string(value) : "";
    struct json_object *was;

    if (strcmp(key, "driver") == 0) {
        return strcmp(text, node->driver->name) == 0;
    }
    if (strcmp(key, "node-name") == 0) {
        return strcmp(text, node->name) == 0;
    }
    if (strcmp(key, "active") == 0) {
        return !json_object_is_type(value, json_type_boolean) || json_object_get_boolean(value);
    }
    if (is_generic(key) || driver_can_change(node->driver, key)) {
        return true;
    }
    if (child || strcmp(key, "backing") == 0) {
        return !json_object_is_type(value, json_type_object) ||
               (child && child->inherits_from == node);
    }
    return json_object_object_get_ex(node->options, key, &was) &&
           strcmp(json_object_to_json_string(was), json_object_to_json_string(value)) == 0;
}

static int check_can_change(const struct block_node *node, struct json_object *given,
                            struct error *err)
{
    struct refused_option refused = {""};

    json_object_object_foreach(given, key, value)
    {
        if (!may_have_option(node, key, value)) {
            note_all_refused(&refused, key, value);
        }
    }
    return refused.key[0] ? refuse_change(refused.key, err) : 0;
}

/* Options that are not given get their default value, which they must have if they can't change. */
static int check_reset(const struct block_node *node, struct options *opts,
                       struct json_object *given, struct error *err)
{
    json_object_object_foreach(given, key, value)
    {
        (void)value;
        if (!driver_can_change(node->driver, key)) {
            options_drop(opts, key); /* as it was */
        }
    }
    json_object_object_foreach(node->options, old_key, old_value)
    {
        (void)old_value;
        if (!is_generic(old_key) && !json_object_object_get_ex(given, old_key, NULL) &&
            !driver_can_change(node->driver, old_key) && !block_node_child(node, old_key) &&
            strcmp(old_key, "backing") != 0) {
            return strcmp(old_key, "filename") == 0
                       ? options_missing(opts, old_key, err)
                       : error_set(err, EINVAL, "Option '%s' cannot be reset to its default value",
                                   old_key);
        }
    }
    return 0;
}

static int take_identity(struct options *opts, struct error *err)
{
    AUTO_FREE char *driver = NULL;
    AUTO_FREE char *name = NULL;
    bool active;
    int r = options_take_str(opts, "driver", &driver, err);

    UNLESS_FAILED(r, options_take_str(opts, "node-name", &name, err));
    UNLESS_FAILED(r, options_take_bool(opts, "active", true, &active, err));
    return r == 0 && !active ? refuse_change("active", err) : r;
}

static int check_force_share(struct options *opts, bool was, struct error *err)
{
    bool share;
    int r = options_take_bool(opts, "force-share", false, &share, err);

    return r == 0 && share != was ? refuse_change("force-share", err) : r;
}

static int co_plan_options(struct block_reopen *plan, struct reopen_entry *e,
                           const struct reopen_entry *parent, struct options *opts,
                           struct error *err)
{
    AUTO_OPTIONS struct options *all = options_clone(opts);
    struct json_object *given = all ? options_to_json(all) : NULL;
    int r = given ? check_can_change(e->node, given, err) : error_out_of_memory(err);

    json_object_put(e->options);
    e->options = given;
    e->explicit_use = block_explicit_use(opts);
    UNLESS_FAILED(r, take_identity(opts, err));
    if (r == 0 && parent) {
        block_inherit_use(parent->node, &parent->next, opts, e->node->inherit_role);
    }
    UNLESS_FAILED(r, check_force_share(all, e->was.force_share, err));
    UNLESS_FAILED(r, block_take_use(opts, BLOCK_OPEN_RDWR, &e->next, err));
    if (r == 0 && e->node->driver->is_filter) {
        e->next.discard_unmap = e->was.discard_unmap; /* the child decides */
    }
    UNLESS_FAILED(r, co_plan_children(plan, e, opts, err));
    return UNLESS_FAILED(r, check_reset(e->node, opts, given, err));
}

static int co_add_with_options(struct block_reopen *plan, struct block_node *node,
                               const struct reopen_entry *parent, struct options *opts_in,
                               struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_in;
    struct reopen_entry *e;
    int r = check_reopens(node, err);

    if (r < 0) {
        return r;
    }
    e = get_entry(plan, node);
    if (!e) {
        return error_out_of_memory(err);
    }
    if (e->is_explicit) {
        return error_set(err, EINVAL, "Node '%s' is given more than once", node->name);
    }
    e->is_explicit = true;
    r = co_plan_options(plan, e, parent, opts, err);
    if (r == 0) {
        e->driver_options = TAKE_PTR(opts);
    }
    return r;
}

int block_co_reopen_add(struct block_reopen *plan, struct block_node *node, struct options *opts,
                        struct error *err)
{
    if (node->handed_over) {
        options_free(opts);
        return error_set(err, EPERM, "Node '%s' is inactive", node->name);
    }
    return co_add_with_options(plan, node, NULL, opts, err);
}

int block_reopen_expand(struct block_reopen *plan, struct error *err)
{
    return expand(plan, err);
}

int block_reopen_add_read_only(struct block_reopen *plan, struct block_node *node, bool read_only,
                               struct error *err)
{
    struct reopen_entry *e;
    int r = check_reopens(node, err);

    if (r < 0) {
        return r;
    }
    e = get_entry(plan, node);
    if (!e) {
        return error_out_of_memory(err);
    }
    e->next.read_only = read_only;
    /* It has been asked for: reopening the parent does not change that. */
    e->explicit_use |= BLOCK_USE_READ_ONLY;
    return expand(plan, err);
}

/* --- questions -------------------------------------------------------------------------------- */

struct block_node *block_reopen_next_node(const struct block_reopen *plan, size_t *index)
{
    size_t i = 0, wanted = (*index)++;
    struct reopen_entry *e;

    LIST_FOREACH (e, &plan->entries, link) {
        struct block_node *nodes[] = {e->node, e->file.changes ? e->file.next : NULL,
                                      e->backing.changes ? e->backing.next : NULL};

        for (size_t k = 0; k < 3; k++) {
            if (nodes[k] && i++ == wanted) {
                return nodes[k];
            }
        }
    }
    return NULL;
}

bool block_node_follows(const struct block_node *node, const struct block_node *parent)
{
    return node->inherits_from == parent;
}

bool block_reopen_changes_links(const struct block_reopen *plan, const struct block_node *node)
{
    const struct reopen_entry *e = find_entry(plan, node);

    return e && (e->file.changes || e->backing.changes);
}

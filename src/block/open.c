/* SPDX-License-Identifier: Apache-2.0 */
/* Opening a node from options, and publishing it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/device.h"
#include "block/internal.h"
#include "block/op.h"
#include "trace/events.h"

#define NODE_NAME_MAX 31

/*
 * How many later writes may pass a write that waits for blocks. Enough for the requests of one
 * guest; bounds the wait.
 */
#define RMW_PASSES 64

/* --- names ----------------------------------------------------------------------------------- */

static bool name_is_well_formed(const char *name)
{
    if (!((*name >= 'a' && *name <= 'z') || (*name >= 'A' && *name <= 'Z'))) {
        return false;
    }
    for (; *name; name++) {
        if (!((*name >= 'a' && *name <= 'z') || (*name >= 'A' && *name <= 'Z') ||
              (*name >= '0' && *name <= '9') || strchr("-._", *name))) {
            return false;
        }
    }
    return true;
}

/* Names of hidden nodes of any coroutine are taken too. */
static bool name_is_taken(const char *name)
{
    return name_index_find(&block_node_names, name);
}

char *block_generated_node_name(void)
{
    /* Three digits: scripts tell these names from others by that. */
    static unsigned serial = 100;
    char *name;

    return asprintf(&name, "#block%u", serial++) < 0 ? NULL : name;
}

static int take_node_name(struct block_node *node, struct options *opts, struct error *err)
{
    AUTO_FREE char *name = NULL;
    int r = options_take_str(opts, "node-name", &name, err);

    if (r < 0) {
        return r;
    }
    if (name) {
        if (!name_is_well_formed(name)) {
            return error_set(err, EINVAL, "Invalid node-name: '%s'", name);
        }
        if (strlen(name) > NODE_NAME_MAX) {
            return error_set(err, EINVAL, "Node name too long");
        }
        if (name_is_taken(name)) {
            return error_set(err, EEXIST, "Duplicate nodes with node-name='%s'", name);
        }
        if (block_device_find(name)) {
            return error_set(err, EEXIST, "node-name=%s is conflicting with a device id", name);
        }
        node->name = TAKE_PTR(name);
    } else {
        node->name = block_generated_node_name();
    }
    if (!node->name) {
        return error_out_of_memory(err);
    }
    name_index_add(&block_node_names, &node->by_name, node->name);
    return 0;
}

/* --- generic options ------------------------------------------------------------------------- */

static int take_generic_options(struct block_node *node, struct options *opts, unsigned flags,
                                struct error *err)
{
    struct block_use use;
    bool active;
    int r = take_node_name(node, opts, err);

    UNLESS_FAILED(r, block_take_use(opts, flags, &use, err));
    UNLESS_FAILED(r, options_take_bool(opts, "active", true, &active, err));
    if (r >= 0) {
        node->handed_over = !active;
        node->set_shared |= active ? 0 : BLOCK_SHARE_HAND_OVER;
        block_set_use(node, &use);
    }
    return r;
}

/* --- open ------------------------------------------------------------------------------------- */

static struct block_node *node_new(const struct block_driver *driver, unsigned flags)
{
    static uint64_t last_number;
    struct block_node *node = calloc(1, sizeof(*node));

    if (!node) {
        return NULL;
    }
    node->number = ++last_number;
    node->opaque = calloc(1, driver->instance_size ? driver->instance_size : 1);
    if (!node->opaque) {
        free(node);
        return NULL;
    }
    node->driver = driver;
    if (block_detour_init(node) < 0) {
        free(node->opaque);
        free(node);
        return NULL;
    }
    node->open_flags = flags;
    counters_init(&node->counters, sizeof(struct block_node_shard));
    latency_set_init(&node->latencies);
    node->refcount = 1;
    node->limits.request_alignment = 1;
    node->limits.memory_alignment = 1;
    node->set_shared = BLOCK_PERM_ALL;
    node->opener = co_task();
    atomic_init(&node->size, 0);
    atomic_init(&node->write_generation, BLOCK_NOTHING_WRITTEN);
    list_init(&node->children);
    list_init(&node->parents);
    list_init(&node->bitmaps);
    list_init(&node->left);
    list_init(&node->published);
    list_init(&node->publication);
    list_init(&node->heirs);
    list_init(&node->heir);
    list_init(&node->drained);
    list_init(&node->touched);
    list_init(&node->over_set);
    list_init(&node->quiet);
    range_lock_init(&node->rmw);
    co_mutex_init(&node->resizing);
    range_lock_let_pass(&node->rmw, RMW_PASSES);
    list_append(&block_hidden_nodes, &node->link);
    return node;
}

static int remember_filename(struct block_node *node, const struct options *opts)
{
    struct json_object *value;

    node->options = options_to_json(opts);
    if (json_object_object_get_ex(node->options, "filename", &value) &&
        json_object_is_type(value, json_type_string)) {
        node->filename = strdup(json_object_get_string(value));
        return node->filename ? 0 : -ENOMEM;
    }
    return 0;
}

void block_inherit_filename(struct block_node *node)
{
    const struct block_node *below = node->file                ? node->file->node
                                     : node->driver->is_filter ? block_node_filter_or_backing(node)
                                                               : NULL;

    if (!node->filename && below && below->filename) {
        node->filename = strdup(below->filename);
    }
    node->beyond_filename |= below && below->beyond_filename;
}

/* Filters pass events on; a format that does has set `events` in its co_open. */
static bool wants_events(const struct block_node *node)
{
    const struct block_node *below =
        node->driver->is_filter ? block_node_filter_or_backing(node) : NULL;

    return node->events || node->driver->co_event || (below && below->events);
}

/* A driver without backing files has left the option `backing`: null, or the node of one. */
static int check_no_backing_left(struct options *opts, struct error *err)
{
    if (options_are_arguments(opts) || !options_has(opts, "backing")) {
        return 0;
    }
    if (!options_is_null(opts, "backing")) {
        return error_set(err, EINVAL, "Driver doesn't support backing files");
    }
    options_drop(opts, "backing");
    return 0;
}

static int co_open_node(struct block_node *node, struct options *opts, unsigned flags,
                        struct error *err)
{
    const char *kind = node->driver->is_protocol ? "protocol" : "format";
    char what[96];
    int r;

    if (remember_filename(node, opts) < 0) {
        return error_out_of_memory(err);
    }
    r = take_generic_options(node, opts, flags, err);
    if (r < 0) {
        return r;
    }
    r = node->driver->co_open(node, opts, err);
    if (r < 0) {
        return r;
    }
    block_inherit_filename(node);
    node->events = wants_events(node);
    block_update_detour(node);
    snprintf(what, sizeof(what), "Block %s '%s'", kind, node->driver->name);
    r = check_no_backing_left(opts, err);
    UNLESS_FAILED(r, options_check_empty(opts, what, err));
    if (r < 0) {
        block_bitmaps_release(node);
        if (node->driver->co_close) {
            node->driver->co_close(node);
        }
    }
    return r;
}

static void co_detach_all_children(struct block_node *node)
{
    while (!list_is_empty(&node->children)) {
        block_co_detach_child(LIST_FIRST(&node->children, struct block_edge, sibling));
    }
}

int block_co_open_hidden(struct options *opts_in, unsigned flags, struct block_node **ret_node,
                         struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_in;
    AUTO_FREE char *driver_name = NULL;
    const struct block_driver *driver;
    struct block_node *node;
    int r = options_take_str(opts, "driver", &driver_name, err);

    if (r < 0) {
        return r;
    }
    if (!driver_name) {
        return options_missing(opts, "driver", err);
    }
    driver = block_find_driver(driver_name);
    if (!driver || !driver->co_open) {
        return options_wrong_choice(opts, "driver", driver_name, err);
    }
    node = node_new(driver, flags);
    if (!node) {
        return error_out_of_memory(err);
    }
    trace_block_open_begin(driver_name);
    r = co_open_node(node, opts, flags, err);
    trace_block_open_end(node->name ?: "", driver_name, r);
    if (r < 0) {
        node->closed = true;
        co_detach_all_children(node);
        block_node_free(node);
        return r;
    }
    node->open_flags &= ~BLOCK_OPEN_CHAIN_MASK;
    json_object_object_add(node->options, "driver", json_object_new_string(driver_name));
    node->is_open = true;
    *ret_node = node;
    return 0;
}

/* --- publish ---------------------------------------------------------------------------------- */

/* The hidden node at or below `node` that was opened last: children come before their parents. */
static struct block_node *next_to_publish(struct block_node *node)
{
    struct list *l;

    for (l = block_hidden_nodes.prev; l != &block_hidden_nodes; l = l->prev) {
        struct block_node *n = container_of(l, struct block_node, link);

        if (n->opener == node->opener && n->is_open && block_node_reaches(node, n)) {
            return n;
        }
    }
    return NULL;
}

static void make_public(struct block_node *node)
{
    node->opener = NULL;
    block_perm_touch(node);
    list_remove(&node->link);
    list_append(&block_all_nodes, &node->link);
}

static void hide(struct block_node *node)
{
    node->opener = co_task();
    block_perm_touch(node);
    list_remove(&node->link);
    list_append(&block_hidden_nodes, &node->link);
}

void block_unpublish(struct block_node *node)
{
    /* Parents before their children. */
    while (!list_is_empty(&node->published)) {
        struct block_node *n = container_of(node->published.prev, struct block_node, publication);

        list_remove(&n->publication);
        n->published_with = NULL;
        hide(n);
    }
}

/* Nodes below one another, without backing images, that are put in order. */
#define ORDER_DEPTH_MAX 16u

/*
 * Those that are new in the list of nodes are in QEMU's order, which management sees: what an image
 * is stored in, the image, its backing image likewise.
 */
static void put_in_order(struct block_node *n, const struct block_node *top, unsigned depth)
{
    const struct block_edge *edge;

    for (; n && n->published_with == top; n = n->backing ? n->backing->node : NULL) {
        LIST_FOREACH (edge, &n->children, sibling) {
            if (edge != n->backing && depth > 0) {
                put_in_order(edge->node, top, depth - 1);
            }
        }
        list_remove(&n->link);
        list_append(&block_all_nodes, &n->link);
    }
}

int block_co_publish(struct block_node *node, struct error *err)
{
    struct block_node *n;
    int r = 0;

    block_co_change_begin();
    while (r == 0 && node->opener && (n = next_to_publish(node))) {
        r = n->driver->co_begin ? n->driver->co_begin(n, err) : 0;
        if (r == 0) {
            n->published_with = node;
            list_append(&node->published, &n->publication);
            make_public(n);
        }
    }
    UNLESS_FAILED(r, block_co_change_settle(err));
    if (r < 0) {
        block_unpublish(node);
        (void)block_co_change_settle(NULL);
    } else {
        put_in_order(node, node, ORDER_DEPTH_MAX);
    }
    block_co_change_end();
    return r;
}

/* Whether this coroutine is opening another node, of which this node becomes a part. */
static bool is_nested_open(void)
{
    struct block_node *node;

    LIST_FOREACH (node, &block_hidden_nodes, link) {
        if (node->opener == co_task() && !node->is_open) {
            return true;
        }
    }
    return false;
}

int block_co_open(struct options *opts, unsigned flags, struct block_node **ret_node,
                  struct error *err)
{
    bool nested = is_nested_open();
    struct block_node *node = NULL;
    int r = block_co_open_hidden(opts, flags, &node, err);

    if (node && !nested) {
        r = block_co_publish(node, err);
        if (r < 0) {
            block_co_unref(node);
        }
    }
    if (r == 0) {
        *ret_node = node;
    }
    return r;
}

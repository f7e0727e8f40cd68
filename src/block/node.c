/* SPDX-License-Identifier: Apache-2.0 */
/* The list of nodes, and what can be asked of a node. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "block/internal.h"
#include "block/user_object.h"

struct list block_all_nodes = LIST_INIT(block_all_nodes);
struct list block_hidden_nodes = LIST_INIT(block_hidden_nodes);
struct name_index block_node_names;

const char *block_perm_names(unsigned perm, char *buf, size_t buf_size)
{
    static const char *const names[] = {"consistent read", "write", "write unchanged", "resize"};
    size_t n = 0;

    buf[0] = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(names) && n < buf_size; i++) {
        if (perm & (1u << i)) {
            n += (size_t)snprintf(buf + n, buf_size - n, "%s%s", n ? ", " : "", names[i]);
        }
    }
    return buf;
}

struct block_node *block_node_next(struct block_node *node)
{
    struct list *next = node ? node->link.next : block_all_nodes.next;

    return next == &block_all_nodes ? NULL : container_of(next, struct block_node, link);
}

const char *block_node_name(const struct block_node *node)
{
    return node->name;
}

bool block_node_shows_filename(const struct block_node *node)
{
    const struct block_driver *d = node->driver;

    return d->is_internal || d->is_frozen_view || strcmp(d->name, "copy-before-write") == 0;
}

const char *block_node_filename(const struct block_node *node)
{
    /* An overlay may have come in between since the node was opened. */
    while (node->file && block_node_shows_filename(node)) {
        node = node->file->node;
    }
    return node->filename ? node->filename : "";
}

const char *block_node_display_name(const struct block_node *node)
{
    const struct block_node *n = node;

    while ((!n->filename || n->driver->is_filter) && n->file) {
        n = n->file->node;
    }
    return n->filename ? n->filename : node->name;
}

const struct block_driver *block_node_driver(const struct block_node *node)
{
    return node->driver;
}

uint64_t block_node_size(const struct block_node *node)
{
    return atomic_load_explicit(&node->size, memory_order_relaxed);
}

bool block_node_failure_reported(const struct block_node *node)
{
    return node->close_reported;
}

uint64_t block_node_write_generation(const struct block_node *node)
{
    uint64_t generation = atomic_load(&node->write_generation);

    /* Writes that a filter lets pass do not count there. */
    while (node->passed && node->filtered) {
        node = node->filtered->node;
        generation += atomic_load(&node->write_generation);
    }
    return generation;
}

void block_node_set_size(struct block_node *node, uint64_t size)
{
    atomic_store(&node->size, size);
}

bool block_node_is_read_only(const struct block_node *node)
{
    return node->read_only;
}

struct json_object *block_node_options(const struct block_node *node)
{
    return node->options;
}

struct block_node *block_node_child(const struct block_node *node, const char *name)
{
    struct block_edge *edge;

    LIST_FOREACH (edge, &node->children, sibling) {
        if (strcmp(edge->name, name) == 0) {
            return edge->node;
        }
    }
    return NULL;
}

struct block_node *block_node_filter_or_backing(const struct block_node *node)
{
    if (node->driver->is_filter) {
        return (node->filtered ? node->filtered->node : NULL);
    }
    return node->backing ? node->backing->node : NULL;
}

struct block_node *block_node_skip_filters(struct block_node *node)
{
    while (node && node->driver->is_filter) {
        node = (node->filtered ? node->filtered->node : NULL);
    }
    return node;
}

void block_node_set_implicit(struct block_node *node)
{
    node->implicit = true;
}

/* A job's own filter has a name like "#block7" if the user gave none. */
static bool is_implicit(const struct block_node *node)
{
    return node->implicit || (node->driver->is_internal && node->name[0] == '#');
}

struct block_node *block_node_skip_implicit(struct block_node *node)
{
    while (is_implicit(node) && node->filtered) {
        node = node->filtered->node;
    }
    return node;
}

bool block_node_is_plain_file(const struct block_node *node)
{
    while (node && strcmp(block_node_format(node), "raw") == 0) {
        node = block_node_child(node, "file");
    }
    return node && (strcmp(block_node_format(node), "file") == 0 ||
                    strcmp(block_node_format(node), "host_device") == 0);
}

struct block_node *block_node_backing(struct block_node *node)
{
    node = block_node_skip_filters(node);
    return node && node->backing ? block_node_skip_filters(node->backing->node) : NULL;
}

uint64_t block_node_number(const struct block_node *node)
{
    return node->number;
}

bool block_node_is_filter(const struct block_node *node)
{
    return node->driver->is_filter;
}

bool block_node_is_frozen_view(struct block_node *node)
{
    node = block_node_skip_filters(node);
    return node && node->driver->is_frozen_view;
}

struct user_object *block_node_iothread(const struct block_node *node)
{
    return node->iothread;
}

void block_node_set_iothread(struct block_node *node, struct user_object *object)
{
    user_object_unref(node->iothread);
    node->iothread = object ? user_object_ref(user_object_id(object)) : NULL;
}

bool block_node_is_monitor_owned(const struct block_node *node)
{
    return node->monitor_owned;
}

void block_node_set_monitor_owned(struct block_node *node, bool owned)
{
    node->monitor_owned = owned;
}

void block_node_forget_name(struct block_node *node)
{
    node->is_leaving = true;
}

bool block_node_in_use(const struct block_node *node)
{
    return !list_is_empty(&node->parents);
}

unsigned block_edge_perm(const struct block_edge *edge)
{
    return atomic_load(&edge->perm);
}

unsigned block_edge_shared(const struct block_edge *edge)
{
    return atomic_load(&edge->shared);
}

struct block_node *block_edge_node(const struct block_edge *edge)
{
    return edge->node;
}

uint64_t block_edge_size(const struct block_edge *edge)
{
    return block_node_size(edge->node);
}

const char *block_node_format(const struct block_node *node)
{
    return node->driver->name;
}

const struct block_limits *block_node_limits(const struct block_node *node)
{
    return &node->limits;
}

void block_node_set_probed(struct block_node *node)
{
    node->probed = true;
}

struct block_node_settings block_node_settings(const struct block_node *node)
{
    return (struct block_node_settings){
        .read_only = node->read_only,
        .probed = node->probed,
        .cache_direct = node->cache_direct,
        .cache_no_flush = node->cache_no_flush,
        .discard_unmap = node->discard_unmap,
        .detect_zeroes = (enum block_detect_zeroes)node->detect_zeroes,
    };
}

struct block_edge *block_node_next_child(const struct block_node *node,
                                         const struct block_edge *edge)
{
    struct list *next = edge ? edge->sibling.next : node->children.next;

    return next == &node->children ? NULL : container_of(next, struct block_edge, sibling);
}

struct block_edge *block_node_next_parent(const struct block_node *node,
                                          const struct block_edge *edge)
{
    struct list *next = edge ? edge->in_node.next : node->parents.next;

    return next == &node->parents ? NULL : container_of(next, struct block_edge, in_node);
}

const char *block_edge_name(const struct block_edge *edge)
{
    return edge->name;
}

struct block_node *block_edge_parent(const struct block_edge *edge)
{
    return edge->parent;
}

/* --- life ------------------------------------------------------------------------------------- */

struct block_node *block_node_ref(struct block_node *node)
{
    node->refcount++;
    return node;
}

bool block_node_has_one_ref(const struct block_node *node)
{
    return node->refcount == 1;
}

/* Nodes that were opened for `node` may live longer. */
static void forget_heirs(struct block_node *node)
{
    while (!list_is_empty(&node->heirs)) {
        struct block_node *heir = LIST_FIRST(&node->heirs, struct block_node, heir);

        list_remove(&heir->heir);
        heir->inherits_from = NULL;
    }
}

void block_node_free(struct block_node *node)
{
    block_node_set_iothread(node, NULL);
    list_remove(&node->link);
    list_remove(&node->touched);
    list_remove(&node->over_set);
    list_remove(&node->drained);
    list_remove(&node->quiet);
    list_remove(&node->heir);
    list_remove(&node->publication);
    forget_heirs(node);
    name_index_remove(&block_node_names, &node->by_name);
    range_lock_destroy(&node->rmw);
    co_mutex_destroy(&node->resizing);
    block_detour_release(node);
    counters_release(&node->counters);
    latency_set_destroy(&node->latencies);
    json_object_put(node->options);
    free(node->opaque);
    free(node->filename);
    free(node->auto_backing);
    free(node->name);
    free(node);
}

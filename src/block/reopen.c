/* SPDX-License-Identifier: Apache-2.0 */
/* Reopening nodes: the steps that carry a plan out, and undo it. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/gate.h"
#include "block/reopen_plan.h"
#include "trace/events.h"

/* --- order ------------------------------------------------------------------------------------ */

static bool is_below_another(const struct block_reopen *plan, const struct reopen_entry *e)
{
    const struct reopen_entry *other;

    LIST_FOREACH (other, &plan->entries, link) {
        if (other != e && block_node_reaches(other->node, e->node)) {
            return true;
        }
    }
    return false;
}

/*
 * Parents before the nodes below them: what completes an image is written to the nodes below, which
 * have to be writable until then. Takes the first one that no other reaches; plans are short.
 */
static void sort_by_depth(struct block_reopen *plan)
{
    while (!list_is_empty(&plan->entries)) {
        struct reopen_entry *first = LIST_FIRST(&plan->entries, struct reopen_entry, link), *e;

        LIST_FOREACH (e, &plan->entries, link) {
            if (!is_below_another(plan, e)) {
                first = e;
                break;
            }
        }
        list_remove(&first->link);
        list_append(&plan->sorted, &first->link);
    }
    list_splice(&plan->entries, &plan->sorted);
}

/* --- children --------------------------------------------------------------------------------- */

/* Put `next` in the place of the child `was`; each may be NULL. */
static int co_put_child(struct block_node *node, struct block_edge *edge,
                        const struct reopen_link *link, bool back, struct error *err)
{
    struct block_node *next = back ? link->was : link->next;

    if (!link->changes || (edge ? edge->node : NULL) == next) {
        return 0;
    }
    if (!next) {
        block_co_detach_child(edge);
        return 0;
    }
    if (edge && edge == node->filtered) {
        return block_co_edge_move(edge, next, err); /* of the same size */
    }
    return edge ? block_co_edge_point(edge, next, err)
                : block_co_attach_child(node, next, "backing", BLOCK_ROLE_BACKING, NULL, err);
}

/* The head of the file, zeroes beyond its end. */
static int co_read_head(struct block_node *node, uint8_t *head, struct error *err)
{
    size_t size;
    int r;

    assert(node->file);
    size = MIN(block_edge_size(node->file), node->driver->file_head);
    memset(head, 0, node->driver->file_head);
    r = block_co_pread(node->file, 0, head, size);
    return r < 0 ? error_set_errno(err, -r, "Could not read '%s'",
                                   block_node_display_name(node->file->node))
                 : 0;
}

/*
 * Another file that holds another image would be taken for the one whose metadata are in memory,
 * which would be written over those of the other. A raw node may show another part of the file. A
 * node that nobody uses may read its image again (block/reopen_image.c).
 */
static int co_put_file(struct reopen_entry *e, struct error *err)
{
    struct block_node *node = e->node;
    unsigned size = e->file.changes && !e->reads_image ? node->driver->file_head : 0;
    AUTO_FREE uint8_t *heads = malloc(MAX(2 * size, 1));
    uint64_t file_size = node->file ? block_edge_size(node->file) : 0;
    int r = heads ? 0 : error_out_of_memory(err);

    if (size > 0 || e->reads_image) {
        UNLESS_FAILED(r, block_co_renew_size(e->file.next, err));
    }
    if (size > 0) {
        UNLESS_FAILED(r, co_read_head(node, heads, err));
    }
    UNLESS_FAILED(r, co_put_child(node, node->file, &e->file, false, err));
    if (size > 0) {
        UNLESS_FAILED(r, co_read_head(node, heads + size, err));
    }
    if (r == 0 && size > 0 &&
        (reopen_has_other_storage(e) || block_edge_size(node->file) < file_size ||
         memcmp(heads, heads + size, size) != 0)) {
        r = block_perm_check_edge(node->file, err);
        UNLESS_FAILED(r, error_set(err, EINVAL,
                                   "Node '%s' does not have the contents of the file of '%s'",
                                   node->file->node->name, node->name));
    }
    return r;
}

static int co_put_children(struct reopen_entry *e, bool back, struct error *err)
{
    int r = back ? co_put_child(e->node, e->node->file, &e->file, true, err) : co_put_file(e, err);

    return UNLESS_FAILED(r, co_put_child(e->node, e->node->backing, &e->backing, back, err));
}

/* --- steps ------------------------------------------------------------------------------------ */

/* Images that become read-only are completed while they can be written. */
static int co_complete_all(struct block_reopen *plan, struct error *err)
{
    struct reopen_entry *e;
    int r = 0;

    LIST_FOREACH (e, &plan->entries, link) {
        if (!e->was.read_only && e->next.read_only) {
            UNLESS_FAILED(r, block_co_inactivate(e->node, err));
        }
    }
    return r;
}

/* -EACCES if a user of the node writes to it, and stays. */
static int check_no_writer(const struct block_reopen *plan, const struct reopen_entry *e,
                           struct error *err)
{
    const struct block_edge *edge;

    LIST_FOREACH (edge, &e->node->parents, in_node) {
        const struct reopen_entry *other;
        bool stays =
            edge->perm & (BLOCK_PERM_WRITE | BLOCK_PERM_WRITE_UNCHANGED | BLOCK_PERM_RESIZE);

        LIST_FOREACH (other, &plan->entries, link) {
            stays = stays && !(other->node == edge->parent && other->next.read_only);
        }
        if (stays) {
            return error_set(err, EACCES,
                             "Read-only block node '%s' cannot support read-write users",
                             e->node->name);
        }
    }
    return 0;
}

static int co_apply_reopen(const struct block_reopen *plan, struct reopen_entry *e,
                           struct error *err)
{
    struct block_node *node = e->node;
    int r;

    e->old_size = block_node_size(node);
    block_set_use(node, &e->next);
    block_perm_touch(node);
    e->applied = true;
    e->linked = true;
    r = co_put_children(e, false, err);
    if (r < 0 || e->reads_image) {
        return r;
    }
    if (node->driver->co_reopen_prepare) {
        r = node->driver->co_reopen_prepare(node, e->driver_options, err);
    }
    if (r < 0) {
        return r;
    }
    e->prepared = true;
    r = reopen_check_images_above(plan, e, err);
    if (r < 0) {
        return r;
    }
    return e->driver_options ? options_check_empty(e->driver_options, node->driver->name, err) : 0;
}

static void co_drain_all(struct block_reopen *plan)
{
    struct reopen_entry *e;

    LIST_FOREACH (e, &plan->entries, link) {
        if (!e->drained) {
            e->drained = true;
            block_co_drain_begin(e->node);
        }
    }
}

int block_co_reopen_prepare(struct block_reopen *plan, struct error *err)
{
    struct reopen_entry *e;
    int r = 0;

    sort_by_depth(plan);
    co_drain_all(plan);
    LIST_FOREACH (e, &plan->entries, link) {
        if (e->next.read_only && !e->was.read_only) {
            UNLESS_FAILED(r, check_no_writer(plan, e, err));
        }
    }
    UNLESS_FAILED(r, co_complete_all(plan, err));
    UNLESS_FAILED(r, reopen_co_leave_images(plan, err));
    LIST_FOREACH (e, &plan->entries, link) {
        UNLESS_FAILED(r, co_apply_reopen(plan, e, err));
    }
    return r;
}

int block_co_reopen_finish(struct block_reopen *plan, struct error *err)
{
    int r = 0;

    for (struct list *l = plan->entries.prev; l != &plan->entries; l = l->prev) {
        struct reopen_entry *e = container_of(l, struct reopen_entry, link);

        if (e->reads_image) {
            UNLESS_FAILED(r, reopen_co_read_image(e, err));
        } else if (e->node->driver->co_reopen_finish) {
            UNLESS_FAILED(r, e->node->driver->co_reopen_finish(e->node, err));
        }
    }
    return r;
}

static void note_new_options(struct reopen_entry *e)
{
    struct block_node *node = e->node;

    node->explicit_use = e->explicit_use;
    if (e->file.changes) {
        free(node->filename);
        node->filename = NULL;
        block_inherit_filename(node);
    }
    if (e->options) {
        json_object_put(node->options);
        node->options = json_object_get(e->options);
        json_object_object_add(node->options, "driver", json_object_new_string(node->driver->name));
    }
}

void block_co_reopen_commit(struct block_reopen *plan)
{
    struct reopen_entry *e;

    LIST_FOREACH (e, &plan->entries, link) {
        if (e->reads_image) {
            reopen_keep_image(e);
        } else if (e->node->driver->co_reopen_commit) {
            e->node->driver->co_reopen_commit(e->node);
        }
        note_new_options(e);
        if (block_node_size(e->node) != e->old_size) {
            block_report_size(e->node);
        }
        trace_block_reopen(e->node->name, e->node->read_only);
    }
}

void block_co_reopen_abort(struct block_reopen *plan)
{
    struct reopen_entry *e;

    for (struct list *l = plan->entries.prev; l != &plan->entries; l = l->prev) {
        ERROR_AUTO(err);

        e = container_of(l, struct reopen_entry, link);
        if (e->prepared && e->node->driver->co_reopen_abort) {
            e->node->driver->co_reopen_abort(e->node);
        }
        if (e->linked && co_put_children(e, true, &err) < 0) {
            log_error("node '%s' can't get its former children back: %s", e->node->name,
                      error_message(&err));
        }
        if (e->applied) {
            block_set_use(e->node, &e->was);
            block_perm_touch(e->node);
        }
    }
    LIST_FOREACH (e, &plan->entries, link) {
        reopen_co_read_former_image(e);
    }
}

/* --- read-only, alone ------------------------------------------------------------------------- */

static bool has_writer(const struct block_node *node)
{
    const struct block_edge *edge;

    LIST_FOREACH (edge, &node->parents, in_node) {
        if (edge->perm & (BLOCK_PERM_WRITE | BLOCK_PERM_WRITE_UNCHANGED | BLOCK_PERM_RESIZE)) {
            return true;
        }
    }
    return false;
}

int block_co_reopen_carry_out(struct block_reopen *plan, struct error *err)
{
    int r;

    co_drain_all(plan);
    block_co_change_begin();
    r = block_co_reopen_prepare(plan, err);
    UNLESS_FAILED(r, block_co_change_settle(err));
    UNLESS_FAILED(r, block_co_reopen_finish(plan, err));
    if (r < 0) {
        block_co_reopen_abort(plan);
        (void)block_co_change_settle(NULL);
    } else {
        block_co_reopen_commit(plan);
    }
    block_co_change_end();
    return r;
}

/* Most of the work for a node that becomes read-only, while others read: they wait for little. */
static int co_complete_for_readers(struct block_node *node, struct error *err)
{
    return has_writer(node) ? 0 : block_co_complete(node, err);
}

int block_co_await_read_only(struct block_node *node, struct error *err)
{
    int r = node->read_only ? 0 : co_complete_for_readers(node, err);

    if (r == 0 && !node->read_only) {
        block_co_drain_begin(node);
        block_drain_end(node);
    }
    return r;
}

int block_co_set_read_only(struct block_node *node, bool read_only, struct error *err)
{
    struct block_reopen *plan;
    int r = 0;

    if (node->read_only == read_only) {
        return 0;
    }
    r = read_only ? co_complete_for_readers(node, err) : 0;
    if (r < 0) {
        return r;
    }
    plan = block_reopen_new();
    r = plan ? block_reopen_add_read_only(plan, node, read_only, err) : error_out_of_memory(err);
    UNLESS_FAILED(r, block_co_reopen_carry_out(plan, err));
    block_co_reopen_free(plan);
    return r;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "block/hand_over.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/bitmaps.h"
#include "block/control.h"
#include "block/internal.h"
#include "trace/events.h"

/* Each node with a reference. */
struct block_hand_over {
    bool take;
    struct block_node **nodes;
    size_t count, room;
};

static int set_add(struct block_hand_over *s, struct block_node *node, struct error *err)
{
    if (s->count == s->room) {
        size_t room = s->room ? 2 * s->room : 16;
        struct block_node **nodes = realloc(s->nodes, room * sizeof(struct block_node *));

        if (!nodes) {
            return error_out_of_memory(err);
        }
        s->nodes = nodes;
        s->room = room;
    }
    s->nodes[s->count++] = block_node_ref(node);
    return 0;
}

static bool set_has(const struct block_hand_over *s, const struct block_node *node)
{
    for (size_t i = 0; i < s->count; i++) {
        if (s->nodes[i] == node) {
            return true;
        }
    }
    return false;
}

static void set_state(const struct block_hand_over *s, bool handed_over)
{
    for (size_t i = 0; i < s->count; i++) {
        s->nodes[i]->handed_over = handed_over;
        block_perm_touch(s->nodes[i]);
    }
}

bool block_node_is_handed_over(const struct block_node *node)
{
    return node->handed_over;
}

/* --- handing over ----------------------------------------------------------------------------- */

/* Whether a node above is neither handed over nor in the set. */
static bool has_active_parent(const struct block_hand_over *s, const struct block_node *node)
{
    struct block_edge *edge;

    LIST_FOREACH (edge, &node->parents, in_node) {
        if (edge->parent && !edge->parent->handed_over && !set_has(s, edge->parent)) {
            return true;
        }
    }
    return false;
}

/* Whether the users of a node let it go. */
static int check_users(const struct block_node *node, struct error *err)
{
    struct block_bitmap *b;
    struct block_edge *edge;

    LIST_FOREACH (edge, &node->parents, in_node) {
        if (edge->root && !(edge->want_shared & BLOCK_SHARE_HAND_OVER)) {
            return error_set(err, EPERM, "Failed to inactivate node: Operation not permitted");
        }
    }
    LIST_FOREACH (b, &node->bitmaps, link) {
        int r = b->persistent ? block_bitmap_check(b, BLOCK_BITMAP_REFUSE_BUSY, err) : 0;

        if (r < 0) {
            return r;
        }
    }
    return 0;
}

/* Add the children that nobody else uses of all nodes of the set from `first` on, and theirs. */
static int add_children_alone(struct block_hand_over *s, size_t first, struct error *err)
{
    int r = 0;

    for (size_t i = first; i < s->count && r >= 0; i++) {
        struct block_edge *edge;

        LIST_FOREACH (edge, &s->nodes[i]->children, sibling) {
            if (r >= 0 && !edge->node->handed_over && !set_has(s, edge->node) &&
                !has_active_parent(s, edge->node)) {
                r = set_add(s, edge->node, err);
            }
        }
    }
    return r;
}

/* The graph may have changed before the change began. */
static int check_set(const struct block_hand_over *s, struct error *err)
{
    int r = 0;

    for (size_t i = 0; i < s->count && r >= 0; i++) {
        r = has_active_parent(s, s->nodes[i]) ? error_set(err, EBUSY, "Node has active parent node")
                                              : check_users(s->nodes[i], err);
    }
    return r;
}

/* What is stored in the image stays there: commands can't change it any more. */
static void make_bitmaps_read_only(struct block_node *node)
{
    struct block_bitmap *b;

    LIST_FOREACH (b, &node->bitmaps, link) {
        b->read_only = b->read_only || b->persistent;
    }
}

static void tell_driver(struct block_node *node)
{
    make_bitmaps_read_only(node);
    if (node->driver->handed_over) {
        node->driver->handed_over(node);
    }
}

void block_node_put_away(struct block_node *node)
{
    node->handed_over = true;
    block_perm_touch(node);
    tell_driver(node);
}

/* Nodes above come first: what they write when they are completed goes to those below. */
static int co_complete_tree(struct block_hand_over *s, struct error *err)
{
    int r = 0;

    for (size_t i = 0; i < s->count && r >= 0; i++) {
        r = block_co_complete(s->nodes[i], err);
    }
    return r;
}

static int add_to_hand_over(struct block_hand_over *s, struct block_node *node, struct error *err)
{
    size_t first = s->count;
    int r = set_add(s, node, err);

    return UNLESS_FAILED(r, add_children_alone(s, first, err));
}

static int add_all_to_hand_over(struct block_hand_over *s, struct error *err)
{
    struct block_node *node;
    int r = 0;

    LIST_FOREACH (node, &block_all_nodes, link) {
        if (r >= 0 && !node->handed_over && !set_has(s, node) && !has_active_parent(s, node)) {
            r = add_to_hand_over(s, node, err);
        }
    }
    return r;
}

/* --- taking over ------------------------------------------------------------------------------ */

/* Add the children that are handed over, and theirs. */
static int add_children_handed_over(struct block_hand_over *s, struct error *err)
{
    int r = 0;

    for (size_t i = 0; i < s->count && r >= 0; i++) {
        struct block_edge *edge;

        LIST_FOREACH (edge, &s->nodes[i]->children, sibling) {
            if (r >= 0 && edge->node->handed_over && !set_has(s, edge->node)) {
                r = set_add(s, edge->node, err);
            }
        }
    }
    return r;
}

/* Bitmaps that nobody has stored, and that record, may lack what others wrote. */
static void set_unstored_bitmaps(struct block_node *node)
{
    struct block_bitmap *b;

    LIST_FOREACH (b, &node->bitmaps, link) {
        if (!b->persistent && b->bits && b->enabled) {
            dirty_bitmap_set(b->bits, 0, dirty_bitmap_size(b->bits));
        }
    }
}

static int co_reload(struct block_node *node, struct error *err)
{
    uint64_t size = block_node_size(node);
    int r = node->driver->co_reload ? node->driver->co_reload(node, err) : 0;

    if (r < 0) {
        return r;
    }
    if (block_node_size(node) != size) {
        r = block_bitmaps_resize(node, block_node_size(node), err);
        block_report_size(node);
    }
    return r;
}

/* Whether a child of a node is in the part of the set that begins with `first`. */
static bool child_is_left(const struct block_hand_over *s, size_t first,
                          const struct block_node *node)
{
    struct block_edge *edge;

    LIST_FOREACH (edge, &node->children, sibling) {
        for (size_t i = first; i < s->count; i++) {
            if (s->nodes[i] == edge->node) {
                return true;
            }
        }
    }
    return false;
}

/* Order the set: children come before their parents. */
static void sort_children_first(struct block_hand_over *s)
{
    for (size_t i = 0; i < s->count / 2; i++) {
        struct block_node *node = s->nodes[i];

        s->nodes[i] = s->nodes[s->count - 1 - i];
        s->nodes[s->count - 1 - i] = node;
    }
    for (size_t done = 0; done < s->count; done++) {
        struct block_node *node;
        size_t i = done;

        while (i + 1 < s->count && child_is_left(s, done, s->nodes[i])) {
            i++;
        }
        node = s->nodes[i];
        memmove(&s->nodes[done + 1], &s->nodes[done], (i - done) * sizeof(struct block_node *));
        s->nodes[done] = node;
    }
}

static int add_to_take_over(struct block_hand_over *s, struct block_node *node, struct error *err)
{
    int r = set_add(s, node, err);

    UNLESS_FAILED(r, add_children_handed_over(s, err));
    if (r >= 0) {
        sort_children_first(s);
    }
    return r;
}

static int add_all_to_take_over(struct block_hand_over *s, struct error *err)
{
    struct block_node *node;
    int r = 0;

    LIST_FOREACH (node, &block_all_nodes, link) {
        if (r >= 0 && node->handed_over) {
            r = set_add(s, node, err);
        }
    }
    if (r >= 0) {
        sort_children_first(s);
    }
    return r;
}

/* --- steps ------------------------------------------------------------------------------------ */

static int fill_plan(struct block_hand_over *s, struct block_node *node, struct error *err)
{
    if (!node) {
        return s->take ? add_all_to_take_over(s, err) : add_all_to_hand_over(s, err);
    }
    if (node->handed_over != s->take) {
        return 0;
    }
    if (!s->take && has_active_parent(s, node)) {
        return error_set(err, EBUSY, "Node has active parent node");
    }
    return s->take ? add_to_take_over(s, node, err) : add_to_hand_over(s, node, err);
}

/* Nobody has given a reference back since the plan was made. */
void block_hand_over_discard(struct block_hand_over *plan)
{
    if (plan) {
        for (size_t i = 0; i < plan->count; i++) {
            plan->nodes[i]->refcount--;
        }
        free(plan->nodes);
        free(plan);
    }
}

struct block_hand_over *block_hand_over_plan(struct block_node *node, bool take, struct error *err)
{
    struct block_hand_over *s = calloc(1, sizeof(*s));

    if (!s) {
        error_out_of_memory(err);
        return NULL;
    }
    s->take = take;
    if (fill_plan(s, node, err) < 0) {
        block_hand_over_discard(s);
        return NULL;
    }
    return s;
}

struct block_node *block_hand_over_next_node(const struct block_hand_over *plan, size_t *index)
{
    return *index < plan->count ? plan->nodes[(*index)++] : NULL;
}

void block_co_hand_over_free(struct block_hand_over *plan)
{
    for (size_t i = 0; plan && i < plan->count; i++) {
        block_co_unref(plan->nodes[i]);
    }
    if (plan) {
        free(plan->nodes);
    }
    free(plan);
}

int block_co_hand_over_prepare(struct block_hand_over *plan, struct error *err)
{
    int r = plan->take ? 0 : check_set(plan, err);

    UNLESS_FAILED(r, plan->take ? 0 : co_complete_tree(plan, err));
    if (r >= 0) {
        set_state(plan, !plan->take);
    }
    return r;
}

int block_co_hand_over_finish(struct block_hand_over *plan, struct error *err)
{
    int r = 0;

    for (size_t i = 0; i < plan->count && r >= 0 && plan->take; i++) {
        r = co_reload(plan->nodes[i], err);
    }
    return r;
}

void block_hand_over_commit(struct block_hand_over *plan)
{
    for (size_t i = 0; i < plan->count; i++) {
        if (plan->take) {
            set_unstored_bitmaps(plan->nodes[i]);
        } else {
            tell_driver(plan->nodes[i]);
        }
        trace_block_hand_over(plan->nodes[i]->name, !plan->take);
    }
}

void block_hand_over_abort(struct block_hand_over *plan)
{
    set_state(plan, plan->take);
    for (size_t i = 0; i < plan->count && plan->take; i++) {
        tell_driver(plan->nodes[i]); /* those that were read again */
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/concern.h"

#include <errno.h>
#include <stdlib.h>

#include "base/list.h"
#include "block/block.h"
#include "block/control_lock.h"
#include "qmp/transaction.h"

static bool has_node(const struct qmp_concern *c, const struct block_node *node)
{
    for (size_t i = 0; i < c->count; i++) {
        if (c->nodes[i] == node) {
            return true;
        }
    }
    return false;
}

void qmp_concern_add(struct qmp_concern *c, struct block_node *node)
{
    if (!node || c->failed || has_node(c, node)) {
        return;
    }
    if (c->count == c->capacity) {
        size_t capacity = c->capacity ? 2 * c->capacity : 8;
        struct block_node **nodes = realloc(c->nodes, capacity * sizeof(struct block_node *));

        if (!nodes) {
            c->failed = true;
            return;
        }
        c->nodes = nodes;
        c->capacity = capacity;
    }
    c->nodes[c->count++] = block_node_ref(node);
}

int qmp_co_concern_check(struct qmp_concern *now, const struct qmp_concern *c, struct error *err)
{
    int r = now->failed ? error_out_of_memory(err) : 0;

    for (size_t i = 0; i < now->count; i++) {
        if (r == 0 && !has_node(c, now->nodes[i])) {
            r = error_set(err, EBUSY, "Node '%s' was added while the transaction was under way",
                          block_node_name(now->nodes[i]));
        }
        block_co_unref(now->nodes[i]); /* others have references: nothing has yielded */
    }
    free(now->nodes);
    return r;
}

/* A node that is completed at the moment, without the control lock. */
struct completion {
    struct list link; /* in `completions` */
    struct block_node *node;
};

static struct list completions = LIST_INIT(completions);

bool qmp_concern_completes(const struct qmp_concern *c)
{
    struct completion *other;

    LIST_FOREACH (other, &completions, link) {
        for (size_t i = 0; i < c->count; i++) {
            if (c->nodes[i] == other->node) {
                return true;
            }
        }
    }
    return false;
}

int qmp_co_complete(struct block_node *node, struct error *err)
{
    struct completion c = {.node = block_node_ref(node)};
    int r;

    list_append(&completions, &c.link);
    block_control_unlock();
    r = block_co_inactivate(node, err);
    list_remove(&c.link);
    block_co_unref(node);
    block_co_control_lock();
    return r;
}

void qmp_concern_undrain(struct qmp_concern *c)
{
    for (size_t i = 0; i < c->count; i++) {
        if (i < c->drained) {
            block_drain_end(c->nodes[i]);
        }
    }
}

void qmp_co_concern_clear(struct qmp_concern *c)
{
    block_control_unlock();
    for (size_t i = 0; i < c->count; i++) {
        block_co_unref(c->nodes[i]);
    }
    block_co_control_lock();
    free(c->nodes);
}

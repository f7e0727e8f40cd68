/* SPDX-License-Identifier: Apache-2.0 */
#include "block/control_busy.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/strbuf.h"
#include "block/node.h"
#include "block/stats.h"
#include "co/co.h"
#include "co/wait.h"

bool block_control_is_worked_on(struct block_node *node)
{
    const struct block_control_work *work = NULL;

    while ((work = block_control_next_work(work))) {
        for (size_t i = 0; i < work->count; i++) {
            if (block_node_is_joined(node, work->nodes[i])) {
                return true;
            }
        }
    }
    return false;
}

bool block_control_is_busy_with(struct block_node *node)
{
    const struct co *owner = block_control_owner();
    const struct block_control_scope *scope = owner ? block_control_scope_of(owner) : NULL;

    return (scope && scope->meets && scope->meets(scope, node)) || block_control_is_worked_on(node);
}

static void note_activity(struct block_node *node, void *arg)
{
    uint64_t values[BLOCK_STATS];

    block_node_read_stats(node, values);
    *(bool *)arg = *(bool *)arg || values[BLOCK_STAT_IN_FLIGHT] > 0;
}

/* The first node whose storage has requests in flight, or else the first one; NULL: no node. */
static const struct block_node *find_in_flight(const struct block_control_work *work)
{
    for (size_t i = 0; i < work->count; i++) {
        bool in_flight = false;

        block_node_foreach_below(work->nodes[i], note_activity, &in_flight);
        if (in_flight) {
            return work->nodes[i];
        }
    }
    return work->count > 0 ? work->nodes[0] : NULL;
}

int block_control_set_busy(const struct block_control_holder *holder, struct error *err)
{
    const struct block_control_scope *scope = block_control_scope_of(holder->owner);
    const struct block_node *node = holder->work ? find_in_flight(holder->work) : NULL;
    AUTO_FREE char *line = NULL;
    STRBUF_AUTO(text);

    if (scope && scope->command) {
        strbuf_printf(&text, "The command '%s'", scope->command);
    } else {
        strbuf_puts(&text, "A job or another user of the block nodes");
    }
    strbuf_puts(&text, holder->work ? " keeps others from changing the graph of the block nodes"
                                    : " keeps all other commands waiting");
    if (node) {
        strbuf_printf(&text, ", while it waits for node '%s'", block_node_name(node));
    }
    strbuf_puts(&text, ": it waits for ");
    if (!holder->owner || !co_wait_describe(holder->owner, &text)) {
        strbuf_puts(&text, "storage that has not answered");
    }
    line = strbuf_take(&text);
    return line ? error_set(err, EBUSY, "%s", line) : error_out_of_memory(err);
}

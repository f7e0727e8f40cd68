/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drain.
 *
 * A root is quiesced while a node that it reaches has drain_depth > 0, or is under a partial drain
 * that excepts another root. The state is derived from the graph, never counted: after each change
 * of a depth or of the graph, block_drain_update() compares and acts. So roots that appear, move or
 * vanish in a drained section need no bookkeeping.
 *
 *   request:  count[reactor]++ ; if quiesced: count--, wait      (both sides sequentially
 *   drainer:  quiesced = true ; wait until sum(count) == 0         consistent)
 *
 * A drain of a node waits for the roots that reach this node, and for nothing else: a disk that
 * hangs delays only commands that want to change that disk.
 */
#include "block/internal.h"
#include "co/stall.h"
#include "trace/events.h"

static struct list partial_drains = LIST_INIT(partial_drains); /* of struct block_drain */

static bool root_is_idle(struct block_root *root)
{
    for (unsigned i = 0; i < REACTOR_MAX; i++) {
        if (atomic_load(&root->inflight[i].count) != 0) {
            return false;
        }
    }
    return !root->ops || !root->ops->drain_busy || !root->ops->drain_busy(root->ops_arg);
}

/* --- requests --------------------------------------------------------------------------------- */

/* Wake the drainer if this was the last request. */
static void root_check_idle_locked(struct block_root *root)
{
    if (root->drainer && root_is_idle(root)) {
        struct co *drainer = root->drainer;

        root->drainer = NULL;
        co_wake(drainer);
    }
}

void block_root_leave_slow(struct block_root *root)
{
    pthread_mutex_lock(&root->guard);
    root_check_idle_locked(root);
    pthread_mutex_unlock(&root->guard);
}

void block_co_root_enter_slow(struct block_root *root, unsigned index)
{
    while (atomic_load(&root->quiesced)) {
        atomic_fetch_sub(&root->inflight[index].count, 1);
        pthread_mutex_lock(&root->guard);
        root_check_idle_locked(root);
        if (atomic_load(&root->quiesced)) {
            int64_t since = co_stall_clock();

            co_queue_wait_for_release(&root->blocked, &root->guard,
                                      "the end of a drain of the nodes below", root->edge.name, -1);
            co_stall_check(since, "end of drain", root, __builtin_return_address(0));
        } else {
            pthread_mutex_unlock(&root->guard);
        }
        atomic_fetch_add(&root->inflight[index].count, 1);
    }
}

/* --- waiting for one root --------------------------------------------------------------------- */

/*
 * Pause before looking again where no wake-up comes: another coroutine waits for the root, or the
 * work sends none.
 */
#define DRAIN_RETRY_NS 100000

static void co_root_wait_idle(struct block_root *root)
{
    bool polls = root->ops && root->ops->drain_busy;

    pthread_mutex_lock(&root->guard);
    if (root->drainer || polls || root_is_idle(root)) {
        bool idle = root_is_idle(root);

        pthread_mutex_unlock(&root->guard);
        if (!idle) {
            loop_co_sleep(DRAIN_RETRY_NS);
        }
        return;
    }
    root->drainer = co_self();
    pthread_mutex_unlock(&root->guard);
    co_suspend();
}

static void root_set_quiesced(struct block_root *root, bool quiesced)
{
    const struct block_root_ops *ops = root->ops;

    if (quiesced == atomic_load(&root->quiesced)) {
        return;
    }
    if (!quiesced && ops && ops->drain_end) {
        ops->drain_end(root->ops_arg);
    }
    pthread_mutex_lock(&root->guard);
    atomic_store(&root->quiesced, quiesced);
    if (!quiesced) {
        co_queue_wake_all(&root->blocked);
    }
    pthread_mutex_unlock(&root->guard);
    if (quiesced && ops && ops->drain_begin) {
        ops->drain_begin(root->ops_arg);
    }
}

static void nothing(void *arg)
{
}

void block_co_root_settle(struct block_root *root)
{
    if (root->settled) {
        return;
    }
    root->closing = true;
    root_set_quiesced(root, true);
    while (!root_is_idle(root)) {
        co_root_wait_idle(root);
    }
    /*
     * A request ends without yielding: after a coroutine has run on its reactor, the request is
     * gone.
     */
    for (unsigned i = 0; i < REACTOR_MAX; i++) {
        struct reactor *r = reactor_at(i);

        if (r && r != reactor_current() && atomic_load(&root->inflight[i].used)) {
            loop_co_call_on(r, nothing, NULL);
        }
    }
    root->settled = true;
}

/* --- what a drain concerns -------------------------------------------------------------------- */

/* Mark `start` and all nodes and roots above it. Returns the mark. */
static unsigned mark_above(struct block_node *start)
{
    static unsigned mark;
    struct block_node *node, **end = &start->drain_next;
    struct block_edge *edge;

    mark++;
    start->drain_mark = mark;
    start->drain_next = NULL;
    for (node = start; node; node = node->drain_next) {
        LIST_FOREACH (edge, &node->parents, in_node) {
            struct block_node *parent = edge->parent;

            if (edge->root) {
                edge->root->drain_mark = mark;
            } else if (parent->drain_mark != mark) {
                parent->drain_mark = mark;
                parent->drain_next = NULL;
                *end = parent;
                end = &parent->drain_next;
            }
        }
    }
    return mark;
}

/* Set want_quiesced in all nodes and roots above a drained node, except the root `but`. */
static void want_above(struct block_node *drained, const struct block_root *but)
{
    unsigned mark = mark_above(drained);
    struct block_root *root;

    for (struct block_node *node = drained; node; node = node->drain_next) {
        node->want_quiesced = true;
    }
    LIST_FOREACH (root, &block_all_roots, link) {
        root->want_quiesced = root->want_quiesced || (root->drain_mark == mark && root != but);
    }
}

static void want_from(struct list *nodes)
{
    struct block_node *node;

    LIST_FOREACH (node, nodes, link) {
        if (node->drain_depth > 0) {
            want_above(node, NULL);
        }
    }
}

static void node_set_quiesced(struct block_node *node, bool quiesced)
{
    const struct block_driver *driver = node->driver;
    void (*call)(struct block_node *) = quiesced ? driver->drain_begin : driver->drain_end;

    if (quiesced == node->quiesced || !node->is_open || node->closed) {
        return;
    }
    node->quiesced = quiesced;
    if (call) {
        call(node);
    }
}

static void start_wanting(struct list *nodes)
{
    struct block_node *node;

    LIST_FOREACH (node, nodes, link) {
        node->want_quiesced = false;
    }
}

static void act_on_nodes(struct list *nodes)
{
    struct block_node *node;

    LIST_FOREACH (node, nodes, link) {
        node_set_quiesced(node, node->want_quiesced);
    }
}

void block_drain_update(void)
{
    struct block_root *root;
    struct block_drain *d;

    start_wanting(&block_all_nodes);
    start_wanting(&block_hidden_nodes);
    LIST_FOREACH (root, &block_all_roots, link) {
        root->want_quiesced = false;
    }
    want_from(&block_all_nodes);
    want_from(&block_hidden_nodes);
    LIST_FOREACH (d, &partial_drains, link) {
        want_above(d->node, d->but);
    }
    LIST_FOREACH (root, &block_all_roots, link) {
        root_set_quiesced(root, root->closing || (root->want_quiesced && !root->exempt));
    }
    act_on_nodes(&block_all_nodes);
    act_on_nodes(&block_hidden_nodes);
}

/* --- waiting ---------------------------------------------------------------------------------- */

static bool node_is_busy(struct block_node *node, const struct block_node *drained)
{
    return node->driver->drain_busy && node->is_open && !node->closed &&
           node->driver->drain_busy(node, drained);
}

static bool root_is_busy(struct block_root *root)
{
    return !root->exempt && !root_is_idle(root);
}

/*
 * A root with requests in flight that has the mark of mark_above(), other than `but`; NULL: none.
 */
static struct block_root *find_busy_root(const struct block_root *but, unsigned mark)
{
    struct block_root *root;

    LIST_FOREACH (root, &block_all_roots, link) {
        bool counts = root->drain_mark == mark && !(but && root == but);

        if (counts && root_is_busy(root)) {
            return root;
        }
    }
    return NULL;
}

/*
 * Wait until no work that reaches `node` is in flight. The graph may change in each wait: then
 * begin again.
 */
static void co_wait_above(struct block_node *node, const struct block_root *but)
{
    for (;;) {
        unsigned mark = mark_above(node);
        struct block_root *root = find_busy_root(but, mark);
        struct block_node *busy = node;

        while (busy && !node_is_busy(busy, node)) {
            busy = busy->drain_next;
        }
        if (root) {
            co_root_wait_idle(root);
        } else if (busy) {
            loop_co_sleep(DRAIN_RETRY_NS);
        } else {
            return;
        }
    }
}

void block_co_drain_begin(struct block_node *node)
{
    trace_block_drain_begin(node->name);
    node->drain_depth++;
    block_drain_update();
    co_wait_above(node, NULL);
    trace_block_drain_ready(node->name);
}

void block_drain_end(struct block_node *node)
{
    trace_block_drain_end(node->name);
    node->drain_depth--;
    block_drain_update();
}

void block_co_drain_begin_many(struct block_node *const *nodes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        trace_block_drain_begin(nodes[i]->name);
        nodes[i]->drain_depth++;
    }
    block_drain_update();
    for (size_t i = 0; i < count; i++) {
        co_wait_above(nodes[i], NULL);
        trace_block_drain_ready(nodes[i]->name);
    }
}

void block_co_drain_begin_but(struct block_drain *d, struct block_node *node,
                              const struct block_root *but)
{
    trace_block_drain_begin(node->name);
    d->node = node;
    d->but = but;
    list_append(&partial_drains, &d->link);
    block_drain_update();
    co_wait_above(node, but);
    trace_block_drain_ready(node->name);
}

void block_drain_end_but(struct block_drain *d)
{
    trace_block_drain_end(d->node->name);
    list_remove(&d->link);
    block_drain_update();
}

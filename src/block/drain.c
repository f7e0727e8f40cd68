/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drain.
 *
 * A root is quiesced while a node that it reaches has drain_depth > 0, or is under a partial drain
 * that excepts another root. The state is derived from the graph, never counted: after each change
 * of a depth or of the graph, block_drain_update() compares and acts. So roots that appear, move or
 * vanish in a drained section need no bookkeeping. An update costs what is drained or was quiesced,
 * however many nodes and roots there are.
 *
 *   request:  count[reactor]++ ; if quiesced: count--, wait      (both sides sequentially
 *   drainer:  quiesced = true ; wait until sum(count) == 0         consistent)
 *
 * A drain of a node waits for the roots that reach this node, and for nothing else: a disk that
 * hangs delays only commands that want to change that disk.
 *
 * A request in flight may hang, and others would hang with it while they are held back. So a drain
 * that does not succeed in ATTEMPT_FIRST_NS lets requests go on for as long, then tries again, for
 * twice as long each time.
 */
#include "base/checked.h"
#include "base/time_units.h"
#include "block/internal.h"
#include "co/stall.h"
#include "trace/events.h"

/* For how long requests are held back at a time while those in flight do not end. */
#define ATTEMPT_FIRST_NS (250 * NS_PER_MS)
#define ATTEMPT_LAST_NS (8 * NS_PER_SECOND)
/* Between two attempts the drain looks that often whether nothing is in flight just now. */
#define LOOKS_PER_PAUSE 16

static struct list partial_drains = LIST_INIT(partial_drains); /* of struct block_drain */
/* Nodes with a drain_depth. */
static struct list drained_nodes = LIST_INIT(drained_nodes);
/* What is quiesced: nodes and roots, by `quiet`. */
static struct list quiet_nodes = LIST_INIT(quiet_nodes);
static struct list quiet_roots = LIST_INIT(quiet_roots);

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

struct root_wait {
    struct list link;        /* in `root_waits` */
    struct block_root *root; /* NULL: released */
    struct co *drainer;
    struct loop_timer timer;
};

/* Waits of drains that go on. Main reactor. */
static struct list root_waits = LIST_INIT(root_waits);

static void on_root_wait_timer(struct loop_timer *timer)
{
    struct root_wait *w = container_of(timer, struct root_wait, timer);
    bool waits;

    if (!w->root) { /* the drainer was woken then */
        return;
    }
    pthread_mutex_lock(&w->root->guard);
    waits = w->root->drainer == w->drainer;
    if (waits) {
        w->root->drainer = NULL;
    }
    pthread_mutex_unlock(&w->root->guard);
    if (waits) {
        co_wake(w->drainer);
    }
}

/* Until `until_ns` (loop_now_ns()) at most. May return early. */
static void co_root_wait_idle(struct block_root *root, int64_t until_ns)
{
    struct root_wait w = {.root = root, .drainer = co_self()};
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
    root->drainer = w.drainer;
    pthread_mutex_unlock(&root->guard);
    loop_timer_init(&w.timer, on_root_wait_timer);
    if (until_ns != INT64_MAX) {
        loop_timer_arm(&w.timer, until_ns);
    }
    list_append(&root_waits, &w.link);
    co_suspend();
    list_remove(&w.link);
    loop_timer_disarm(&w.timer);
}

void block_drain_forget_root(const struct block_root *root)
{
    struct root_wait *w;

    LIST_FOREACH (w, &root_waits, link) {
        w->root = w->root == root ? NULL : w->root;
    }
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
    list_remove(&root->quiet);
    if (quiesced) {
        list_append(&quiet_roots, &root->quiet);
    }
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
        co_root_wait_idle(root, INT64_MAX);
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

/* What is at and above a node: nodes by `drain_next` from the node on, and the roots likewise. */
static struct block_root *collect_above(struct block_node *start)
{
    static unsigned mark;
    struct block_node *node, **end = &start->drain_next;
    struct block_root *roots = NULL;
    struct block_edge *edge;

    mark++;
    start->drain_mark = mark;
    start->drain_next = NULL;
    for (node = start; node; node = node->drain_next) {
        LIST_FOREACH (edge, &node->parents, in_node) {
            struct block_node *parent = edge->parent;

            if (edge->root) {
                edge->root->drain_next = roots;
                roots = edge->root;
            } else if (parent->drain_mark != mark) {
                parent->drain_mark = mark;
                parent->drain_next = NULL;
                *end = parent;
                end = &parent->drain_next;
            }
        }
    }
    return roots;
}

/* What block_drain_update() has to quiesce: each once, by `wanted`. */
struct wanted {
    unsigned round; /* differs from one update to the next */
    struct list nodes, roots;
};

/* All nodes and roots above a drained node, except the root `but`. */
static void want_above(struct wanted *w, struct block_node *drained, const struct block_root *but)
{
    for (struct block_root *root = collect_above(drained); root; root = root->drain_next) {
        if (root != but && !root->exempt && root->wanted_round != w->round) {
            root->wanted_round = w->round;
            list_append(&w->roots, &root->wanted);
        }
    }
    for (struct block_node *node = drained; node; node = node->drain_next) {
        if (node->wanted_round != w->round) {
            node->wanted_round = w->round;
            list_append(&w->nodes, &node->wanted);
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
    list_remove(&node->quiet);
    if (quiesced) {
        list_append(&quiet_nodes, &node->quiet);
    }
    if (call) {
        call(node);
    }
}

static void act_on_roots(struct wanted *w)
{
    struct block_root *root, *next;

    LIST_FOREACH_SAFE (root, next, &quiet_roots, quiet) {
        if (root->wanted_round != w->round) {
            root_set_quiesced(root, root->closing);
        }
    }
    while (!list_is_empty(&w->roots)) {
        root = LIST_FIRST(&w->roots, struct block_root, wanted);
        list_remove(&root->wanted);
        root_set_quiesced(root, true);
    }
}

static void act_on_nodes(struct wanted *w)
{
    struct block_node *node, *next;

    LIST_FOREACH_SAFE (node, next, &quiet_nodes, quiet) {
        if (node->wanted_round != w->round) {
            node_set_quiesced(node, false);
        }
    }
    while (!list_is_empty(&w->nodes)) {
        node = LIST_FIRST(&w->nodes, struct block_node, wanted);
        list_remove(&node->wanted);
        node_set_quiesced(node, true);
    }
}

void block_drain_update(void)
{
    static unsigned round;
    struct block_node *node;
    struct block_drain *d;
    struct wanted w = {0};

    w.round = ++round;
    list_init(&w.nodes);
    list_init(&w.roots);
    LIST_FOREACH (node, &drained_nodes, drained) {
        want_above(&w, node, NULL);
    }
    LIST_FOREACH (d, &partial_drains, link) {
        want_above(&w, d->node, d->but);
    }
    act_on_roots(&w);
    act_on_nodes(&w);
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

/* The first root from `root` on that has requests in flight, other than `but`; NULL: none. */
static struct block_root *find_busy_root(struct block_root *root, const struct block_root *but)
{
    while (root && (root == but || !root_is_busy(root))) {
        root = root->drain_next;
    }
    return root;
}

static bool only_reads(struct block_node *node, const struct block_node *drained)
{
    return node->driver->drain_only_reads && node->driver->drain_only_reads(node, drained);
}

/*
 * A node above that has work left, other than reads of `node` if these are let go on; NULL: there
 * is none. After collect_above().
 */
static struct block_node *find_busy_node(struct block_node *node, bool lets_read)
{
    struct block_node *busy = node;

    while (busy && (!node_is_busy(busy, node) || (lets_read && only_reads(busy, node)))) {
        busy = busy->drain_next;
    }
    return busy;
}

static bool is_busy_above(struct block_node *node, const struct block_root *but, bool lets_read)
{
    return find_busy_root(collect_above(node), but) || find_busy_node(node, lets_read);
}

/*
 * Wait until no work that reaches `node` is in flight; false: some was at `until_ns`. The graph may
 * change in each wait: then begin again. `reader`: this root goes on, and so do reads.
 */
static bool co_wait_above(struct block_node *node, const struct block_root *reader,
                          int64_t until_ns)
{
    for (;;) {
        struct block_root *root = find_busy_root(collect_above(node), reader);
        struct block_node *busy = find_busy_node(node, reader);

        if (!root && !busy) {
            return true;
        }
        if (loop_now_ns() >= until_ns) {
            return false;
        }
        if (root) {
            co_root_wait_idle(root, until_ns);
        } else {
            loop_co_sleep(DRAIN_RETRY_NS);
        }
    }
}

static void deepen(struct block_node *node)
{
    trace_block_drain_begin(node->name);
    if (node->drain_depth++ == 0) {
        list_append(&drained_nodes, &node->drained);
    }
}

void block_drain_end(struct block_node *node)
{
    trace_block_drain_end(node->name);
    if (--node->drain_depth == 0) {
        list_remove(&node->drained);
    }
    block_drain_update();
}

static bool is_any_busy(struct block_node *const *nodes, size_t count)
{
    bool busy = false;

    for (size_t i = 0; i < count && !busy; i++) {
        busy = is_busy_above(nodes[i], NULL, false);
    }
    return busy;
}

static bool co_try_drain(struct block_node *const *nodes, size_t count, int64_t until_ns)
{
    for (size_t i = 0; i < count; i++) {
        deepen(nodes[i]);
    }
    block_drain_update();
    for (size_t i = 0; i < count; i++) {
        if (!co_wait_above(nodes[i], NULL, until_ns)) {
            for (size_t k = 0; k < count; k++) {
                block_drain_end(nodes[k]);
            }
            return false;
        }
        trace_block_drain_ready(nodes[i]->name);
    }
    return true;
}

void block_co_drain_begin_many(struct block_node *const *nodes, size_t count)
{
    int64_t ns = ATTEMPT_FIRST_NS;

    while (!co_try_drain(nodes, count, loop_now_ns() + ns)) {
        for (unsigned i = 0; i < LOOKS_PER_PAUSE && is_any_busy(nodes, count); i++) {
            loop_co_sleep(ns / LOOKS_PER_PAUSE);
        }
        ns = MIN(2 * ns, ATTEMPT_LAST_NS);
    }
}

void block_co_drain_begin(struct block_node *node)
{
    block_co_drain_begin_many(&node, 1);
}

bool block_co_drain_begin_unless(struct block_node *const *nodes, size_t count,
                                 bool (*stop)(const void *arg), const void *arg)
{
    for (size_t i = 0; i < count; i++) {
        deepen(nodes[i]);
    }
    block_drain_update();
    for (size_t i = 0; i < count; i++) {
        while (is_busy_above(nodes[i], NULL, false)) {
            if (stop(arg)) {
                for (size_t k = 0; k < count; k++) {
                    block_drain_end(nodes[k]);
                }
                return false;
            }
            loop_co_sleep(DRAIN_RETRY_NS);
        }
        trace_block_drain_ready(nodes[i]->name);
    }
    return true;
}

static bool is_drain_over(const void *until_ns)
{
    return loop_now_ns() >= *(const int64_t *)until_ns;
}

bool block_co_drain_begin_soon(struct block_node *const *nodes, size_t count, int64_t *ns)
{
    int64_t until;

    *ns = *ns == 0 ? ATTEMPT_FIRST_NS : MIN(2 * *ns, ATTEMPT_LAST_NS);
    until = loop_now_ns() + *ns;
    return block_co_drain_begin_unless(nodes, count, is_drain_over, &until);
}

static void begin_partial(struct block_drain *d, struct block_node *node,
                          const struct block_root *but)
{
    trace_block_drain_begin(node->name);
    d->node = node;
    d->but = but;
    list_append(&partial_drains, &d->link);
    block_drain_update();
}

void block_drain_end_but(struct block_drain *d)
{
    trace_block_drain_end(d->node->name);
    list_remove(&d->link);
    block_drain_update();
}

void block_co_drain_begin_writers(struct block_drain *d, struct block_node *node,
                                  const struct block_root *reader)
{
    int64_t ns = ATTEMPT_FIRST_NS;

    begin_partial(d, node, reader);
    while (!co_wait_above(node, reader, loop_now_ns() + ns)) {
        block_drain_end_but(d);
        for (unsigned i = 0; i < LOOKS_PER_PAUSE && is_busy_above(node, reader, true); i++) {
            loop_co_sleep(ns / LOOKS_PER_PAUSE);
        }
        ns = MIN(2 * ns, ATTEMPT_LAST_NS);
        begin_partial(d, node, reader);
    }
    trace_block_drain_ready(node->name);
}

bool block_co_drain_begin_but_unless(struct block_drain *d, struct block_node *node,
                                     const struct block_root *but, bool (*stop)(const void *arg),
                                     const void *arg)
{
    begin_partial(d, node, but);
    while (is_busy_above(node, but, false)) {
        if (stop(arg)) {
            block_drain_end_but(d);
            return false;
        }
        loop_co_sleep(DRAIN_RETRY_NS);
    }
    trace_block_drain_ready(node->name);
    return true;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drain.
 *
 * A root is quiesced while a node that it reaches has drain_depth > 0 (or all are drained). This is derived, never
 * counted: every change of a depth or of the graph calls block_co_drain_update(), which compares
 * and acts. So roots that appear, move or vanish in a drained section need no bookkeeping.
 *
 *   request:  count[reactor]++ ; if quiesced: count--, wait      (both sides sequentially
 *   drainer:  quiesced = true ; wait until sum(count) == 0         consistent)
 */
#include "block/internal.h"

static unsigned drain_all_depth;

bool block_drain_reaches(const struct block_node *node)
{
    const struct block_edge *edge;

    if (drain_all_depth > 0 || node->drain_depth > 0) {
        return true;
    }
    LIST_FOREACH (edge, &node->children, sibling) {
        if (block_drain_reaches(edge->node)) {
            return true;
        }
    }
    return false;
}

static bool root_is_idle(struct block_root *root)
{
    for (unsigned i = 0; i < REACTOR_MAX; i++) {
        if (atomic_load(&root->inflight[i].count) != 0) {
            return false;
        }
    }
    return true;
}

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

void block_root_enter_slow(struct block_root *root, unsigned index)
{
    while (atomic_load(&root->quiesced)) {
        atomic_fetch_sub(&root->inflight[index].count, 1);
        pthread_mutex_lock(&root->guard);
        root_check_idle_locked(root);
        if (atomic_load(&root->quiesced)) {
            co_queue_wait_release(&root->blocked, &root->guard);
        } else {
            pthread_mutex_unlock(&root->guard);
        }
        atomic_fetch_add(&root->inflight[index].count, 1);
    }
}

static void co_root_wait_idle(struct block_root *root)
{
    pthread_mutex_lock(&root->guard);
    if (root->drainer || root_is_idle(root)) {
        pthread_mutex_unlock(&root->guard);
        return;
    }
    root->drainer = co_self();
    pthread_mutex_unlock(&root->guard);
    co_suspend();
}

static void root_set_quiesced(struct block_root *root, bool quiesced)
{
    pthread_mutex_lock(&root->guard);
    atomic_store(&root->quiesced, quiesced);
    if (!quiesced) {
        co_queue_wake_all(&root->blocked);
    }
    pthread_mutex_unlock(&root->guard);
}

/* Another coroutine waits for this root already: look again a little later. */
#define DRAIN_RETRY_NS 100000

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
        if (root->drainer) {
            loop_co_sleep(DRAIN_RETRY_NS);
        } else {
            co_root_wait_idle(root);
        }
    }
    /* A request ends without yielding: what runs on its reactor after it finds it gone. */
    for (unsigned i = 0; i < REACTOR_MAX; i++) {
        struct reactor *r = reactor_at(i);

        if (r && r != reactor_current() && atomic_load(&root->inflight[i].used)) {
            loop_co_call_on(r, nothing, NULL);
        }
    }
    root->settled = true;
}

void block_co_drain_update(void)
{
    struct block_root *root;
    bool again;

    LIST_FOREACH (root, &block_all_roots, link) {
        bool want = root->closing || (!root->exempt && block_drain_reaches(root->edge.node));

        if (want != atomic_load(&root->quiesced)) {
            root_set_quiesced(root, want);
        }
    }
    /* Waiting yields, and the list may change meanwhile: begin again after each wait. */
    do {
        again = false;
        LIST_FOREACH (root, &block_all_roots, link) {
            if (atomic_load(&root->quiesced) && !root_is_idle(root)) {
                if (root->drainer) {
                    loop_co_sleep(DRAIN_RETRY_NS);
                } else {
                    co_root_wait_idle(root);
                }
                again = true;
                break;
            }
        }
    } while (again);
}

void block_co_drain_begin(struct block_node *node)
{
    node->drain_depth++;
    block_co_drain_update();
}

void block_co_drain_end(struct block_node *node)
{
    node->drain_depth--;
    block_co_drain_update();
}

void block_co_drain_all_begin(void)
{
    drain_all_depth++;
    block_co_drain_update();
}

void block_co_drain_all_end(void)
{
    drain_all_depth--;
    block_co_drain_update();
}

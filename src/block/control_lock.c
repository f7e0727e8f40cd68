/* SPDX-License-Identifier: Apache-2.0 */
#include "block/control_lock.h"

#include <assert.h>

#include "block/node.h"
#include "co/co.h"
#include "co/sync.h"

/* Main reactor. */
static struct {
    struct co_mutex mutex;
    bool ready;
    struct co *owner; /* NULL: nobody */
    /* A work has ended, or touches less. */
    struct co_cond ended;
} control;

static struct list works = LIST_INIT(works);
/* Those whose owners have paused them. */
static struct list paused_works = LIST_INIT(paused_works);
static struct list scopes = LIST_INIT(scopes);

/* Of a coroutine; NULL: none. */
static struct block_control_scope *scope_of(const struct co *owner)
{
    struct block_control_scope *scope;

    LIST_FOREACH (scope, &scopes, link) {
        if (scope->owner == owner) {
            return scope;
        }
    }
    return NULL;
}

static bool scope_meets(const struct block_control_scope *scope,
                        const struct block_control_work *work)
{
    if (!scope || (work->changes_graph && !scope->keeps_graph)) {
        return true;
    }
    for (size_t i = 0; scope->meets && i < work->count; i++) {
        if (scope->meets(scope, work->nodes[i])) {
            return true;
        }
    }
    return false;
}

/* Whether the running coroutine could touch what another one works on apart. */
static bool meets_work(void)
{
    struct block_control_scope *scope;
    struct block_control_work *work;

    if (list_is_empty(&works)) {
        return false;
    }
    scope = scope_of(co_task());
    LIST_FOREACH (work, &works, link) {
        if (work->owner != co_task() && scope_meets(scope, work)) {
            return true;
        }
    }
    return false;
}

void block_co_control_lock(void)
{
    if (!control.ready) {
        co_mutex_init(&control.mutex);
        co_cond_init(&control.ended);
        control.ready = true;
    }
    assert(control.owner != co_task());
    co_mutex_lock(&control.mutex);
    while (meets_work()) {
        co_cond_wait(&control.ended, &control.mutex);
    }
    control.owner = co_task();
}

void block_control_unlock(void)
{
    assert(control.owner == co_task());
    control.owner = NULL;
    co_mutex_unlock(&control.mutex);
}

bool block_control_is_locked(void)
{
    return control.owner;
}

static struct block_control_work *own_work(struct list *list)
{
    struct block_control_work *work;

    LIST_FOREACH (work, list, link) {
        if (work->owner == co_task()) {
            return work;
        }
    }
    return NULL;
}

bool block_control_pause(void)
{
    struct block_control_work *work = own_work(&works);
    bool held = control.owner == co_task();

    if (held) {
        block_control_unlock();
    } else if (work) {
        list_remove(&work->link);
        list_append(&paused_works, &work->link);
        co_cond_broadcast(&control.ended);
    }
    return held || work;
}

struct handover {
    co_entry *entry;
    void *arg;
};

static void co_take_over(void *arg)
{
    struct handover h = *(const struct handover *)arg;

    co_mutex_take_over(&control.mutex);
    control.owner = co_task();
    h.entry(h.arg);
    block_control_unlock();
}

int block_control_hand_over(co_entry *entry, void *arg)
{
    struct handover h = {.entry = entry, .arg = arg};
    int r;

    assert(control.owner == co_task());
    control.owner = NULL;
    r = co_run(co_get_home(co_self()), co_take_over, &h);
    if (r < 0) {
        control.owner = co_task();
    }
    return r;
}

void block_co_control_resume(bool held)
{
    struct block_control_work *work = own_work(&paused_works);

    if (held) {
        block_co_control_lock();
    }
    if (held && work) {
        list_remove(&work->link);
        list_append(&works, &work->link);
        block_control_unlock();
    }
}

/* --- working apart ---------------------------------------------------------------------------- */

void block_control_begin_work(struct block_control_work *work, struct block_node *const *nodes,
                              size_t count, bool changes_graph)
{
    *work = (struct block_control_work){
        .owner = co_task(), .nodes = nodes, .count = count, .changes_graph = changes_graph};
    list_append(&works, &work->link);
    block_control_unlock();
}

void block_control_keep_graph(struct block_control_work *work)
{
    work->changes_graph = false;
    co_cond_broadcast(&control.ended);
}

void block_co_control_end_work(struct block_control_work *work)
{
    block_co_control_lock();
    list_remove(&work->link);
    co_cond_broadcast(&control.ended);
}

bool block_control_is_worked_on(struct block_node *node)
{
    struct block_control_work *work;

    LIST_FOREACH (work, &works, link) {
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
    const struct block_control_scope *scope = control.owner ? scope_of(control.owner) : NULL;

    return (scope && scope->meets && scope->meets(scope, node)) || block_control_is_worked_on(node);
}

/* --- scopes ----------------------------------------------------------------------------------- */

void block_control_begin_scope(struct block_control_scope *scope)
{
    assert(!scope_of(co_task()));
    scope->owner = co_task();
    list_append(&scopes, &scope->link);
}

void block_control_end_scope(struct block_control_scope *scope)
{
    list_remove(&scope->link);
}

void block_control_keep_graph_from_now(void)
{
    struct block_control_scope *scope = scope_of(co_task());

    if (scope) {
        scope->keeps_graph = true;
    }
}

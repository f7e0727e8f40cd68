/* SPDX-License-Identifier: Apache-2.0 */
#include "block/control_lock.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "co/co.h"
#include "co/sync.h"
#include "loop/loop.h"

/* Main reactor. */
static struct {
    struct co_mutex mutex;
    bool ready;
    struct co *owner; /* NULL: nobody */
    uint64_t turns;   /* how many times there was a new owner */
    /* A work has ended, or touches less. */
    struct co_cond ended;
} control;

static struct list works = LIST_INIT(works);
/* Those whose owners have paused them. */
static struct list paused_works = LIST_INIT(paused_works);
static struct list scopes = LIST_INIT(scopes);

/* Of a coroutine; NULL: none. */
static struct block_control_scope *find_scope(const struct co *owner)
{
    struct block_control_scope *scope;

    LIST_FOREACH (scope, &scopes, link) {
        if (scope->owner == owner) {
            return scope;
        }
    }
    return NULL;
}

static bool scope_has_node_of(const struct block_control_scope *scope,
                              const struct block_control_work *work)
{
    for (size_t i = 0; scope->meets && i < work->count; i++) {
        if (scope->meets(scope, work->nodes[i])) {
            return true;
        }
    }
    return false;
}

static bool scope_meets(const struct block_control_scope *scope,
                        const struct block_control_work *work)
{
    return !scope || (work->changes_graph && !scope->keeps_graph) || scope_has_node_of(scope, work);
}

/* What another coroutine works on apart, and the running one could touch; NULL: nothing. */
static struct block_control_work *met_work(void)
{
    struct block_control_scope *scope;
    struct block_control_work *work;

    if (list_is_empty(&works)) {
        return NULL;
    }
    scope = find_scope(co_task());
    LIST_FOREACH (work, &works, link) {
        if (work->owner != co_task() && scope_meets(scope, work)) {
            return work;
        }
    }
    return NULL;
}

static void own_control(void)
{
    control.owner = co_task();
    control.turns++;
}

static void make_ready(void)
{
    if (!control.ready) {
        co_mutex_init(&control.mutex);
        co_cond_init(&control.ended);
        control.ready = true;
    }
    assert(control.owner != co_task());
}

void block_co_control_lock(void)
{
    make_ready();
    co_mutex_lock(&control.mutex);
    while (met_work()) {
        co_cond_wait(&control.ended, &control.mutex);
    }
    own_control();
}

/* --- with a limit of time --- */

/*
 * The mutex is taken by another coroutine, which may have to wait for it for longer. One that
 * nobody waits for any more is `abandoned`, and whoever waits next takes it over: however long
 * the mutex is held, there are no more coroutines than have waited at once.
 */
struct mutex_wait {
    struct list link; /* in `abandoned` */
    struct loop_answer locked;
};

static struct list abandoned = LIST_INIT(abandoned);

static void co_lock_for_another(void *arg)
{
    struct mutex_wait *w = arg;

    co_mutex_lock(&control.mutex);
    if (!list_is_empty(&w->link)) {
        list_remove(&w->link);
        co_mutex_unlock(&control.mutex);
        free(w);
    } else {
        loop_answer_give(&w->locked);
    }
}

/* NULL: there is no memory. */
static struct mutex_wait *begin_mutex_wait(void)
{
    struct mutex_wait *w;

    if (!list_is_empty(&abandoned)) {
        w = LIST_FIRST(&abandoned, struct mutex_wait, link);
        list_remove(&w->link);
        loop_answer_init(&w->locked);
        return w;
    }
    w = calloc(1, sizeof(*w));
    if (!w) {
        return NULL;
    }
    list_init(&w->link);
    loop_answer_init(&w->locked);
    if (reactor_spawn(reactor_current(), co_lock_for_another, w) < 0) {
        free(w);
        return NULL;
    }
    return w;
}

/* False: one holder has kept the mutex for so long. */
static bool co_lock_mutex_within(int64_t patience_ns)
{
    struct mutex_wait *w;
    uint64_t turns;

    if (co_mutex_trylock(&control.mutex)) {
        return true;
    }
    w = begin_mutex_wait();
    if (!w) {
        co_mutex_lock(&control.mutex);
        return true;
    }
    do {
        turns = control.turns;
        if (loop_co_answer_wait(&w->locked, patience_ns)) {
            co_mutex_take_over(&control.mutex);
            free(w);
            return true;
        }
    } while (control.turns != turns);
    list_append(&abandoned, &w->link);
    return false;
}

static void look_again(struct loop_timer *timer)
{
    co_cond_broadcast(&control.ended);
}

/* The work that has kept the graph for too long; NULL: nothing is met any more. */
static struct block_control_work *co_await_works_within(int64_t patience_ns)
{
    const struct block_control_scope *scope = find_scope(co_task());
    struct block_control_work *work;
    struct loop_timer timer;
    uint64_t number = 0;

    loop_timer_init(&timer, look_again);
    while ((work = met_work())) {
        if (!scope || scope_has_node_of(scope, work)) {
            loop_timer_disarm(&timer);
            number = 0;
        } else if (work->number != number) {
            loop_timer_arm(&timer, loop_now_ns() + patience_ns);
            number = work->number;
        } else if (loop_now_ns() >= timer.deadline_ns) {
            break;
        }
        co_cond_wait(&control.ended, &control.mutex);
    }
    loop_timer_disarm(&timer);
    return work;
}

int block_co_control_lock_within(int64_t patience_ns, struct block_control_holder *ret_holder)
{
    const struct block_control_work *work;

    make_ready();
    if (!co_lock_mutex_within(patience_ns)) {
        *ret_holder = (struct block_control_holder){.owner = control.owner};
        return -EBUSY;
    }
    work = co_await_works_within(patience_ns);
    if (work) {
        *ret_holder = (struct block_control_holder){.owner = work->owner, .work = work};
        co_mutex_unlock(&control.mutex);
        return -EBUSY;
    }
    own_control();
    return 0;
}

void block_control_unlock(void)
{
    assert(control.owner == co_task());
    control.owner = NULL;
    co_mutex_unlock(&control.mutex);
}

const struct co *block_control_owner(void)
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
    own_control();
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
        own_control();
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
    static uint64_t number; /* of the latest */

    number++;
    *work = (struct block_control_work){.owner = co_task(),
                                        .nodes = nodes,
                                        .count = count,
                                        .changes_graph = changes_graph,
                                        .number = number};
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

const struct block_control_work *block_control_next_work(const struct block_control_work *work)
{
    const struct list *next = work ? work->link.next : works.next;

    return next == &works ? NULL : container_of(next, struct block_control_work, link);
}

/* --- scopes ----------------------------------------------------------------------------------- */

void block_control_begin_scope(struct block_control_scope *scope)
{
    assert(!find_scope(co_task()));
    scope->owner = co_task();
    list_append(&scopes, &scope->link);
}

void block_control_end_scope(struct block_control_scope *scope)
{
    list_remove(&scope->link);
}

const struct block_control_scope *block_control_scope_of(const struct co *owner)
{
    return find_scope(owner);
}

void block_control_keep_graph_from_now(void)
{
    struct block_control_scope *scope = find_scope(co_task());

    if (scope) {
        scope->keeps_graph = true;
    }
}

void block_control_meet_nothing_from_now(void)
{
    struct block_control_scope *scope = find_scope(co_task());

    if (scope) {
        scope->keeps_graph = true;
        scope->meets = NULL;
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "co/co.h"

#include <assert.h>
#include <errno.h>

#include "co/internal.h"

#ifdef CO_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CO_TSAN
#include <sanitizer/tsan_interface.h>
#endif

_Thread_local struct co_thread co_this_thread;

/* Complete a switch: `self` is running now, on thread `t`. */
static inline void arrive(struct co_thread *t, struct co_fiber *self)
{
#ifdef CO_ASAN
    struct co_fiber *left = t->left;

    __sanitizer_finish_switch_fiber(self->fake_stack, &left->stack_bottom, &left->stack_size);
#else
    (void)t;
    (void)self;
#endif
}

/*
 * Leave the stack `from` for `to`, both of thread `t`. When it returns, `from` is running again,
 * perhaps on another thread, so the caller must not use thread-local data afterwards. `from_ended`:
 * nothing on `from` is needed any more.
 */
static inline void switch_fibers(struct co_thread *t, struct co_fiber *from, struct co_fiber *to,
                                 bool from_ended)
{
    t->left = from;
#ifdef CO_ASAN
    __sanitizer_start_switch_fiber(from_ended ? NULL : &from->fake_stack, to->stack_bottom,
                                   to->stack_size);
    if (from_ended) {
        from->fake_stack = NULL;
    }
#else
    (void)from_ended;
#endif
#ifdef CO_TSAN
    __tsan_switch_to_fiber(to->tsan, 0);
#endif
    co_context_switch(&from->context, &to->context);
}

/* Switch from the running coroutine to its resumer. Returns when the coroutine is resumed. */
static void co_leave(struct co *co, bool ended)
{
    struct co_thread *t = co->thread;
    struct co *to = co->resumer;

    switch_fibers(t, &co->fiber, to ? &to->fiber : &t->self, ended);
    arrive(co->thread, &co->fiber);
}

/* The first function on each stack: runs one coroutine after the other. */
static void co_main(void)
{
    struct co *co = co_this_thread.current;

    arrive(co->thread, &co->fiber);
    for (;;) {
        co->entry(co->arg);
        co->ended = true;
        co_leave(co, true);
    }
}

static struct co *co_new(struct co_home *home, co_entry *entry, void *arg)
{
    struct co *co = co_pool_get(co_main);

    if (co) {
        co->home = home;
        co->task = co;
        co->wait = NULL;
        co->entry = entry;
        co->arg = arg;
        co->ended = false;
        atomic_store_explicit(&co->queued, false, memory_order_relaxed);
    }
    return co;
}

int co_spawn(struct co_home *home, co_entry *entry, void *arg)
{
    struct co *co = co_new(home, entry, arg);

    if (!co) {
        return -errno;
    }
    atomic_fetch_add(&home->spawned, 1);
    co_wake(co);
    return 0;
}

int co_run(struct co_home *home, co_entry *entry, void *arg)
{
    struct co *co = co_new(home, entry, arg);

    if (!co) {
        return -errno;
    }
    counter_add(&home->run, 1);
    co_resume(co);
    return 0;
}

size_t co_home_live(struct co_home *home)
{
    return atomic_load(&home->spawned) + counter_read(&home->run) - counter_read(&home->ended);
}

struct co *co_self(void)
{
    return co_this_thread.current;
}

void co_suspend(void)
{
    struct co *co = co_this_thread.current;

    assert(co);
    co_leave(co, false);
}

void co_wake(struct co *co)
{
    assert(!atomic_load_explicit(&co->queued, memory_order_relaxed));
    atomic_store_explicit(&co->queued, true, memory_order_relaxed);
    co->home->enqueue(co->home, co);
}

void co_reschedule(void)
{
    struct co *co = co_this_thread.current;

    assert(co);
    co_wake(co);
    co_leave(co, false);
}

/* The thread has left the stack of t->moving, so another thread may run it. */
static void wake_moving(struct co_thread *t)
{
    struct co *co = t->moving;

    t->moving = NULL;
    co_wake(co);
}

void co_resume(struct co *co)
{
    struct co_thread *t = &co_this_thread;
    struct co *resumer = t->current;
    struct co_fiber *from = resumer ? &resumer->fiber : &t->self;

#ifdef CO_TSAN
    if (!resumer) {
        from->tsan = __tsan_get_current_fiber();
    }
#endif
    atomic_store_explicit(&co->queued, false, memory_order_relaxed);
    co->thread = t;
    co->resumer = resumer;
    t->current = co;
    switch_fibers(t, from, &co->fiber, false);
    if (resumer) {
        t = resumer->thread; /* another one, if co_rescue() woke the resumer */
    }
    arrive(t, from);
    t->current = resumer;
    if (t->moving) {
        wake_moving(t);
    } else if (co->ended) {
        counter_add(&co->home->ended, 1);
        co_pool_put(co);
    }
}

/*
 * The outermost coroutine runs first, since it looks at the one that it resumed, which may end as
 * soon as it runs.
 */
static void wake_outermost_first(struct co *co)
{
    if (co) {
        wake_outermost_first(co->resumer);
        co_wake(co);
    }
}

void co_rescue(struct co *caller)
{
    wake_outermost_first(caller->resumer);
}

void co_rejoin(void)
{
    struct co_thread *t = &co_this_thread;
    struct co *co = t->current;

    t->moving = co;
    switch_fibers(t, &co->fiber, &t->self, false);
    arrive(co->thread, &co->fiber);
}

/* Suspend the running coroutine, and continue on the thread of `home`. */
static void co_move(struct co *co, struct co_home *home)
{
    co->home = home;
    co->thread->moving = co;
    co_leave(co, false);
}

void co_call_at(struct co_home *there, co_entry *entry, void *arg)
{
    struct co *co = co_this_thread.current;
    struct co_home *home;

    assert(co);
    home = co->home;
    atomic_fetch_add(&there->spawned, 1);
    co_move(co, there);
    entry(arg);
    counter_add(&there->ended, 1);
    co_move(co, home);
}

struct list *co_link(struct co *co)
{
    return &co->link;
}

struct co *co_from_link(struct list *link)
{
    return container_of(link, struct co, link);
}

void **co_queue_slot(struct co *co)
{
    return &co->queue_slot;
}

struct co_home *co_get_home(const struct co *co)
{
    return co->home;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Waiting with a limit of time, for an answer of another coroutine, or for a call that blocks. */
#include "base/checked.h"
#include "loop/loop.h"

/* --- an answer -------------------------------------------------------------------------------- */

static void wake_waiter(struct loop_answer *a)
{
    struct co *co = a->waiter;

    a->waiter = NULL;
    if (co) {
        co_wake(co);
    }
}

static void end_patience(struct loop_timer *timer)
{
    wake_waiter(container_of(timer, struct loop_answer, timer));
}

void loop_answer_init(struct loop_answer *a)
{
    *a = (struct loop_answer){0};
    loop_timer_init(&a->timer, end_patience);
}

bool loop_co_answer_wait(struct loop_answer *a, int64_t patience_ns)
{
    int64_t now = loop_now_ns();

    if (!a->given) {
        a->waiter = co_self();
        loop_timer_arm(&a->timer, patience_ns > INT64_MAX - now ? INT64_MAX : now + patience_ns);
        co_suspend();
        loop_timer_disarm(&a->timer);
    }
    return a->given;
}

void loop_answer_give(struct loop_answer *a)
{
    a->given = true;
    wake_waiter(a);
}

/* --- a call ----------------------------------------------------------------------------------- */

static int make_call(void *arg)
{
    struct loop_call *c = arg;

    return c->fn(c);
}

static void co_make_call(void *arg)
{
    struct loop_call *c = arg;

    c->result = loop_co_brief(make_call, c);
    if (atomic_load(&c->is_late)) {
        c->end_late(c);
    } else {
        loop_answer_give(&c->answer);
    }
}

bool loop_co_call_within(struct loop_call *c, int64_t patience_ns)
{
    bool ended;

    atomic_init(&c->is_late, false);
    loop_answer_init(&c->answer);
    if (patience_ns == INT64_MAX || reactor_spawn(reactor_current(), co_make_call, c) < 0) {
        c->result = loop_co_brief(make_call, c);
        return true;
    }
    ended = loop_co_answer_wait(&c->answer, patience_ns);
    atomic_store(&c->is_late, !ended);
    return ended;
}

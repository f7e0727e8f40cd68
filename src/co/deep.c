/* SPDX-License-Identifier: Apache-2.0 */
/* Recursion as deep as the data that it walks: continues on another stack before one is used up. */
#include <assert.h>
#include <stdint.h>

#include "co/internal.h"

struct deep_call {
    co_entry *entry;
    void *arg;
    /* the caller's */
    struct co *task;
    /* suspended until `entry` has returned; NULL while nothing has to be woken */
    struct co *waiter;
    bool done;
};

static void co_call_main(void *arg)
{
    struct deep_call *call = arg;

    co_self()->task = call->task;
    call->entry(call->arg);
    call->done = true;
    if (call->waiter) {
        co_wake(call->waiter);
    }
}

struct co *co_task(void)
{
    const struct co *co = co_self();

    return co ? co->task : NULL;
}

bool co_stack_is_low(void)
{
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);
    const struct co *co = co_self();

    assert(co);
    return here - co_pool_stack_bottom(co) < CO_STACK_RESERVE;
}

int co_call_deep(co_entry *entry, void *arg)
{
    struct deep_call call = {.entry = entry, .arg = arg, .task = co_task()};
    int r;

    if (!co_stack_is_low()) {
        entry(arg);
        return 0;
    }
    r = co_run(co_get_home(co_self()), co_call_main, &call);
    if (r == 0 && !call.done) {
        call.waiter = co_self();
        co_suspend();
    }
    return r;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Recursion that is as deep as what it walks: it goes on on another stack before the one that it runs on is used up. */
#include <assert.h>
#include <stdint.h>

#include "co/internal.h"

struct call {
    co_entry *entry;
    void *arg;
    struct co *task;
    struct co *waiter; /* suspended until `entry` has returned; NULL while it need not be woken */
    bool done;
};

static void co_call_main(void *arg)
{
    struct call *call = arg;

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
    struct call call = {.entry = entry, .arg = arg, .task = co_task()};
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

/* SPDX-License-Identifier: Apache-2.0 */
#include "block/control_lock.h"

#include <assert.h>

#include "co/sync.h"

/* Main reactor. */
static struct {
    struct co_mutex mutex;
    bool ready;
    struct co *owner; /* NULL: nobody */
} control;

void block_co_control_lock(void)
{
    if (!control.ready) {
        co_mutex_init(&control.mutex);
        control.ready = true;
    }
    assert(control.owner != co_task());
    co_mutex_lock(&control.mutex);
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

bool block_control_pause(void)
{
    bool held = control.owner == co_task();

    if (held) {
        block_control_unlock();
    }
    return held;
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
    if (held) {
        block_co_control_lock();
    }
}

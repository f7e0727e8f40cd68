/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/giving_up.h"

#include <errno.h>

#include "base/list.h"
#include "base/time_units.h"

#define LOOK_NS (NS_PER_SECOND / 2)

static void co_call_give_up(void *arg)
{
    struct giving_up *g = arg;

    g->co_give_up(g->arg);
    g->runs = false;
    co_group_done(&g->group);
}

static void look_for_stop(struct loop_timer *timer)
{
    struct giving_up *g = container_of(timer, struct giving_up, timer);

    if (*g->stop && !g->runs) {
        co_group_add(&g->group);
        g->runs = true;
        if (co_spawn(reactor_home(reactor_main()), co_call_give_up, g) < 0) {
            g->runs = false; /* the next time, perhaps */
            co_group_done(&g->group);
        }
    }
    loop_timer_arm(timer, loop_now_ns() + LOOK_NS);
}

void giving_up_begin(struct giving_up *g, volatile sig_atomic_t *stop,
                     void (*co_give_up)(void *arg), void *arg)
{
    *g = (struct giving_up){.stop = stop, .co_give_up = co_give_up, .arg = arg};
    co_group_init(&g->group);
    loop_timer_init(&g->timer, look_for_stop);
    if (stop) {
        loop_timer_arm(&g->timer, loop_now_ns() + LOOK_NS);
    }
}

int giving_up_co_end(struct giving_up *g, int r, const char *stopped, struct error *err)
{
    loop_timer_disarm(&g->timer);
    co_group_wait(&g->group);
    co_group_destroy(&g->group);
    if (r < 0 && r != -EINTR && g->stop && *g->stop) {
        error_clear(err);
        r = error_set(err, EINTR, "%s", stopped);
    }
    return r;
}

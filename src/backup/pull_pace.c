/* SPDX-License-Identifier: Apache-2.0 */
/* When a pull reads, and whether it goes on. */
#include <errno.h>
#include <stdint.h>

#include "backup/pull_internal.h"
#include "base/checked.h"
#include "base/pacer.h"
#include "base/time_units.h"
#include "loop/loop.h"

#define WATCH_NS (NS_PER_SECOND / 5)

void pull_co_await_turn(struct pull *p, uint64_t size)
{
    int64_t now = loop_now_ns(), turn = now + pacer_take(&p->pacer, size, now);

    while (turn > now && p->status == 0 && !(p->config->stop && *p->config->stop)) {
        loop_co_sleep(MIN(turn - now, WATCH_NS));
        now = loop_now_ns();
    }
}

bool pull_may_continue(struct pull *p)
{
    int64_t now = loop_now_ns();

    if (p->status == 0 && p->config->stop && *p->config->stop) {
        p->status = error_set(p->err, EINTR, PULL_STOPPED);
    }
    if (now - p->watched_ns >= WATCH_NS) {
        int r = p->config->watch(p->config->watch_arg, p->status == 0 ? p->err : NULL);

        p->watched_ns = now;
        p->status = p->status == 0 && r < 0 ? r : p->status;
    }
    return p->status == 0;
}

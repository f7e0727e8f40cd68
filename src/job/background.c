/* SPDX-License-Identifier: Apache-2.0 */
#include "job/background.h"

#include <stdbool.h>
#include <stddef.h>

#include "base/checked.h"
#include "loop/loop.h"

/* One reads while the other writes. */
#define BACKGROUND_REACTORS 2
/* A guest that wakes up waits for no longer. */
#define SLICE_NS 100000

/* Pieces that one of them has, from when on the main reactor takes some, too. */
#define ENOUGH 2u

struct lane {
    struct reactor *reactor;
    unsigned pieces; /* there now */
};

/* Of the main reactor. They stay for the life of the process. */
static struct lane lanes[BACKGROUND_REACTORS];
static unsigned count, next;
static bool tried;

static void make_lanes(void)
{
    tried = true;
    while (count < BACKGROUND_REACTORS &&
           reactor_create_background("job-io", SLICE_NS, &lanes[count].reactor, NULL) == 0) {
        count++;
    }
}

/* The one that has the least to do; they take turns. NULL: there is none. */
static struct lane *pick_lane(void)
{
    struct lane *best = NULL;

    if (!tried && loop_is_serving()) {
        make_lanes();
    }
    for (unsigned i = 0; i < count; i++) {
        struct lane *lane = &lanes[(next + i) % count];

        if (!best || lane->pieces < best->pieces) {
            best = lane;
        }
    }
    next++;
    return best;
}

static void co_call_on_lane(struct lane *lane, co_entry *entry, void *arg)
{
    lane->pieces++;
    loop_co_call_on(lane->reactor, entry, arg);
    lane->pieces--;
}

void job_co_in_background(co_entry *entry, void *arg)
{
    struct lane *lane = pick_lane();

    if (lane) {
        co_call_on_lane(lane, entry, arg);
    } else {
        entry(arg);
    }
}

void job_co_with_background(co_entry *entry, void *arg)
{
    struct lane *lane = pick_lane();

    if (lane && lane->pieces < ENOUGH) {
        co_call_on_lane(lane, entry, arg);
    } else {
        entry(arg);
    }
}

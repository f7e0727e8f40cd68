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

/* Of the main reactor. They stay for the life of the process. */
static struct reactor *background[BACKGROUND_REACTORS];
static unsigned count, next;
static bool tried;

static void make_reactors(void)
{
    tried = true;
    while (count < BACKGROUND_REACTORS &&
           reactor_create_background("job-io", SLICE_NS, &background[count], NULL) == 0) {
        count++;
    }
}

void job_co_in_background(co_entry *entry, void *arg)
{
    if (!tried && loop_is_serving()) {
        make_reactors();
    }
    if (count == 0) {
        entry(arg);
    } else {
        loop_co_call_on(background[next++ % count], entry, arg);
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/checked.h"
#include "nbd/server_internal.h"

/* By index of the reactor; main reactor only. Entries stay for the life of the process. */
static struct nbd_worker *workers[REACTOR_MAX];
/* The I/O reactors that connections are spread over, made at the first use. */
static struct nbd_worker *spread[REACTOR_MAX];
static unsigned spread_count, spread_next;

static struct nbd_worker *worker_of(struct reactor *r, struct error *err)
{
    unsigned index = reactor_index(r);

    if (!workers[index]) {
        workers[index] = calloc(1, sizeof(*workers[index]));
        if (!workers[index]) {
            error_set(err, ENOMEM, "Out of memory");
            return NULL;
        }
    }
    /* Connections there read it. Another one has the place of one that is gone, and so are its connections. */
    if (workers[index]->reactor != r) {
        workers[index]->reactor = r;
    }
    return workers[index];
}

/* One reactor per processor; fewer are fine if no more can be had. */
static int make_spread(struct error *err)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned want = (unsigned)MIN(MAX(processors, 1), 32);

    while (spread_count < want) {
        struct reactor *r;
        ERROR_AUTO(local);
        int ret = reactor_create("nbd-io", &r, &local);

        if (ret < 0) {
            if (spread_count > 0) {
                break;
            }
            error_move(err, &local);
            return ret;
        }
        spread[spread_count] = worker_of(r, err);
        if (!spread[spread_count]) {
            reactor_destroy(r);
            return -ENOMEM;
        }
        spread_count++;
    }
    return 0;
}

void nbd_workers_prepare(void)
{
    if (spread_count == 0) {
        (void)make_spread(NULL);
    }
}

struct nbd_worker *nbd_worker_pick(struct reactor *r, struct error *err)
{
    if (r) {
        return worker_of(r, err);
    }
    if (spread_count == 0 && make_spread(err) < 0) {
        return NULL;
    }
    return spread[spread_next++ % spread_count];
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The I/O reactors that serve connections. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/checked.h"
#include "nbd/server_internal.h"

/*
 * By index of the reactor; they belong to the main reactor. Entries stay for the life of the
 * process.
 */
static struct nbd_worker *workers[REACTOR_MAX];
/* The I/O reactors that connections are spread over, made at the first use. */
static struct nbd_worker *spread[REACTOR_MAX];
static unsigned spread_count, spread_next;
/*
 * Those for readers of a point in time. A backup keeps a reactor as busy as it can; on the reactor
 * of a guest each of its requests would wait for that.
 */
static struct nbd_worker *background[REACTOR_MAX];
static unsigned background_count, background_next;

/* The reactor on which clients negotiate; NULL: not made yet, or it could not be. */
static struct reactor *handshakes;

struct reactor *nbd_handshake_reactor(void)
{
    if (!handshakes && reactor_create("nbd-hello", &handshakes, NULL) < 0) {
        handshakes = NULL;
        return reactor_main();
    }
    return handshakes;
}

static struct nbd_worker *worker_of(struct reactor *r, struct error *err)
{
    unsigned index = reactor_index(r);

    if (!workers[index]) {
        workers[index] = calloc(1, sizeof(*workers[index]));
        if (!workers[index]) {
            error_out_of_memory(err);
            return NULL;
        }
        nbd_slow_worker_init(workers[index]);
    }
    /*
     * Written only when it changes, since connections on that reactor read it. A new reactor gets
     * the index of one that is gone, together with its connections.
     */
    if (workers[index]->reactor != r) {
        workers[index]->reactor = r;
    }
    return workers[index];
}

/* Start a reactor, and append its worker to `list`. */
static int co_add_reactor(struct nbd_worker **list, unsigned *count, bool is_background,
                          struct error *err)
{
    struct reactor *fresh;
    int r = is_background ? reactor_create_background("nbd-view", 0, &fresh, err)
                          : reactor_create("nbd-io", &fresh, err);

    if (r < 0) {
        return r;
    }
    list[*count] = worker_of(fresh, err);
    if (!list[*count]) {
        reactor_destroy(fresh);
        return -ENOMEM;
    }
    (*count)++;
    return 0;
}

/* One reactor for each processor, at most 32; fewer if there are no descriptors for more. */
static int co_make_spread(struct error *err)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned want = (unsigned)MIN(MAX(processors, 1), 32);

    while (spread_count < want) {
        ERROR_AUTO(local);
        int r = co_add_reactor(spread, &spread_count, false, &local);

        if (r < 0) {
            if (spread_count > 0) {
                break;
            }
            error_move(err, &local);
            return r;
        }
    }
    return 0;
}

/* At most half as many, made when the first is needed; none if there are no descriptors. */
static void co_make_background(void)
{
    unsigned want = MAX(spread_count / 2, 1);

    while (background_count < want &&
           co_add_reactor(background, &background_count, true, NULL) == 0) {
    }
}

void nbd_workers_co_prepare(void)
{
    if (spread_count == 0) {
        (void)co_make_spread(NULL);
    }
    (void)nbd_handshake_reactor();
}

struct nbd_worker *nbd_worker_co_pick(struct reactor *r, bool is_view, struct error *err)
{
    if (r) {
        return worker_of(r, err);
    }
    if (spread_count == 0 && co_make_spread(err) < 0) {
        return NULL;
    }
    if (is_view) {
        co_make_background();
        if (background_count > 0) {
            return background[background_next++ % background_count];
        }
    }
    return spread[spread_next++ % spread_count];
}

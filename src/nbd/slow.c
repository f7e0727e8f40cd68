/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests that take longer than a limit are reported once, with what they wait for.
 *
 * There is no timer for each request, and none on the reactors that serve clients, where it would
 * make each wait more expensive. A timer of the main reactor has them look at all requests in work,
 * several times within the limit. A request whose reply the client does not take is not in work.
 */
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "base/time_units.h"
#include "co/wait.h"
#include "nbd/server_internal.h"

#define SWEEP_MIN_NS INT64_C(10000000)
#define SWEEP_MAX_NS INT64_C(1000000000)
/* Requests that one sweep reports by a line each; the others are summed up. */
#define LINES_MAX 8

static _Atomic int64_t limit_ns = NBD_SLOW_SECONDS * INT64_C(1000000000);

void nbd_set_slow_limit(int64_t ns)
{
    atomic_store(&limit_ns, ns);
}

static const char *const names[NBD_KINDS] = {
    [NBD_KIND_READ] = "read",   [NBD_KIND_WRITE] = "write",   [NBD_KIND_ZEROES] = "write of zeroes",
    [NBD_KIND_TRIM] = "trim",   [NBD_KIND_FLUSH] = "flush",   [NBD_KIND_STATUS] = "block status",
    [NBD_KIND_CACHE] = "cache", [NBD_KIND_OTHER] = "request",
};

static void report(const struct nbd_job *job, int64_t ns)
{
    const struct nbd_connection *c = job->conn;
    AUTO_FREE char *line = NULL;
    STRBUF_AUTO(text);

    strbuf_printf(&text, "NBD export '%s', client %s: %s", c->export->name, c->peer,
                  names[job->kind]);
    if (job->kind != NBD_KIND_FLUSH) {
        strbuf_printf(&text, " of %" PRIu64 " bytes at offset %" PRIu64, job->rq.length,
                      job->rq.offset);
    }
    strbuf_printf(&text, " has taken %.*f s so far; it waits for ", ns < NS_PER_SECOND ? 3 : 1,
                  (double)ns / 1e9);
    if (!co_wait_describe(job->co, &text)) {
        strbuf_puts(&text, "something that is not known");
    }
    line = strbuf_take(&text);
    if (line) {
        /* Names of files may have any characters. */
        nbd_replace_control_bytes(line, strlen(line));
        log_warning("%s", line);
    }
}

static void sweep_connection(struct nbd_connection *c, int64_t now, int64_t limit,
                             unsigned *reported)
{
    for (struct nbd_job *job = c->all_jobs; job; job = job->next) {
        if (!job->co || job->reported_slow || now - job->received_ns < limit) {
            continue;
        }
        job->reported_slow = true;
        counter_add(&c->counters.values[NBD_STAT_SLOW], 1);
        if ((*reported)++ < LINES_MAX) {
            report(job, now - job->received_ns);
        }
    }
}

static int64_t sweep_interval(int64_t limit)
{
    return MIN(MAX(limit / 4, SWEEP_MIN_NS), SWEEP_MAX_NS);
}

/* On the worker's reactor. */
static void sweep_worker(void *arg)
{
    struct nbd_worker *w = arg;
    int64_t now = loop_now_ns(), limit = atomic_load(&limit_ns);
    struct nbd_connection *c;
    unsigned reported = 0;

    LIST_FOREACH (c, &w->clients, worker_link) {
        sweep_connection(c, now, limit, &reported);
    }
    if (reported > LINES_MAX) {
        log_warning("NBD server: %u more requests have taken longer than %.1f s",
                    reported - LINES_MAX, (double)limit / 1e9);
    }
    atomic_store(&w->sweeping, false);
}

static void arm_slow_timer(struct nbd_worker *w)
{
    int64_t limit = atomic_load(&limit_ns);

    if (limit > 0) {
        loop_timer_arm(&w->slow_timer, loop_now_ns() + sweep_interval(limit));
    }
}

static void slow_timer_fired(struct loop_timer *timer)
{
    struct nbd_worker *w = container_of(timer, struct nbd_worker, slow_timer);

    /* A reactor that is held up gets one sweep, however long that lasts. */
    if (!atomic_exchange(&w->sweeping, true) && reactor_spawn(w->reactor, sweep_worker, w) < 0) {
        atomic_store(&w->sweeping, false);
    }
    arm_slow_timer(w);
}

void nbd_slow_worker_init(struct nbd_worker *w)
{
    list_init(&w->clients);
    loop_timer_init(&w->slow_timer, slow_timer_fired);
}

void nbd_slow_begin(struct nbd_worker *w)
{
    if (w->assigned++ == 0) {
        arm_slow_timer(w);
    }
}

void nbd_slow_end(struct nbd_worker *w)
{
    if (--w->assigned == 0) {
        loop_timer_disarm(&w->slow_timer);
    }
}

void nbd_slow_watch(struct nbd_connection *c)
{
    list_append(&c->worker->clients, &c->worker_link);
}

void nbd_slow_unwatch(struct nbd_connection *c)
{
    list_remove(&c->worker_link);
}

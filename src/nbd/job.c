/* SPDX-License-Identifier: Apache-2.0 */
/* A request in work, and what it holds. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "nbd/server_internal.h"

struct nbd_rbuf *nbd_rbuf_new(struct nbd_connection *c)
{
    struct nbd_rbuf *b = malloc(sizeof(*b));

    if (!b || !bufpool_get(&c->worker->pool, NBD_RECEIVE_BUFFER, &b->memory)) {
        free(b);
        return NULL;
    }
    b->refs = 1;
    return b;
}

void nbd_rbuf_unref(struct nbd_connection *c, struct nbd_rbuf *b)
{
    if (b && --b->refs == 0) {
        bufpool_put(&c->worker->pool, &b->memory);
        free(b);
    }
}

struct nbd_job *nbd_job_new(struct nbd_connection *c, const struct nbd_request *rq)
{
    struct nbd_job *job;

    if (list_is_empty(&c->free_jobs)) {
        job = malloc(sizeof(*job));
        if (!job) {
            return NULL;
        }
        job->next = c->all_jobs;
        c->all_jobs = job;
    } else {
        job = LIST_FIRST(&c->free_jobs, struct nbd_job, link);
        list_remove(&job->link);
    }
    job->conn = c;
    job->co = NULL;
    job->reported_slow = false;
    job->rq = *rq;
    job->accounted = 0;
    job->pooled = job->continues = job->continued = job->carried_out = false;
    job->result = 0;
    job->payload = NULL;
    job->context_count = 0;
    job->rbuf = NULL;
    job->data.data = NULL;
    job->extra.data = NULL;
    job->pipes = NULL;
    job->error = 0;
    job->reason = NULL;
    job->invalid = false;
    job->kind = nbd_kind_of(rq->type);
    job->received_ns = c->received_ns;
    c->jobs++;
    counter_set(&c->counters.values[NBD_STAT_DEPTH], c->jobs);
    counter_raise(&c->counters.values[NBD_STAT_DEPTH_MAX], c->jobs);
    return job;
}

static void wake_receiver(struct nbd_connection *c)
{
    if (c->waiter) {
        struct co *co = c->waiter;

        c->waiter = NULL;
        co_wake(co);
    }
}

void nbd_job_release(struct nbd_job *job)
{
    struct nbd_connection *c = job->conn;

    bufpool_put(&c->worker->pool, &job->data);
    bufpool_put(&c->worker->pool, &job->extra);
    if (job->pipes) {
        nbd_pipes_put(&c->worker->pipes, job->pipes);
    }
    nbd_rbuf_unref(c, job->rbuf);
    c->jobs--;
    counter_set(&c->counters.values[NBD_STAT_DEPTH], c->jobs);
    c->job_bytes -= job->accounted;
    if (job->pooled) {
        nbd_memory_give(job->accounted);
    }
    list_prepend(&c->free_jobs, &job->link);
    wake_receiver(c);
}

int nbd_job_refuse(struct nbd_job *job, int errnum, const char *fmt, ...)
{
    struct nbd_connection *c = job->conn;
    va_list ap;

    job->error = errnum;
    /* Without memory the client gets the error alone. */
    if (bufpool_get(&c->worker->pool, 1, &job->extra)) {
        va_start(ap, fmt);
        vsnprintf(job->extra.data, pooled_size(&job->extra), fmt, ap);
        va_end(ap);
        job->reason = job->extra.data;
        log_debug("NBD client %s, export '%s': %s", c->peer, c->export->name, job->reason);
    }
    return -errnum;
}

int nbd_job_refuse_range(struct nbd_job *job)
{
    bool adds = job->rq.type == NBD_CMD_WRITE || job->rq.type == NBD_CMD_WRITE_ZEROES;

    bufpool_put(&job->conn->worker->pool, &job->extra);
    return nbd_job_refuse(job, adds ? ENOSPC : EINVAL,
                          "%s reaches beyond the end of the export: offset %" PRIu64
                          ", length %" PRIu64 "; the export has %" PRIu64 " bytes",
                          nbd_command_name(job->rq.type), job->rq.offset, job->rq.length,
                          job->conn->export->size);
}

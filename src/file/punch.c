/* SPDX-License-Identifier: Apache-2.0 */
#include "file/punch.h"

#include <fcntl.h>

#include "base/checked.h"
#include "base/debug.h"
#include "co/co.h"
#include "loop/loop.h"

/* The most requests of one batch: limits how long the first of them waits for the others. */
#define BATCH_MAX 64

/* On the stack of the waiting coroutine. */
struct punch_request {
    struct list link;
    uint64_t offset, end;
    int result;
    /* woken to punch the waiting requests, including this one */
    bool leads;
    struct co *co;
};

void punch_queue_init(struct punch_queue *q)
{
    pthread_mutex_init(&q->guard, NULL);
    list_init(&q->waiting);
    q->running = false;
}

void punch_queue_destroy(struct punch_queue *q)
{
    pthread_mutex_destroy(&q->guard);
}

/* Insert a request into a batch, sorted by offset. */
static void insert_sorted(struct list *batch, struct punch_request *request)
{
    struct list *at = batch->prev;

    while (at != batch && container_of(at, struct punch_request, link)->offset > request->offset) {
        at = at->prev;
    }
    list_prepend(at, &request->link);
}

/* Move waiting requests to `batch`. */
static void take_batch_locked(struct punch_queue *q, struct list *batch)
{
    MUTEX_ASSERT_HELD(&q->guard);
    for (int n = 0; n < BATCH_MAX && !list_is_empty(&q->waiting); n++) {
        struct punch_request *first = LIST_FIRST(&q->waiting, struct punch_request, link);

        list_remove(&first->link);
        insert_sorted(batch, first);
    }
}

/* Punch the requests of a batch: adjacent and overlapping ones with one call. */
static void co_punch_batch(int fd, struct list *batch)
{
    struct list *first = batch->next;

    while (first != batch) {
        struct punch_request *request = container_of(first, struct punch_request, link);
        struct list *after = first->next;
        uint64_t offset = request->offset, end = request->end;
        int r;

        while (after != batch && container_of(after, struct punch_request, link)->offset <= end) {
            end = MAX(end, container_of(after, struct punch_request, link)->end);
            after = after->next;
        }
        r = loop_co_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, end - offset);
        for (; first != after; first = first->next) {
            container_of(first, struct punch_request, link)->result = r;
        }
    }
}

/* Wake all requests of the batch, except `self`, which runs. */
static void wake_batch(struct list *batch, struct punch_request *self)
{
    list_remove(&self->link);
    while (!list_is_empty(batch)) {
        struct punch_request *request = LIST_FIRST(batch, struct punch_request, link);

        list_remove(&request->link);
        co_wake(request->co);
    }
}

/* Wake the next request that punches, or end. */
static void pass_lead(struct punch_queue *q)
{
    struct punch_request *next = NULL;

    pthread_mutex_lock(&q->guard);
    if (list_is_empty(&q->waiting)) {
        q->running = false;
    } else {
        next = LIST_FIRST(&q->waiting, struct punch_request, link);
        next->leads = true;
    }
    pthread_mutex_unlock(&q->guard);
    if (next) {
        co_wake(next->co);
    }
}

int co_punch_hole(struct punch_queue *q, int fd, uint64_t offset, uint64_t length)
{
    struct punch_request self = {.offset = offset, .end = offset + length, .co = co_self()};
    struct list batch;
    bool waits;

    pthread_mutex_lock(&q->guard);
    waits = q->running;
    q->running = true;
    list_append(&q->waiting, &self.link);
    pthread_mutex_unlock(&q->guard);
    if (waits) {
        co_suspend();
        if (!self.leads) {
            return self.result;
        }
    }
    list_init(&batch);
    pthread_mutex_lock(&q->guard);
    take_batch_locked(q, &batch);
    pthread_mutex_unlock(&q->guard);
    co_punch_batch(fd, &batch);
    wake_batch(&batch, &self);
    pass_lead(q);
    return self.result;
}

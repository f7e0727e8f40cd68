/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/events.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "base/list.h"
#include "block/corruption.h"
#include "block/device.h"
#include "block/node.h"
#include "block/threshold.h"
#include "block/vote.h"
#include "export/export.h"
#include "loop/loop.h"
#include "qmp/answer.h"
#include "qmp/lease.h"
#include "qmp/monitor.h"
#include "qmp/schema.h"
#include "trace/events.h"

#define EVENT_SECTOR 512

static struct json_object *timestamp(void)
{
    struct json_object *o = json_object_new_object();
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    qmp_put_uint(o, "seconds", (uint64_t)now.tv_sec);
    qmp_put_uint(o, "microseconds", (uint64_t)now.tv_nsec / 1000);
    return o;
}

#define IMAGE_CORRUPTED "BLOCK_IMAGE_CORRUPTED"

/* The device that uses the node of an event: known on the main reactor only. */
static void name_device(struct json_object *data)
{
    const struct block_node *node = block_node_find(qmp_get_str(data, "node-name"));

    qmp_put_str(data, "device", node ? block_node_device_name(node) : "");
}

void qmp_emit(const char *name, struct json_object *data)
{
    struct json_object *event = json_object_new_object();

    trace_qmp_event(name);
    if (strcmp(name, IMAGE_CORRUPTED) == 0) {
        name_device(data);
    }
    json_object_object_add(event, "timestamp", timestamp());
    qmp_put_str(event, "event", name);
    if (data) {
        json_object_object_add(event, "data", data);
    }
    if (!qmp_event_hold(name, data, event, qmp_send_event)) {
        qmp_send_event(event);
    }
    json_object_put(event);
}

/* --- from other reactors ---------------------------------------------------------------------- */

struct queued_event {
    struct list link; /* in `queued` */
    const char *name;
    char *key; /* owned; NULL: the event is not limited */
    struct json_object *data;
};

/* Guards the list: of what the main reactor has not taken yet. */
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static struct list queued = LIST_INIT(queued);

static void co_emit_queued(void *arg)
{
    struct queued_event *event = arg;

    pthread_mutex_lock(&guard);
    list_remove(&event->link);
    pthread_mutex_unlock(&guard);
    qmp_emit(event->name, event->data);
    free(event->key);
    free(event);
}

/*
 * Put `data` in the place of that of an event about the same thing, which would only be held back
 * in its favour. So requests that all fail leave one event in the queue, however many there are.
 */
static bool replace_queued_locked(const char *name, const char *key, struct json_object *data)
{
    struct queued_event *event;

    LIST_FOREACH (event, &queued, link) {
        if (event->key && strcmp(event->name, name) == 0 && strcmp(event->key, key) == 0) {
            json_object_put(event->data);
            event->data = data;
            return true;
        }
    }
    return false;
}

static void queue_event(const char *name, struct json_object *data)
{
    struct queued_event *event = calloc(1, sizeof(*event));
    char *key = NULL;
    bool limited = qmp_event_key(name, data, &key), taken;

    pthread_mutex_lock(&guard);
    taken = limited && replace_queued_locked(name, key, data);
    if (!taken && event) {
        *event = (struct queued_event){.name = name, .key = key, .data = data};
        list_append(&queued, &event->link);
        if (reactor_spawn(reactor_main(), co_emit_queued, event) == 0) {
            pthread_mutex_unlock(&guard);
            return;
        }
        list_remove(&event->link);
    }
    pthread_mutex_unlock(&guard);
    if (!taken) {
        json_object_put(data);
    }
    free(key);
    free(event);
}

void qmp_emit_on_main(const char *name, struct json_object *data)
{
    if (reactor_current() == reactor_main()) {
        qmp_emit(name, data);
    } else {
        queue_event(name, data);
    }
}

/* --- what is emitted -------------------------------------------------------------------------- */

static void on_export_event(enum export_event event, const char *id, void *arg)
{
    struct json_object *data;

    if (event == EXPORT_EVENT_LEASE_ENDED) {
        qmp_end_lease(id);
        return;
    }
    data = json_object_new_object();
    qmp_put_str(data, "id", id);
    qmp_emit("BLOCK_EXPORT_DELETED", data);
}

/* Without memory the event is lost; the log has what happened. */
static void on_corruption(const struct block_corruption *c)
{
    struct json_object *data = json_object_new_object();

    qmp_put_str(data, "node-name", c->node_name);
    qmp_put_str(data, "msg", c->what);
    qmp_put_bool(data, "fatal", c->fatal);
    qmp_emit_on_main(IMAGE_CORRUPTED, data);
}

static void on_threshold(const struct block_threshold_report *r)
{
    struct json_object *data = json_object_new_object();

    qmp_put_str(data, "node-name", r->node_name);
    qmp_put_uint(data, "write-threshold", r->threshold);
    qmp_put_uint(data, "amount-exceeded", r->exceeded);
    qmp_emit_on_main("BLOCK_WRITE_THRESHOLD", data);
}

static void on_vote(const struct block_vote *v)
{
    static const char *const ops[] = {"read", "write", "flush"};
    struct json_object *data = json_object_new_object();

    if (!v->failed) {
        qmp_put_str(data, "type", ops[v->op]);
        qmp_put_str(data, "error", v->error ? strerror(-v->error) : NULL);
    }
    qmp_put_str(data, v->failed ? "reference" : "node-name", v->node_name);
    qmp_put_uint(data, "sector-num", v->offset / EVENT_SECTOR);
    qmp_put_uint(data, "sectors-count", div_round_up(v->length, EVENT_SECTOR));
    qmp_emit_on_main(v->failed ? "QUORUM_FAILURE" : "QUORUM_REPORT_BAD", data);
}

void qmp_subscribe(void)
{
    block_set_threshold_fn(on_threshold);
    block_set_vote_fn(on_vote);
    export_set_event_fn(on_export_event, NULL);
    block_set_corruption_fn(on_corruption);
}

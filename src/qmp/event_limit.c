/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/list.h"
#include "loop/loop.h"
#include "qmp/events.h"
#include "qmp/schema.h"

#define INTERVAL_NS (1000 * NS_PER_MS)

/* The limited events, and the members of their data that say what they are about. */
static const struct {
    const char *name;
    const char *members[3]; /* NULL: no more */
    const char *unless;     /* this value of the member `action` is not limited; NULL: all are */
} limits[] = {
    {"BLOCK_IO_ERROR", {"qom-path", "device", "node-name"}, "stop"},
    {"QUORUM_FAILURE", {NULL}, NULL},
    {"QUORUM_REPORT_BAD", {"node-name"}, NULL},
};

/* An event was sent less than an interval ago. */
struct recent {
    struct list link; /* in `recents` */
    const char *name;
    char *key;                 /* owned */
    int64_t due_ns;            /* the end of the interval */
    struct json_object *event; /* the last one since, a reference; NULL: there was none */
    qmp_event_send *send;
    struct loop_timer timer; /* unless another clock is in use */
};

static struct list recents = LIST_INIT(recents);
static int64_t (*clock_fn)(void); /* NULL: that of the loop */

void qmp_event_use_clock(int64_t (*now)(void))
{
    clock_fn = now;
}

static int64_t clock_ns(void)
{
    return clock_fn ? clock_fn() : loop_now_ns();
}

bool qmp_event_key(const char *name, struct json_object *data, char **ret_key)
{
    for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
        const char *action = data ? qmp_get_str(data, "action") : NULL;
        const char *parts[3] = {"", "", ""};

        if (strcmp(limits[i].name, name) != 0) {
            continue;
        }
        if (limits[i].unless && action && strcmp(action, limits[i].unless) == 0) {
            return false;
        }
        for (int m = 0; m < 3 && limits[i].members[m]; m++) {
            const char *value = qmp_get_str(data, limits[i].members[m]);

            parts[m] = value ? value : "";
        }
        if (asprintf(ret_key, "%s/%s/%s", parts[0], parts[1], parts[2]) < 0) {
            return false;
        }
        return true;
    }
    return false;
}

/* --- intervals -------------------------------------------------------------------------------- */

static void forget_recent(struct recent *r)
{
    loop_timer_disarm(&r->timer);
    list_remove(&r->link);
    json_object_put(r->event);
    free(r->key);
    free(r);
}

static void begin_interval(struct recent *r, int64_t begin_ns)
{
    r->due_ns = begin_ns + INTERVAL_NS;
    if (!clock_fn) {
        loop_timer_arm(&r->timer, r->due_ns);
    }
}

/* The end of an interval: send what waits, after which another one begins. */
static void end_interval(struct recent *r)
{
    struct json_object *event = r->event;

    if (!event) {
        forget_recent(r);
        return;
    }
    r->event = NULL;
    begin_interval(r, r->due_ns);
    r->send(event);
    json_object_put(event);
}

static void interval_is_over(struct loop_timer *timer)
{
    end_interval(container_of(timer, struct recent, timer));
}

/* A step may pass the ends of two intervals: one with an event, and one without. */
void qmp_event_clock_moved(void)
{
    struct recent *r, *next;
    bool ended = true;

    while (ended) {
        ended = false;
        LIST_FOREACH_SAFE (r, next, &recents, link) {
            if (clock_ns() >= r->due_ns) {
                end_interval(r);
                ended = true;
            }
        }
    }
}

bool qmp_event_hold(const char *name, struct json_object *data, struct json_object *event,
                    qmp_event_send *send)
{
    struct recent *r;
    char *key;

    if (!qmp_event_key(name, data, &key)) {
        return false;
    }
    LIST_FOREACH (r, &recents, link) {
        if (strcmp(r->name, name) == 0 && strcmp(r->key, key) == 0) {
            json_object_put(r->event);
            r->event = json_object_get(event);
            free(key);
            return true;
        }
    }
    r = calloc(1, sizeof(*r));
    if (!r) {
        free(key);
        return false;
    }
    for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
        /* A name that lives as long as the process. */
        r->name = strcmp(limits[i].name, name) == 0 ? limits[i].name : r->name;
    }
    r->key = key;
    r->send = send;
    loop_timer_init(&r->timer, interval_is_over);
    list_append(&recents, &r->link);
    begin_interval(r, clock_ns());
    return false;
}

void qmp_event_limits_release(void)
{
    struct recent *r, *next;

    LIST_FOREACH_SAFE (r, next, &recents, link) {
        if (r->event) {
            r->send(r->event);
        }
        forget_recent(r);
    }
}

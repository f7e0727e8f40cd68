/* SPDX-License-Identifier: Apache-2.0 */
#include "filter/fault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "co/sync.h"
#include "filter/filter.h"
#include "schema/define.h"

#define SECTOR_SIZE 512
#define ERRNO_MAX 4095u

/* The iotypes of a rule that names none. */
#define FAULT_IO_DEFAULT_MASK                                                                      \
    (1u << FAULT_IO_READ | 1u << FAULT_IO_WRITE | 1u << FAULT_IO_WRITE_ZEROES |                    \
     1u << FAULT_IO_DISCARD | 1u << FAULT_IO_FLUSH)

enum fault_action { FAULT_INJECT_ERROR, FAULT_SET_STATE, FAULT_BREAK };

struct fault_rule {
    struct list link;        /* in fault_rules.rules */
    struct list active_link; /* in fault_rules.active, or unlinked */
    enum fault_action action;
    int event;      /* enum block_event */
    uint32_t state; /* 0: any */
    /* FAULT_INJECT_ERROR */
    unsigned iotypes;  /* bit mask */
    int errnum;        /* 0: the requests that match succeed, whatever other rules say */
    uint64_t delay_ns; /* that they take */
    int64_t offset;    /* bytes; -1: any */
    bool once;
    bool immediately; /* fail without yielding first */
    /* FAULT_SET_STATE */
    uint32_t new_state;
    /* FAULT_BREAK */
    char *tag; /* owned */
};

static const char *const iotype_names[] = {
    "read", "write", "write-zeroes", "discard", "flush", "block-status", NULL};

static const struct schema_type iotype_type = {
    .kind = SCHEMA_ENUM, .name = "BlkdebugIOType", .values = iotype_names};
OBJECT(inject_type, "BlkdebugInjectErrorOptions",
       REQ("event", block_event_type, .help = "the moment at which the rule applies"),
       OPT("state", schema_int, .dflt = "0", .max = INT32_MAX,
           .help = "the state in which it applies; 0: all"),
       OPT("iotype", iotype_type, .help = "default: read, write, write-zeroes, discard, flush"),
       OPT("errno", schema_int, .dflt = "5", .max = ERRNO_MAX, .help = "the error, as on Linux"),
       OPT("delay-ns", schema_int, .dflt = "0", .max = INT64_MAX,
           .help = "how long the request takes; with errno 0 it succeeds then"),
       OPT("sector", schema_int, .dflt = "-1", .help = "of 512 bytes; -1: all"),
       OPT("once", schema_bool, .dflt = "false", .help = "one error, then the rule is gone"),
       OPT("immediately", schema_bool, .dflt = "false",
           .help = "fail at the moment itself, not the next request"));
OBJECT(set_state_type, "BlkdebugSetStateOptions", REQ("event", block_event_type),
       OPT("state", schema_int, .dflt = "0", .max = INT32_MAX,
           .help = "the state in which the rule applies; 0: all"),
       REQ("new_state", schema_int, .max = INT32_MAX, .help = "the state from then on"));
const struct schema_type fault_inject_type =
    ARRAY_INIT("BlkdebugInjectErrorOptionsList", inject_type);
const struct schema_type fault_set_state_type =
    ARRAY_INIT("BlkdebugSetStateOptionsList", set_state_type);

void fault_rules_init(struct fault_rules *r)
{
    pthread_mutex_init(&r->lock, NULL);
    list_init(&r->rules);
    list_init(&r->active);
    list_init(&r->held);
    r->state = 1;
}

static void rule_free(struct fault_rule *rule)
{
    list_remove(&rule->link);
    list_remove(&rule->active_link);
    free(rule->tag);
    free(rule);
}

void fault_rules_destroy(struct fault_rules *r)
{
    while (!list_is_empty(&r->rules)) {
        rule_free(LIST_FIRST(&r->rules, struct fault_rule, link));
    }
    pthread_mutex_destroy(&r->lock);
}

static int find_rule_name(const char *const *names, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(names[i], name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

/* --- rules from options ----------------------------------------------------------------------- */

static int take_event(struct options *opts, const char *group, int *ret_value, struct error *err)
{
    char *name AUTO_FREE = NULL;
    int r = options_take_str(opts, "event", &name, err);

    if (r < 0) {
        return r;
    }
    if (!name) {
        return error_set(err, EINVAL, "Missing event name for rule of group '%s'", group);
    }
    *ret_value = block_event_find(name);
    if (*ret_value < 0) {
        return error_set(err, EINVAL, "Invalid event name \"%s\"", name);
    }
    return 0;
}

static int take_number(struct options *opts, const char *key, uint64_t dflt, uint64_t max,
                       uint32_t *ret_value, struct error *err)
{
    uint64_t value;
    int r = options_take_uint(opts, key, dflt, max, &value, err);

    if (r == 0) {
        *ret_value = (uint32_t)value;
    }
    return r;
}

/* "sector" may be -1: any, as if it were absent. */
static int take_sector(struct options *opts, int64_t *ret_offset, struct error *err)
{
    struct json_object *all = options_to_json(opts), *value;
    uint64_t sector;
    bool any;
    int r;

    any = !all || !json_object_object_get_ex(all, "sector", &value) ||
          strcmp(json_object_get_string(value) ? json_object_get_string(value) : "", "-1") == 0;
    json_object_put(all);
    if (any) {
        options_drop(opts, "sector");
        *ret_offset = -1;
        return 0;
    }
    r = options_take_uint(opts, "sector", 0, INT64_MAX / SECTOR_SIZE, &sector, err);
    if (r == 0) {
        *ret_offset = (int64_t)sector * SECTOR_SIZE;
    }
    return r;
}

static int take_iotypes(struct options *opts, unsigned *ret_value, struct error *err)
{
    char *name AUTO_FREE = NULL;
    int r = options_take_str(opts, "iotype", &name, err), index;

    if (r < 0) {
        return r;
    }
    if (!name) {
        *ret_value = FAULT_IO_DEFAULT_MASK;
        return 0;
    }
    index = find_rule_name(iotype_names, ARRAY_SIZE(iotype_names) - 1, name);
    if (index < 0) {
        return error_set(err, EINVAL, "Invalid iotype value \"%s\"", name);
    }
    *ret_value = 1u << index;
    return 0;
}

static int take_inject(struct fault_rule *rule, struct options *opts, struct error *err)
{
    uint32_t errnum = EIO;
    int r;

    r = take_number(opts, "errno", EIO, ERRNO_MAX, &errnum, err);
    UNLESS_FAILED(r, options_take_uint(opts, "delay-ns", 0, INT64_MAX, &rule->delay_ns, err));
    UNLESS_FAILED(r, take_sector(opts, &rule->offset, err));
    UNLESS_FAILED(r, take_iotypes(opts, &rule->iotypes, err));
    UNLESS_FAILED(r, options_take_bool(opts, "once", false, &rule->once, err));
    UNLESS_FAILED(r, options_take_bool(opts, "immediately", false, &rule->immediately, err));
    rule->errnum = (int)errnum;
    return r;
}

static int take_set_state(struct fault_rule *rule, struct options *opts, struct error *err)
{
    if (!options_has(opts, "new_state")) {
        return error_set(err, EINVAL, "Missing new_state for rule of group 'set-state'");
    }
    return take_number(opts, "new_state", 0, INT32_MAX, &rule->new_state, err);
}

int fault_rules_add(struct fault_rules *rules, const char *group, struct options *opts,
                    struct error *err)
{
    struct fault_rule *rule;
    int r;

    rule = calloc(1, sizeof(*rule));
    if (!rule) {
        return error_set(err, ENOMEM, "Out of memory for a rule of group '%s'", group);
    }
    list_init(&rule->link);
    list_init(&rule->active_link);
    r = take_event(opts, group, &rule->event, err);
    UNLESS_FAILED(r, take_number(opts, "state", 0, INT32_MAX, &rule->state, err));
    if (r == 0 && strcmp(group, "inject-error") == 0) {
        rule->action = FAULT_INJECT_ERROR;
        r = take_inject(rule, opts, err);
    } else if (r == 0) {
        rule->action = FAULT_SET_STATE;
        r = take_set_state(rule, opts, err);
    }
    UNLESS_FAILED(r, options_check_empty(opts, group, err));
    if (r < 0) {
        free(rule);
        return r;
    }
    pthread_mutex_lock(&rules->lock);
    list_append(&rules->rules, &rule->link);
    pthread_mutex_unlock(&rules->lock);
    return 0;
}

/* --- at work ---------------------------------------------------------------------------------- */

/* Called when requests stop and continue; see filter.h. */
static fault_watch *watch;

void fault_set_watch(fault_watch *fn)
{
    watch = fn;
}

static void tell(const char *tag, bool held)
{
    if (watch) {
        watch(tag, held);
    }
}

/* A request that is held at a breakpoint; on its stack. */
struct held_request {
    struct list link; /* in fault_rules.held */
    const char *tag;
    struct co_queue waiter; /* guarded by fault_rules.lock */
};

/* Hold the request. The lock is released meanwhile. */
static void co_hold_locked(struct fault_rules *r, char *tag)
{
    struct held_request held = {.tag = tag};

    co_queue_init(&held.waiter);
    list_append(&r->held, &held.link);
    tell(tag, true);
    co_queue_wait_for_release(&held.waiter, &r->lock, "the release of breakpoint", tag, -1);
    tell(tag, false);
    free(tag);
    pthread_mutex_lock(&r->lock);
}

/* Remove the next breakpoint for the event from the rules. Returns its tag; NULL: there is none. */
static char *take_break_locked(struct fault_rules *r, int event)
{
    struct fault_rule *rule;

    LIST_FOREACH (rule, &r->rules, link) {
        if (rule->action == FAULT_BREAK && rule->event == event) {
            char *tag = TAKE_PTR(rule->tag);

            rule_free(rule);
            return tag;
        }
    }
    return NULL;
}

static void deactivate_all_locked(struct fault_rules *r)
{
    while (!list_is_empty(&r->active)) {
        list_remove(r->active.next);
    }
}

void fault_rules_co_event(struct fault_rules *r, int event)
{
    struct fault_rule *rule;
    char *tag;
    uint32_t new_state;
    bool injected = false;

    pthread_mutex_lock(&r->lock);
    new_state = r->state;
    LIST_FOREACH (rule, &r->rules, link) {
        if (rule->event != event || rule->action == FAULT_BREAK ||
            (rule->state && rule->state != r->state)) {
            continue;
        }
        if (rule->action == FAULT_SET_STATE) {
            new_state = rule->new_state;
            continue;
        }
        if (!injected) {
            deactivate_all_locked(r);
            injected = true;
        }
        list_remove(&rule->active_link);
        list_prepend(&r->active, &rule->active_link);
    }
    r->state = new_state;
    while ((tag = take_break_locked(r, event)) != NULL) {
        co_hold_locked(r, tag);
    }
    pthread_mutex_unlock(&r->lock);
}

/* --- breakpoints ------------------------------------------------------------------------------ */

int fault_rules_break(struct fault_rules *r, int event, const char *tag)
{
    struct fault_rule *rule = calloc(1, sizeof(*rule));

    if (!rule || !(rule->tag = strdup(tag))) {
        free(rule);
        return -ENOMEM;
    }
    list_init(&rule->active_link);
    rule->action = FAULT_BREAK;
    rule->event = event;
    pthread_mutex_lock(&r->lock);
    list_append(&r->rules, &rule->link);
    pthread_mutex_unlock(&r->lock);
    return 0;
}

static bool tag_matches(const char *wanted, const char *tag)
{
    return !wanted || strcmp(wanted, tag) == 0;
}

/* `tag` NULL: any. Returns whether a request was held there. */
static bool resume_one_locked(struct fault_rules *r, const char *tag)
{
    struct held_request *held;

    LIST_FOREACH (held, &r->held, link) {
        if (tag_matches(tag, held->tag)) {
            list_remove(&held->link);
            co_queue_wake_all(&held->waiter);
            return true;
        }
    }
    return false;
}

int fault_rules_resume(struct fault_rules *r, const char *tag)
{
    bool found;

    pthread_mutex_lock(&r->lock);
    found = resume_one_locked(r, tag);
    pthread_mutex_unlock(&r->lock);
    return found ? 0 : -ENOENT;
}

int fault_rules_remove_break(struct fault_rules *r, const char *tag)
{
    struct fault_rule *rule, *next;
    bool found = false;

    pthread_mutex_lock(&r->lock);
    LIST_FOREACH_SAFE (rule, next, &r->rules, link) {
        if (rule->action == FAULT_BREAK && tag_matches(tag, rule->tag)) {
            rule_free(rule);
            found = true;
        }
    }
    while (resume_one_locked(r, tag)) {
        found = true;
    }
    pthread_mutex_unlock(&r->lock);
    return found ? 0 : -ENOENT;
}

bool fault_rules_is_held(struct fault_rules *r, const char *tag)
{
    struct held_request *held;
    bool found = false;

    pthread_mutex_lock(&r->lock);
    LIST_FOREACH (held, &r->held, link) {
        found = found || tag_matches(tag, held->tag);
    }
    pthread_mutex_unlock(&r->lock);
    return found;
}

/* --- errors ----------------------------------------------------------------------------------- */

static bool rule_covers(const struct fault_rule *rule, enum fault_iotype type, uint64_t offset,
                        uint64_t length)
{
    if (!(rule->iotypes & 1u << type)) {
        return false;
    }
    return rule->offset < 0 || (length > 0 && (uint64_t)rule->offset >= offset &&
                                (uint64_t)rule->offset - offset < length);
}

struct fault_effect fault_rules_check(struct fault_rules *r, enum fault_iotype type,
                                      uint64_t offset, uint64_t length)
{
    struct fault_effect effect = {0};
    struct fault_rule *rule;

    pthread_mutex_lock(&r->lock);
    LIST_FOREACH (rule, &r->active, active_link) {
        if (rule_covers(rule, type, offset, length)) {
            effect = (struct fault_effect){
                .r = -rule->errnum, .immediately = rule->immediately, .delay_ns = rule->delay_ns};
            if ((rule->errnum || rule->delay_ns) && rule->once) {
                rule_free(rule);
            }
            break;
        }
    }
    pthread_mutex_unlock(&r->lock);
    return effect;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "filter/fault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"

#define SECTOR_SIZE 512
#define ERRNO_MAX 4095u

static const char *const iotype_names[] = {"read",    "write", "write-zeroes",
                                           "discard", "flush", "block-status"};

/* The index is the event's number; the first four are the FAULT_EVENT_ constants. */
static const char *const event_names[] = {
    "none",
    "read_aio",
    "write_aio",
    "flush_to_disk",
    "l1_update",
    "l1_grow_alloc_table",
    "l1_grow_write_table",
    "l1_grow_activate_table",
    "l2_load",
    "l2_update",
    "l2_update_compressed",
    "l2_alloc_cow_read",
    "l2_alloc_write",
    "read_backing_aio",
    "read_compressed",
    "write_compressed",
    "vmstate_load",
    "vmstate_save",
    "cow_read",
    "cow_write",
    "reftable_load",
    "reftable_grow",
    "reftable_update",
    "refblock_load",
    "refblock_update",
    "refblock_update_part",
    "refblock_alloc",
    "refblock_alloc_hookup",
    "refblock_alloc_write",
    "refblock_alloc_write_blocks",
    "refblock_alloc_write_table",
    "refblock_alloc_switch_table",
    "cluster_alloc",
    "cluster_alloc_bytes",
    "cluster_free",
    "flush_to_os",
    "pwritev_rmw_head",
    "pwritev_rmw_after_head",
    "pwritev_rmw_tail",
    "pwritev_rmw_after_tail",
    "pwritev",
    "pwritev_zero",
    "pwritev_done",
    "empty_image_prepare",
    "l1_shrink_write_table",
    "l1_shrink_free_l2_clusters",
    "cor_write",
    "cluster_alloc_space",
};

void fault_rules_init(struct fault_rules *r)
{
    pthread_mutex_init(&r->lock, NULL);
    list_init(&r->rules);
    list_init(&r->active);
    r->state = 1;
}

static void rule_free(struct fault_rule *rule)
{
    list_remove(&rule->link);
    list_remove(&rule->active_link);
    free(rule);
}

void fault_rules_destroy(struct fault_rules *r)
{
    while (!list_is_empty(&r->rules)) {
        rule_free(LIST_FIRST(&r->rules, struct fault_rule, link));
    }
    pthread_mutex_destroy(&r->lock);
}

static int find_name(const char *const *names, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(names[i], name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

int fault_event_find(const char *name)
{
    return find_name(event_names, ARRAY_SIZE(event_names), name);
}

/* --- rules from options -------------------------------------------------------------------------------- */

static int take_event(struct options *opts, const char *group, int *ret, struct error *err)
{
    char *name AUTO_FREE = NULL;
    int r = options_take_str(opts, "event", &name, err);

    if (r < 0) {
        return r;
    }
    if (!name) {
        return error_set(err, EINVAL, "Missing event name for rule of group '%s'", group);
    }
    *ret = fault_event_find(name);
    if (*ret < 0) {
        return error_set(err, EINVAL, "Invalid event name \"%s\"", name);
    }
    return 0;
}

static int take_number(struct options *opts, const char *key, uint64_t dflt, uint64_t max,
                       uint32_t *ret, struct error *err)
{
    uint64_t value;
    int r = options_take_uint(opts, key, dflt, max, &value, err);

    if (r == 0) {
        *ret = (uint32_t)value;
    }
    return r;
}

/* "sector" may be -1, which stands for any, as its absence does. */
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

static int take_iotypes(struct options *opts, unsigned *ret, struct error *err)
{
    char *name AUTO_FREE = NULL;
    int r = options_take_str(opts, "iotype", &name, err), index;

    if (r < 0) {
        return r;
    }
    if (!name) {
        *ret = FAULT_IO_DEFAULT_MASK;
        return 0;
    }
    index = find_name(iotype_names, ARRAY_SIZE(iotype_names), name);
    if (index < 0) {
        return error_set(err, EINVAL, "Invalid iotype value \"%s\"", name);
    }
    *ret = 1u << index;
    return 0;
}

static int take_inject(struct fault_rule *rule, struct options *opts, struct error *err)
{
    uint32_t errnum = EIO;
    int r;

    r = take_number(opts, "errno", EIO, ERRNO_MAX, &errnum, err);
    r = r < 0 ? r : take_sector(opts, &rule->offset, err);
    r = r < 0 ? r : take_iotypes(opts, &rule->iotypes, err);
    r = r < 0 ? r : options_take_bool(opts, "once", false, &rule->once, err);
    r = r < 0 ? r : options_take_bool(opts, "immediately", false, &rule->immediately, err);
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

int fault_rules_add(struct fault_rules *r, const char *group, struct options *opts,
                    struct error *err)
{
    struct fault_rule *rule;
    int ret;

    rule = calloc(1, sizeof(*rule));
    if (!rule) {
        return error_set(err, ENOMEM, "Out of memory for a rule of group '%s'", group);
    }
    list_init(&rule->link);
    list_init(&rule->active_link);
    ret = take_event(opts, group, &rule->event, err);
    ret = ret < 0 ? ret : take_number(opts, "state", 0, INT32_MAX, &rule->state, err);
    if (ret == 0 && strcmp(group, "inject-error") == 0) {
        rule->action = FAULT_INJECT_ERROR;
        ret = take_inject(rule, opts, err);
    } else if (ret == 0) {
        rule->action = FAULT_SET_STATE;
        ret = take_set_state(rule, opts, err);
    }
    ret = ret < 0 ? ret : options_check_empty(opts, group, err);
    if (ret < 0) {
        free(rule);
        return ret;
    }
    pthread_mutex_lock(&r->lock);
    list_append(&r->rules, &rule->link);
    pthread_mutex_unlock(&r->lock);
    return 0;
}

/* --- at work --------------------------------------------------------------------------------------------- */

static void deactivate_all_locked(struct fault_rules *r)
{
    while (!list_is_empty(&r->active)) {
        list_remove(r->active.next);
    }
}

void fault_rules_event(struct fault_rules *r, int event)
{
    struct fault_rule *rule;
    uint32_t new_state;
    bool injected = false;

    pthread_mutex_lock(&r->lock);
    new_state = r->state;
    LIST_FOREACH (rule, &r->rules, link) {
        if (rule->event != event || (rule->state && rule->state != r->state)) {
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
        list_prepend(&r->active, &rule->active_link);
    }
    r->state = new_state;
    pthread_mutex_unlock(&r->lock);
}

static bool rule_covers(const struct fault_rule *rule, enum fault_iotype type, uint64_t offset,
                        uint64_t length)
{
    if (!(rule->iotypes & 1u << type)) {
        return false;
    }
    return rule->offset < 0 || (length > 0 && (uint64_t)rule->offset >= offset &&
                                (uint64_t)rule->offset - offset < length);
}

int fault_rules_check(struct fault_rules *r, enum fault_iotype type, uint64_t offset,
                      uint64_t length, bool *ret_immediately)
{
    struct fault_rule *rule;
    int errnum = 0;

    pthread_mutex_lock(&r->lock);
    LIST_FOREACH (rule, &r->active, active_link) {
        if (rule_covers(rule, type, offset, length)) {
            errnum = rule->errnum;
            *ret_immediately = rule->immediately;
            if (errnum && rule->once) {
                rule_free(rule);
            }
            break;
        }
    }
    pthread_mutex_unlock(&r->lock);
    return -errnum;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Limits of disks: block_set_io_throttle, and the options of -drive. A disk is a member of a group,
 * which lives as long as it has members, or is an object throttle-group.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/user_object.h"
#include "cli/machine/clock.h"
#include "cli/machine/disk.h"
#include "cli/machine/limits.h"
#include "filter/throttle_group.h"
#include "qmp/answer.h"
#include "qmp/schema.h"

/* A group that some disks are in. */
struct named_group {
    struct list link; /* in `groups` */
    char *name;
    struct throttle_group *group;
    struct user_object *object; /* that has the group, referenced; NULL: none */
    size_t members;
};

struct machine_limits {
    struct named_group *of;
    struct throttle_member member;
};

static struct list groups = LIST_INIT(groups);

/* Names: QMP's, that of a throttle-group, and whether there are a burst and its length. */
static const struct {
    const char *qmp, *limit;
} names[] = {
    {"bps", "bps-total"},   {"bps_rd", "bps-read"},   {"bps_wr", "bps-write"},
    {"iops", "iops-total"}, {"iops_rd", "iops-read"}, {"iops_wr", "iops-write"},
};

/* --- groups ----------------------------------------------------------------------------------- */

static int new_group(const char *name, struct named_group **ret_group, struct error *err)
{
    struct named_group *g = calloc(1, sizeof(*g));

    if (!g || !(g->name = strdup(name))) {
        free(g);
        return error_out_of_memory(err);
    }
    g->group = throttle_group_find(name, &g->object, NULL)
                   ?: throttle_group_new(machine_clock_is_stepped() ? machine_clock_ns : NULL);
    if (!g->group) {
        free(g->name);
        free(g);
        return error_out_of_memory(err);
    }
    list_append(&groups, &g->link);
    *ret_group = g;
    return 0;
}

static int find_group(const char *name, struct named_group **ret_group, struct error *err)
{
    struct named_group *g;

    LIST_FOREACH (g, &groups, link) {
        if (strcmp(g->name, name) == 0) {
            *ret_group = g;
            return 0;
        }
    }
    return new_group(name, ret_group, err);
}

static void drop_unused_group(struct named_group *g)
{
    if (g->members > 0) {
        return;
    }
    list_remove(&g->link);
    if (g->object) {
        user_object_unref(g->object);
    } else {
        throttle_group_free(g->group);
    }
    free(g->name);
    free(g);
}

/* --- members ---------------------------------------------------------------------------------- */

static void co_admit_request(void *arg, bool is_write, uint64_t bytes)
{
    const struct machine_disk *disk = arg;

    if (disk->limits) {
        throttle_co_pass(&disk->limits->member, is_write, bytes);
    }
}

void machine_disk_hurry(struct machine_disk *disk, bool hurry)
{
    if (disk->limits) {
        throttle_member_hurry(&disk->limits->member, hurry);
    }
}

void machine_disk_co_drop_limits(struct machine_disk *disk)
{
    struct machine_limits *l = disk->limits;

    if (!l) {
        return;
    }
    throttle_member_hurry(&l->member, true);
    co_group_wait(&disk->io.in_flight);
    throttle_co_member_leave(&l->member);
    disk->limits = NULL;
    l->of->members--;
    drop_unused_group(l->of);
    free(l);
}

static int co_join(struct machine_disk *disk, struct named_group *g, struct error *err)
{
    struct machine_limits *l = calloc(1, sizeof(*l));

    if (!l) {
        return error_out_of_memory(err);
    }
    g->members++;
    machine_disk_co_drop_limits(disk);
    l->of = g;
    throttle_member_init(&l->member, NULL, g->group);
    disk->limits = l;
    disk->io.co_admit = co_admit_request;
    disk->io.admit_arg = disk;
    return 0;
}

static bool has_a_limit(struct json_object *limits)
{
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        struct json_object *value;

        if (json_object_object_get_ex(limits, names[i].limit, &value) &&
            json_object_get_int64(value) != 0) {
            return true;
        }
    }
    return false;
}

int machine_disk_co_set_limits(struct machine_disk *disk, struct json_object *limits,
                               const char *group, const char *name, struct error *err)
{
    struct named_group *g = NULL;
    int r;

    group = group ?: disk->limits ? disk->limits->of->name : name;
    r = find_group(group, &g, err);
    if (r < 0) {
        return r;
    }
    g->members++; /* so that it stays */
    if (!has_a_limit(limits)) {
        /* Wrong values are refused; the group keeps its limits for others. */
        r = throttle_group_check(limits, err);
        if (r == 0) {
            machine_disk_co_drop_limits(disk);
        }
    } else {
        r = throttle_group_set(g->group, limits, err);
        if (r == 0 && (!disk->limits || disk->limits->of != g)) {
            r = co_join(disk, g, err);
        }
    }
    g->members--;
    drop_unused_group(g);
    return r;
}

/* --- what is shown ---------------------------------------------------------------------------- */

static int64_t limit_value_of(struct json_object *limits, const char *name, const char *suffix)
{
    struct json_object *value = NULL;
    char key[64];

    snprintf(key, sizeof(key), "%s%s", name, suffix);
    json_object_object_get_ex(limits, key, &value);
    return json_object_get_int64(value);
}

static void put_limit(struct json_object *info, const char *name, const char *suffix, int64_t value)
{
    char key[64];

    snprintf(key, sizeof(key), "%s%s", name, suffix);
    qmp_put_uint(info, key, (uint64_t)value);
}

void machine_disk_put_limits(const struct machine_disk *disk, struct json_object *info)
{
    struct json_object *limits;

    if (!disk->limits) {
        return;
    }
    limits = throttle_group_get(disk->limits->of->group);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        int64_t burst = limit_value_of(limits, names[i].limit, "-max");

        qmp_put_uint(info, names[i].qmp, (uint64_t)limit_value_of(limits, names[i].limit, ""));
        if (burst) {
            put_limit(info, names[i].qmp, "_max", burst);
            put_limit(info, names[i].qmp, "_max_length",
                      limit_value_of(limits, names[i].limit, "-max-length"));
        }
    }
    if (limit_value_of(limits, "iops-size", "")) {
        qmp_put_uint(info, "iops_size", (uint64_t)limit_value_of(limits, "iops-size", ""));
    }
    qmp_put_str(info, "group", disk->limits->of->name);
    json_object_put(limits);
}

/* --- block_set_io_throttle -------------------------------------------------------------------- */

static void copy_limit(struct json_object *to, const char *limit, struct json_object *args,
                       const char *qmp, uint64_t dflt)
{
    struct json_object *value = qmp_get(args, qmp);

    /* A negative value is a number above all limits, as in QEMU. */
    json_object_object_add(
        to, limit, json_object_new_uint64(value ? (uint64_t)json_object_get_int64(value) : dflt));
}

struct json_object *machine_limits_of_arguments(struct json_object *args)
{
    struct json_object *limits = json_object_new_object();

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        char limit[64], qmp[64];

        copy_limit(limits, names[i].limit, args, names[i].qmp, 0);
        snprintf(limit, sizeof(limit), "%s-max", names[i].limit);
        snprintf(qmp, sizeof(qmp), "%s_max", names[i].qmp);
        copy_limit(limits, limit, args, qmp, 0);
        snprintf(limit, sizeof(limit), "%s-max-length", names[i].limit);
        snprintf(qmp, sizeof(qmp), "%s_max_length", names[i].qmp);
        copy_limit(limits, limit, args, qmp, 1);
    }
    copy_limit(limits, "iops-size", args, "iops_size", 0);
    return limits;
}

/* --- -drive ----------------------------------------------------------------------------------- */

/* The options of one limit: `throttling.NAME`, or the older `alias`. */
static int take_limit(struct options *opts, struct options *group, const char *alias,
                      const char *name, struct json_object *limits, struct error *err)
{
    AUTO_FREE char *old = NULL, *text = NULL;
    const char *value;
    char *end;
    int r = options_take_text(opts, alias, &old, err);

    UNLESS_FAILED(r, group ? options_take_text(group, name, &text, err) : 0);
    if (r < 0) {
        return r;
    }
    if (old && text) {
        return error_set(err, EINVAL,
                         "'throttling.%s' and its alias '%s' can't be used at the same time", name,
                         alias);
    }
    value = text ?: old;
    if (value) {
        errno = 0;
        /* A negative value is a number above all limits, as in QEMU. */
        json_object_object_add(limits, name, json_object_new_uint64(strtoull(value, &end, 10)));
        if (errno || end == value || *end) {
            return error_set(err, EINVAL, "Parameter '%s' expects a number", text ? name : alias);
        }
    }
    return 0;
}

static int take_limit_of_drive(struct options *opts, struct options *group, size_t i,
                               const char *old_suffix, const char *suffix,
                               struct json_object *limits, struct error *err)
{
    char alias[64], name[64];

    snprintf(alias, sizeof(alias), "%s%s", names[i].qmp, old_suffix);
    snprintf(name, sizeof(name), "%s%s", names[i].limit, suffix);
    return take_limit(opts, group, alias, name, limits, err);
}

int machine_take_drive_limits(struct options *opts, struct machine_drive_limits *ret_limits,
                              struct error *err)
{
    AUTO_OPTIONS struct options *group = NULL;
    AUTO_FREE char *wrong = NULL;
    struct json_object *limits = json_object_new_object();
    int r = options_take_child(opts, "throttling", &group, &wrong, err);

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        UNLESS_FAILED(r, take_limit_of_drive(opts, group, i, "", "", limits, err));
        UNLESS_FAILED(r, take_limit_of_drive(opts, group, i, "_max", "-max", limits, err));
        UNLESS_FAILED(
            r, take_limit_of_drive(opts, group, i, "_max_length", "-max-length", limits, err));
    }
    UNLESS_FAILED(r, take_limit(opts, group, "iops_size", "iops-size", limits, err));
    if (group) {
        UNLESS_FAILED(r, options_take_str(group, "group", &ret_limits->group, err));
        UNLESS_FAILED(r, options_check_empty(group, "throttling", err));
    }
    UNLESS_FAILED(r, throttle_group_check(limits, err));
    if (r < 0) {
        json_object_put(limits);
        return r;
    }
    ret_limits->limits = limits;
    return 0;
}

int machine_co_use_drive_limits(const struct machine_drive_limits *l, struct machine_disk *disk,
                                struct error *err)
{
    return has_a_limit(l->limits)
               ? machine_disk_co_set_limits(disk, l->limits, l->group, disk->name, err)
               : 0;
}

void machine_clear_drive_limits(struct machine_drive_limits *l)
{
    json_object_put(l->limits);
    free(l->group);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver "blkdebug": passes requests on to `image`, unless its rules make them fail (fault.h).
 *
 * Nodes above it announce events: formats and the gate (block/event.h).
 */
#include "filter/fault.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "co/co.h"
#include "filter/filter.h"
#include "loop/loop.h"
#include "schema/define.h"

#define SCHEME "blkdebug:"

struct fault {
    struct block_edge *image;
    struct fault_rules rules;
    unsigned take, unshare; /* enum block_perm, of the child */
};

/* --- breakpoints ------------------------------------------------------------------------------ */

/* The fault filter that gets the events of `node`; NULL: none. */
static struct fault *find_below(struct block_node *node)
{
    while (node && !block_node_is(node, &fault_driver)) {
        node = node->file ? node->file->node : block_node_filter_or_backing(node);
    }
    return node ? node->opaque : NULL;
}

int fault_break(struct block_node *node, const char *event, const char *tag)
{
    struct fault *s = find_below(node);
    int index = block_event_find(event);

    if (!s) {
        return -ENOTSUP;
    }
    return index < 0 ? -ENOENT : fault_rules_break(&s->rules, index, tag);
}

int fault_resume(struct block_node *node, const char *tag)
{
    struct fault *s = find_below(node);

    return s ? fault_rules_resume(&s->rules, tag) : -ENOTSUP;
}

int fault_remove_break(struct block_node *node, const char *tag)
{
    struct fault *s = find_below(node);

    return s ? fault_rules_remove_break(&s->rules, tag) : -ENOTSUP;
}

bool fault_is_held(struct block_node *node, const char *tag)
{
    struct fault *s = find_below(node);

    return s && fault_rules_is_held(&s->rules, tag);
}

/* --- open ------------------------------------------------------------------------------------- */

static int set_image(struct options *opts, const char *filename, struct error *err)
{
    const struct block_driver *driver = block_driver_of_filename(filename);
    struct options *image = NULL;
    int r;

    if (strncmp(filename, "json:", 5) == 0) {
        r = options_parse(filename + 5, NULL, &image, err);
        if (r == 0) {
            options_default_str(image, "driver", "file");
            options_set_child(opts, "image", image);
        }
        return r;
    }
    image = options_new();
    if (!image) {
        return error_out_of_memory(err);
    }
    if (driver && driver->parse_filename) {
        r = driver->parse_filename(filename, image, err);
        if (r < 0) {
            options_free(image);
            return r;
        }
        options_default_str(image, "driver", driver->name);
    } else {
        options_set_str(image, "driver", "file");
        options_set_str(image, "filename", filename);
    }
    options_set_child(opts, "image", image);
    return 0;
}

/* blkdebug:[CONFIG]:IMAGE; without the scheme, IMAGE alone. */
static int fault_parse_filename(const char *filename, struct options *opts, struct error *err)
{
    const char *config, *colon;

    if (strncmp(filename, SCHEME, strlen(SCHEME)) != 0) {
        return set_image(opts, filename, err);
    }
    config = filename + strlen(SCHEME);
    colon = strchr(config, ':');
    if (!colon) {
        return error_set(err, EINVAL, "blkdebug requires both config file and image path");
    }
    if (colon != config) {
        char *path AUTO_FREE = strndup(config, (size_t)(colon - config));

        if (!path) {
            return error_out_of_memory(err);
        }
        options_set_str(opts, "config", path);
    }
    return set_image(opts, colon + 1, err);
}

/* Whether the group is one rule, without the indices of a list: inject-error.event=... */
static bool is_one_rule(const struct options *opts, const char *group)
{
    AUTO_OPTIONS struct options *copy = options_clone(opts);
    AUTO_OPTIONS struct options *rule = NULL;
    AUTO_FREE char *text = NULL;

    return copy && options_take_child(copy, group, &rule, &text, NULL) == 0 && rule &&
           options_has(rule, "event");
}

static int take_rule_list(struct fault *s, struct options *opts, const char *group,
                          struct error *err)
{
    struct json_object *list;
    int r;

    if (!options_are_arguments(opts) && is_one_rule(opts, group)) {
        AUTO_OPTIONS struct options *rule = NULL;
        AUTO_FREE char *text = NULL;

        r = options_take_child(opts, group, &rule, &text, err);
        return r < 0 ? r : fault_rules_add(&s->rules, group, rule, err);
    }
    r = options_take_list(opts, group, &list, err);

    if (r < 0 || !list) {
        return r;
    }
    for (size_t i = 0; i < json_object_array_length(list) && r == 0; i++) {
        struct options *rule AUTO_OPTIONS = NULL;

        r = options_from_element(opts, group, i, json_object_array_get_idx(list, i), &rule, err);
        UNLESS_FAILED(r, fault_rules_add(&s->rules, group, rule, err));
    }
    json_object_put(list);
    return r;
}

ARRAY(permissions, block_permission_type);
#define LIMIT(name, text) OPT(name, schema_int32, .unit = "bytes", .max = INT_MAX, .help = text)
OBJECT(fault_options, "BlockdevOptionsBlkdebug", REQ("image", block_ref_type),
       OPT("config", schema_str, .help = "a file with rules"),
       OPT("align", schema_bytes, .unit = "bytes", .max = INT_MAX,
           .help = "alignment of requests that is claimed; a power of two"),
       LIMIT("max-transfer", "the longest request; a multiple of align, as those that follow"),
       LIMIT("opt-write-zero", "alignment of zeroes"),
       LIMIT("max-write-zero", "the longest zeroes"), LIMIT("opt-discard", "alignment of discards"),
       LIMIT("max-discard", "the longest discard"),
       OPT("take-child-perms", permissions, .help = "used on the child, besides those needed"),
       OPT("unshare-child-perms", permissions, .help = "that no other user of the child may have"),
       OPT("inject-error", fault_inject_type), OPT("set-state", fault_set_state_type));

static int take_fault_limit(struct options *opts, const char *key, uint64_t align,
                            uint64_t *ret_value, struct error *err)
{
    int r = options_take_size(opts, key, 0, ret_value, err);

    if (r < 0) {
        return r;
    }
    if (*ret_value > INT_MAX || *ret_value % align != 0) {
        return error_set(err, EINVAL, "Cannot meet constraints with %s %llu", key,
                         (unsigned long long)*ret_value);
    }
    return 0;
}

static int take_limits(struct block_limits *limits, struct options *opts, struct error *err)
{
    uint64_t align;
    int r;

    r = options_take_size(opts, "align", 0, &align, err);
    if (r < 0) {
        return r;
    }
    if (align != 0 && (align > INT_MAX || !is_power_of_2(align))) {
        return error_set(err, EINVAL, "Cannot meet constraints with align %llu",
                         (unsigned long long)align);
    }
    align = MAX(align, 1);
    limits->request_alignment = (uint32_t)align;
    r = take_fault_limit(opts, "max-transfer", align, &limits->max_transfer, err);
    UNLESS_FAILED(r,
                  take_fault_limit(opts, "opt-write-zero", align, &limits->zeroes_alignment, err));
    UNLESS_FAILED(r, take_fault_limit(opts, "max-write-zero", MAX(align, limits->zeroes_alignment),
                                      &limits->max_zeroes, err));
    UNLESS_FAILED(r, take_fault_limit(opts, "opt-discard", align, &limits->discard_alignment, err));
    UNLESS_FAILED(r, take_fault_limit(opts, "max-discard", MAX(align, limits->discard_alignment),
                                      &limits->max_discard, err));
    return r;
}

static int find_permission(const char *name, struct error *err)
{
    const char *const *names = block_permission_type.values;

    for (int i = 0; name && names[i]; i++) {
        if (strcmp(names[i], name) == 0) {
            return i;
        }
    }
    return error_set(err, EINVAL, "Invalid parameter '%s'", name ? name : "null");
}

static int take_permissions(struct options *opts, const char *key, unsigned *ret_perm,
                            struct error *err)
{
    struct json_object *list = NULL;
    int r = options_take_list(opts, key, &list, err);

    for (size_t i = 0; list && i < json_object_array_length(list) && r >= 0; i++) {
        r = find_permission(json_object_get_string(json_object_array_get_idx(list, i)), err);
        if (r >= 0) {
            *ret_perm |= 1u << r; /* in the order of enum block_perm */
        }
    }
    json_object_put(list);
    return MIN(r, 0);
}

static void fault_child_perm(struct block_node *node, struct block_edge *edge,
                             unsigned parents_perm, unsigned parents_shared, unsigned *ret_perm,
                             unsigned *ret_shared)
{
    const struct fault *s = node->opaque;

    block_default_child_perm(node, edge, parents_perm, parents_shared, ret_perm, ret_shared);
    *ret_perm |= s->take;
    *ret_shared &= ~s->unshare;
}

static int co_open_fault_rules(struct fault *s, struct options *opts, const char *config,
                               struct error *err)
{
    int r = config ? fault_rules_co_load(&s->rules, config, err) : 0;

    UNLESS_FAILED(r, take_rule_list(s, opts, "inject-error", err));
    UNLESS_FAILED(r, take_rule_list(s, opts, "set-state", err));
    return r;
}

/* Set the filename that opens the same, if there is one. */
static void set_filename(struct block_node *node, const char *config)
{
    const struct fault *s = node->opaque;
    const char *image = s->image->node->filename;

    if (!node->filename && image &&
        asprintf(&node->filename, SCHEME "%s:%s", config ? config : "", image) < 0) {
        node->filename = NULL;
    }
}

static bool is_beyond_fault_filename(const struct options *opts)
{
    static const char *const keys[] = {
        "inject-error",     "set-state",           "align",       "max-transfer",
        "opt-write-zero",   "max-write-zero",      "opt-discard", "max-discard",
        "take-child-perms", "unshare-child-perms", NULL};
    const char *const *key = keys;

    while (*key && !options_has(opts, *key)) {
        key++;
    }
    return *key;
}

static int co_open_all(struct block_node *node, struct options *opts, struct error *err)
{
    struct fault *s = node->opaque;
    char *config AUTO_FREE = NULL;
    bool more = is_beyond_fault_filename(opts);
    int r = options_take_text(opts, "config", &config, err);

    UNLESS_FAILED(r, co_open_fault_rules(s, opts, config, err));
    UNLESS_FAILED(r, take_limits(&node->limits, opts, err));
    UNLESS_FAILED(r, take_permissions(opts, "take-child-perms", &s->take, err));
    UNLESS_FAILED(r, take_permissions(opts, "unshare-child-perms", &s->unshare, err));
    UNLESS_FAILED(r, block_co_open_filtered(node, opts, "image", err));
    s->image = node->filtered;
    if (r == 0 && !more) {
        set_filename(node, config);
    }
    node->beyond_filename = more;
    return r;
}

static int fault_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct fault *s = node->opaque;
    int r;

    fault_rules_init(&s->rules);
    r = co_open_all(node, opts, err);
    if (r < 0) {
        fault_rules_destroy(&s->rules);
        return r;
    }
    node->file = s->image;
    fault_rules_co_event(&s->rules, BLOCK_EVENT_NONE);
    return 0;
}

static void fault_co_close(struct block_node *node)
{
    struct fault *s = node->opaque;

    node->file = NULL;
    fault_rules_destroy(&s->rules);
}

/* --- I/O -------------------------------------------------------------------------------------- */

static int co_check_fault(struct fault *s, enum fault_iotype type, uint64_t offset, uint64_t length)
{
    struct fault_effect effect = fault_rules_check(&s->rules, type, offset, length);

    if (effect.delay_ns > 0) {
        loop_co_sleep((int64_t)effect.delay_ns);
    } else if (effect.r < 0 && !effect.immediately) {
        co_reschedule();
    }
    return effect.r;
}

static int fault_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    struct fault *s = node->opaque;
    int r = co_check_fault(s, FAULT_IO_READ, offset, iov.size);
    if (r < 0) {
        return r;
    }
    return block_co_preadv(s->image, offset, iov, flags);
}

static int fault_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                            unsigned flags)
{
    struct fault *s = node->opaque;
    int r = co_check_fault(s, FAULT_IO_WRITE, offset, iov.size);
    if (r < 0) {
        return r;
    }
    return block_co_pwritev(s->image, offset, iov, flags);
}

static int fault_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                 unsigned flags)
{
    struct fault *s = node->opaque;
    int r = co_check_fault(s, FAULT_IO_WRITE_ZEROES, offset, length);

    if (r < 0) {
        return r;
    }
    return block_co_write_zeroes(s->image, offset, length, flags);
}

static int fault_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct fault *s = node->opaque;
    int r = co_check_fault(s, FAULT_IO_DISCARD, offset, length);

    if (r < 0) {
        return r;
    }
    return block_co_discard(s->image, offset, length);
}

static int fault_co_flush(struct block_node *node)
{
    struct fault *s = node->opaque;
    int r = co_check_fault(s, FAULT_IO_FLUSH, 0, 0);
    if (r < 0) {
        return r;
    }
    return block_co_flush(s->image);
}

static int fault_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                           struct block_status *ret_status)
{
    struct fault *s = node->opaque;
    int r = co_check_fault(s, FAULT_IO_BLOCK_STATUS, offset, length);

    if (r < 0) {
        return r;
    }
    return block_co_status(s->image, offset, length, ret_status);
}

static void fault_co_event(struct block_node *node, enum block_event event)
{
    struct fault *s = node->opaque;

    fault_rules_co_event(&s->rules, event);
}

static const char *const schemes[] = {"blkdebug", NULL};

const struct block_driver fault_driver = {
    .name = "blkdebug",
    .help = "filter for tests: errors and limits as rules say",
    .options = &fault_options,
    .instance_size = sizeof(struct fault),
    .is_filter = true,
    .reopen_options = block_no_options,
    .is_protocol = true,
    .schemes = schemes,
    .parse_filename = fault_parse_filename,
    .co_open = fault_co_open,
    .co_close = fault_co_close,
    .child_perm = fault_child_perm,
    .co_preadv = fault_co_preadv,
    .co_pwritev = fault_co_pwritev,
    .co_write_zeroes = fault_co_write_zeroes,
    .co_discard = fault_co_discard,
    .co_flush = fault_co_flush,
    .co_status = fault_co_status,
    .co_event = fault_co_event,
};

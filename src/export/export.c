/* SPDX-License-Identifier: Apache-2.0 */
/* Exports of all types: ids, permissions, roots, drains, and the order of their steps. */
#include "export/export.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/latency.h"
#include "base/list.h"
#include "base/log.h"
#include "base/name_index.h"
#include "block/control_lock.h"
#include "block/user_object.h"
#include "export/export_type.h"
#include "export/io_error.h"
#include "loop/loop.h"

enum {
    /* Bytes. */
    EXPORT_ID_MAX = 255,
};

struct export
{
    struct list link; /* in `exports`, once it is prepared */
    struct name_entry by_id;
    char *id;
    char *user; /* for messages: "NBD export 'disk'" */
    const struct export_type *type;
    void *state; /* the type's; NULL: not parsed yet */
    bool writable;
    bool shutting_down;
    /* The first is on the exported node; the others are those of export_co_attach(). */
    struct block_root **roots;
    size_t root_count;
    struct user_object *reactor_object; /* referenced; NULL: none */
    struct latency_set latencies;
    struct export_io_errors *errors; /* owned */
    struct list waiters;             /* of struct gone_waiter */
};

/* A coroutine that waits until an export is gone; lies on its stack. */
struct gone_waiter {
    struct list link;
    struct co *co;
};

/* All of these belong to the main reactor. Exports are in the order of their age. */
static const struct export_type *types[EXPORT_TYPES_MAX];
static size_t type_count;
static struct list exports = LIST_INIT(exports);
static struct name_index export_ids; /* of those in `exports` */
static void (*event_fn)(enum export_event event, const char *id, void *arg);
static void *event_arg;

void export_set_event_fn(void (*fn)(enum export_event event, const char *id, void *arg), void *arg)
{
    event_fn = fn;
    event_arg = arg;
}

void export_lease_ended(struct export *e)
{
    if (event_fn) {
        event_fn(EXPORT_EVENT_LEASE_ENDED, e->id, event_arg);
    }
}

void export_note_io_error(struct export *e, const char *request, uint64_t offset, uint64_t length,
                          int error)
{
    export_io_errors_note(e->errors, request, offset, length, error);
}

void export_register_type(const struct export_type *type)
{
    assert(type_count < EXPORT_TYPES_MAX);
    types[type_count++] = type;
}

const struct export_type *export_type_at(size_t index)
{
    return index < type_count ? types[index] : NULL;
}

static const struct export_type *find_export_type(const char *name)
{
    for (size_t i = 0; i < type_count; i++) {
        if (strcmp(types[i]->name, name) == 0) {
            return types[i];
        }
    }
    return NULL;
}

static struct export *find_export(const char *id)
{
    struct name_entry *entry = name_index_find(&export_ids, id);

    return entry ? container_of(entry, struct export, by_id) : NULL;
}

/* An id as QEMU wants it. */
static bool export_id_is_wellformed(const char *id)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

    return id[0] && strchr(letters, id[0]) && strlen(id) <= EXPORT_ID_MAX &&
           id[strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._")] ==
               '\0';
}

const char *export_user(const struct export *e)
{
    return e->user;
}

/* --- roots ---------------------------------------------------------------------------------- */

int export_co_attach(struct export *e, struct block_node *node, unsigned perm, unsigned shared,
                     struct block_root **ret_root, struct error *err)
{
    struct block_root **larger =
        realloc(e->roots, (e->root_count + 1) * sizeof(struct block_root *));
    int r;

    if (!larger) {
        return error_out_of_memory(err);
    }
    e->roots = larger;
    r = block_co_root_new(node, e->user, perm, shared, &e->roots[e->root_count], err);
    if (r < 0) {
        return r;
    }
    *ret_root = e->roots[e->root_count++];
    return 0;
}

static void export_drain_begin(void *arg)
{
    struct export *e = arg;

    if (e->type->drain_begin) {
        e->type->drain_begin(e->state);
    }
}

static bool export_drain_busy(void *arg)
{
    struct export *e = arg;

    return e->type->drain_busy(e->state);
}

static void export_drain_end(void *arg)
{
    struct export *e = arg;

    if (e->type->drain_end) {
        e->type->drain_end(e->state);
    }
}

static void export_resized(void *arg, uint64_t size)
{
    struct export *e = arg;

    if (e->type->resized) {
        e->type->resized(e->state, size);
    }
}

/* A drain polls a root that has drain_busy: only for a type that has it, too. */
static const struct block_root_ops root_ops = {
    .drain_begin = export_drain_begin,
    .drain_end = export_drain_end,
    .resized = export_resized,
};
static const struct block_root_ops busy_root_ops = {
    .drain_begin = export_drain_begin,
    .drain_busy = export_drain_busy,
    .drain_end = export_drain_end,
    .resized = export_resized,
};

/* Attach to the exported node. */
static int co_attach_exported(struct export *e, struct block_node *node,
                              const struct export_config *config, struct block_root **ret_root,
                              struct error *err)
{
    unsigned perm = BLOCK_PERM_CONSISTENT_READ | (config->writable ? BLOCK_PERM_WRITE : 0);
    unsigned shared = BLOCK_PERM_ALL & ~(config->shared_writers ? 0u : BLOCK_PERM_WRITE);
    int r;

    if (config->allow_inactive && !e->type->may_be_inactive) {
        return error_set(err, ENOTSUP, "Export type '%s' does not support inactive nodes",
                         e->type->name);
    }
    shared |= config->allow_inactive ? BLOCK_SHARE_HAND_OVER : 0;

    if (config->writable && block_node_is_read_only(node)) {
        return error_set(err, EROFS, "Cannot export read-only node as writable");
    }
    if (e->type->adjust_permissions) {
        e->type->adjust_permissions(e->state, &perm, &shared);
    }
    r = export_co_attach(e, node, perm, shared, ret_root, err);
    if (r < 0) {
        return r;
    }
    block_root_set_ops(*ret_root, e->type->drain_busy ? &busy_root_ops : &root_ops, e);
    return 0;
}

/* --- add ------------------------------------------------------------------------------------ */

/* No notice reaches the type any more, and no request uses the root on the exported node. */
static void co_settle_exported(struct export *e)
{
    block_root_set_ops(e->roots[0], NULL, NULL);
    block_co_root_settle(e->roots[0]);
}

/* Undo whatever was done to make the export. Its clients are gone. */
static void co_release_export(struct export *e)
{
    if (e->root_count > 0) {
        co_settle_exported(e);
    }
    if (e->state) {
        e->type->co_free(e->state);
    }
    for (size_t i = 0; i < e->root_count; i++) {
        block_co_root_release(e->roots[i]);
    }
    latency_set_destroy(&e->latencies);
    export_io_errors_release(e->errors);
    free(e->roots);
    user_object_unref(e->reactor_object);
    free(e->id);
    free(e->user);
    free(e);
}

static int id_in_use(const char *id, struct error *err)
{
    return error_set(err, EEXIST, "Block export id '%s' is already in use", id);
}

static int check_settings_of_export(const struct export_config *config,
                                    const struct export_type **ret_type,
                                    struct block_node **ret_node, struct error *err)
{
    *ret_type = config->type ? find_export_type(config->type) : NULL;
    if (!*ret_type) {
        return error_set(err, EINVAL, "Export type '%s' is not supported",
                         config->type ? config->type : "");
    }
    if (!export_id_is_wellformed(config->id)) {
        return error_set(err, EINVAL, "Invalid block export id");
    }
    if (find_export(config->id)) {
        return id_in_use(config->id, err);
    }
    *ret_node = block_node_lookup(config->node_name, err);
    return *ret_node ? 0 : -ENOENT;
}

/* The state of the type, from a copy of the options. */
static int parse_type_options(struct export *e, const struct export_config *config,
                              struct error *err)
{
    AUTO_OPTIONS struct options *opts =
        config->options ? options_clone(config->options) : options_new();
    int r;

    if (!opts) {
        return error_out_of_memory(err);
    }
    r = e->type->parse(config, opts, &e->state, err);
    return r < 0 ? r : options_check_empty(opts, e->type->title, err);
}

static int co_set_up_export(struct export *e, struct block_node *node,
                            const struct export_config *config, struct error *err)
{
    struct export_access access = {
        .export = e,
        .reactor = config->reactor,
        .latencies = &e->latencies,
        .writable = config->writable,
        .writethrough = config->writethrough,
    };
    int r = parse_type_options(e, config, err);

    if (r < 0) {
        return r;
    }
    r = co_attach_exported(e, node, config, &access.root, err);
    if (r < 0) {
        return r;
    }
    r = e->type->co_prepare(e->state, &access, err);
    if (r < 0) {
        return r;
    }
    /* Another export may have been prepared while this one yielded. */
    return find_export(config->id) ? id_in_use(config->id, err) : 0;
}

static struct export *export_new(const struct export_config *config, const struct export_type *type)
{
    struct export *e = calloc(1, sizeof(*e));

    if (!e) {
        return NULL;
    }
    list_init(&e->waiters);
    latency_set_init(&e->latencies);
    e->type = type;
    e->writable = config->writable;
    e->id = strdup(config->id);
    e->errors = export_io_errors_new(config->id);
    if (!e->id || !e->errors || asprintf(&e->user, "%s '%s'", type->title, config->id) < 0) {
        export_io_errors_release(e->errors);
        free(e->id);
        latency_set_destroy(&e->latencies);
        free(e);
        return NULL;
    }
    return e;
}

int export_co_prepare(const struct export_config *config, struct export **ret_export,
                      struct error *err)
{
    const struct export_type *type;
    struct block_node *node = NULL;
    struct export *e;
    int r = check_settings_of_export(config, &type, &node, err);

    if (r < 0) {
        return r;
    }
    e = export_new(config, type);
    if (!e) {
        return error_out_of_memory(err);
    }
    block_node_ref(node);
    r = co_set_up_export(e, node, config, err);
    block_co_unref(node);
    if (r < 0) {
        co_release_export(e);
        return r;
    }
    e->reactor_object = config->reactor_object;
    list_append(&exports, &e->link);
    name_index_add(&export_ids, &e->by_id, e->id);
    *ret_export = e;
    return 0;
}

void export_publish(struct export *e)
{
    e->type->publish(e->state);
    log_info("%s: node '%s' is exported", e->user, block_node_name(block_root_node(e->roots[0])));
}

void export_co_discard(struct export *e)
{
    list_remove(&e->link);
    name_index_remove(&export_ids, &e->by_id);
    co_release_export(e);
}

int export_co_add(const struct export_config *config, struct error *err)
{
    struct export *e;
    int r = export_co_prepare(config, &e, err);

    if (r < 0) {
        return r;
    }
    export_publish(e);
    return 0;
}

/* --- delete --------------------------------------------------------------------------------- */

/*
 * References to the nodes of an export, so that the release of its roots does not close a node;
 * NULL ends the list. NULL: out of memory.
 */
static struct block_node **hold_nodes(const struct export *e)
{
    struct block_node **nodes = calloc(e->root_count + 1, sizeof(struct block_node *));

    for (size_t i = 0; nodes && i < e->root_count; i++) {
        nodes[i] = block_node_ref(block_root_node(e->roots[i]));
    }
    return nodes;
}

static void co_give_nodes(struct block_node **nodes)
{
    for (size_t i = 0; nodes && nodes[i]; i++) {
        block_co_unref(nodes[i]);
    }
    free(nodes);
}

/* What the end of an export touches. */
struct end_scope {
    struct block_control_scope scope;
    const struct export *export; /* NULL: released */
};

static bool end_meets(const struct block_control_scope *scope, struct block_node *node)
{
    const struct export *e = container_of(scope, struct end_scope, scope)->export;
    bool meets = !e;

    for (size_t i = 0; e && i < e->root_count && !meets; i++) {
        meets = block_node_is_joined(block_root_node(e->roots[i]), node);
    }
    return meets;
}

/*
 * The end of an export that is shutting down. It can be found by its id until its clients are gone.
 * A node that only this export used is closed after the control lock was released: closing takes
 * time, and other commands go on meanwhile.
 */
static void co_tear_down(void *arg)
{
    struct export *e = arg;
    struct end_scope scope = {.scope.meets = end_meets, .export = e};
    struct gone_waiter *w, *next;
    struct list waiters = LIST_INIT(waiters);
    struct block_node **nodes;
    AUTO_FREE char *id = NULL;

    e->type->co_disconnect(e->state);
    /* When the export is no longer found, its node has to be free. */
    co_settle_exported(e);
    block_control_begin_scope(&scope.scope);
    block_co_control_lock();
    list_remove(&e->link);
    name_index_remove(&export_ids, &e->by_id);
    list_splice(&waiters, &e->waiters);
    id = TAKE_PTR(e->id);
    nodes = hold_nodes(e);
    log_info("%s: deleted", e->user);
    scope.export = NULL;
    co_release_export(e);
    block_control_unlock();
    block_control_end_scope(&scope.scope);
    co_give_nodes(nodes);
    if (event_fn) {
        event_fn(EXPORT_EVENT_DELETED, id, event_arg);
    }
    LIST_FOREACH_SAFE (w, next, &waiters, link) {
        list_remove(&w->link);
        co_wake(w->co);
    }
}

/* Wait for co_tear_down(), which takes the control lock. */
static void co_wait_gone(struct export *e)
{
    struct gone_waiter w = {.co = co_self()};
    bool held = block_control_pause();

    list_append(&e->waiters, &w.link);
    co_suspend();
    block_co_control_resume(held);
}

static int begin_shut_down(struct export *e, struct error *err)
{
    int r;

    e->shutting_down = true;
    e->type->stop_accepting(e->state);
    r = reactor_spawn(reactor_main(), co_tear_down, e);
    return r < 0 ? error_set_errno(err, -r, "Could not shut down the export '%s'", e->id) : 0;
}

/* Begin to shut down. `e` may be gone when this returns, and is if `wait`. */
static int co_shut_down(struct export *e, bool wait, struct error *err)
{
    int r = begin_shut_down(e, err);

    if (r == 0 && wait) {
        co_wait_gone(e);
    }
    return r;
}

/* An export that is not shutting down; NULL with `err` set. */
static struct export *find_running(const char *id, int *ret_r, struct error *err)
{
    struct export *e = find_export(id);

    if (!e) {
        *ret_r = error_set(err, ENOENT, "Export '%s' is not found", id);
        return NULL;
    }
    if (e->shutting_down) {
        *ret_r = error_set(err, EBUSY, "Export '%s' is already shutting down", id);
        return NULL;
    }
    return e;
}

int export_co_del(const char *id, enum export_del_mode mode, bool wait, struct error *err)
{
    int r = 0;
    struct export *e = find_running(id, &r, err);

    if (!e) {
        return r;
    }
    if (mode == EXPORT_DEL_SAFE && e->type->client_count(e->state) > 0) {
        error_set(err, EBUSY, "export '%s' still in use", id);
        error_hint(err, "Use mode='hard' to force client disconnect");
        return -EBUSY;
    }
    return co_shut_down(e, wait, err);
}

/* The oldest export of a type; NULL: of any. */
static struct export *oldest_export(const char *type)
{
    struct export *e;

    LIST_FOREACH (e, &exports, link) {
        if (!type || strcmp(e->type->name, type) == 0) {
            return e;
        }
    }
    return NULL;
}

void export_begin_del_all(void)
{
    struct export *e;

    LIST_FOREACH (e, &exports, link) {
        if (!e->shutting_down) {
            (void)begin_shut_down(e, NULL);
        }
    }
}

void export_co_del_all(const char *type)
{
    struct export *e;

    while ((e = oldest_export(type)) != NULL) {
        if (e->shutting_down) {
            co_wait_gone(e);
        } else if (co_shut_down(e, true, NULL) < 0) {
            /* There is no memory for another coroutine: do it in this one. */
            bool held = block_control_pause();

            co_tear_down(e);
            block_co_control_resume(held);
        }
    }
}

int export_co_replace_node(const char *id, struct block_node *node, struct error *err)
{
    int r = 0;
    struct export *e = find_running(id, &r, err);

    return e ? block_co_root_replace(e->roots[0], node, err) : r;
}

/* --- look ----------------------------------------------------------------------------------- */

static void fill_info(struct export *e, struct export_info *ret_info)
{
    *ret_info = (struct export_info){
        .id = e->id,
        .type = e->type->name,
        .node = block_root_node(e->roots[0]),
        .shutting_down = e->shutting_down,
        .writable = e->writable,
        .clients = e->type->client_count(e->state),
        .latencies = &e->latencies,
        .stats = e->type->stats,
        .client_stats = e->type->client_stats,
        .stats_group = e->type->stats_group,
    };
}

bool export_find(const char *id, struct export_info *ret_info)
{
    struct export *e = find_export(id);

    if (e) {
        fill_info(e, ret_info);
    }
    return e;
}

void export_read_stats(const char *id, uint64_t *ret_values)
{
    const struct export *e = find_export(id);

    assert(e && e->type->stats);
    e->type->read_stats(e->state, ret_values);
}

void export_foreach_client(const char *id, export_client_fn *fn, void *arg)
{
    const struct export *e = find_export(id);

    assert(e && e->type->client_stats);
    e->type->foreach_client(e->state, fn, arg);
}

void export_foreach(bool (*fn)(const struct export_info *info, void *arg), void *arg)
{
    struct export *e;

    LIST_FOREACH (e, &exports, link) {
        struct export_info info;

        fill_info(e, &info);
        if (!fn(&info, arg)) {
            return;
        }
    }
}

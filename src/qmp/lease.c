/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/lease.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "base/log.h"
#include "base/time_units.h"
#include "block/block.h"
#include "block/control_lock.h"
#include "export/export.h"
#include "job/job.h"
#include "loop/loop.h"
#include "qmp/checksums.h"
#include "qmp/command_lock.h"
#include "qmp/commands.h"

/* How long to wait for an export or a work to end before it is looked for again. */
#define EXPORT_POLL_NS 50000000LL
/* Likewise, for a job or another node to leave a view. */
#define USER_POLL_NS NS_PER_SECOND

/* A view that goes with a session. */
struct lease {
    struct list link;
    const struct qmp_call *call; /* of the session; never dereferenced */
    char *node;                  /* name of the view, which may not exist yet; owned */
};

static struct list leases = LIST_INIT(leases);

/* What belongs to a view. Referenced, each of them. */
struct view {
    struct block_node *access, *filter, *disk, *target;
    bool filter_is_owned, target_is_owned; /* by the monitor */
};

static bool view_of(struct block_node *access, struct view *v)
{
    struct block_node *filter = block_node_child(access, "file");

    if (!filter || strcmp(block_driver_name(block_node_driver(filter)), "copy-before-write") != 0) {
        return false;
    }
    *v = (struct view){
        .access = block_node_ref(access),
        .filter = block_node_ref(filter),
        .disk = block_node_ref(block_node_child(filter, "file")),
        .target = block_node_ref(block_node_child(filter, "target")),
    };
    v->filter_is_owned = block_node_is_monitor_owned(v->filter);
    v->target_is_owned = block_node_is_monitor_owned(v->target);
    return true;
}

/* The name of the file that an image lies in; NULL: none, or no memory. The caller frees it. */
static char *file_of(struct block_node *node)
{
    const char *name;

    while (block_node_child(node, "file")) {
        node = block_node_child(node, "file");
    }
    name = block_node_filename(node);
    return name && strcmp(block_driver_name(block_node_driver(node)), "file") == 0 ? strdup(name)
                                                                                   : NULL;
}

static int co_remove_regular(const char *file)
{
    struct stat st;
    int r = loop_co_stat(file, &st);

    if (r < 0) {
        return r == -ENOENT ? 0 : r; /* such as one of a descriptor set */
    }
    return S_ISREG(st.st_mode) ? loop_co_unlink(file) : 0;
}

/* An image that is still open, and locked: nobody else uses the file. */
static void co_remove_file(const char *file)
{
    int r = co_remove_regular(file);

    if (r < 0) {
        log_warning("file '%s' of a lease that has ended stays: %s", file, strerror(-r));
    }
}

static bool is_node_used(const struct block_node *node)
{
    return block_node_in_use(node) || job_check_node(node, NULL) < 0;
}

/*
 * Give our reference to a node back, and the monitor's, unless others use it. *node becomes NULL.
 * Whether it is closed. The control lock is released while it is: nobody waits for the file system.
 * `file` (NULL: none) is removed before.
 */
static bool co_drop(struct block_node **node, const char *file)
{
    struct block_node *n = *node;
    bool unused = !is_node_used(n);

    *node = NULL;
    if (unused && block_node_is_monitor_owned(n)) {
        block_node_set_monitor_owned(n, false);
        block_node_forget_name(n);
        block_co_unref(n);
    }
    block_control_unlock();
    if (unused && file) {
        co_remove_file(file);
    }
    block_co_unref(n);
    block_co_control_lock();
    return unused;
}

/* Somebody else may have deleted it meanwhile, and have made a file of the same name. */
static void co_remove_target(struct view *v)
{
    AUTO_FREE char *file = file_of(v->target);

    if (block_node_is_monitor_owned(v->target) == v->target_is_owned) {
        (void)co_drop(&v->target, file);
    }
}

/*
 * Drain what the users of the filter move to. Requests may hang: they are waited for without the
 * control lock, and nobody else waits for them. Whether it is drained.
 */
static bool co_drain_for_removal(const struct view *v)
{
    struct block_node *const nodes[] = {v->filter, v->disk};
    int64_t ns = 0;

    do {
        if (qmp_co_await_requests(v->filter, v->disk, NULL) < 0) {
            return false;
        }
    } while (!block_co_drain_begin_soon(nodes, ARRAY_SIZE(nodes), &ns));
    return true;
}

/* Whether nobody else needs the filter, nor has removed it. */
static bool may_remove_filter(const struct view *v)
{
    struct block_edge *edge = NULL;

    while ((edge = block_node_next_parent(v->filter, edge))) {
        if (block_edge_parent(edge) && block_node_is_frozen_view(block_edge_parent(edge))) {
            return false;
        }
    }
    return block_node_is_monitor_owned(v->filter) == v->filter_is_owned &&
           block_node_child(v->filter, "file") == v->disk;
}

static void co_remove_filter(struct view *v)
{
    ERROR_AUTO(err);
    int r;

    if (!co_drain_for_removal(v)) {
        return; /* the daemon ends */
    }
    r = may_remove_filter(v) ? block_co_node_replace(v->filter, v->disk, &err) : -EBUSY;
    block_drain_end(v->disk);
    block_drain_end(v->filter);
    if (error_is_set(&err)) {
        log_error("node '%s' stays above '%s', though its lease has ended: %s",
                  block_node_name(v->filter), block_node_name(v->disk), error_message(&err));
    }
    if (r >= 0 && co_drop(&v->filter, NULL)) {
        co_remove_target(v);
    }
}

/* The control lock is released meanwhile. */
static void co_release_view(struct view *v)
{
    block_control_unlock();
    block_co_unref(v->access);
    block_co_unref(v->filter);
    block_co_unref(v->target);
    block_co_unref(v->disk);
    block_co_control_lock();
}

/* What the end of a lease touches. */
struct lease_scope {
    struct block_control_scope scope;
    const char *export, *view;     /* one of them */
    const struct block_node *disk; /* as soon as it is known */
    uint64_t number;               /* of the node `view`; 0: it was not looked for */
    bool waits_for_user;           /* a job or another node uses the view */
};

static bool lease_meets(const struct block_control_scope *scope, struct block_node *node)
{
    const struct lease_scope *s = container_of(scope, struct lease_scope, scope);
    const struct block_node *mine = s->disk;
    struct export_info info;

    if (!mine && s->view) {
        mine = block_node_find(s->view);
    } else if (!mine && export_find(s->export, &info)) {
        mine = info.node;
    }
    return mine && block_node_is_joined(node, mine);
}

static void co_end_locked(struct lease_scope *s)
{
    const char *id = s->export;
    struct export_info info;
    struct view v = {0};
    ERROR_AUTO(err);

    if (!export_find(id, &info) || info.shutting_down || info.clients > 0 ||
        !view_of(info.node, &v)) {
        return;
    }
    s->disk = v.disk;
    log_info("the lease of export '%s' ends with its last client", id);
    if (export_co_del(id, EXPORT_DEL_HARD, true, &err) < 0) {
        log_error("export '%s' stays, though its lease has ended: %s", id, error_message(&err));
    } else if (co_drop(&v.access, NULL)) {
        co_remove_filter(&v);
    }
    s->disk = NULL;
    co_release_view(&v);
}

static void co_end_lease(void *arg)
{
    AUTO_FREE char *id = arg;
    struct lease_scope scope = {.scope.meets = lease_meets, .export = id};

    block_control_begin_scope(&scope.scope);
    if (qmp_co_lock_command(NULL) == 0) {
        co_end_locked(&scope);
    }
    block_control_unlock();
    block_control_end_scope(&scope.scope);
}

void qmp_end_lease(const char *export_id)
{
    char *id = strdup(export_id);

    if (!id || reactor_spawn(reactor_main(), co_end_lease, id) < 0) {
        free(id);
        log_error("Out of memory: export '%s' stays, though its lease has ended", export_id);
    }
}

/* --- leases of sessions ----------------------------------------------------------------------- */

static struct lease *find_lease(const struct qmp_call *call, const char *node)
{
    struct lease *l;

    LIST_FOREACH (l, &leases, link) {
        if ((!call || l->call == call) && strcmp(l->node, node) == 0) {
            return l;
        }
    }
    return NULL;
}

int qmp_co_x_tidemark_lease(struct qmp_call *call, struct json_object *args,
                            struct json_object **ret_value, struct error *err)
{
    const char *node = qmp_get_str(args, "node-name");
    struct lease *l;

    if (find_lease(call, node)) {
        return 0;
    }
    l = calloc(1, sizeof(*l));
    if (!l || !(l->node = strdup(node))) {
        free(l);
        return error_out_of_memory(err);
    }
    l->call = call;
    list_append(&leases, &l->link);
    return 0;
}

struct export_of_view {
    const struct block_node *view;
    char *id; /* of one of its exports; owned; NULL: it has none */
    bool shutting_down, out_of_memory;
};

static bool take_export(const struct export_info *info, void *arg)
{
    struct export_of_view *e = arg;

    if (info->node != e->view) {
        return true;
    }
    e->id = strdup(info->id);
    e->out_of_memory = !e->id;
    e->shutting_down = info->shutting_down;
    return false;
}

/* Begin to delete an export of the view. Whether it has one; -errno. */
static int co_begin_export_end(struct block_node *view, struct error *err)
{
    struct export_of_view e = {.view = view};
    int r = 1;

    export_foreach(take_export, &e);
    if (!e.id) {
        return e.out_of_memory ? -ENOMEM : 0;
    }
    if (!e.shutting_down) {
        r = export_co_del(e.id, EXPORT_DEL_HARD, false, err);
        r = r == 0 || r == -EBUSY || r == -ENOENT ? 1 : r;
    }
    free(e.id);
    return r;
}

/* It has no exports any more. */
static bool view_has_user(struct lease_scope *s, const struct block_node *view)
{
    if (!is_node_used(view)) {
        return false;
    }
    if (!s->waits_for_user) {
        log_warning("node '%s' stays, though its lease has ended, as long as a job or another node "
                    "uses it",
                    s->view);
    }
    s->waits_for_user = true;
    return true;
}

/* Whether there is nothing more to wait for. */
static bool co_end_view_locked(struct lease_scope *s)
{
    const char *name = s->view;
    struct block_node *node = find_lease(NULL, name) ? NULL : block_node_find(name);
    struct view v = {0};
    ERROR_AUTO(err);
    int r;

    /* Another session may have leased the view, and another may have the name meanwhile. */
    if (!node || !block_node_is_frozen_view(node) ||
        (s->number && s->number != block_node_number(node))) {
        return true;
    }
    s->number = block_node_number(node);
    r = co_begin_export_end(node, &err);
    if (r < 0) {
        log_error("node '%s' stays, though its lease has ended: %s", name, error_message(&err));
    }
    if (r != 0) {
        return r < 0;
    }
    if (qmp_checksums_use(node) || view_has_user(s, node)) {
        return false;
    }
    if (view_of(node, &v)) {
        s->disk = v.disk;
        log_info("the lease of node '%s' ends with its monitor connection", name);
        if (co_drop(&v.access, NULL)) {
            co_remove_filter(&v);
        }
        s->disk = NULL;
        co_release_view(&v);
    }
    return true;
}

/*
 * An export ends when the requests of its clients have, and a work when the disk has answered:
 * without the control lock meanwhile.
 */
static void co_end_session_lease(void *arg)
{
    AUTO_FREE char *name = arg;
    struct lease_scope scope = {.scope.meets = lease_meets, .view = name};
    bool done = false;

    block_control_begin_scope(&scope.scope);
    while (!done) {
        done = qmp_co_lock_command(NULL) < 0 || co_end_view_locked(&scope);
        block_control_unlock();
        if (!done) {
            loop_co_sleep(scope.waits_for_user ? USER_POLL_NS : EXPORT_POLL_NS);
        }
    }
    block_control_end_scope(&scope.scope);
}

void qmp_end_leases(const struct qmp_call *call)
{
    struct lease *l, *next;

    LIST_FOREACH_SAFE (l, next, &leases, link) {
        char *name = l->node;

        if (l->call != call) {
            continue;
        }
        list_remove(&l->link);
        free(l);
        if (reactor_spawn(reactor_main(), co_end_session_lease, name) < 0) {
            log_error("Out of memory: node '%s' stays, though its lease has ended", name);
            free(name);
        }
    }
}

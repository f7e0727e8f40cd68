/* SPDX-License-Identifier: Apache-2.0 */
/* Actions of transactions, and commands of the same names, on exports: block-export-add, -del. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "base/list.h"
#include "base/log.h"
#include "block/control_lock.h"
#include "block/hand_over.h"
#include "block/user_object.h"
#include "export/export.h"
#include "loop/loop.h"
#include "qmp/command_lock.h"
#include "qmp/commands.h"
#include "qmp/objects.h"
#include "qmp/set_active.h"
#include "qmp/transaction.h"

/*
 * How long a command waits until an export is gone before it answers. The event is emitted in any
 * case.
 */
#define GONE_WAIT_MS 1000

/*
 * Wait a moment until the export is gone. Its requests in flight end first, which may take any
 * time; but most exports are gone at once, and scripts often delete the node next. The end of an
 * export takes the control lock.
 */
static void co_wait_export_gone(const char *id)
{
    struct export_info info;

    block_control_unlock();
    for (int ms = 0; ms < GONE_WAIT_MS && export_find(id, &info) && info.shutting_down; ms++) {
        loop_co_sleep(NS_PER_MS);
    }
    block_co_control_lock();
}

/* --- block-export-add ------------------------------------------------------------------------- */

struct add_state {
    struct export *export; /* prepared */
    const char *node_name; /* borrowed */
    bool took_over;        /* the node, from another process */
    bool committed;
};

/* Members of every export; the others are its type's own. */
static const char *const common_members[] = {"allow-inactive", "fixed-iothread", "id",
                                             "iothread",       "node-name",      "type",
                                             "writable",       "writethrough"};

static int type_options(struct json_object *data, struct options **ret_opts, struct error *err)
{
    int r = options_from_json(data, ret_opts, err);

    if (r < 0) {
        return r;
    }
    for (size_t i = 0; i < ARRAY_SIZE(common_members); i++) {
        options_drop(*ret_opts, common_members[i]);
    }
    return 0;
}

/*
 * An export has an active node, unless it allows another. The node is looked up again later. Where
 * the path of a mountpoint hangs, it does so before the control lock is taken.
 */
static int co_export_add_open(void *state, struct json_object *data, struct error *err)
{
    const char *name = qmp_get_str(data, "node-name");
    const char *mountpoint = qmp_get_str(data, "mountpoint");
    struct add_state *s = state;
    struct block_node *node;
    struct stat st;
    int r;

    if (mountpoint) {
        (void)loop_co_stat(mountpoint, &st);
    }
    r = qmp_co_lock_again(err);
    s->node_name = name;
    node = block_node_find(name);
    if (r >= 0 && node && block_node_is_handed_over(node) &&
        !qmp_get_bool(data, "allow-inactive", false)) {
        r = qmp_co_set_active(name, true, err);
        s->took_over = r >= 0;
    }
    block_control_unlock();
    return r;
}

static int co_export_add_prepare(void *state, struct json_object *data, struct error *err)
{
    struct add_state *s = state;
    struct export_config config = EXPORT_CONFIG_INIT;
    const char *iothread = qmp_get_str(data, "iothread");
    AUTO_OPTIONS struct options *opts = NULL;
    int r;

    if (!block_node_find(qmp_get_str(data, "node-name"))) {
        return error_set(err, ENOENT, "Cannot find device='' nor node-name='%s'",
                         qmp_get_str(data, "node-name"));
    }
    r = type_options(data, &opts, err);
    if (r < 0) {
        return r;
    }
    config.type = qmp_get_str(data, "type");
    config.id = qmp_get_str(data, "id");
    config.node_name = qmp_get_str(data, "node-name");
    config.writable = qmp_get_bool(data, "writable", false);
    config.allow_inactive = qmp_get_bool(data, "allow-inactive", false);
    config.writethrough = qmp_get_bool(data, "writethrough", false);
    config.options = opts;
    if (!iothread) {
        const struct user_object *home = qmp_iothread_of_node(block_node_find(config.node_name));

        iothread = home ? user_object_id(home) : NULL;
    }
    if (iothread) {
        config.reactor = qmp_find_iothread(iothread, &config.reactor_object);
        if (!config.reactor) {
            return error_set(err, ENOENT, "iothread \"%s\" not found", iothread);
        }
    }
    r = export_co_prepare(&config, &s->export, err);
    if (r < 0) {
        user_object_unref(config.reactor_object);
    }
    return r;
}

static void co_export_add_commit(void *state)
{
    struct add_state *s = state;

    export_publish(s->export);
    s->committed = true;
}

/* The transaction has failed: the node goes back to the other process. */
static void co_export_add_clean(void *state)
{
    struct add_state *s = state;
    ERROR_AUTO(err);

    if (s->took_over && !s->committed && qmp_co_set_active(s->node_name, false, &err) < 0) {
        log_warning("transaction: node '%s' stays active: %s", s->node_name, error_message(&err));
    }
}

static void co_export_add_abort(void *state)
{
    struct add_state *s = state;

    export_co_discard(s->export);
}

const struct qmp_action qmp_action_export_add = {
    .name = "block-export-add",
    .state_size = sizeof(struct add_state),
    .co_open = co_export_add_open,
    .co_prepare = co_export_add_prepare,
    .co_commit = co_export_add_commit,
    .co_abort = co_export_add_abort,
    .co_clean = co_export_add_clean,
};

/* --- block-export-del ------------------------------------------------------------------------- */

/* The export is deleted when the transaction is committed: until then its clients stay. */
struct del_state {
    char *id;         /* owned */
    struct list link; /* in `going`, from prepare on */
    bool committed;
};

/* Exports that the running transaction deletes. One transaction runs at a time. */
static struct list going = LIST_INIT(going);

static bool export_is_going(const char *id)
{
    struct del_state *s;

    LIST_FOREACH (s, &going, link) {
        if (strcmp(s->id, id) == 0) {
            return true;
        }
    }
    return false;
}

static enum export_del_mode mode_of(struct json_object *data)
{
    const char *mode = qmp_get_str(data, "mode");

    return mode && strcmp(mode, "hard") == 0 ? EXPORT_DEL_HARD : EXPORT_DEL_SAFE;
}

static int co_export_del_prepare(void *state, struct json_object *data, struct error *err)
{
    struct del_state *s = state;
    const char *id = qmp_get_str(data, "id");
    struct export_info info;

    if (!export_find(id, &info) || export_is_going(id)) {
        return error_set(err, ENOENT, "Export '%s' is not found", id);
    }
    if (info.shutting_down) {
        return error_set(err, EBUSY, "Export '%s' is already shutting down", id);
    }
    if (mode_of(data) == EXPORT_DEL_SAFE && info.clients > 0) {
        return error_set(err, EBUSY, "export '%s' still in use", id);
    }
    s->id = strdup(id);
    if (!s->id) {
        return error_out_of_memory(err);
    }
    list_append(&going, &s->link);
    return 0;
}

static void co_export_del_abort(void *state)
{
    struct del_state *s = state;

    list_remove(&s->link);
}

static void co_export_del_commit(void *state)
{
    struct del_state *s = state;
    ERROR_AUTO(err);

    list_remove(&s->link);
    s->committed = true;
    if (export_co_del(s->id, EXPORT_DEL_HARD, false, &err) < 0) {
        log_error("transaction: export '%s' cannot be deleted: %s", s->id, error_message(&err));
    }
}

static void co_export_del_clean(void *state)
{
    struct del_state *s = state;

    if (s->committed) {
        co_wait_export_gone(s->id);
    }
    free(s->id);
}

const struct qmp_action qmp_action_export_del = {
    .name = "block-export-del",
    .state_size = sizeof(struct del_state),
    .co_prepare = co_export_del_prepare,
    .co_commit = co_export_del_commit,
    .co_abort = co_export_del_abort,
    .co_clean = co_export_del_clean,
};

int qmp_co_block_export_del(struct qmp_call *call, struct json_object *args,
                            struct json_object **ret_value, struct error *err)
{
    const char *id = qmp_get_str(args, "id");
    int r = export_co_del(id, mode_of(args), false, err);

    if (r >= 0) {
        co_wait_export_gone(id);
    }
    return r;
}

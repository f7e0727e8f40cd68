/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/command_lock.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/list.h"
#include "base/time_units.h"
#include "block/block.h"
#include "block/control_busy.h"
#include "block/control_lock.h"
#include "block/reopen.h"
#include "co/co.h"
#include "co/sync.h"
#include "loop/loop.h"

/*
 * How long a command waits for a step of another one that concerns other storage: as long as
 * requests of clients take before they are reported.
 */
#define BUSY_PATIENCE_NS (10 * NS_PER_SECOND)

static bool stopping;

/* Held while the daemon starts: before each command a session takes it. */
static struct co_mutex start_lock;
static bool start_lock_ready;

static struct co_mutex *get_start_lock(void)
{
    if (!start_lock_ready) {
        co_mutex_init(&start_lock);
        start_lock_ready = true;
    }
    return &start_lock;
}

static int check_running(struct error *err)
{
    return stopping ? error_set(err, ESHUTDOWN, "The daemon is shutting down") : 0;
}

int qmp_co_lock_command(struct error *err)
{
    co_mutex_lock(get_start_lock());
    co_mutex_unlock(get_start_lock());
    return qmp_co_lock_again(err);
}

int qmp_co_begin_command(struct error *err)
{
    struct block_control_holder holder;
    int r;

    co_mutex_lock(get_start_lock());
    co_mutex_unlock(get_start_lock());
    if (block_co_control_lock_within(BUSY_PATIENCE_NS, &holder) < 0) {
        return block_control_set_busy(&holder, err);
    }
    r = check_running(err);
    if (r < 0) {
        block_control_unlock();
    }
    return r;
}

/*
 * The lock is taken by another coroutine, which may have to wait for it after the command's end.
 * All of this is on the main reactor.
 */
struct qmp_look {
    struct loop_answer locked; /* by the other coroutine */
    struct co *holder;         /* suspended, with the lock; NULL: it waits for the lock */
    bool ended;
};

/* A command has waited for the lock in vain, and its other coroutine still does. */
static bool lock_hangs;

static void co_hold_for_look(void *arg)
{
    struct block_control_scope scope = {.keeps_graph = true};
    struct qmp_look *look = arg;

    block_control_begin_scope(&scope);
    block_co_control_lock();
    lock_hangs = false;
    if (!look->ended) {
        look->holder = co_self();
        loop_answer_give(&look->locked);
        co_suspend();
    }
    block_control_unlock();
    block_control_end_scope(&scope);
    free(look);
}

int qmp_co_begin_look(struct qmp_look **ret_look, struct error *err)
{
    struct qmp_look *look;
    int r;

    co_mutex_lock(get_start_lock());
    co_mutex_unlock(get_start_lock());
    if (lock_hangs) {
        *ret_look = NULL;
        return check_running(err);
    }
    look = calloc(1, sizeof(*look));
    if (look) {
        loop_answer_init(&look->locked);
    }
    r = look ? reactor_spawn(reactor_main(), co_hold_for_look, look) : -ENOMEM;
    *ret_look = r < 0 ? NULL : look;
    if (r < 0) {
        free(look);
        return error_out_of_memory(err);
    }
    lock_hangs = !loop_co_answer_wait(&look->locked, LOOP_PATIENCE_NS) || lock_hangs;
    return check_running(err);
}

void qmp_end_look(struct qmp_look *look)
{
    if (look) {
        look->ended = true;
        if (look->holder) {
            co_wake(look->holder);
        }
    }
}

void qmp_co_hold_commands(void)
{
    co_mutex_lock(get_start_lock());
    block_co_control_lock();
}

void qmp_release_commands(bool failed)
{
    stopping = stopping || failed;
    block_control_unlock();
    co_mutex_unlock(get_start_lock());
}

int qmp_co_lock_again(struct error *err)
{
    block_co_control_lock();
    return check_running(err);
}

int qmp_co_drain_unlocked(struct block_node *node, struct error *err)
{
    block_control_unlock();
    block_co_drain_begin(node);
    return qmp_co_lock_again(err);
}

int qmp_co_await_requests(struct block_node *a, struct block_node *b, struct error *err)
{
    struct block_node *nodes[] = {block_node_ref(a), block_node_ref(b)};

    block_control_unlock();
    block_co_drain_begin_many(nodes, ARRAY_SIZE(nodes));
    for (size_t i = 0; i < ARRAY_SIZE(nodes); i++) {
        block_drain_end(nodes[i]);
        block_co_unref(nodes[i]);
    }
    return qmp_co_lock_again(err);
}

int qmp_co_change_image(struct block_node *node, const char *user, unsigned perm,
                        qmp_co_image_change *fn, void *arg, struct error *err)
{
    struct block_control_work work;
    struct block_root *root = NULL;
    int r;

    block_control_begin_work(&work, &node, 1, true);
    r = block_co_root_new(node, user, perm, BLOCK_PERM_ALL, &root, err);
    block_control_keep_graph(&work);
    UNLESS_FAILED(r, fn(root, arg, err));
    block_drain_end(node);
    block_co_control_end_work(&work);
    block_control_begin_work(&work, &node, 1, true);
    block_co_root_release(root);
    block_co_control_end_work(&work);
    return r;
}

int qmp_co_make_read_only(struct block_node *node, struct error *err)
{
    struct block_control_work work;
    int r;

    block_control_begin_work(&work, &node, 1, false);
    r = block_co_await_read_only(node, err);
    block_co_control_end_work(&work);
    if (r == 0) {
        block_control_begin_work(&work, &node, 1, true);
        r = block_co_set_read_only(node, true, err);
        block_co_control_end_work(&work);
    }
    return r;
}

void qmp_co_stop_commands(void)
{
    stopping = true;
    block_co_control_lock();
    block_control_unlock();
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Joint changes: images that wait for the first one, which only the user may open (joint_known.c).
 * They are in doubt and leave both directories in their files: what guests write is in hot regions,
 * which do not become cold.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "block/bitmaps.h"
#include "block/control.h"
#include "block/control_busy.h"
#include "block/control_lock.h"
#include "block/device.h"
#include "block/driver.h"
#include "block/hand_over.h"
#include "loop/loop.h"
#include "qcow2/bitmap/joint.h"

/* A program with one flow does not take the control lock: nobody else may touch its nodes. */
static bool is_daemon(void)
{
    struct block_node *node = block_node_next(NULL);

    while (node && !block_node_is_monitor_owned(node) && !block_node_device_name(node)[0]) {
        node = block_node_next(node);
    }
    return node;
}

/* Nobody uses the bitmaps of the node, which are about to be replaced. */
static bool is_free(struct block_node *node)
{
    struct block_bitmap *b;

    for (b = block_bitmap_next(node, NULL); b; b = block_bitmap_next(node, b)) {
        if (block_bitmap_busy(b) || b->successor || b->borrowed) {
            return false;
        }
    }
    return !block_node_is_handed_over(node) && !block_control_is_busy_with(node);
}

/* Bytes that may be hot in any case while an image waits. */
#define HOT_BYTES_MAX (64 * MiB)

/* What is hot can't become cold while the image waits. */
static bool waits_too_long(const struct block_node *node)
{
    struct block_activity_figures figures;

    if (!node->log) {
        return false;
    }
    block_activity_read_figures(node->log, &figures);
    return figures.hot > MAX(2 * figures.limit, HOT_BYTES_MAX);
}

/* The image is read again, as after a crash, and finds what was decided. */
static void co_read_decided(struct block_node *node)
{
    ERROR_AUTO(err);
    int r;

    block_co_drain_begin(node);
    r = node->driver->co_inactivate(node, &err);
    UNLESS_FAILED(r, node->driver->co_reload(node, &err));
    block_drain_end(node);
    if (r < 0) {
        log_warning("image '%s': an interrupted change of the bitmaps of several disks can't be "
                    "completed now: %s",
                    block_node_display_name(node), error_message(&err));
    } else {
        log_notice("image '%s': an interrupted change of the bitmaps of several disks is complete",
                   block_node_display_name(node));
    }
}

/* In doubt for good. */
static void co_stop_waiting(struct block_node *node)
{
    ERROR_AUTO(err);

    qcow2_state(node)->joint.waits = false;
    block_co_drain_begin(node);
    if (node->driver->co_commit_bitmaps(node, &err) < 0) {
        log_warning("%s", error_message(&err));
    }
    block_drain_end(node);
}

/* The image waits for the first one. */
static void co_look_for_first(struct block_node *node)
{
    struct qcow2 *q = qcow2_state(node);
    enum qcow2_joint_state state;
    int r;

    if (!is_free(node)) {
        return;
    }
    r = qcow2_co_joint_ask(q, 0, &state);
    if (r == 0) {
        co_read_decided(node);
    } else if (!q->read_only && (r != -ENOTCONN || waits_too_long(node))) {
        co_stop_waiting(node);
    }
}

/* It is the first one, and may have been kept for another one that has been settled now. */
static void co_retire(struct qcow2 *q)
{
    ERROR_AUTO(err);

    co_mutex_lock(&q->bitmaps.mutex);
    if (qcow2_co_joint_retire_locked(q, &err) < 0) {
        log_warning("%s", error_message(&err));
    }
    co_mutex_unlock(&q->bitmaps.mutex);
}

static void co_look_at(struct block_node *node)
{
    struct qcow2 *q = qcow2_state(node);

    atomic_store(&q->joint.looks, false);
    if (q->joint.waits) {
        co_look_for_first(node);
    } else if (q->joint.own == 0 && !q->read_only) {
        co_retire(q);
    }
}

/* `arg`: the name of the node, which may be gone. Owned. */
static void co_look_again(void *arg)
{
    AUTO_FREE char *name = arg;
    struct block_node *node;

    if (!is_daemon()) {
        return;
    }
    block_co_control_lock();
    node = block_node_find(name);
    if (node && strcmp(node->driver->name, "qcow2") == 0) {
        co_look_at(node);
    }
    block_control_unlock();
}

void qcow2_joint_look_again(struct qcow2 *q)
{
    char *name = atomic_exchange(&q->joint.looks, true) ? NULL : strdup(block_node_name(q->node));

    if (name && reactor_spawn(reactor_main(), co_look_again, name) < 0) {
        free(name); /* no memory: it stays in doubt, or is retired when it is closed */
    }
}

void qcow2_joint_tell_first(const struct qcow2 *q)
{
    struct qcow2_joint *j = NULL;

    while ((j = qcow2_joint_next_known(q, j))) {
        if (j->own == 0) {
            qcow2_joint_look_again(j->image);
        }
    }
}

void qcow2_joint_tell_waiting(const struct qcow2 *q)
{
    struct qcow2_joint *j = NULL;

    if (q->joint.state == JOINT_NONE || q->joint.own > 0) {
        return;
    }
    while ((j = qcow2_joint_next_known(q, j))) {
        if (j->waits) {
            qcow2_joint_look_again(j->image);
        }
    }
}

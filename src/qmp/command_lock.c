/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/command_lock.h"

#include <errno.h>
#include <stdbool.h>

#include "block/control_lock.h"
#include "co/sync.h"

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

int qmp_co_lock_command(struct error *err)
{
    co_mutex_lock(get_start_lock());
    co_mutex_unlock(get_start_lock());
    return qmp_co_lock_again(err);
}

void qmp_co_hold_commands(void)
{
    co_mutex_lock(get_start_lock());
    block_co_control_lock();
}

void qmp_release_commands(void)
{
    block_control_unlock();
    co_mutex_unlock(get_start_lock());
}

int qmp_co_lock_again(struct error *err)
{
    block_co_control_lock();
    return stopping ? error_set(err, ESHUTDOWN, "The daemon is shutting down") : 0;
}

void qmp_co_stop_commands(void)
{
    stopping = true;
    block_co_control_lock();
    block_control_unlock();
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The life of a tree: its mountpoint, its session, and the end. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "fuse/internal.h"
#include "loop/loop.h"

/* Requests in flight that take longer do not keep a tree mounted. */
#define PATIENCE_NS NS_PER_SECOND

/* --- mounting --------------------------------------------------------------------------------- */

/* Calls that block. */

static int look_at_directory(void *arg)
{
    mode_t mode = 0;
    int r = fuse_look_at_mountpoint(arg, &mode);

    return r == 0 && !S_ISDIR(mode) ? -ENOTDIR : r;
}

static int mount_tree(void *arg)
{
    struct fuse_tree *t = arg;
    int flags;

    t->session = fuse_new_session(t->config.allow_other ? "ro,default_permissions,allow_other"
                                                        : "ro,default_permissions",
                                  &fuse_tree_session_ops, sizeof(fuse_tree_session_ops), t);
    if (!t->session) {
        return -ENOMEM;
    }
    if (fuse_session_mount(t->session, t->config.mountpoint) != 0) {
        return -EIO;
    }
    t->mounted = true;
    flags = fcntl(fuse_session_fd(t->session), F_GETFL);
    return flags < 0 || fcntl(fuse_session_fd(t->session), F_SETFL, flags | O_NONBLOCK) < 0 ? -errno
                                                                                            : 0;
}

static int unmount_tree(void *arg)
{
    struct fuse_tree *t = arg;

    fuse_session_unmount(t->session);
    return 0;
}

static void co_unmount_tree(struct fuse_tree *t)
{
    if (t->mounted) {
        loop_co_offload(unmount_tree, t);
        t->mounted = false;
    }
}

int fuse_tree_co_mount(const struct fuse_tree_config *config, struct fuse_tree **ret_tree,
                       struct error *err)
{
    struct fuse_tree *t = calloc(1, sizeof(*t));
    int r;

    if (!t) {
        return error_out_of_memory(err);
    }
    t->config = *config;
    t->poll_set = -1;
    list_init(&t->handles);
    r = fuse_load(err);
    if (r == 0) {
        r = loop_co_offload(look_at_directory, (void *)(uintptr_t)config->mountpoint);
        if (r < 0) {
            error_set_errno(err, -r, "Could not mount on '%s'", config->mountpoint);
        }
    }
    if (r == 0) {
        r = loop_co_offload(mount_tree, t);
        if (r < 0) {
            error_set(err, -r, "Could not mount on '%s'", config->mountpoint);
            error_hint(err, "FUSE has to be there (package fuse3, /dev/fuse), and the directory "
                            "has to be yours.");
        }
    }
    if (r < 0) {
        fuse_tree_co_free(t);
        return r;
    }
    *ret_tree = t;
    return 0;
}

void fuse_tree_co_free(struct fuse_tree *t)
{
    struct fuse_tree_handle *h, *next;

    if (!t) {
        return;
    }
    co_unmount_tree(t);
    LIST_FOREACH_SAFE (h, next, &t->handles, link) {
        fuse_tree_co_close(t, h);
    }
    if (t->session) {
        fuse_session_destroy(t->session);
    }
    if (t->poll_set >= 0) {
        close(t->poll_set);
    }
    free(t->message.mem);
    free(t);
}

/* --- serving ---------------------------------------------------------------------------------- */

static int make_tree_poll_set(struct fuse_tree *t, int end_fd)
{
    struct epoll_event event = {.events = EPOLLIN};

    t->poll_set = epoll_create1(EPOLL_CLOEXEC);
    if (t->poll_set < 0 || epoll_ctl(t->poll_set, EPOLL_CTL_ADD, end_fd, &event) < 0 ||
        epoll_ctl(t->poll_set, EPOLL_CTL_ADD, fuse_session_fd(t->session), &event) < 0) {
        return -errno;
    }
    return 0;
}

static bool is_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, 0) > 0;
}

static void co_wait_for_place(struct fuse_tree *t, size_t max)
{
    while (t->in_flight > max) {
        t->waiter = co_self();
        co_suspend();
    }
}

static void co_receive_requests(struct fuse_tree *t, int end_fd)
{
    while (!is_readable(end_fd)) {
        int n = fuse_session_receive_buf(t->session, &t->message);

        if (n > 0) {
            fuse_session_process_buf(t->session, &t->message);
            co_wait_for_place(t, FUSE_TREE_REQUESTS_MAX);
        } else if (n == -EAGAIN) {
            (void)loop_co_poll(t->poll_set, POLLIN, -1);
        } else if (n != -EINTR) {
            return;
        }
        if (reactor_turn_expired()) {
            loop_co_give_way();
        }
    }
}

void fuse_tree_co_serve(struct fuse_tree *t, int end_fd)
{
    int r = make_tree_poll_set(t, end_fd);
    int64_t deadline;

    if (r < 0) {
        log_error("epoll: %s", strerror(-r));
    } else {
        co_receive_requests(t, end_fd);
    }
    deadline = loop_now_ns() + PATIENCE_NS;
    while (t->in_flight > 0 && loop_now_ns() < deadline) {
        loop_co_sleep(NS_PER_MS);
    }
    t->detached = true;
    co_unmount_tree(t);
    co_wait_for_place(t, 0);
}

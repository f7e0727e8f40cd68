/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "loop/loop.h"

/* The guard has its end as this descriptor. */
#define GUARD_FD 3

/*
 * A service manager that stops a backup sends SIGTERM to the guard, too, which has its work when
 * the backup could not put everything in order. The guard ends with the backup in any case.
 */
static void block_end_signals(posix_spawnattr_t *attributes)
{
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGHUP);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    posix_spawnattr_setsigmask(attributes, &signals);
    posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
}

static int spawn_guard(char **argv, int fd)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    pid_t pid;
    int r = posix_spawn_file_actions_init(&files);

    if (r != 0) {
        return -r;
    }
    r = posix_spawnattr_init(&attributes);
    if (r == 0) {
        block_end_signals(&attributes);
        for (int i = 0; r == 0 && i < GUARD_FD; i++) {
            r = posix_spawn_file_actions_addopen(&files, i, "/dev/null", O_RDWR, 0);
        }
        r = r ? r : posix_spawn_file_actions_adddup2(&files, fd, GUARD_FD);
        r = r ? r : posix_spawn(&pid, "/proc/self/exe", &files, &attributes, argv, environ);
        posix_spawnattr_destroy(&attributes);
    }
    posix_spawn_file_actions_destroy(&files);
    return -r;
}

int guard_start(char **argv)
{
    static char option[] = GUARD_OPTION, value[] = "3";
    size_t count = 0;
    int pipe_fds[2], r;

    if (pipe2(pipe_fds, O_CLOEXEC) < 0) {
        return -errno;
    }
    while (argv[count]) {
        count++;
    }
    argv[count] = option;
    argv[count + 1] = value;
    r = spawn_guard(argv, pipe_fds[0]);
    argv[count] = NULL;
    argv[count + 1] = NULL;
    close(pipe_fds[0]);
    if (r < 0) {
        close(pipe_fds[1]);
        return r;
    }
    return pipe_fds[1];
}

void guard_say(int fd, enum guard_note note)
{
    char c = (char)note;

    /* A guard that is gone has nothing to know. SIGPIPE is ignored by every face. */
    if (fd >= 0 && write(fd, &c, 1) < 0) {
        return;
    }
}

struct guard_wait {
    int fd;
    bool killed, frozen;
};

static int guard_job_run(void *arg)
{
    struct guard_wait *w = arg;
    char c;
    ssize_t n;

    w->killed = true;
    while ((n = read(w->fd, &c, 1)) != 0) {
        if (n < 0 && errno != EINTR) {
            return -errno;
        }
        if (n == 1) {
            w->frozen = c == GUARD_FROZEN || (w->frozen && c != GUARD_THAWED);
            w->killed = c != GUARD_DONE;
        }
    }
    return 0;
}

bool guard_co_wait(int fd, bool *ret_frozen)
{
    struct guard_wait w = {.fd = fd};
    int r = loop_co_offload(guard_job_run, &w);

    *ret_frozen = w.frozen;
    return r == 0 && w.killed;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/daemon/leave.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* How long threads may take for their files before others go on, twice as many; and how often. */
#define PATIENCE_US 50000
#define ATTEMPTS 10

static struct {
    atomic_int next; /* descriptor to close */
    int end;         /* behind the last one */
    int nothing;     /* a descriptor that can't be read, written or flushed */
} files;

/*
 * Close a file, whose number stays taken: other threads still run, and one may be about to write by
 * that number, while another one opens a file.
 */
static void close_but_number(int fd)
{
    (void)dup2(files.nothing, fd);
}

/* A thread that meets a file that hangs stays there. */
static void *close_healthy_files(void *arg)
{
    int fd;

    while ((fd = atomic_fetch_add(&files.next, 1)) < files.end) {
        struct stat st;

        if (fstat(fd, &st) == 0 && (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode))) {
            close_but_number(fd);
        }
    }
    return NULL;
}

static bool start_threads(int count)
{
    for (int i = 0; i < count; i++) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, close_healthy_files, NULL) != 0) {
            return i > 0;
        }
        pthread_detach(thread);
    }
    return true;
}

static void close_what_answers(void)
{
    int last, next = atomic_load(&files.next);

    for (int i = 0; i < ATTEMPTS && next < files.end && start_threads(1 << i); i++) {
        do {
            last = next;
            usleep(PATIENCE_US);
            next = atomic_load(&files.next);
        } while (next < files.end && next != last);
    }
}

/*
 * Others may use the same listening socket, or one that this program has inherited without knowing:
 * those that it uses have FD_CLOEXEC.
 */
static void end_connection(int fd)
{
    int listens, flags = fcntl(fd, F_GETFD);
    socklen_t size = sizeof(listens);

    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0) {
        if (!listens && flags >= 0 && (flags & FD_CLOEXEC)) {
            (void)shutdown(fd, SHUT_RDWR);
        }
        close_but_number(fd);
    }
}

void daemon_leave(int status)
{
    DIR *dir = opendir("/proc/self/fd");
    const struct dirent *entry;

    fflush(stdout);
    fflush(stderr);
    atomic_store(&files.next, STDERR_FILENO + 1);
    files.nothing = dir ? dirfd(dir) : -1;
    while (dir && (entry = readdir(dir))) {
        int fd = (int)strtol(entry->d_name, NULL, 10);

        if (fd > STDERR_FILENO) {
            end_connection(fd);
            files.end = fd >= files.end ? fd + 1 : files.end;
        }
    }
    close_what_answers();
    _exit(status);
}

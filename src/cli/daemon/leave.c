/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/daemon/leave.h"

#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* How long a thread may take for a file before another one goes on; and how many may. */
#define PATIENCE_US 50000
#define THREADS_MAX 20

static struct {
    atomic_int next; /* descriptor to close */
    int end;         /* behind the last one */
} files;

/* A thread that meets a file that hangs stays there. */
static void *close_healthy_files(void *arg)
{
    int fd;

    while ((fd = atomic_fetch_add(&files.next, 1)) < files.end) {
        struct stat st;

        if (fstat(fd, &st) == 0 && (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode))) {
            close(fd);
        }
    }
    return NULL;
}

static void close_what_answers(void)
{
    int last, next = atomic_load(&files.next);

    for (int i = 0; i < THREADS_MAX && next < files.end; i++) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, close_healthy_files, NULL) != 0) {
            return;
        }
        pthread_detach(thread);
        do {
            last = next;
            usleep(PATIENCE_US);
            next = atomic_load(&files.next);
        } while (next < files.end && next != last);
    }
}

/* Others may use the same listening socket. */
static void end_connection(int fd)
{
    int listens;
    socklen_t size = sizeof(listens);

    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0) {
        if (!listens) {
            (void)shutdown(fd, SHUT_RDWR);
        }
        close(fd);
    }
}

void daemon_leave(int status)
{
    DIR *dir = opendir("/proc/self/fd");
    const struct dirent *entry;

    fflush(stdout);
    fflush(stderr);
    atomic_store(&files.next, STDERR_FILENO + 1);
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

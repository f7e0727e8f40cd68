/* SPDX-License-Identifier: Apache-2.0 */
#include "chardev/stdio_pair.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/checked.h"
#include "loop/loop.h"

#define FLUSH_WAIT_MS 1000

/* The session's end of the pair; not owned, and -1 when nothing is served. */
static int near_end = -1;
/* The threads' end of the pair. It and the threads live as long as the process. */
static int far_end = -1;
static atomic_bool output_done;

static bool write_stream(int fd, const char *data, ssize_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, data, (size_t)size);

        if (n < 0 && errno != EINTR) {
            return false;
        }
        if (n > 0) {
            data += n;
            size -= n;
        }
    }
    return true;
}

/* Copy until the end of the stream or an error. Messages have passwords: no copy stays. */
static void carry(int from, int to)
{
    char buf[4096];
    bool going = true;

    while (going) {
        ssize_t n = read(from, buf, sizeof(buf));

        going = n > 0 ? write_stream(to, buf, n) : n < 0 && errno == EINTR;
        explicit_bzero(buf, sizeof(buf));
    }
}

/* Take bytes off a socket that are known to be there. */
static bool consume(int fd, ssize_t size)
{
    char buf[4096];
    ssize_t n = 0;

    for (ssize_t done = 0; done < size && n >= 0; done += n) {
        n = recv(fd, buf, MIN(sizeof(buf), (size_t)(size - done)), 0);
        if (n == 0) {
            return false;
        }
    }
    return n >= 0;
}

/* Likewise; what is written is taken from the socket only then, so that the other end sees that. */
static void carry_and_confirm(int from, int to)
{
    char buf[4096];
    ssize_t n;

    do {
        n = recv(from, buf, sizeof(buf), MSG_PEEK);
    } while ((n < 0 && errno == EINTR) || (n > 0 && write_stream(to, buf, n) && consume(from, n)));
}

static void *carry_input(void *arg)
{
    /*
     * At the end of the input the session stays: a daemon with an empty input still serves, and
     * prints events.
     */
    carry(STDIN_FILENO, far_end);
    return NULL;
}

static void *carry_output(void *arg)
{
    carry_and_confirm(far_end, STDOUT_FILENO);
    atomic_store(&output_done, true);
    return NULL;
}

static int start_copy_thread(void *(*fn)(void *))
{
    pthread_t thread;
    int r = pthread_create(&thread, NULL, fn, NULL);

    if (r == 0) {
        pthread_detach(thread);
    }
    return -r;
}

int chardev_stdio_open(struct error *err)
{
    int pair[2], r;

    if (far_end >= 0) {
        return error_set(err, EBUSY, "cannot use stdio by multiple character devices");
    }
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        return error_set_errno(err, errno, "Failed to create a socket");
    }
    far_end = pair[1];
    r = fcntl(pair[0], F_SETFL, O_NONBLOCK) < 0 ? -errno : start_copy_thread(carry_output);
    if (r >= 0) {
        r = start_copy_thread(carry_input);
    }
    if (r < 0) {
        close(pair[0]);
        return error_set_errno(err, -r, "Standard input and output cannot be served");
    }
    near_end = pair[0];
    return pair[0];
}

void chardev_co_stdio_settle(void)
{
    int unread = 0;

    for (int ms = 0; near_end >= 0 && ms < FLUSH_WAIT_MS; ms++) {
        if (ioctl(near_end, SIOCOUTQ, &unread) < 0 || unread == 0) {
            return;
        }
        loop_co_sleep(NS_PER_MS);
    }
}

void chardev_co_stdio_flush(void)
{
    near_end = -1;
    for (int ms = 0; far_end >= 0 && ms < FLUSH_WAIT_MS && !atomic_load(&output_done); ms++) {
        loop_co_sleep(NS_PER_MS);
    }
}

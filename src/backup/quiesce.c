/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/quiesce.h"

#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/time_units.h"
#include "loop/loop.h"

#define DELIMITER 0xffu
#define ANSWER_MAX 65536u
#define THAW_ATTEMPTS 5

/* --- hooks --- */

struct hook {
    const char *command;
    char **environment;
};

static int hook_job_run(void *arg)
{
    const struct hook *h = arg;
    char *const argv[] = {"/bin/sh", "-c", (char *)h->command, NULL};
    int status;
    pid_t pid;
    int r = posix_spawn(&pid, argv[0], NULL, NULL, argv, h->environment);

    if (r != 0) {
        return -r;
    }
    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR) {
            return -errno;
        }
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256;
}

/* This process's environment and two more variables; the list is malloc'ed, the rest borrowed. */
static char **make_environment(char *machine, char *status)
{
    size_t count = 0;
    char **list;

    while (environ[count]) {
        count++;
    }
    list = calloc(count + 3, sizeof(*list));
    if (list) {
        memcpy(list, environ, count * sizeof(*list));
        list[count] = machine;
        list[count + 1] = status;
    }
    return list;
}

static int co_run_hook(const struct quiesce *q, const char *command, const char *status,
                       struct error *err)
{
    char *machine AUTO_FREE = NULL, *state AUTO_FREE = NULL;
    char **list AUTO_FREE = NULL;
    struct hook hook = {.command = command};
    int r;

    if (!command) {
        return 0;
    }
    if (asprintf(&machine, "TIDEMARK_VM=%s", q->options->machine ? q->options->machine : "") < 0) {
        machine = NULL;
    }
    if (asprintf(&state, "TIDEMARK_STATUS=%s", status) < 0) {
        state = NULL;
    }
    list = machine && state ? make_environment(machine, state) : NULL;
    if (!list) {
        return error_out_of_memory(err);
    }
    hook.environment = list;
    r = loop_co_offload(hook_job_run, &hook);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not run the hook '%s'", command);
    }
    return r > 0 ? error_set(err, ECANCELED, "The hook '%s' failed with status %d", command, r) : 0;
}

/* --- the guest agent --- */

static int co_send_agent(int fd, const char *text, size_t size, int64_t deadline)
{
    while (size > 0) {
        ssize_t n = send(fd, text, size, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            int64_t left = deadline - loop_now_ns();

            n = left > 0 ? loop_co_poll(fd, POLLOUT, left) : -ETIMEDOUT;
            if (n < 0) {
                return (int)n;
            }
            continue;
        }
        if (n < 0) {
            return -errno;
        }
        text += n;
        size -= (size_t)n;
    }
    return 0;
}

/* The next line; the answers of earlier commands that timed out are before the delimiter. */
static int co_receive_agent(int fd, bool delimited, int64_t deadline, char *buf, size_t room)
{
    size_t used = 0;
    bool begun = !delimited;

    while (used + 1 < room) {
        int64_t left = deadline - loop_now_ns();
        int r = left > 0 ? loop_co_poll(fd, POLLIN, left) : -ETIMEDOUT;
        unsigned char c;
        ssize_t n;

        if (r < 0) {
            return r;
        }
        n = recv(fd, &c, 1, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -ECONNRESET;
        }
        if (c == DELIMITER) {
            begun = true;
            used = 0;
        } else if (c == '\n' && begun && used > 0) {
            buf[used] = '\0';
            return 0;
        } else if (begun && c != '\n') {
            buf[used++] = (char)c;
        }
    }
    return -EPROTO;
}

/* Run a command. *ret_value (may be NULL) gets a number that is returned. */
static int co_agent(int fd, const char *text, bool delimited, unsigned timeout_s,
                    int64_t *ret_value, struct error *err)
{
    int64_t deadline = loop_now_ns() + timeout_s * NS_PER_SECOND;
    char *answer AUTO_FREE = malloc(ANSWER_MAX);
    struct json_object *o = NULL, *v, *desc;
    int r = answer ? co_send_agent(fd, text, strlen(text), deadline) : -ENOMEM;

    UNLESS_FAILED(r, co_receive_agent(fd, delimited, deadline, answer, ANSWER_MAX));
    if (r == -ETIMEDOUT) {
        return error_set(err, ETIMEDOUT, "The guest agent does not answer within %u seconds",
                         timeout_s);
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Could not ask the guest agent");
    }
    o = json_tokener_parse(answer);
    if (o && json_object_object_get_ex(o, "error", &v)) {
        r = error_set(err, EIO, "The guest agent refused: %s",
                      json_object_object_get_ex(v, "desc", &desc) ? json_object_get_string(desc)
                                                                  : "no reason given");
    } else if (!o || !json_object_object_get_ex(o, "return", &v)) {
        r = error_set(err, EPROTO, "The guest agent sent something that is no answer");
    } else if (ret_value) {
        *ret_value = json_object_get_int64(v);
    }
    json_object_put(o);
    return r;
}

/* What was said before on this channel, by anybody, must not be taken for an answer. */
static int co_sync_agent(int fd, unsigned timeout_s, struct error *err)
{
    int64_t id = loop_now_ns() & INT32_MAX, answer = -1;
    char text[128];
    int r;

    snprintf(text, sizeof(text),
             "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%" PRId64 "}}\n", id);
    r = co_agent(fd, text, true, timeout_s, &answer, err);
    return r < 0          ? r
           : answer == id ? 0
                          : error_set(err, EPROTO, "The guest agent answered another question");
}

static int co_connect_agent(const char *path, unsigned timeout_s, int *ret_fd, struct error *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd AUTO_CLOSE = -1;
    int r;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        return error_set(err, ENAMETOOLONG, "The path of the guest agent's socket is too long");
    }
    memcpy(addr.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return error_set_errno(err, errno, "Could not make a socket");
    }
    r = loop_co_connect(fd, (struct sockaddr *)&addr, sizeof(addr), timeout_s * NS_PER_SECOND);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not connect to the guest agent at '%s'", path);
    }
    r = co_sync_agent(fd, timeout_s, err);
    if (r == 0) {
        *ret_fd = TAKE_FD(fd);
    }
    return r;
}

static int co_thaw(const char *path, int fd, unsigned timeout_s, struct error *err)
{
    int again AUTO_CLOSE = -1;
    int r = -EIO;

    for (int i = 0; r < 0 && i < THAW_ATTEMPTS; i++) {
        ERROR_AUTO(attempt);

        /* An answer that came too late is skipped by a new synchronisation. */
        r = i == 0 ? 0 : co_sync_agent(fd, timeout_s, &attempt);
        UNLESS_FAILED(r, co_agent(fd, "{\"execute\":\"guest-fsfreeze-thaw\"}\n", false, timeout_s,
                                  NULL, &attempt));
        if (r == -ECONNRESET || r == -EPIPE) {
            if (again >= 0) {
                close(again);
                again = -1;
            }
            r = co_connect_agent(path, timeout_s, &again, &attempt);
            fd = r < 0 ? fd : again;
            r = -EIO;
        }
        if (r < 0 && i + 1 == THAW_ATTEMPTS) {
            error_move(err, &attempt);
            error_prepend(err, "The guest may still be frozen: ");
        }
    }
    return r;
}

int quiesce_co_thaw(const char *agent, unsigned timeout_s, struct error *err)
{
    int fd AUTO_CLOSE = -1;
    int r = co_connect_agent(agent, timeout_s, &fd, err);

    return r < 0 ? r : co_thaw(agent, fd, timeout_s, err);
}

/* --- both --- */

static int co_freeze(struct quiesce *q, struct error *err)
{
    const struct quiesce_options *o = q->options;
    int fd = -1, r;

    if (!o->agent) {
        return 0;
    }
    r = co_connect_agent(o->agent, o->timeout_s, &fd, err);
    if (r < 0) {
        return r;
    }
    /* From here on it may be frozen, whatever is answered. */
    q->agent_fd = fd;
    return co_agent(fd, "{\"execute\":\"guest-fsfreeze-freeze\"}\n", false, o->timeout_s, NULL,
                    err);
}

int quiesce_co_begin(struct quiesce *q, const struct quiesce_options *options, struct error *err)
{
    int r;

    *q = QUIESCE_INIT;
    q->options = options;
    q->pre_ran = true;
    r = co_run_hook(q, options->pre_hook, "begin", err);
    UNLESS_FAILED(r, co_freeze(q, err));
    if (r < 0) {
        quiesce_co_end(q, r, NULL);
    }
    return r;
}

int quiesce_co_end(struct quiesce *q, int status, struct error *err)
{
    int r = 0, hook = 0;

    if (q->agent_fd >= 0) {
        r = co_thaw(q->options->agent, q->agent_fd, q->options->timeout_s, err);
        close(q->agent_fd);
        q->agent_fd = -1;
    }
    if (q->pre_ran) {
        q->pre_ran = false;
        hook = co_run_hook(q, q->options->post_hook, status < 0 || r < 0 ? "failed" : "ok",
                           r < 0 ? NULL : err);
    }
    return error_first(r, hook);
}

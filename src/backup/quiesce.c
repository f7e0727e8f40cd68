/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/quiesce.h"

#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/spawn.h"
#include "base/time_units.h"
#include "loop/loop.h"

#define DELIMITER 0xffu
#define ANSWER_MAX 65536u
#define THAW_ATTEMPTS 5
/* An agent that is gone may be back after that. */
#define THAW_PAUSE_NS NS_PER_SECOND
/* How long a freeze that was there before is another program's, which ends it. */
#define FORMER_FREEZE_NS (10 * NS_PER_SECOND)
#define FORMER_FREEZE_LOOK_NS (200 * NS_PER_MS)
#define THAW "{\"execute\":\"guest-fsfreeze-thaw\"}\n"

/* How often the end of a hook is looked for; when one that is stopped is killed. */
#define HOOK_LOOK_MIN_NS NS_PER_MS
#define HOOK_LOOK_MAX_NS (100 * NS_PER_MS)
#define HOOK_END_NS (5 * NS_PER_SECOND)
/* The status that the first hook sees. */
#define BEGIN "begin"

/* --- hooks --- */

/* What is written to standard output is a result, so a hook writes to standard error. */
static int start_hook(const char *command, char **environment, pid_t *ret_child)
{
    char *const argv[] = {"/bin/sh", "-c", (char *)command, NULL};
    posix_spawn_file_actions_t actions;
    int r;

    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
    r = spawn_program(argv, environment, &actions, ret_child);
    posix_spawn_file_actions_destroy(&actions);
    return r;
}

/* Wait for a hook. `stop` ends it; NULL: nothing does. *ret_status: waitpid(2). -EINTR: ended. */
static int co_wait_for_hook(pid_t child, volatile sig_atomic_t *stop, int *ret_status)
{
    int64_t pause = HOOK_LOOK_MIN_NS, asked_ns = 0;
    pid_t ended;

    while ((ended = waitpid(child, ret_status, WNOHANG)) == 0 || (ended < 0 && errno == EINTR)) {
        if (!asked_ns && stop && *stop) {
            asked_ns = loop_now_ns();
            kill(child, SIGTERM);
        } else if (asked_ns && loop_now_ns() > asked_ns + HOOK_END_NS) {
            kill(child, SIGKILL);
        }
        loop_co_sleep(pause);
        pause = MIN(2 * pause, HOOK_LOOK_MAX_NS);
    }
    return ended < 0 ? -errno : asked_ns ? -EINTR : 0;
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
    volatile sig_atomic_t *stop = q->options->stop;
    char *machine AUTO_FREE = NULL, *state AUTO_FREE = NULL;
    char **list AUTO_FREE = NULL;
    int r, ended = 0;
    pid_t child;

    /* What ends after a stop has to put things in order. */
    if (stop && *stop && strcmp(status, BEGIN) != 0) {
        stop = NULL;
    }
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
    r = start_hook(command, list, &child);
    UNLESS_FAILED(r, co_wait_for_hook(child, stop, &ended));
    if (r == -EINTR) {
        return error_set(err, EINTR, "The hook '%s' was stopped", command);
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Could not run the hook '%s'", command);
    }
    if (WIFSIGNALED(ended)) {
        return error_set(err, ECANCELED, "The hook '%s' was ended by signal %d", command,
                         WTERMSIG(ended));
    }
    return WEXITSTATUS(ended) ? error_set(err, ECANCELED, "The hook '%s' failed with status %d",
                                          command, WEXITSTATUS(ended))
                              : 0;
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

static int agent_failed(int r, unsigned timeout_s, struct error *err)
{
    return r == -ETIMEDOUT
               ? error_set(err, ETIMEDOUT, "The guest agent does not answer within %u seconds",
                           timeout_s)
               : error_set_errno(err, -r, "Could not ask the guest agent");
}

/* The answer to a command. *ret_value (may be NULL) gets what is returned, a new reference. */
static int co_take_answer(int fd, bool delimited, unsigned timeout_s, int64_t deadline,
                          struct json_object **ret_value, struct error *err)
{
    char *answer AUTO_FREE = malloc(ANSWER_MAX);
    struct json_object *o = NULL, *v, *desc;
    int r = answer ? co_receive_agent(fd, delimited, deadline, answer, ANSWER_MAX) : -ENOMEM;

    if (r < 0) {
        return agent_failed(r, timeout_s, err);
    }
    o = json_tokener_parse(answer);
    if (o && json_object_object_get_ex(o, "error", &v)) {
        r = error_set(err, EIO, "The guest agent refused: %s",
                      json_object_object_get_ex(v, "desc", &desc) ? json_object_get_string(desc)
                                                                  : "no reason given");
    } else if (!o || !json_object_object_get_ex(o, "return", &v)) {
        r = error_set(err, EPROTO, "The guest agent sent something that is no answer");
    } else if (ret_value) {
        *ret_value = json_object_get(v);
    }
    json_object_put(o);
    return r;
}

/*
 * Send `text`, commands that end with a newline, after a synchronisation: what was said before on
 * this channel, by anybody, must not be taken for an answer. That was answered when this returns.
 */
static int co_send_synced(int fd, const char *text, unsigned timeout_s, int64_t deadline,
                          struct error *err)
{
    int64_t id = loop_now_ns() & INT32_MAX, answer = -1;
    char all[256];
    int r;

    snprintf(all, sizeof(all),
             "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%" PRId64 "}}\n%s",
             id, text);
    r = co_send_agent(fd, all, strlen(all), deadline);
    if (r < 0) {
        return agent_failed(r, timeout_s, err);
    }
    /* Earlier synchronisations may be answered before. */
    while (r == 0 && answer != id) {
        struct json_object *value = NULL;

        r = co_take_answer(fd, true, timeout_s, deadline, &value, err);
        answer = json_object_get_int64(value);
        json_object_put(value);
    }
    return r;
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
    *ret_fd = TAKE_FD(fd);
    return 0;
}

static int co_thaw_once(int fd, unsigned timeout_s, struct error *err)
{
    int64_t deadline = loop_now_ns() + timeout_s * NS_PER_SECOND;
    int r = co_send_synced(fd, THAW, timeout_s, deadline, err);

    UNLESS_FAILED(r, co_take_answer(fd, false, timeout_s, deadline, NULL, err));
    return r;
}

/* `fd`: connected, and closed by this; -1: not connected. */
static int co_thaw(const char *path, int fd, unsigned timeout_s, struct error *err)
{
    int r = -EIO;

    for (int i = 0; r < 0 && i < THAW_ATTEMPTS; i++) {
        ERROR_AUTO(attempt);

        if (i > 0 && fd < 0) {
            loop_co_sleep(THAW_PAUSE_NS);
        }
        r = fd < 0 ? co_connect_agent(path, timeout_s, &fd, &attempt) : 0;
        UNLESS_FAILED(r, co_thaw_once(fd, timeout_s, &attempt));
        if (fd >= 0 && (r == -ECONNRESET || r == -EPIPE)) {
            close(fd);
            fd = -1;
        }
        if (r < 0 && i + 1 == THAW_ATTEMPTS) {
            error_move(err, &attempt);
            error_prepend(err, "The guest may still be frozen: ");
        }
    }
    if (fd >= 0) {
        close(fd);
    }
    return r;
}

int quiesce_co_thaw(const char *agent, unsigned timeout_s, struct error *err)
{
    return co_thaw(agent, -1, timeout_s, err);
}

/* Agents that freeze can tell; one that refuses to is not asked again. */
static int co_ask_frozen(int fd, unsigned timeout_s, bool *ret_frozen, struct error *err)
{
    static const char status[] = "{\"execute\":\"guest-fsfreeze-status\"}\n";
    int64_t deadline = loop_now_ns() + timeout_s * NS_PER_SECOND;
    struct json_object *value = NULL;
    ERROR_AUTO(why);
    int r = co_send_agent(fd, status, strlen(status), deadline);

    *ret_frozen = false;
    r = r < 0 ? agent_failed(r, timeout_s, &why)
              : co_take_answer(fd, false, timeout_s, deadline, &value, &why);
    if (r == 0 && json_object_is_type(value, json_type_string)) {
        *ret_frozen = strcmp(json_object_get_string(value), "frozen") == 0;
    }
    json_object_put(value);
    if (r < 0 && r != -EIO) {
        error_move(err, &why);
        return r;
    }
    return 0;
}

/*
 * A run that was killed with its guard leaves the guest frozen, and a frozen agent refuses to
 * freeze. Another program's freeze gets some time to end.
 */
static int co_end_former_freeze(int fd, const struct quiesce_options *o, struct error *err)
{
    int64_t until = loop_now_ns() + FORMER_FREEZE_NS;
    bool frozen;
    int r = co_ask_frozen(fd, o->timeout_s, &frozen, err);

    while (r == 0 && frozen && loop_now_ns() < until) {
        if (o->stop && *o->stop) {
            return error_set(err, EINTR, "Stopped");
        }
        loop_co_sleep(FORMER_FREEZE_LOOK_NS);
        r = co_ask_frozen(fd, o->timeout_s, &frozen, err);
    }
    if (r == 0 && frozen) {
        log_warning(
            "The guest's file systems were frozen before this run, for %d s at least: by one "
            "that was killed, or by another program. They are thawed first",
            (int)(FORMER_FREEZE_NS / NS_PER_SECOND));
        r = co_thaw_once(fd, o->timeout_s, err);
    }
    return r;
}

/* --- both --- */

static int co_freeze(struct quiesce *q, struct error *err)
{
    static const char freeze[] = "{\"execute\":\"guest-fsfreeze-freeze\"}\n";
    const struct quiesce_options *o = q->options;
    int64_t deadline;
    int fd = -1, r;

    if (!o->agent) {
        return 0;
    }
    r = co_connect_agent(o->agent, o->timeout_s, &fd, err);
    if (r < 0) {
        return r;
    }
    r = co_send_synced(fd, "", o->timeout_s, loop_now_ns() + o->timeout_s * NS_PER_SECOND, err);
    UNLESS_FAILED(r, co_end_former_freeze(fd, o, err));
    if (r < 0) {
        close(fd);
        return r;
    }
    /* From here on it may be frozen, whatever is answered. */
    q->agent_fd = fd;
    deadline = loop_now_ns() + o->timeout_s * NS_PER_SECOND;
    r = co_send_agent(fd, freeze, strlen(freeze), deadline);
    return r < 0 ? agent_failed(r, o->timeout_s, err)
                 : co_take_answer(fd, false, o->timeout_s, deadline, NULL, err);
}

int quiesce_co_begin(struct quiesce *q, const struct quiesce_options *options, struct error *err)
{
    int r;

    *q = QUIESCE_INIT;
    q->options = options;
    q->pre_ran = true;
    r = co_run_hook(q, options->pre_hook, BEGIN, err);
    UNLESS_FAILED(r, co_freeze(q, err));
    if (r < 0) {
        quiesce_co_give_up(q, r, err);
    }
    return r;
}

int quiesce_co_end(struct quiesce *q, int status, struct error *err)
{
    int r = 0, hook = 0;

    if (q->agent_fd >= 0) {
        r = co_thaw(q->options->agent, q->agent_fd, q->options->timeout_s, err);
        q->agent_fd = -1;
    }
    if (q->pre_ran) {
        q->pre_ran = false;
        hook = co_run_hook(q, q->options->post_hook, status < 0 || r < 0 ? "failed" : "ok",
                           r < 0 ? NULL : err);
    }
    return error_first(r, hook);
}

int quiesce_co_give_up(struct quiesce *q, int status, struct error *err)
{
    ERROR_AUTO(later);
    int r = quiesce_co_end(q, status, &later);

    if (r < 0) {
        error_hint(err, "%s.", error_message(&later));
    }
    return r;
}

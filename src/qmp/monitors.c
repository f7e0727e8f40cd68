/* SPDX-License-Identifier: Apache-2.0 */
#include "qmp/monitors.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/json_write.h"
#include "base/list.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "block/passed_fd.h"
#include "chardev/chardev.h"
#include "qmp/dispatch.h"
#include "qmp/monitor.h"

struct qmp_monitor {
    struct list link; /* in `monitors` */
    bool pretty;
    struct fd_names *fd_names; /* a reference */
};

static struct list monitors = LIST_INIT(monitors);

/* Send an error to a client that is not served, as far as its socket takes it. */
static int refuse_client(int fd, struct error *err)
{
    struct json_object *answer;
    STRBUF_AUTO(text);

    error_set(err, EAGAIN, "There are %d monitor clients already", QMP_SESSION_MAX);
    answer = qmp_error_answer(err);
    json_write(&text, answer, false);
    strbuf_puts(&text, "\r\n");
    json_object_put(answer);
    /* The socket's buffer is empty, so this does not block. */
    if (send(fd, strbuf_str(&text), text.len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        log_debug("a monitor client: %s", strerror(errno));
    }
    close(fd);
    return -EAGAIN;
}

static int begin_session(struct chardev *c, int fd, void *arg, struct error *err)
{
    const struct qmp_monitor *m = arg;
    ERROR_AUTO(refusal);

    if (qmp_session_count() >= QMP_SESSION_MAX) {
        refuse_client(fd, &refusal);
        error_move(err, &refusal);
        return -EAGAIN;
    }
    return qmp_session_start(fd, m->pretty, m->fd_names, c, err);
}

static void free_monitor(struct qmp_monitor *m)
{
    list_remove(&m->link);
    fd_names_unref(m->fd_names);
    free(m);
}

int qmp_monitor_start(const char *chardev_id, bool pretty, struct error *err)
{
    struct qmp_monitor *m = calloc(1, sizeof(*m));
    int r = -ENOMEM;

    if (!m) {
        return error_out_of_memory(err);
    }
    list_init(&m->link);
    m->pretty = pretty;
    m->fd_names = fd_names_new();
    r = m->fd_names ? chardev_attach(chardev_id, begin_session, m, err) : error_out_of_memory(err);
    if (r < 0) {
        free_monitor(m);
        return r;
    }
    list_append(&monitors, &m->link);
    return 0;
}

int qmp_monitor_add(struct options *opts_, struct error *err)
{
    static const char *const modes[] = {"control", NULL};
    AUTO_OPTIONS struct options *opts = opts_;
    AUTO_FREE char *name = NULL, *id = NULL;
    bool pretty;
    int mode;

    if (options_take_str(opts, "chardev", &name, err) < 0 ||
        options_take_str(opts, "id", &id, err) < 0 ||
        options_take_enum(opts, "mode", modes, 0, &mode, err) < 0 ||
        options_take_bool(opts, "pretty", false, &pretty, err) < 0 ||
        options_check_empty(opts, "monitor", err) < 0) {
        return -EINVAL;
    }
    return name ? qmp_monitor_start(name, pretty, err)
                : error_set(err, EINVAL, "Parameter 'chardev' is missing");
}

void qmp_monitors_co_release(void)
{
    while (!list_is_empty(&monitors)) {
        struct qmp_monitor *m = LIST_FIRST(&monitors, struct qmp_monitor, link);

        fd_names_co_close_all(m->fd_names);
        free_monitor(m);
    }
}

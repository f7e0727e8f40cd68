/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/daemon/end.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/time_units.h"
#include "block/block.h"
#include "block/control_busy.h"
#include "block/stats.h"
#include "chardev/chardev.h"
#include "cli/cli.h"
#include "export/export.h"
#include "export/nbd_server.h"
#include "job/job.h"
#include "loop/loop.h"
#include "qmp/command_lock.h"
#include "qmp/monitor.h"
#include "qmp/monitors.h"

/* How long the start may take to notice that it has to end. */
#define START_WAIT_MS 1000
/* How often it looks whether something hangs. */
#define LOOK_NS (50 * NS_PER_MS)

/* Steps of the orderly end, for messages. */
static const char step_command[] = "the command that runs", step_exports[] = "exports",
                  step_nodes[] = "nodes", step_close[] = "closing nodes";

/* --- waiting ---------------------------------------------------------------------------------- */

static int watch_fd(struct daemon_signals *s, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

    return epoll_ctl(s->set, EPOLL_CTL_ADD, fd, &event);
}

int daemon_signals_open(struct daemon_signals *s)
{
    sigset_t set;
    int code;

    cli_end_signals(&set);
    *s = (struct daemon_signals){-1, -1, -1, -1};
    if (pthread_sigmask(SIG_BLOCK, &set, NULL) == 0 &&
        (s->set = epoll_create1(EPOLL_CLOEXEC)) >= 0 &&
        (s->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)) >= 0 &&
        (s->quit_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) >= 0 &&
        (s->note_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) >= 0 &&
        watch_fd(s, s->signal_fd) == 0 && watch_fd(s, s->quit_fd) == 0 &&
        watch_fd(s, s->note_fd) == 0) {
        return 0;
    }
    code = errno;
    daemon_signals_close(s);
    return -code;
}

void daemon_signals_close(struct daemon_signals *s)
{
    int *const fds[] = {&s->set, &s->signal_fd, &s->quit_fd, &s->note_fd};

    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        if (*fds[i] >= 0) {
            close(*fds[i]);
        }
        *fds[i] = -1;
    }
}

enum daemon_wake daemon_co_wait(struct daemon_signals *s, long long timeout_ns)
{
    long long end = timeout_ns < 0 ? 0 : loop_now_ns() + timeout_ns;

    for (;;) {
        long long left = timeout_ns < 0 ? -1 : end - loop_now_ns();
        struct signalfd_siginfo info;
        uint64_t count;

        if (read(s->signal_fd, &info, sizeof(info)) > 0 ||
            read(s->quit_fd, &count, sizeof(count)) > 0) {
            return DAEMON_WAKE_SIGNAL;
        }
        if (read(s->note_fd, &count, sizeof(count)) > 0) {
            return DAEMON_WAKE_NOTE;
        }
        if (timeout_ns >= 0 && left <= 0) {
            return DAEMON_WAKE_TIMEOUT;
        }
        /* A signalfd wakes its waiters for any signal, also for those that it does not report. */
        if (loop_co_poll(s->set, POLLIN, left) < 0) {
            loop_co_sleep(NS_PER_MS);
        }
    }
}

void daemon_note(struct daemon_signals *s)
{
    uint64_t one = 1;

    if (write(s->note_fd, &one, sizeof(one)) < 0) {
        log_error("eventfd: %s", strerror(errno));
    }
}

/* --- what is known ---------------------------------------------------------------------------- */

static struct end {
    struct daemon_signals *signals;
    const bool *starting;
    void (*co_end_users)(void); /* NULL: none */
    const char *step;           /* of the orderly end, for messages */
    struct block_node *node;    /* the node that it is closing, which may be freed; NULL: none */
    const char *node_name;      /* of that node */
    bool hasty;                 /* the orderly end has to stop */
    bool done;                  /* the orderly end is complete, or has stopped */
    bool clean;                 /* nothing is left that could hang */
    int status;
    struct completion *orderly; /* what the orderly end completes at the moment; NULL: nothing */
    size_t orderly_count;
    size_t incomplete;  /* nodes that are being completed */
    size_t suspects;    /* of these, those of is_suspect() */
    size_t keepers;     /* of the others, those of keeps_writes() */
    bool stuck;         /* jobs hang */
    size_t exports;     /* that were left when there was news of exports */
    uint64_t export_io; /* by all nodes, when there was news of exports */
    long long exports_ns;
    size_t nodes; /* that were left when there was news of their closing, and I/O likewise */
    uint64_t close_io;
    long long close_ns;
    size_t completing; /* nodes, when there was news of their completion, and I/O likewise */
    uint64_t complete_io;
    long long complete_ns;
    uint64_t command_io; /* by the nodes of the command that runs, when there was news of them */
    long long command_ns;
} end;

/* QEMU's programs leave out which node it is. */
static void report_unclosed(const char *name, const struct error *err)
{
    if (cli_is_compat()) {
        end.status = cli_fail("%s", error_message(err));
    } else {
        end.status = cli_fail("closing node '%s': %s", name, error_message(err));
    }
}

/* --- completing nodes ------------------------------------------------------------------------- */

/* `reader`: one who only reads the node and is not waited for; NULL: none. */
static void co_complete_node(struct block_node *node, const struct block_root *reader)
{
    ERROR_AUTO(err);
    int r = reader ? block_co_inactivate_but(node, reader, &err) : block_co_inactivate(node, &err);

    if (r < 0) {
        report_unclosed(block_node_name(node), &err);
    }
}

struct completion {
    struct block_node *node; /* referenced */
    bool suspect;
    bool keeper;
    bool done;
};

static void drop_incomplete(const struct completion *c)
{
    end.incomplete--;
    end.suspects -= c->suspect;
    end.keepers -= c->keeper;
}

/* A job that hangs may read the node: that is no reason to wait. */
static void co_complete_one(void *arg)
{
    struct completion *c = arg;
    const struct block_root *reader = NULL;

    (void)job_is_using(c->node, &reader);
    co_complete_node(c->node, reader);
    c->done = true;
    drop_incomplete(c);
    daemon_note(end.signals);
}

/* One whose clients are gone writes nothing more. */
static bool is_below_export(const struct export_info *info, void *arg)
{
    struct block_node **node = arg;

    if ((info->clients > 0 || !info->shutting_down) && block_node_reaches(info->node, *node)) {
        *node = NULL;
    }
    return *node != NULL;
}

/* Whether requests of a job that hangs wait for the disk that it reads, and not for another one. */
static bool reads_hang(const struct block_root *reader)
{
    uint64_t values[BLOCK_STATS];

    block_node_read_stats(block_node_skip_filters(block_root_node(reader)), values);
    return values[BLOCK_STAT_IN_FLIGHT] > 0;
}

/*
 * Whether a command, a job or an export that has not ended may write to the node, or a job reads it
 * and hangs there. A command may be what writes that which no flush followed, to a slow disk.
 */
static bool is_suspect(struct block_node *node)
{
    const struct block_root *reader;

    if ((block_control_is_busy_with(node) && !block_node_keeps_writes(node)) ||
        (job_is_using(node, &reader) && (!reader || reads_hang(reader)))) {
        return true;
    }
    export_foreach(is_below_export, &node);
    return !node;
}

/* What nodes above have written since, to be complete, is not the guests'. */
static bool keeps_writes(const struct block_node *node)
{
    for (size_t i = 0; i < end.orderly_count; i++) {
        if (end.orderly[i].node == node) {
            return end.orderly[i].keeper && !end.orderly[i].done;
        }
    }
    return !end.orderly && block_node_keeps_writes(node);
}

/*
 * Complete all nodes but the one that the orderly end is closing: formats have bitmaps to store,
 * files have to be flushed. Returns the number of entries in *ret_list.
 */
static size_t start_completions(struct completion **ret_list)
{
    struct block_node *node = NULL;
    size_t count = 0;

    while ((node = block_node_next(node))) {
        count++;
    }
    *ret_list = calloc(count ? count : 1, sizeof(**ret_list));
    count = 0;
    while (*ret_list && (node = block_node_next(node))) {
        struct completion *c = &(*ret_list)[count];

        if (node == end.node || block_node_is_read_only(node) || block_node_is_filter(node) ||
            (!end.hasty && !block_node_has_to_complete(node))) {
            continue;
        }
        *c = (struct completion){.node = block_node_ref(node), .suspect = is_suspect(node)};
        c->keeper = !c->suspect && keeps_writes(node);
        end.incomplete++;
        end.suspects += c->suspect;
        end.keepers += c->keeper;
        count++;
        if (reactor_spawn(reactor_main(), co_complete_one, c) < 0) {
            drop_incomplete(c);
        }
    }
    return count;
}

/* --- in order --------------------------------------------------------------------------------- */

/* All at the same time: one that hangs keeps no other from being stored. */
static void co_complete_all_images(void)
{
    struct completion *list;
    size_t count = start_completions(&list);

    end.orderly = list;
    end.orderly_count = count;
    while (end.incomplete > 0 && !end.hasty) {
        loop_co_sleep(NS_PER_MS);
    }
    if (end.hasty) {
        return; /* those that hang use the list */
    }
    end.orderly = NULL;
    end.orderly_count = 0;
    for (size_t i = 0; i < count; i++) {
        block_co_unref(list[i].node);
    }
    free(list);
}

/* Close a node by giving back the monitor's reference. */
static void co_close_node(struct block_node *node)
{
    AUTO_FREE char *name = strdup(block_node_name(node));
    bool reported = block_node_failure_reported(node);
    ERROR_AUTO(err);

    end.node = node;
    end.node_name = name ?: "";
    block_node_set_monitor_owned(node, false);
    if (block_co_close(node, &err) < 0 && !reported) {
        report_unclosed(name ?: "", &err);
    }
    end.node = NULL;
}

/*
 * The monitor's nodes, oldest first; they stay the monitor's until this file closes them, since no
 * command runs. NULL: no memory. The caller frees the list.
 */
static struct block_node **list_owned_nodes(size_t *ret_count)
{
    struct block_node *node = NULL, **list;
    size_t count = 0;

    while ((node = block_node_next(node))) {
        count++;
    }
    list = malloc((count + 1) * sizeof(struct block_node *));
    *ret_count = 0;
    while (list && (node = block_node_next(node))) {
        if (block_node_is_monitor_owned(node)) {
            list[(*ret_count)++] = node;
        }
    }
    return list;
}

/* Close the nodes that nothing uses, newest first. Returns false if the monitor has no node. */
static bool co_close_unused_nodes(void)
{
    size_t count, closed = 0;
    AUTO_FREE struct block_node **nodes = list_owned_nodes(&count);

    if (!nodes) {
        end.status = cli_fail("nodes are not closed: out of memory");
        return false;
    }
    for (size_t i = count; i-- > 0 && !end.hasty;) {
        if (!block_node_in_use(nodes[i])) {
            co_close_node(nodes[i]);
            closed++;
        }
    }
    if (closed == 0 && count > 0 && !end.hasty) {
        co_close_node(nodes[count - 1]);
    }
    return count > 0;
}

/* Close node by node, from those without users to those that they use. */
static void co_close_nodes(void)
{
    while (!end.hasty && co_close_unused_nodes()) {
        /* the children of the closed ones may be unused now */
    }
}

/*
 * Complete nodes that still exist without a monitor's reference. Something that hangs keeps them,
 * such as an image that was being opened, or closed, on top. They are not closed, but lose no data.
 */
static void co_complete_kept(void)
{
    struct block_node *node = block_node_next(NULL), *next;

    node = node ? block_node_ref(node) : NULL;
    while (node) {
        if (!end.hasty && !block_node_is_read_only(node)) {
            end.node = node;
            end.node_name = block_node_name(node);
            co_complete_node(node, NULL);
            end.node = NULL;
        }
        next = block_node_next(node);
        next = next ? block_node_ref(next) : NULL;
        block_co_unref(node);
        node = next;
    }
}

static void co_wait_for_start(void)
{
    for (int ms = 0; *end.starting && ms < START_WAIT_MS; ms++) {
        loop_co_sleep(NS_PER_MS);
    }
}

static void co_end_in_order(void *arg)
{
    end.step = step_command;
    co_wait_for_start();
    qmp_co_stop_commands();
    end.step = "monitors";
    chardev_co_close_all();
    end.step = "jobs";
    if (!job_co_cancel_all()) {
        end.stuck = true;
        daemon_note(end.signals);
        return;
    }
    end.step = "users of nodes";
    if (!end.hasty && end.co_end_users) {
        end.co_end_users();
    }
    end.step = step_exports;
    if (!end.hasty && export_nbd_server_is_running()) {
        export_co_nbd_server_stop(NULL);
    }
    if (!end.hasty) {
        export_co_del_all(NULL);
    }
    end.step = step_nodes;
    if (!end.hasty) {
        co_complete_all_images();
    }
    end.step = step_close;
    co_close_nodes();
    end.step = step_nodes;
    co_complete_kept();
    if (!end.hasty) {
        end.step = "monitors";
        end.clean = qmp_co_end_sessions() && !*end.starting;
        chardev_co_release_all();
        qmp_monitors_co_release();
    }
    end.done = true;
    daemon_note(end.signals);
}

/* --- in haste --------------------------------------------------------------------------------- */

static bool report_export(const struct export_info *info, void *arg)
{
    /* Other exports are not ending yet, or have no clients any more. */
    if (info->shutting_down || (info->clients > 0 && end.step != step_command)) {
        log_error("export '%s' on node '%s' cannot be closed: requests hang", info->id,
                  block_node_name(info->node));
    }
    return true;
}

static void report_hanging(bool asked, long long began_ns)
{
    if (asked) {
        log_error("the orderly end is given up on another signal, at: %s", end.step);
    } else {
        log_error("the orderly end is given up after %.0f s, at: %s",
                  (double)(loop_now_ns() - began_ns) / NS_PER_SECOND, end.step);
    }
    if (end.node) {
        log_error("node '%s' cannot be closed: its storage hangs", end.node_name);
    }
    for (struct job *job = job_next(NULL); job; job = job_next(job)) {
        if (job_get_info(job).status < JOB_CONCLUDED) {
            log_error("job '%s' is abandoned: its requests hang", job_id(job));
        }
    }
    export_foreach(report_export, NULL);
}

static bool count_export(const struct export_info *info, void *arg)
{
    ++*(size_t *)arg;
    return true;
}

static size_t count_exports(void)
{
    size_t count = 0;

    export_foreach(count_export, &count);
    return count;
}

/* Guests write no more to images that are being completed, also those of exports that hang. */
static void co_let_clients_go(void)
{
    long long deadline = loop_now_ns() + DAEMON_SUSPECT_MS * NS_PER_MS;

    export_begin_del_all();
    while (count_exports() > 0 && loop_now_ns() < deadline) {
        loop_co_sleep(NS_PER_MS);
    }
}

/*
 * How long to wait for the next node to be complete; one that is closed was complete before. What
 * keeps writes gets the time that an orderly end has, unless the user is in a hurry.
 */
static long long haste_ns(bool asked, long long began_ns)
{
    bool closes = end.node && !end.done && end.step != step_close;
    bool keeps = end.keepers > 0 || (closes && block_node_keeps_writes(end.node));

    if (end.incomplete <= end.suspects && !closes) {
        return DAEMON_SUSPECT_MS * NS_PER_MS;
    }
    return asked || !keeps ? DAEMON_HASTE_SECONDS * NS_PER_SECOND
                           : MAX(began_ns + DAEMON_END_SECONDS * NS_PER_SECOND - loop_now_ns(),
                                 DAEMON_HASTE_SECONDS * NS_PER_SECOND);
}

/* Operations of the node that have ended, with success or not. *ret_waits: others have not. */
static uint64_t count_ended_io(struct block_node *node, bool *ret_waits)
{
    uint64_t values[BLOCK_STATS];

    block_node_read_stats(node, values);
    *ret_waits = values[BLOCK_STAT_IN_FLIGHT] > 0;
    return values[BLOCK_STAT_BEGUN] - values[BLOCK_STAT_IN_FLIGHT];
}

static uint64_t count_all_ended_io(void)
{
    struct block_node *node = NULL;
    uint64_t io = 0;
    bool waits;

    while ((node = block_node_next(node))) {
        io += count_ended_io(node, &waits);
    }
    return io;
}

/*
 * Wait for completions as long as one is done now and then, or an operation has ended: a slow disk
 * may need many. More signals change nothing: storing bitmaps is worth a moment.
 */
static void co_wait_for_completions(bool asked, long long began_ns)
{
    long long deadline = loop_now_ns() + haste_ns(asked, began_ns);
    uint64_t io = count_all_ended_io();

    while (end.incomplete > 0 || (end.node && !end.done)) {
        long long left = MAX(deadline - loop_now_ns(), 0);
        enum daemon_wake wake = daemon_co_wait(end.signals, MIN(left, LOOK_NS));
        uint64_t now = count_all_ended_io();
        bool goes_on = !asked && now != io && end.incomplete > end.suspects &&
                       loop_now_ns() < began_ns + DAEMON_END_SECONDS * NS_PER_SECOND;

        io = now;
        if (wake == DAEMON_WAKE_NOTE || goes_on) {
            deadline = loop_now_ns() + haste_ns(asked, began_ns);
        } else if (loop_now_ns() >= deadline) {
            return;
        }
    }
}

/* The process ends: references and coroutines stay as they are. */
static void co_end_in_haste(bool asked, long long began_ns)
{
    struct completion *list;
    size_t count;

    end.hasty = true;
    end.status = 1;
    report_hanging(asked, began_ns);
    co_let_clients_go();
    count = start_completions(&list);
    co_wait_for_completions(asked, began_ns);
    for (size_t i = 0; list && i < count; i++) {
        if (!list[i].done) {
            log_error("node '%s' is left incomplete: its storage hangs",
                      block_node_name(list[i].node));
        }
    }
}

/*
 * Whether exports have been ending for long, and neither has one ended, nor an operation: a slow
 * disk may need many for a request. No job and no command runs any more.
 */
static bool exports_hang(void)
{
    size_t count = count_exports();
    struct block_node *node = NULL;
    uint64_t io = 0;
    bool waits;

    while (end.step == step_exports && (node = block_node_next(node))) {
        io += count_ended_io(node, &waits);
    }
    if (end.step != step_exports || count == 0 || count != end.exports || io != end.export_io) {
        end.exports = count;
        end.export_io = io;
        end.exports_ns = loop_now_ns();
    }
    return loop_now_ns() - end.exports_ns >= DAEMON_STALL_MS * NS_PER_MS;
}

/*
 * Whether nodes have been closing for long, all of which are complete, and neither is one closed,
 * nor has an operation ended.
 */
static bool close_hangs(void)
{
    struct block_node *node = NULL;
    size_t count = 0;
    uint64_t io = 0;
    bool waits;

    while (end.step == step_close && (node = block_node_next(node))) {
        count++;
        io += count_ended_io(node, &waits);
    }
    if (end.step != step_close || !end.node || count != end.nodes || io != end.close_io) {
        end.nodes = count;
        end.close_io = io;
        end.close_ns = loop_now_ns();
    }
    return loop_now_ns() - end.close_ns >= DAEMON_STALL_MS * NS_PER_MS;
}

/*
 * Whether nodes have been completed for long, and neither is one complete, nor has an operation
 * ended. Those that keep writes get more time.
 */
static bool completion_hangs(void)
{
    bool runs = end.step == step_nodes && (end.incomplete > 0 || end.node);
    bool keeps = runs && (end.keepers > 0 || (end.node && block_node_keeps_writes(end.node)));
    uint64_t io = runs && !keeps ? count_all_ended_io() : 0;

    if (!runs || keeps || end.incomplete != end.completing || io != end.complete_io) {
        end.completing = end.incomplete;
        end.complete_io = io;
        end.complete_ns = loop_now_ns();
    }
    return loop_now_ns() - end.complete_ns >= DAEMON_STALL_MS * NS_PER_MS;
}

/*
 * Operations that have ended, with success or not, on nodes that the command may touch. *ret_waits:
 * others have not.
 */
static uint64_t count_command_io(bool *ret_waits)
{
    struct block_node *node = NULL;
    uint64_t sum = 0;
    bool waits;

    *ret_waits = false;
    while ((node = block_node_next(node))) {
        if (block_control_is_busy_with(node)) {
            sum += count_ended_io(node, &waits);
            *ret_waits = *ret_waits || waits;
        }
    }
    return sum;
}

/* Whether the command that runs has been waiting for its disks for long, and these do nothing. */
static bool command_hangs(void)
{
    bool waits = false;
    uint64_t io = end.step == step_command ? count_command_io(&waits) : 0;

    if (!waits || io != end.command_io) {
        end.command_io = io;
        end.command_ns = loop_now_ns();
    }
    return loop_now_ns() - end.command_ns >= DAEMON_STALL_MS * NS_PER_MS;
}

int daemon_co_end(struct daemon_signals *s, const bool *starting, void (*co_end_users)(void),
                  bool *ret_clean)
{
    long long began = loop_now_ns(), deadline = began + DAEMON_END_SECONDS * NS_PER_SECOND;
    enum daemon_wake wake = DAEMON_WAKE_NOTE;

    end = (struct end){
        .signals = s,
        .starting = starting,
        .co_end_users = co_end_users,
        .exports_ns = began,
        .close_ns = began,
        .complete_ns = began,
        .command_ns = began,
    };
    if (reactor_spawn(reactor_main(), co_end_in_order, NULL) < 0) {
        co_end_in_order(NULL);
    }
    while (!end.done && !end.stuck && wake != DAEMON_WAKE_SIGNAL && loop_now_ns() < deadline &&
           !exports_hang() && !completion_hangs() && !close_hangs() && !command_hangs()) {
        wake = daemon_co_wait(s, LOOK_NS);
    }
    if (!end.done) {
        co_end_in_haste(wake == DAEMON_WAKE_SIGNAL, began);
    }
    *ret_clean = end.clean;
    return end.status;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a process that is broken leaves behind: the latest events. All of it runs in a signal
 * handler.
 */
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "trace/internal.h"
#include "trace/trace.h"

/* A sanitizer's own handler reports more of what a memory error is. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static const int signals[] = {SIGABRT};
#else
static const int signals[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
#endif

/* The thread that writes the events; 0: none. */
static _Atomic pid_t writer;

static void put_line(const char *line, size_t size)
{
    log_write(LOG_LEVEL_ERROR, line, size);
    trace_write_to_file(line, size);
}

/* strsignal() may take memory. */
static const char *signal_name(int signal)
{
    switch (signal) {
    case SIGABRT:
        return "SIGABRT";
    case SIGSEGV:
        return "SIGSEGV";
    case SIGBUS:
        return "SIGBUS";
    case SIGFPE:
        return "SIGFPE";
    default:
        return "SIGILL";
    }
}

static void put_heading(int signal)
{
    static const char after[] = " ends the process. Latest events, oldest first:\n";
    const char *name = signal_name(signal);
    char line[64 + sizeof(after)];
    const char *end = stpcpy(stpcpy(line, name), after);

    put_line(line, (size_t)(end - line));
}

/*
 * One thread writes, while others that crash as well wait for the end of the process; with the
 * default action in force, a second crash would cut the events short. A crash of the writer itself
 * ends the process: all signals are blocked, and the kernel does not let a fault wait.
 */
static void on_crash(int signal_number, siginfo_t *info, void *context)
{
    pid_t nobody = 0, self = gettid();

    if (atomic_compare_exchange_strong(&writer, &nobody, self)) {
        put_heading(signal_number);
        trace_ring_each(put_line);
    } else if (nobody != self) {
        for (;;) {
            pause();
        }
    }
    /* A signal that an instruction caused comes again with the instruction. */
    (void)signal(signal_number, SIG_DFL);
    if (info->si_code <= 0) {
        raise(signal_number); /* was sent; delivered when the handler returns */
    }
}

void trace_crash_init(void)
{
    struct sigaction action = {.sa_sigaction = on_crash, .sa_flags = SA_SIGINFO | SA_ONSTACK};

    for (const struct trace_event *const *e = trace_events; *e; e++) {
        if ((*e)->always) {
            atomic_fetch_or(&(*e)->point->sinks, TRACE_SINK_RING);
        }
    }
    sigfillset(&action.sa_mask);
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        (void)sigaction(signals[i], &action, NULL);
    }
    trace_thread_begin("main");
}

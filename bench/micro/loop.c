/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What reactors cost: wakes within and across threads, offloading, sockets, timers.
 * TIDEMARK_LOOP chooses the engine.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "co/sync.h"
#include "loop/loop.h"

#define ROUNDS 30000

static struct reactor *other;
static struct co_group group;

static double cpu_ns(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return ((double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec) * 1e9 +
           ((double)usage.ru_utime.tv_usec + (double)usage.ru_stime.tv_usec) * 1e3;
}

struct clock {
    double wall, cpu;
};

static struct clock clock_now(void)
{
    return (struct clock){(double)loop_now_ns(), cpu_ns()};
}

static void report(const char *what, struct clock begin, double count)
{
    struct clock end = clock_now();

    printf("%-44s %8.0f ns %8.0f ns cpu\n", what, (end.wall - begin.wall) / count,
           (end.cpu - begin.cpu) / count);
}

static void nothing(void *arg)
{
}

static int no_work(void *arg)
{
    return 0;
}

static void call_often(void *arg)
{
    for (int i = 0; i < ROUNDS; i++) {
        (void)loop_co_call_on(other, nothing, NULL);
    }
    co_group_done(&group);
}

static void bench_calls(const char *what, int callers)
{
    struct clock begin = clock_now();

    for (int i = 0; i < callers; i++) {
        co_group_add(&group);
        (void)reactor_spawn(reactor_main(), call_often, NULL);
    }
    co_group_wait(&group);
    report(what, begin, (double)ROUNDS * callers);
}

static void echo(void *arg)
{
    int fd = *(int *)arg;
    char byte;

    while (loop_co_recv(fd, &byte, 1) == 1) {
        struct iovec iov = {&byte, 1};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

        (void)loop_co_sendmsg(fd, &msg, 0);
    }
    co_group_done(&group);
}

static void bench_sockets(const char *what, struct reactor *there)
{
    struct clock begin;
    char byte = 0;
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) < 0) {
        return;
    }
    co_group_add(&group);
    (void)reactor_spawn(there, echo, &fds[1]);
    begin = clock_now();
    for (int i = 0; i < ROUNDS; i++) {
        (void)loop_co_sendmsg(fds[0], &msg, 0);
        (void)loop_co_recv(fds[0], &byte, 1);
    }
    report(what, begin, ROUNDS);
    shutdown(fds[0], SHUT_WR);
    co_group_wait(&group);
    close(fds[0]);
    close(fds[1]);
}

static void ignore_timer(struct loop_timer *self)
{
}

static void bench_timers(void)
{
    static struct loop_timer timers[1000];
    struct clock begin = clock_now();
    int64_t now = loop_now_ns() + INT64_C(60000000000);

    for (int i = 0; i < 1000; i++) {
        loop_timer_init(&timers[i], ignore_timer);
    }
    for (int i = 0; i < 1000 * 1000; i++) {
        loop_timer_arm(&timers[i % 1000], now + (int64_t)i * 7919 % 100003);
    }
    report("move one of 1000 timers", begin, 1e6);
    for (int i = 0; i < 1000; i++) {
        loop_timer_disarm(&timers[i]);
    }
}

static void bench_all(void *arg)
{
    struct clock begin;

    co_group_init(&group);
    begin = clock_now();
    for (int i = 0; i < ROUNDS * 10; i++) {
        co_reschedule();
    }
    report("turn with one runnable coroutine", begin, ROUNDS * 10.0);
    bench_calls("call on another reactor and back", 1);
    bench_calls("the same, 32 at a time", 32);
    begin = clock_now();
    for (int i = 0; i < ROUNDS; i++) {
        (void)loop_co_offload(no_work, NULL);
    }
    report("offload to the pool and back", begin, ROUNDS);
    bench_sockets("socket there and back, same reactor", reactor_main());
    bench_sockets("socket there and back, other reactor", other);
    bench_timers();
    co_group_destroy(&group);
}

int main(void)
{
    ERROR_AUTO(err);

    if (reactor_init_main(&err) < 0 || reactor_create("other", &other, &err) < 0) {
        fprintf(stderr, "loop: %s\n", error_message(&err));
        return 1;
    }
    printf("engine %s\n", reactor_engine());
    reactor_run_until_done(bench_all, NULL);
    reactor_exit_main();
    return 0;
}

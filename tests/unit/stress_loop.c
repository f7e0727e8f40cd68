/* SPDX-License-Identifier: Apache-2.0 */
/* Reactors that wake each other as they fall asleep, come and go, and share pool and sockets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "co/sync.h"
#include "loop/loop.h"
#include "workers.h"

#define REACTORS 4
#define WORKERS 16
#define ROUNDS 300

static int setup(void **state)
{
    return start_reactors(REACTORS);
}

static void run(co_entry *entry)
{
    run_workers((struct crew){.entry = entry, .count = WORKERS, .reactor_count = REACTORS});
}

static void add_one(void *arg)
{
    ++*(unsigned *)arg;
}

/* What is called on another reactor uses the caller's stack: each step must be ordered. */
static void call_around(void *arg)
{
    uintptr_t worker = (uintptr_t)arg;
    unsigned count = 0;

    for (unsigned i = 0; i < ROUNDS; i++) {
        loop_co_call_on(reactors[(worker + i) % REACTORS], add_one, &count);
    }
    assert_int_equal(count, ROUNDS);
    co_group_done(&group);
}

static void test_calls_between_reactors(void **state)
{
    run(call_around);
}

/* Two wake each other in turn: each wake meets the other reactor falling asleep. */
struct player {
    struct co *co;
    struct player *other;
    int *ball; /* of whoever runs */
};

static void wait_for_ball(void *arg)
{
    struct player *p = arg;

    for (int i = 0; i < ROUNDS * 10; i++) {
        co_suspend();
        ++*p->ball;
        co_wake(p->other->co);
    }
    co_group_done(&group);
}

static void start_player(void *arg)
{
    struct player *p = arg;

    p->co = co_self();
    wait_for_ball(p);
}

static void play(void *arg)
{
    struct reactor *there = arg;
    int ball = 0;
    struct player here = {.co = co_self()}, other = {.other = &here, .ball = &ball};

    co_group_init(&group);
    co_group_add(&group);
    assert_int_equal(reactor_spawn(there, start_player, &other), 0);
    loop_co_call_on(there, add_one, &(unsigned){0}); /* it has started, and waits */
    for (int i = 0; i < ROUNDS * 10; i++) {
        ++ball;
        co_wake(other.co);
        co_suspend();
    }
    co_group_wait(&group);
    co_group_destroy(&group);
    assert_int_equal(ball, ROUNDS * 20);
}

static void test_no_wake_is_lost(void **state)
{
    for (int i = 1; i < REACTORS; i++) {
        assert_int_equal(reactor_run_until_done(play, reactors[i]), 0);
    }
}

static int square(void *arg)
{
    return (int)((uintptr_t)arg * (uintptr_t)arg);
}

static void offload_and_sleep(void *arg)
{
    for (uintptr_t i = 0; i < ROUNDS; i++) {
        assert_int_equal(loop_co_offload(square, (void *)i), i * i);
        if (i % 16 == 0) {
            loop_co_sleep((int64_t)(i % 7) * 10000);
        }
    }
    co_group_done(&group);
}

static void test_pool_and_timers_under_load(void **state)
{
    run(offload_and_sleep);
}

static void echo(void *arg)
{
    int fd = (int)(uintptr_t)arg;
    char buf[256];
    ssize_t n;

    while ((n = loop_co_recv(fd, buf, sizeof(buf))) > 0) {
        struct iovec iov = {buf, (size_t)n};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

        assert_int_equal(loop_co_sendmsg(fd, &msg, 0), n);
    }
    assert_int_equal(n, 0);
    close(fd);
    co_group_done(&group);
}

static void converse(void *arg)
{
    uintptr_t worker = (uintptr_t)arg;
    char out[64], in[64];
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    co_group_add(&group);
    assert_int_equal(
        reactor_spawn(reactors[(worker + 1) % REACTORS], echo, (void *)(uintptr_t)fds[1]), 0);
    for (int i = 0; i < ROUNDS; i++) {
        struct iovec iov = {out, sizeof(out)};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

        memset(out, i, sizeof(out));
        assert_int_equal(loop_co_sendmsg(fds[0], &msg, 0), sizeof(out));
        if (i % 4 == 0) {
            assert_int_equal(loop_co_poll(fds[0], POLLIN, INT64_C(60000000000)), POLLIN);
        }
        for (size_t got = 0; got < sizeof(in);) {
            ssize_t n = loop_co_recv(fds[0], in + got, sizeof(in) - got);

            assert_true(n > 0);
            got += (size_t)n;
        }
        assert_memory_equal(in, out, sizeof(in));
    }
    shutdown(fds[0], SHUT_WR);
    assert_int_equal(loop_co_recv(fds[0], in, 1), 0);
    close(fds[0]);
    co_group_done(&group);
}

static void test_conversations_between_reactors(void **state)
{
    run(converse);
}

static void brief_visit(void *arg)
{
    unsigned count = 0;

    loop_co_call_on(reactor_main(), add_one, &count);
    assert_int_equal(loop_co_offload(square, (void *)2), 4);
    co_group_done(&group);
}

static void create_and_destroy(void *arg)
{
    co_group_init(&group);
    for (int i = 0; i < 60; i++) {
        struct reactor *r;

        assert_int_equal(reactor_create("brief", &r, NULL), 0);
        for (int n = 0; n < i % 4; n++) {
            co_group_add(&group);
            assert_int_equal(reactor_spawn(r, brief_visit, NULL), 0);
        }
        reactor_destroy(r);
        co_group_wait(&group);
    }
    co_group_destroy(&group);
}

static void test_reactors_come_and_go_under_load(void **state)
{
    assert_int_equal(reactor_run_until_done(create_and_destroy, NULL), 0);
}

static void set_seed(void *arg)
{
    reactor_set_seed(reactor_current(), (uintptr_t)arg);
}

static void set_seeds(void *arg)
{
    for (int i = 0; i < REACTORS; i++) {
        loop_co_call_on(reactors[i], set_seed, arg);
    }
}

static void test_seeded_reactors_do_the_same_work(void **state)
{
    for (uintptr_t seed = 1; seed <= 5; seed++) {
        assert_int_equal(reactor_run_until_done(set_seeds, (void *)seed), 0);
        run(call_around);
        run(converse);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, stop_reactors)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_calls_between_reactors),          TEST(test_no_wake_is_lost),
        TEST(test_pool_and_timers_under_load),      TEST(test_conversations_between_reactors),
        TEST(test_reactors_come_and_go_under_load), TEST(test_seeded_reactors_do_the_same_work),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Long work in pieces: who works for long on a reactor, and who gets a turn meanwhile. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/checked.h"
#include "co/sync.h"
#include "loop/loop.h"

#define MS INT64_C(1000000)
#define PIECE_NS INT64_C(50000)

static struct reactor *other;

static int setup(void **state)
{
    return reactor_init_main(NULL) || reactor_create("other", &other, NULL);
}

static int teardown(void **state)
{
    reactor_exit_main();
    return (int)co_count();
}

static void run(co_entry *entry, void *arg)
{
    assert_int_equal(reactor_run_until_done(entry, arg), 0);
}

struct long_work {
    struct co_group group;
    atomic_bool done; /* set by who must get a turn meanwhile */
    uint64_t spins;
};

/* Works without waiting for anything until the other is done. */
static void work_in_pieces(void *arg)
{
    struct long_work *work = arg;

    while (!atomic_load(&work->done)) {
        int64_t begin = loop_now_ns();

        while (loop_now_ns() - begin < PIECE_NS) {
            work->spins++;
        }
        if (reactor_turn_expired()) {
            loop_co_give_way();
        }
    }
    co_group_done(&work->group);
}

static void start_workers(struct long_work *work, int count)
{
    co_group_init(&work->group);
    for (int i = 0; i < count; i++) {
        co_group_add(&work->group);
        assert_int_equal(co_spawn(co_get_home(co_self()), work_in_pieces, work), 0);
    }
}

static void finish_work(struct long_work *work)
{
    atomic_store(&work->done, true);
    co_group_wait(&work->group);
    co_group_destroy(&work->group);
    assert_true(work->spins > 0);
}

static void sleep_beside_long_work(void *arg)
{
    struct long_work work = {0};

    start_workers(&work, 3);
    loop_co_sleep(3 * MS);
    finish_work(&work);
}

static void test_timers_fire_beside_long_work(void **state)
{
    run(sleep_beside_long_work, NULL);
}

static void *write_later(void *arg)
{
    usleep(3000);
    assert_int_equal(write(*(int *)arg, "x", 1), 1);
    return NULL;
}

static void receive_beside_long_work(void *arg)
{
    struct long_work work = {0};
    pthread_t thread;
    int fds[2];
    char c;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
    start_workers(&work, 3);
    assert_int_equal(pthread_create(&thread, NULL, write_later, &fds[1]), 0);
    assert_int_equal(loop_co_recv(fds[0], &c, 1), 1);
    pthread_join(thread, NULL);
    finish_work(&work);
    close(fds[0]);
    close(fds[1]);
}

static void test_messages_arrive_beside_long_work(void **state)
{
    run(receive_beside_long_work, NULL);
}

static void woken_elsewhere(void *arg)
{
}

static void be_woken_beside_long_work(void *arg)
{
    struct long_work work = {0};

    start_workers(&work, 3);
    loop_co_call_on(other, woken_elsewhere, NULL);
    finish_work(&work);
}

static void test_other_threads_wake_beside_long_work(void **state)
{
    run(be_woken_beside_long_work, NULL);
}

/*
 * Many that give way share one turn's time: it is not one piece of each between two turns of the
 * others.
 */
static void count_turns_of_others(void *arg)
{
    struct long_work work = {0};
    int64_t shortest = INT64_MAX;

    start_workers(&work, 400);
    co_reschedule();
    for (int i = 0; i < 20; i++) {
        int64_t begin = loop_now_ns();

        co_reschedule();
        shortest = MIN(shortest, loop_now_ns() - begin);
    }
    finish_work(&work);
    assert_true(shortest < 20 * REACTOR_TURN_NS);
}

static void test_many_that_give_way_share_a_turn(void **state)
{
    run(count_turns_of_others, NULL);
}

static void give_way_ten_times(void *arg)
{
    struct long_work *work = arg;

    for (int i = 0; i < 10; i++) {
        loop_co_give_way();
    }
    atomic_store(&work->done, true);
    co_group_done(&work->group);
}

/* Some others are runnable in each turn. */
static void give_way_on_a_busy_reactor(void *arg)
{
    struct long_work work = {0};

    co_group_init(&work.group);
    co_group_add(&work.group);
    assert_int_equal(co_spawn(co_get_home(co_self()), give_way_ten_times, &work), 0);
    while (!atomic_load(&work.done)) {
        co_reschedule();
    }
    co_group_wait(&work.group);
    co_group_destroy(&work.group);
}

static void test_who_gives_way_is_not_starved(void **state)
{
    run(give_way_on_a_busy_reactor, NULL);
}

static void give_way_while_seeded(void *arg)
{
    for (uint64_t seed = 1; seed <= 10; seed++) {
        reactor_set_seed(reactor_current(), seed);
        sleep_beside_long_work(NULL);
    }
    reactor_set_seed(reactor_current(), 0);
}

static void test_seeded_reactors_let_others_in_too(void **state)
{
    run(give_way_while_seeded, NULL);
}

/* --- few and many descriptors: the engines may wait for them in different ways */

#define POLLERS_MAX 40

struct poller {
    struct co_group *group;
    int fds[2];
    int64_t timeout_ns;
    int result;
};

static void poll_one(void *arg)
{
    struct poller *p = arg;

    p->result = loop_co_poll(p->fds[0], POLLIN, p->timeout_ns);
    co_group_done(p->group);
}

static void do_nothing(void *arg)
{
}

/* Make the descriptors ready one after another, and see that each wakes who waits for that one. */
static void poll_many(int count)
{
    struct poller pollers[POLLERS_MAX];
    struct co_group group;

    co_group_init(&group);
    for (int i = 0; i < count; i++) {
        struct poller *p = &pollers[i];

        *p = (struct poller){.group = &group, .timeout_ns = i % 3 ? -1 : 100000 * MS};
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p->fds), 0);
        co_group_add(&group);
        assert_int_equal(co_spawn(co_get_home(co_self()), poll_one, p), 0);
    }
    for (int i = count; i-- > 0;) {
        if (i % 4 == 0) {
            loop_co_call_on(other, do_nothing, NULL);
        } else if (i % 4 == 1) {
            loop_co_sleep(MS);
        }
        assert_int_equal(pollers[i].result, 0);
        assert_int_equal(write(pollers[i].fds[1], "x", 1), 1);
        while (pollers[i].result == 0) {
            loop_co_sleep(MS / 10);
        }
        assert_int_equal(pollers[i].result, POLLIN);
    }
    co_group_wait(&group);
    co_group_destroy(&group);
    for (int i = 0; i < count; i++) {
        close(pollers[i].fds[0]);
        close(pollers[i].fds[1]);
    }
}

static void poll_few_and_many(void *arg)
{
    static const int counts[] = {1, 3, 8, 9, POLLERS_MAX};

    for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
        poll_many(counts[i]);
    }
}

static void test_any_number_of_descriptors_is_waited_for(void **state)
{
    run(poll_few_and_many, NULL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_timers_fire_beside_long_work),
        TEST(test_messages_arrive_beside_long_work),
        TEST(test_other_threads_wake_beside_long_work),
        TEST(test_many_that_give_way_share_a_turn),
        TEST(test_who_gives_way_is_not_starved),
        TEST(test_seeded_reactors_let_others_in_too),
        TEST(test_any_number_of_descriptors_is_waited_for),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

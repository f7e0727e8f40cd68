/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes that hang in the kernel, played by this program's pwritev(): who goes on meanwhile, and
 * how.
 */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "co/sync.h"
#include "loop/loop.h"

#define MS INT64_C(1000000)

/* --- the kernel */

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_opened = PTHREAD_COND_INITIALIZER;
static int frozen_fd = -1; /* writes to it hang; guarded by gate */
static atomic_int hanging;

ssize_t pwritev(int fd, const struct iovec *iov, int iovcnt, off_t offset)
{
    pthread_mutex_lock(&gate);
    atomic_fetch_add(&hanging, 1);
    while (fd == frozen_fd) {
        pthread_cond_wait(&gate_opened, &gate);
    }
    atomic_fetch_sub(&hanging, 1);
    pthread_mutex_unlock(&gate);
    return syscall(SYS_pwritev, fd, iov, iovcnt, (long)offset, 0L);
}

static void freeze(int fd)
{
    pthread_mutex_lock(&gate);
    frozen_fd = fd;
    pthread_cond_broadcast(&gate_opened);
    pthread_mutex_unlock(&gate);
}

/* --- a reactor, and a file whose writes hang */

static struct reactor *io;
static int file;

static int setup(void **state)
{
    char path[] = "/var/tmp/tidemark-hang-XXXXXX";

    file = mkstemp(path);
    unlink(path);
    return file < 0 || reactor_init_main(NULL) || reactor_create("io", &io, NULL);
}

static int teardown(void **state)
{
    freeze(-1);
    reactor_exit_main();
    close(file);
    return (int)co_count();
}

struct test {
    struct co_group group;
    struct co_mutex mutex;
    int fds[2];
    atomic_int started;
    atomic_bool written; /* the write that hung has returned */
    int count;           /* of the reactor */
};

static void write_block(struct test *t)
{
    char block[512];
    struct iovec vec = {.iov_base = block, .iov_len = sizeof(block)};

    memset(block, 'w', sizeof(block));
    assert_int_equal(loop_co_pwritev(file, &vec, 1, 0, 0), sizeof(block));
    assert_ptr_equal(reactor_current(), io);
    atomic_store(&t->written, true);
}

static void writer(void *arg)
{
    struct test *t = arg;

    write_block(t);
    co_group_done(&t->group);
}

static void start(struct test *t, struct reactor *r, co_entry *entry)
{
    co_group_add(&t->group);
    assert_int_equal(reactor_spawn(r, entry, t), 0);
}

/* `entry` runs on the reactor while a write hangs, and ends before the write does. */
static void run_beside(struct test *t, co_entry *before, co_entry *entry)
{
    *t = (struct test){.count = 0};
    co_group_init(&t->group);
    co_mutex_init(&t->mutex);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, t->fds), 0);
    if (before) {
        start(t, io, before);
        while (atomic_load(&t->started) == 0) {
            loop_co_sleep(MS);
        }
        loop_co_sleep(2 * MS);
    }
    freeze(file);
    start(t, io, writer);
    while (atomic_load(&hanging) == 0) {
        loop_co_sleep(MS);
    }
    if (entry) {
        loop_co_call_on(io, entry, t);
    }
}

static void thaw(struct test *t)
{
    assert_false(atomic_load(&t->written));
    freeze(-1);
    co_group_wait(&t->group);
    assert_true(atomic_load(&t->written));
    co_group_destroy(&t->group);
    co_mutex_destroy(&t->mutex);
    close(t->fds[0]);
    close(t->fds[1]);
}

static void run(co_entry *entry)
{
    assert_int_equal(reactor_run_until_done(entry, NULL), 0);
}

/* --- tests */

static void sleep_thrice(void *arg)
{
    for (int i = 0; i < 3; i++) {
        loop_co_sleep(MS);
    }
}

static void timers_main(void *arg)
{
    struct test t;

    run_beside(&t, NULL, sleep_thrice);
    thaw(&t);
}

/* When nothing was to be watched for a while, nobody watches; the next call has to tell. */
static void quiet_main(void *arg)
{
    loop_co_sleep(1500 * MS);
    timers_main(arg);
}

static void test_a_write_that_hangs_after_a_quiet_time(void **state)
{
    run(quiet_main);
}

static void test_timers_fire_while_a_write_hangs(void **state)
{
    run(timers_main);
}

static void be_armed_before(void *arg)
{
    struct test *t = arg;

    atomic_store(&t->started, 1);
    loop_co_sleep(30 * MS);
    t->count++;
    co_group_done(&t->group);
}

static void see_the_timer(void *arg)
{
    struct test *t = arg;

    while (t->count == 0) {
        loop_co_sleep(MS);
    }
}

static void armed_timers_main(void *arg)
{
    struct test t;

    run_beside(&t, be_armed_before, see_the_timer);
    thaw(&t);
}

static void test_timers_armed_before_fire(void **state)
{
    run(armed_timers_main);
}

static void receive_before(void *arg)
{
    struct test *t = arg;
    char c;

    atomic_store(&t->started, 1);
    assert_int_equal(loop_co_recv(t->fds[0], &c, 1), 1);
    assert_int_equal(loop_co_recv(t->fds[0], &c, 1), 1);
    t->count++;
    co_group_done(&t->group);
}

static void send_to_it(void *arg)
{
    struct test *t = arg;

    assert_int_equal(send(t->fds[1], "x", 1, 0), 1);
    loop_co_sleep(5 * MS);
    assert_int_equal(send(t->fds[1], "x", 1, 0), 1);
    see_the_timer(t);
}

static void receivers_main(void *arg)
{
    struct test t;

    run_beside(&t, receive_before, send_to_it);
    thaw(&t);
}

static void test_who_receives_goes_on_receiving(void **state)
{
    run(receivers_main);
}

static void poll_with_limit_before(void *arg)
{
    struct test *t = arg;

    atomic_store(&t->started, 1);
    assert_int_equal(loop_co_poll(t->fds[0], POLLIN, 40 * MS), -ETIMEDOUT);
    t->count++;
    co_group_done(&t->group);
}

static void limits_main(void *arg)
{
    struct test t;
    int64_t begin = loop_now_ns();

    run_beside(&t, poll_with_limit_before, see_the_timer);
    assert_true(loop_now_ns() - begin >= 40 * MS);
    thaw(&t);
}

static void test_time_limits_of_polls_hold(void **state)
{
    run(limits_main);
}

static void write_and_come_back(void *arg)
{
    write_block(arg);
}

/* As a receiver that runs each request right away. */
static void run_a_writer(void *arg)
{
    struct test *t = arg;

    assert_int_equal(co_run(reactor_home(io), write_and_come_back, t), 0);
    t->count++;
    while (!atomic_load(&t->written)) {
        loop_co_sleep(MS);
    }
    co_group_done(&t->group);
}

static void run_who_runs_a_writer(void *arg)
{
    struct test *t = arg;

    assert_int_equal(co_run(reactor_home(io), run_a_writer, t), 0);
    t->count++;
}

static void see_both(void *arg)
{
    struct test *t = arg;

    while (t->count < 2) {
        loop_co_sleep(MS);
    }
}

static void resumers_main(void *arg)
{
    struct test t = {.count = 0};

    co_group_init(&t.group);
    freeze(file);
    start(&t, io, run_who_runs_a_writer);
    loop_co_call_on(io, see_both, &t);
    assert_false(atomic_load(&t.written));
    freeze(-1);
    co_group_wait(&t.group);
    co_group_destroy(&t.group);
    assert_true(atomic_load(&t.written));
}

static void test_who_started_the_writer_goes_on(void **state)
{
    run(resumers_main);
}

static void write_other_file(void *arg)
{
    char path[] = "/var/tmp/tidemark-hang-XXXXXX";
    char block[512] = "other";
    struct iovec vec = {.iov_base = block, .iov_len = sizeof(block)};
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    unlink(path);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(loop_co_pwritev(fd, &vec, 1, (uint64_t)i * 512, 0), 512);
        assert_int_equal(loop_co_preadv(fd, &vec, 1, (uint64_t)i * 512), 512);
    }
    assert_int_equal(loop_co_fdatasync(fd), 0);
    close(fd);
}

static void others_main(void *arg)
{
    struct test t;

    run_beside(&t, NULL, write_other_file);
    thaw(&t);
}

static void test_other_files_are_written(void **state)
{
    run(others_main);
}

/* The first has cost a thread: those that come later wait elsewhere. */
static void later_writers_main(void *arg)
{
    struct test t;

    run_beside(&t, NULL, sleep_thrice);
    for (int i = 0; i < 10; i++) {
        loop_co_call_on(io, write_other_file, NULL);
        assert_int_equal(atomic_load(&hanging), 1);
    }
    thaw(&t);
}

static void test_one_write_of_a_file_system_hangs_at_most(void **state)
{
    run(later_writers_main);
}

static void end_main(void *arg)
{
    struct test t;
    struct reactor *r = io;

    run_beside(&t, NULL, sleep_thrice);
    thaw(&t);
    reactor_destroy(r);
}

static void test_a_rescued_reactor_can_be_destroyed(void **state)
{
    run(end_main);
}

#define HUNG_JOBS 20

static int hang(void *arg)
{
    struct test *t = arg;

    pthread_mutex_lock(&gate);
    atomic_fetch_add(&t->started, 1);
    while (frozen_fd >= 0) {
        pthread_cond_wait(&gate_opened, &gate);
    }
    pthread_mutex_unlock(&gate);
    return 0;
}

static void offload_what_hangs(void *arg)
{
    struct test *t = arg;

    assert_int_equal(loop_co_offload(hang, t), 0);
    co_group_done(&t->group);
}

static int succeed(void *arg)
{
    return 7;
}

static void hung_jobs_main(void *arg)
{
    struct test t = {.count = 0};
    int64_t begin;

    co_group_init(&t.group);
    freeze(file);
    for (int i = 0; i < HUNG_JOBS; i++) {
        start(&t, reactor_main(), offload_what_hangs);
    }
    begin = loop_now_ns();
    while (atomic_load(&t.started) < HUNG_JOBS && loop_now_ns() - begin < 5000 * MS) {
        loop_co_sleep(MS);
    }
    assert_int_equal(atomic_load(&t.started), HUNG_JOBS);
    assert_int_equal(loop_co_offload(succeed, NULL), 7);
    /* There is a thread for those that don't: nobody waits for one any more. */
    begin = loop_now_ns();
    for (int i = 0; i < 100; i++) {
        assert_int_equal(loop_co_offload(succeed, NULL), 7);
    }
    assert_true(loop_now_ns() - begin < 1000 * MS);
    freeze(-1);
    co_group_wait(&t.group);
    co_group_destroy(&t.group);
}

static void test_jobs_that_hang_leave_threads_to_others(void **state)
{
    run(hung_jobs_main);
}

static void co_wait_for_start(void *arg)
{
    struct test *t = arg;

    while (atomic_load(&t->started) == 0) {
        loop_co_sleep(MS);
    }
}

static void hang_for_good(void *arg)
{
    (void)loop_co_offload(hang, arg);
}

/* The last one: its coroutine stays. With a sanitizer it shows that the reactor is left alone. */
static void test_a_job_may_end_after_the_main_reactor(void **state)
{
    static struct test t;

    assert_int_equal(reactor_init_main(NULL), 0);
    freeze(0);
    assert_int_equal(reactor_spawn(reactor_main(), hang_for_good, &t), 0);
    assert_int_equal(reactor_run_until_done(co_wait_for_start, &t), 0);
    reactor_exit_main();
    freeze(-1);
    assert_int_equal(reactor_init_main(NULL), 0);
    reactor_exit_main(); /* waits for the thread */
    assert_int_equal(co_count(), 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_timers_fire_while_a_write_hangs),
        TEST(test_a_write_that_hangs_after_a_quiet_time),
        TEST(test_timers_armed_before_fire),
        TEST(test_who_receives_goes_on_receiving),
        TEST(test_time_limits_of_polls_hold),
        TEST(test_who_started_the_writer_goes_on),
        TEST(test_other_files_are_written),
        TEST(test_one_write_of_a_file_system_hangs_at_most),
        TEST(test_a_rescued_reactor_can_be_destroyed),
        TEST(test_jobs_that_hang_leave_threads_to_others),
        cmocka_unit_test(test_a_job_may_end_after_the_main_reactor),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

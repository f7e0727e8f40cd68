/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reactors that lose their threads all the time: one write in many sleeps for as long as a hung
 * one, while coroutines on them write, read, talk over sockets, sleep, poll with limits, take
 * locks, start each other and give way.
 */
#include <fcntl.h>
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
#define REACTORS 3
#define PAIRS 8 /* of talkers, for each reactor */
#define BLOCK 4096
#define FIRST_STARTED (2 * PAIRS * REACTORS)
#define RUN_NS (1500 * MS)

static atomic_uint hung;

/* Some hang for long enough to be noticed, some just about so. */
ssize_t pwritev(int fd, const struct iovec *iov, int iovcnt, off_t offset)
{
    static atomic_uint calls;
    unsigned call = atomic_fetch_add(&calls, 1);

    if (call % 61 == 0) {
        atomic_fetch_add(&hung, 1);
        usleep(10000 + call % 7 * 3000);
    }
    return syscall(SYS_pwritev, fd, iov, iovcnt, (long)offset, 0L);
}

static struct {
    struct reactor *r[REACTORS];
    struct co_mutex mutex;
    struct co_group group;
    int64_t end_ns;
    int file;
    uint64_t counter; /* guarded by mutex */
    atomic_uint counted, talked, written;
} all;

struct talker {
    int fd;
    unsigned number;
    bool begins;
};

static bool is_over(void)
{
    return loop_now_ns() >= all.end_ns;
}

static void write_and_check(unsigned number, unsigned round)
{
    char block[BLOCK], back[BLOCK];
    struct iovec out = {.iov_base = block, .iov_len = BLOCK};
    struct iovec in = {.iov_base = back, .iov_len = BLOCK};
    uint64_t offset = (uint64_t)number * BLOCK;
    struct reactor *home = reactor_current();

    memset(block, (int)(number + round), BLOCK);
    assert_int_equal(loop_co_pwritev(all.file, &out, 1, offset, 0), BLOCK);
    assert_int_equal(loop_co_preadv(all.file, &in, 1, offset), BLOCK);
    assert_memory_equal(block, back, BLOCK);
    assert_ptr_equal(reactor_current(), home);
    atomic_fetch_add(&all.written, 1);
}

static void count(void)
{
    uint64_t seen;

    co_mutex_lock(&all.mutex);
    seen = all.counter++;
    if (seen % 8 == 0) {
        loop_co_sleep(MS / 10);
    }
    assert_int_equal(all.counter, seen + 1);
    co_mutex_unlock(&all.mutex);
    atomic_fetch_add(&all.counted, 1);
}

static void say(int fd, unsigned number)
{
    struct iovec vec = {.iov_base = &number, .iov_len = sizeof(number)};
    struct msghdr msg = {.msg_iov = &vec, .msg_iovlen = 1};

    assert_int_equal(loop_co_sendmsg(fd, &msg, 0), sizeof(number));
}

/* False at the end of the talk. */
static bool hear(int fd, unsigned number)
{
    unsigned heard;
    ssize_t n = loop_co_recv(fd, &heard, sizeof(heard));

    if (n == 0) {
        return false;
    }
    assert_int_equal(n, sizeof(heard));
    assert_int_equal(heard, number);
    return true;
}

struct started {
    struct talker *t;
    unsigned round;
};

static void started_writer(void *arg)
{
    struct started s = *(struct started *)arg;

    write_and_check(s.t->number, s.round);
    co_group_done(&all.group);
}

/* As a connection does with a request. */
static void start_a_writer(struct talker *t, unsigned round)
{
    struct started s = {t, round};

    co_group_add(&all.group);
    /* Blocks behind those of the talkers, and of no writer that may still hang. */
    s.t = &(struct talker){.number = FIRST_STARTED + round % 1024 * REACTORS + t->number};
    assert_int_equal(co_run(co_get_home(co_self()), started_writer, &s), 0);
}

static void talk(void *arg)
{
    struct talker *t = arg;
    unsigned round = 0;

    for (;; round++) {
        if (t->begins) {
            if (is_over()) {
                break;
            }
            say(t->fd, round);
        }
        if (!hear(t->fd, round)) {
            break;
        }
        switch ((t->number + round) % 5) {
        case 0:
            loop_co_sleep(MS / 5);
            break;
        case 1:
            count();
            break;
        case 2:
            loop_co_give_way();
            break;
        case 3:
            assert_int_equal(loop_co_poll(t->fd, POLLIN, t->begins ? MS / 5 : 0), -ETIMEDOUT);
            break;
        default:
            break;
        }
        write_and_check(t->number, round);
        if (!t->begins) {
            say(t->fd, round);
        }
        atomic_fetch_add(&all.talked, 1);
    }
    shutdown(t->fd, SHUT_RDWR);
    co_group_done(&all.group);
}

/* Each starts writers, one after the other. */
static void keep_starting(void *arg)
{
    struct talker *t = arg;

    for (unsigned round = 0; !is_over(); round++) {
        start_a_writer(t, round);
        loop_co_sleep(MS);
        count();
    }
    co_group_done(&all.group);
}

static void stress_main(void *arg)
{
    static struct talker talkers[REACTORS][PAIRS][2];
    static struct talker starters[REACTORS];

    co_mutex_init(&all.mutex);
    co_group_init(&all.group);
    all.end_ns = loop_now_ns() + RUN_NS;
    for (unsigned i = 0; i < REACTORS; i++) {
        for (unsigned p = 0; p < PAIRS; p++) {
            int fds[2];

            assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
            for (unsigned side = 0; side < 2; side++) {
                struct talker *t = &talkers[i][p][side];
                unsigned where = side == 0 ? i : (i + p) % REACTORS;

                *t = (struct talker){fds[side], (i * PAIRS + p) * 2 + side, side == 0};
                co_group_add(&all.group);
                assert_int_equal(reactor_spawn(all.r[where], talk, t), 0);
            }
        }
        starters[i].number = i;
        co_group_add(&all.group);
        assert_int_equal(reactor_spawn(all.r[i], keep_starting, &starters[i]), 0);
    }
    co_group_wait(&all.group);
    for (unsigned i = 0; i < REACTORS * PAIRS; i++) {
        close(talkers[i / PAIRS][i % PAIRS][0].fd);
        close(talkers[i / PAIRS][i % PAIRS][1].fd);
    }
    co_group_destroy(&all.group);
    co_mutex_destroy(&all.mutex);
}

static void stress_reactors_that_lose_their_threads(void **state)
{
    char path[] = "/var/tmp/tidemark-hang-XXXXXX";

    /* On the spot however often it hung. */
    setenv("TIDEMARK_WRITE", "inline", 1);
    all.file = mkstemp(path);
    assert_true(all.file >= 0);
    unlink(path);
    assert_int_equal(reactor_init_main(NULL), 0);
    for (unsigned i = 0; i < REACTORS; i++) {
        assert_int_equal(reactor_create("io", &all.r[i], NULL), 0);
    }
    assert_int_equal(reactor_run_until_done(stress_main, NULL), 0);
    reactor_exit_main();
    close(all.file);
    assert_int_equal(co_count(), 0);
    assert_true(atomic_load(&hung) > 5);
    assert_true(atomic_load(&all.talked) > 100 && atomic_load(&all.counted) > 20);
    print_message("%u writes, %u of them hung, %u messages\n", atomic_load(&all.written),
                  atomic_load(&hung), atomic_load(&all.talked));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stress_reactors_that_lose_their_threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

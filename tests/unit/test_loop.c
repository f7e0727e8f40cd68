/* SPDX-License-Identifier: Apache-2.0 */
/* Reactors, on whichever engine TIDEMARK_LOOP chooses: turns, timers, files, sockets, the pool. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "co/sync.h"
#include "loop/loop.h"

#define MS INT64_C(1000000)

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

/* --- turns and reactors */

static void note_index(void *arg)
{
    *(unsigned *)arg = reactor_index(reactor_current());
}

static void call_there_and_here(void *arg)
{
    unsigned index = 99;

    loop_co_call_on(other, note_index, &index);
    assert_int_equal(index, 1);
    loop_co_call_on(reactor_main(), note_index, &index);
    assert_int_equal(index, 0);
}

static void test_call_on_runs_on_that_reactor(void **state)
{
    assert_int_equal(reactor_index(other), 1);
    assert_ptr_equal(reactor_current(), reactor_main());
    run(call_there_and_here, NULL);
    run(call_there_and_here, NULL);
}

static void call_on_main_from_there(void *arg)
{
    unsigned index = 99;

    loop_co_call_on(reactor_main(), note_index, &index);
    assert_int_equal(index, 0);
    assert_ptr_equal(reactor_current(), other);
    /* Others are woken here, too. */
    loop_co_sleep(MS);
    assert_ptr_equal(reactor_current(), other);
}

static void call_there_and_from_there(void *arg)
{
    loop_co_call_on(other, call_on_main_from_there, NULL);
    assert_ptr_equal(reactor_current(), reactor_main());
}

static void test_calls_on_reactors_nest(void **state)
{
    run(call_there_and_from_there, NULL);
}

static void sleep_and_set(void *arg)
{
    loop_co_sleep(20 * MS);
    *(bool *)arg = true;
}

static void test_destroy_waits_for_the_coroutines(void **state)
{
    struct reactor *r;
    bool done = false;

    assert_int_equal(reactor_create("brief", &r, NULL), 0);
    assert_int_equal(reactor_spawn(r, sleep_and_set, &done), 0);
    reactor_destroy(r);
    assert_true(done);
}

static void destroy_reactor(void *arg)
{
    reactor_destroy(arg);
}

static void test_reactors_come_and_go(void **state)
{
    for (int i = 0; i < 20; i++) {
        struct reactor *r;

        assert_int_equal(reactor_create("a name of more than 15 characters", &r, NULL), 0);
        assert_int_equal(reactor_index(r), 2);
        if (i % 2) {
            run(destroy_reactor, r);
        } else {
            reactor_destroy(r);
        }
    }
}

static void *quit_later(void *arg)
{
    usleep(10000);
    reactor_quit_main();
    return NULL;
}

static void test_run_main_until_a_thread_says_quit(void **state)
{
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, quit_later, NULL), 0);
    reactor_run_main();
    pthread_join(thread, NULL);
}

static void quit_here(void *arg)
{
    reactor_quit_main();
}

static void test_run_main_until_a_coroutine_says_quit(void **state)
{
    assert_int_equal(reactor_spawn(reactor_main(), quit_here, NULL), 0);
    reactor_run_main();
}

static char events[64];

static void note(char event)
{
    size_t length = strlen(events);

    assert_true(length + 1 < sizeof(events));
    events[length] = event;
    events[length + 1] = '\0';
}

static void note_name(void *arg)
{
    note(*(char *)arg);
}

static void spawn_ten(void *arg)
{
    static char names[] = "abcdefghij";

    events[0] = '\0';
    reactor_set_seed(reactor_current(), *(uint64_t *)arg);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(reactor_spawn(reactor_current(), note_name, &names[i]), 0);
    }
    while (strlen(events) < 10) {
        co_reschedule();
    }
    reactor_set_seed(reactor_current(), 0);
}

static void order_by_seed(uint64_t seed, char order[64])
{
    run(spawn_ten, &seed);
    memcpy(order, events, 64);
}

static void test_seed_decides_the_order(void **state)
{
    char fifo[64], one[64], one_again[64], two[64];

    order_by_seed(0, fifo);
    order_by_seed(1, one);
    order_by_seed(2, two);
    order_by_seed(1, one_again);
    assert_string_equal(fifo, "abcdefghij");
    assert_string_equal(one, one_again);
    assert_string_not_equal(one, fifo);
    assert_string_not_equal(one, two);
}

static struct reactor_deferred deferred;

static void note_deferred(struct reactor_deferred *self)
{
    assert_null(co_self());
    note('D');
}

static void defer_twice(void *arg)
{
    reactor_defer(&deferred);
    note('a');
    reactor_defer(&deferred);
}

static void test_deferred_call_comes_once_after_the_coroutines(void **state)
{
    events[0] = '\0';
    reactor_deferred_init(&deferred, note_deferred);
    assert_int_equal(reactor_spawn(reactor_main(), defer_twice, NULL), 0);
    assert_int_equal(reactor_spawn(reactor_main(), note_name, "b"), 0);
    run(note_name, "c");
    assert_string_equal(events, "abcD");
    run(defer_twice, NULL);
    assert_string_equal(events, "abcDaD");
}

/* --- time */

static void note_timer(struct loop_timer *self)
{
    assert_null(co_self());
    note((char)('0' + self->deadline_ns % 10));
}

static void arm_timers(void *arg)
{
    struct loop_timer timers[6];
    int64_t now = loop_now_ns() / 10 * 10;
    static const int delay_ms[6] = {5, 3, 9, 1, 7, 2};

    events[0] = '\0';
    for (int i = 0; i < 6; i++) {
        loop_timer_init(&timers[i], note_timer);
        loop_timer_arm(&timers[i], now + delay_ms[i] * MS + delay_ms[i]);
    }
    loop_timer_disarm(&timers[1]);                /* 3: never */
    loop_timer_arm(&timers[3], now + 8 * MS + 8); /* 1 becomes 8 */
    loop_timer_arm(&timers[2], now + MS + 1);     /* 9 becomes 1 */
    loop_co_sleep(12 * MS);
    assert_string_equal(events, "12578");
    for (int i = 0; i < 6; i++) {
        loop_timer_disarm(&timers[i]); /* harmless */
    }
}

static void test_timers_fire_in_order_of_their_deadlines(void **state)
{
    run(arm_timers, NULL);
}

static void sleep_some(void *arg)
{
    int64_t begin = loop_now_ns();

    loop_co_sleep(0);
    loop_co_sleep(5 * MS);
    assert_true(loop_now_ns() - begin >= 5 * MS);
}

static void test_sleep_lasts_long_enough(void **state)
{
    run(sleep_some, NULL);
}

static void spin(void *arg)
{
    while (!*(bool *)arg) {
        co_reschedule();
    }
}

/* The loop runs its timers in each of its turns, not only when it wakes for one. */
static void sleep_beside_one_that_spins(void *arg)
{
    int64_t begin = loop_now_ns();
    bool done = false;

    assert_int_equal(reactor_spawn(reactor_main(), spin, &done), 0);
    loop_co_sleep(20 * MS);
    done = true;
    assert_true(loop_now_ns() - begin >= 20 * MS);
    co_reschedule();
    co_reschedule();
}

static void test_sleep_lasts_long_enough_on_a_busy_loop(void **state)
{
    run(sleep_beside_one_that_spins, NULL);
}

/* --- files */

static int open_scratch(int flags)
{
    int fd = open("loop.tmp", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | flags, 0600);

    unlink("loop.tmp");
    return fd;
}

static void assert_filled(const char *buf, size_t size, char value)
{
    for (size_t i = 0; i < size; i++) {
        assert_int_equal(buf[i], value);
    }
}

static void write_and_read_back(void *arg)
{
    size_t size = *(size_t *)arg;
    int fd = open_scratch(0);
    char *out = malloc(size), *in = malloc(size);
    struct iovec iov[2] = {{out, size / 4}, {out + size / 4, size - size / 4}};

    assert_true(fd >= 0 && out && in);
    memset(out, 'x', size);
    assert_int_equal(loop_co_pwritev(fd, iov, 2, 512, 0), size);
    assert_int_equal(loop_co_pwritev(fd, iov, 2, 512 + size, LOOP_IO_DSYNC), size);
    iov[0].iov_base = in;
    iov[1].iov_base = in + size / 4;
    assert_int_equal(loop_co_preadv(fd, iov, 2, 512 + size / 2), size);
    assert_filled(in, size, 'x');
    assert_int_equal(loop_co_preadv(fd, iov, 2, 0), size);
    assert_filled(in, 512, '\0');
    assert_filled(in + 512, size - 512, 'x');
    /* At and beyond the end. */
    assert_int_equal(loop_co_preadv(fd, iov, 2, 512 + 2 * size - 100), 100);
    assert_int_equal(loop_co_preadv(fd, iov, 2, 512 + 2 * size), 0);
    /* Not in the page cache. */
    assert_int_equal(loop_co_fdatasync(fd), 0);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    memset(in, 0, size);
    ssize_t n = loop_co_preadv(fd, iov, 2, 512);
    assert_true(n > 0);
    assert_filled(in, (size_t)n, 'x');
    close(fd);
    free(out);
    free(in);
}

static void test_files_read_what_was_written(void **state)
{
    static size_t sizes[] = {4096, 65536, 1048576};

    for (int i = 0; i < 3; i++) {
        run(write_and_read_back, &sizes[i]);
    }
}

static void use_direct_file(void *arg)
{
    int fd = open_scratch(O_DIRECT);
    char *buf;
    struct iovec iov;

    if (fd < 0) {
        assert_int_equal(errno, EINVAL); /* a file system without */
        return;
    }
    buf = aligned_alloc(4096, 8192);
    assert_non_null(buf);
    memset(buf, 'd', 8192);
    iov = (struct iovec){buf, 8192};
    assert_int_equal(loop_co_pwritev(fd, &iov, 1, 4096, 0), 8192);
    memset(buf, 0, 8192);
    assert_int_equal(loop_co_preadv(fd, &iov, 1, 4096), 8192);
    assert_filled(buf, 8192, 'd');
    free(buf);
    close(fd);
}

static void test_direct_files(void **state)
{
    run(use_direct_file, NULL);
}

static void punch_a_hole(void *arg)
{
    int fd = open_scratch(0);
    char buf[12288];
    struct iovec iov = {buf, sizeof(buf)};

    memset(buf, 'h', sizeof(buf));
    assert_int_equal(loop_co_pwritev(fd, &iov, 1, 0, 0), sizeof(buf));
    assert_int_equal(loop_co_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 4096),
                     0);
    assert_int_equal(loop_co_preadv(fd, &iov, 1, 0), sizeof(buf));
    assert_filled(buf, 4096, 'h');
    assert_filled(buf + 4096, 4096, '\0');
    assert_filled(buf + 8192, 4096, 'h');
    assert_int_equal(loop_co_fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 4096), -EOPNOTSUPP);
    close(fd);
}

static void test_fallocate_takes_the_mode(void **state)
{
    run(punch_a_hole, NULL);
}

static void use_bad_descriptors(void *arg)
{
    char buf[512] = "";
    struct iovec iov = {buf, sizeof(buf)};
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    assert_int_equal(loop_co_preadv(-1, &iov, 1, 0), -EBADF);
    assert_int_equal(loop_co_pwritev(-1, &iov, 1, 0, 0), -EBADF);
    assert_int_equal(loop_co_pwritev(-1, &iov, 1, 0, LOOP_IO_DSYNC), -EBADF);
    assert_int_equal(loop_co_pwritev(fd, &iov, 1, 0, 0), -EBADF);
    assert_int_equal(loop_co_fdatasync(-1), -EBADF);
    assert_int_equal(loop_co_fallocate(-1, 0, 0, 1), -EBADF);
    assert_int_equal(loop_co_poll(-1, POLLIN, -1), -EBADF);
    assert_int_equal(loop_co_recv(-1, buf, 1), -EBADF);
    close(fd);
}

static void test_bad_descriptors_are_errors(void **state)
{
    run(use_bad_descriptors, NULL);
}

/* Many at a time: more than the submission queue holds. */
static struct co_group group;
static int shared_fd;

static void write_and_check_block(void *arg)
{
    uint64_t block = (uintptr_t)arg;
    char buf[4096];
    struct iovec iov = {buf, sizeof(buf)};

    memset(buf, (char)block, sizeof(buf));
    assert_int_equal(
        loop_co_pwritev(shared_fd, &iov, 1, block * 4096, block % 2 ? LOOP_IO_DSYNC : 0), 4096);
    posix_fadvise(shared_fd, (off_t)block * 4096, 4096, POSIX_FADV_DONTNEED);
    memset(buf, (char)~block, sizeof(buf));
    assert_int_equal(loop_co_preadv(shared_fd, &iov, 1, block * 4096), 4096);
    assert_filled(buf, sizeof(buf), (char)block);
    co_group_done(&group);
}

static void many_at_a_time(void *arg)
{
    co_group_init(&group);
    shared_fd = open_scratch(0);
    for (uintptr_t i = 0; i < 600; i++) {
        co_group_add(&group);
        assert_int_equal(reactor_spawn(reactor_main(), write_and_check_block, (void *)i), 0);
    }
    co_group_wait(&group);
    close(shared_fd);
    co_group_destroy(&group);
}

static void test_many_operations_at_a_time(void **state)
{
    run(many_at_a_time, NULL);
}

/* --- sockets */

static void socket_pair(int fds[2])
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
}

static void poll_socket(void *arg)
{
    int fds[2];
    int64_t begin = loop_now_ns();

    socket_pair(fds);
    assert_int_equal(loop_co_poll(fds[0], POLLIN, 5 * MS), -ETIMEDOUT);
    assert_true(loop_now_ns() - begin >= 5 * MS);
    assert_int_equal(loop_co_poll(fds[0], POLLIN, 0), -ETIMEDOUT);
    assert_int_equal(loop_co_poll(fds[0], POLLIN | POLLOUT, -1), POLLOUT);
    assert_int_equal(write(fds[1], "x", 1), 1);
    assert_int_equal(loop_co_poll(fds[0], POLLIN, 1000 * MS), POLLIN);
    close(fds[1]);
    assert_true(loop_co_poll(fds[0], POLLOUT, -1) & POLLHUP);
    close(fds[0]);
}

static void test_poll_waits_until_ready_or_timeout(void **state)
{
    run(poll_socket, NULL);
}

static void poll_half_closed(void *arg)
{
    uint8_t bytes[4096] = {0};
    int fds[2];

    socket_pair(fds);
    while (send(fds[0], bytes, sizeof(bytes), 0) > 0) {
    }
    assert_int_equal(shutdown(fds[1], SHUT_WR), 0);
    assert_int_equal(loop_co_poll(fds[0], POLLOUT, 20 * MS), -ETIMEDOUT);
    while (recv(fds[1], bytes, sizeof(bytes), 0) > 0) {
    }
    assert_int_equal(loop_co_poll(fds[0], POLLOUT, -1) & (POLLOUT | POLLERR | POLLHUP), POLLOUT);
    close(fds[0]);
    close(fds[1]);
}

static void test_poll_waits_for_room_when_the_other_end_sends_no_more(void **state)
{
    run(poll_half_closed, NULL);
}

static void poll_file(void *arg)
{
    int fd = open_scratch(0);

    assert_int_equal(loop_co_poll(fd, POLLIN, -1), POLLIN);
    close(fd);
}

static void test_regular_file_is_always_ready(void **state)
{
    run(poll_file, NULL);
}

/* The same number means another socket each time. */
static void poll_reused_numbers(void *arg)
{
    for (int i = 0; i < 10; i++) {
        int fds[2];

        socket_pair(fds);
        assert_int_equal(loop_co_poll(fds[0], POLLIN, MS), -ETIMEDOUT);
        assert_int_equal(write(fds[1], "x", 1), 1);
        assert_int_equal(loop_co_poll(fds[0], POLLIN, -1), POLLIN);
        close(fds[0]);
        close(fds[1]);
    }
}

static void test_descriptor_numbers_may_be_used_again(void **state)
{
    run(poll_reused_numbers, NULL);
}

struct poller {
    int fd;
    short events;
    int result;
};

static void poll_in_group(void *arg)
{
    struct poller *p = arg;

    p->result = loop_co_poll(p->fd, p->events, 1000 * MS);
    co_group_done(&group);
}

static void poll_both_ways(void *arg)
{
    char buf[4096] = "";
    struct poller in, out;
    int fds[2];

    socket_pair(fds);
    while (write(fds[0], buf, sizeof(buf)) > 0) {
    }
    in = (struct poller){fds[0], POLLIN, 0};
    out = (struct poller){fds[0], POLLOUT, 0};
    co_group_init(&group);
    co_group_add(&group);
    co_group_add(&group);
    assert_int_equal(reactor_spawn(reactor_main(), poll_in_group, &in), 0);
    assert_int_equal(reactor_spawn(reactor_main(), poll_in_group, &out), 0);
    loop_co_sleep(2 * MS);
    assert_int_equal(in.result + out.result, 0);
    assert_int_equal(write(fds[1], "x", 1), 1);
    loop_co_sleep(2 * MS);
    assert_int_equal(in.result, POLLIN);
    assert_int_equal(out.result, 0);
    while (read(fds[1], buf, sizeof(buf)) > 0) {
    }
    co_group_wait(&group);
    assert_int_equal(out.result, POLLOUT);
    co_group_destroy(&group);
    close(fds[0]);
    close(fds[1]);
}

static void test_two_may_poll_one_descriptor(void **state)
{
    run(poll_both_ways, NULL);
}

#define STREAM_BYTES (3 * 1024 * 1024 + 5)

static void send_stream(void *arg)
{
    int fd = *(int *)arg;
    char buf[100000];

    for (size_t sent = 0; sent < STREAM_BYTES;) {
        size_t size = STREAM_BYTES - sent < sizeof(buf) ? STREAM_BYTES - sent : sizeof(buf);
        struct iovec iov = {buf, size};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
        ssize_t n;

        for (size_t i = 0; i < size; i++) {
            buf[i] = (char)((sent + i) * 7 / 5);
        }
        n = loop_co_sendmsg(fd, &msg, 0);
        assert_true(n > 0);
        sent += (size_t)n;
    }
    shutdown(fd, SHUT_WR);
    co_group_done(&group);
}

static void receive_stream(void *arg)
{
    size_t received = 0;
    char buf[70000];
    int fds[2];
    ssize_t n;

    socket_pair(fds);
    co_group_init(&group);
    co_group_add(&group);
    assert_int_equal(reactor_spawn(arg, send_stream, &fds[1]), 0);
    while ((n = loop_co_recv(fds[0], buf, sizeof(buf))) > 0) {
        for (ssize_t i = 0; i < n; i++) {
            assert_int_equal(buf[i], (char)((received + (size_t)i) * 7 / 5));
        }
        received += (size_t)n;
    }
    assert_int_equal(n, 0);
    assert_int_equal(received, STREAM_BYTES);
    co_group_wait(&group);
    co_group_destroy(&group);
    close(fds[0]);
    close(fds[1]);
}

static void test_stream_arrives_whole(void **state)
{
    run(receive_stream, reactor_main());
    run(receive_stream, other);
}

static void shut_down_later(void *arg)
{
    loop_co_sleep(2 * MS);
    shutdown(*(int *)arg, SHUT_RDWR);
    co_group_done(&group);
}

static void receive_until_shutdown(void *arg)
{
    char byte;
    int fds[2];

    socket_pair(fds);
    co_group_init(&group);
    co_group_add(&group);
    assert_int_equal(reactor_spawn(other, shut_down_later, &fds[0]), 0);
    assert_int_equal(loop_co_recv(fds[0], &byte, 1), 0);
    co_group_wait(&group);
    assert_int_equal(
        loop_co_sendmsg(fds[0],
                        &(struct msghdr){.msg_iov = &(struct iovec){&byte, 1}, .msg_iovlen = 1}, 0),
        -EPIPE);
    co_group_destroy(&group);
    close(fds[0]);
    close(fds[1]);
}

static void test_shutdown_ends_a_receive(void **state)
{
    run(receive_until_shutdown, NULL);
}

static int unix_socket(void)
{
    return socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

static const struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "loop.sock"};

static int listener(int backlog)
{
    int fd = unix_socket();

    unlink(address.sun_path);
    assert_int_equal(bind(fd, (const struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, backlog), 0);
    return fd;
}

static int connect_to_listener(int fd, int64_t timeout_ns)
{
    return loop_co_connect(fd, (const struct sockaddr *)&address, sizeof(address), timeout_ns);
}

static void connect_later(void *arg)
{
    int fd = unix_socket();

    loop_co_sleep(2 * MS);
    assert_int_equal(connect_to_listener(fd, -1), 0);
    close(fd);
    co_group_done(&group);
}

static void accept_until_shutdown(void *arg)
{
    int fd = listener(5);
    int connection;
    char byte;

    co_group_init(&group);
    co_group_add(&group);
    assert_int_equal(reactor_spawn(reactor_main(), connect_later, NULL), 0);
    connection = loop_co_accept(fd);
    assert_true(connection >= 0);
    assert_true(fcntl(connection, F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(connection, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(loop_co_recv(connection, &byte, 1), 0);
    close(connection);
    co_group_wait(&group);

    co_group_add(&group);
    assert_int_equal(reactor_spawn(reactor_main(), shut_down_later, &fd), 0);
    assert_int_equal(loop_co_accept(fd), -ECANCELED);
    co_group_wait(&group);
    co_group_destroy(&group);
    close(fd);
}

static void test_accept_until_shutdown(void **state)
{
    run(accept_until_shutdown, NULL);
}

static void fail_to_connect(void *arg)
{
    int listening, fds[8];
    int ret = 0, count = 0;

    unlink(address.sun_path);
    fds[0] = unix_socket();
    assert_int_equal(connect_to_listener(fds[0], -1), -ENOENT);
    listening = listener(0);
    close(fds[0]);
    /* Nobody accepts, so the backlog gets full. */
    while (count < 8 && ret == 0) {
        fds[count] = unix_socket();
        ret = connect_to_listener(fds[count++], 10 * MS);
    }
    assert_int_equal(ret, -ETIMEDOUT);
    close(listening);
    assert_int_equal(connect_to_listener(fds[count - 1], -1), -ECONNREFUSED);
    while (count > 0) {
        close(fds[--count]);
    }
}

static void test_connect_fails_with_a_reason(void **state)
{
    run(fail_to_connect, NULL);
}

/* --- offload pool */

static int slow_increment(void *arg)
{
    usleep(2000);
    return __atomic_add_fetch((int *)arg, 1, __ATOMIC_SEQ_CST);
}

static void offload_in_group(void *arg)
{
    assert_true(loop_co_offload(slow_increment, arg) > 0);
    co_group_done(&group);
}

static void offload_many(void *arg)
{
    int64_t begin = loop_now_ns();
    int count = 0;

    co_group_init(&group);
    for (int i = 0; i < 40; i++) {
        co_group_add(&group);
        assert_int_equal(reactor_spawn(reactor_main(), offload_in_group, &count), 0);
    }
    co_group_wait(&group);
    assert_int_equal(count, 40);
    assert_true(loop_now_ns() - begin < 40 * 2 * MS); /* not one after the other */
    co_group_destroy(&group);
}

static void test_offloaded_work_runs_side_by_side(void **state)
{
    run(offload_many, NULL);
}

static int own_thread(void *arg)
{
    return reactor_current() == NULL && co_self() == NULL ? 7 : 0;
}

static void offload_one(void *arg)
{
    assert_int_equal(loop_co_offload(own_thread, NULL), 7);
}

static void test_offloaded_work_runs_elsewhere(void **state)
{
    run(offload_one, NULL);
}

/* How many calls run at once, and the most there were. */
static atomic_int running, most_running;

static int run_side_by_side(void *arg)
{
    int now = atomic_fetch_add(&running, 1) + 1, most = atomic_load(&most_running);

    while (now > most && !atomic_compare_exchange_weak(&most_running, &most, now)) {
    }
    usleep(2000);
    atomic_fetch_sub(&running, 1);
    return 0;
}

static void offload_sixteen(void *arg)
{
    int args[LOOP_OFFLOAD_ALL_MAX] = {0};

    atomic_store(&most_running, 0);
    assert_int_equal(loop_co_offload_all(run_side_by_side, args, sizeof(int), LOOP_OFFLOAD_ALL_MAX),
                     0);
}

static void test_the_pool_has_as_many_threads_as_was_asked_for(void **state)
{
    loop_offload_set_threads(0, 1);
    run(offload_sixteen, NULL);
    assert_int_equal(most_running, 1);
    loop_offload_set_threads(LOOP_OFFLOAD_ALL_MAX, 0);
    /* Where threads start slowly, the first of them may have done all before the last is there. */
    for (int i = 0; i < 20 && most_running <= LOOP_OFFLOAD_ALL_MAX / 2; i++) {
        run(offload_sixteen, NULL);
    }
    assert_true(most_running > LOOP_OFFLOAD_ALL_MAX / 2);
    loop_offload_set_threads(0, 0);
}

static int give_back(void *arg)
{
    return *(int *)arg;
}

static void offload_some_that_fail(void *arg)
{
    int one[] = {3, -5, 0, 7}, two[] = {0, -5, -6};

    assert_int_equal(loop_co_offload_all(give_back, one, sizeof(int), 4), -5);
    assert_int_equal(loop_co_offload_all(give_back, two, sizeof(int), 3), -5);
    assert_int_equal(loop_co_offload_all(give_back, two, sizeof(int), 1), 0);
}

static void test_one_failure_among_offloaded_calls_is_told(void **state)
{
    run(offload_some_that_fail, NULL);
}

static int this_thread(void *arg)
{
    return pthread_equal(*(pthread_t *)arg, pthread_self()) ? 7 : 8;
}

static void make_brief_call(void *arg)
{
    pthread_t self = pthread_self();

    *(int *)arg = loop_co_brief(this_thread, &self);
}

static void test_brief_calls_are_made_on_the_spot_where_the_program_may_block(void **state)
{
    int here = -1;

    run(make_brief_call, &here);
    assert_int_equal(here, 8);
    loop_set_may_block(true);
    run(make_brief_call, &here);
    loop_set_may_block(false);
    assert_int_equal(here, 7);
}

static void offload_while_seeded(void *arg)
{
    pthread_t self = pthread_self();

    reactor_set_seed(reactor_current(), 3);
    assert_int_equal(loop_co_offload(this_thread, &self), 7);
    reactor_set_seed(reactor_current(), 0);
    assert_int_equal(loop_co_offload(this_thread, &self), 8);
}

static void test_a_seeded_reactor_does_the_work_itself(void **state)
{
    run(offload_while_seeded, NULL);
}

/* --- engines */

static void test_unknown_engine_is_an_error(void **state)
{
    const char *env = getenv("TIDEMARK_LOOP");
    char *saved = env ? strdup(env) : NULL;
    ERROR_AUTO(err);

    setenv("TIDEMARK_LOOP", "steam", 1);
    assert_int_equal(reactor_init_main(&err), -EINVAL);
    assert_string_equal(error_message(&err),
                        "TIDEMARK_LOOP is 'steam', expected 'io_uring' or 'epoll'");
    unsetenv("TIDEMARK_LOOP");
    if (saved) {
        setenv("TIDEMARK_LOOP", saved, 1);
        free(saved);
    }
}

static void test_engine_is_what_was_asked_for(void **state)
{
    const char *wanted = getenv("TIDEMARK_LOOP");

    if (wanted) {
        assert_string_equal(reactor_engine(), wanted);
    } else {
        assert_true(strcmp(reactor_engine(), "io_uring") == 0 ||
                    strcmp(reactor_engine(), "epoll") == 0);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_call_on_runs_on_that_reactor),
        TEST(test_calls_on_reactors_nest),
        TEST(test_destroy_waits_for_the_coroutines),
        TEST(test_reactors_come_and_go),
        TEST(test_run_main_until_a_thread_says_quit),
        TEST(test_run_main_until_a_coroutine_says_quit),
        TEST(test_seed_decides_the_order),
        TEST(test_deferred_call_comes_once_after_the_coroutines),
        TEST(test_timers_fire_in_order_of_their_deadlines),
        TEST(test_sleep_lasts_long_enough),
        TEST(test_sleep_lasts_long_enough_on_a_busy_loop),
        TEST(test_files_read_what_was_written),
        TEST(test_direct_files),
        TEST(test_fallocate_takes_the_mode),
        TEST(test_bad_descriptors_are_errors),
        TEST(test_many_operations_at_a_time),
        TEST(test_poll_waits_until_ready_or_timeout),
        TEST(test_poll_waits_for_room_when_the_other_end_sends_no_more),
        TEST(test_regular_file_is_always_ready),
        TEST(test_descriptor_numbers_may_be_used_again),
        TEST(test_two_may_poll_one_descriptor),
        TEST(test_stream_arrives_whole),
        TEST(test_shutdown_ends_a_receive),
        TEST(test_accept_until_shutdown),
        TEST(test_connect_fails_with_a_reason),
        TEST(test_offloaded_work_runs_side_by_side),
        TEST(test_offloaded_work_runs_elsewhere),
        TEST(test_the_pool_has_as_many_threads_as_was_asked_for),
        TEST(test_one_failure_among_offloaded_calls_is_told),
        TEST(test_brief_calls_are_made_on_the_spot_where_the_program_may_block),
        TEST(test_a_seeded_reactor_does_the_work_itself),
        TEST(test_engine_is_what_was_asked_for),
        cmocka_unit_test(test_unknown_engine_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where calls are made that may have to wait for a server: this program's functions come before the
 * C library's.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "block/driver.h"
#include "co_test.h"
#include "file/file_drivers.h"
#include "file/posix_file.h"
#include "loop/loop.h"

#define IMAGE "disk.img"

/* --- calls on the image, counted by where they are made --------------------------------------- */

static ino_t image;
static atomic_int made_by_main, made_elsewhere;

static bool is_image(int fd)
{
    struct stat st;

    return syscall(SYS_newfstatat, fd, "", &st, AT_EMPTY_PATH) == 0 && st.st_ino == image;
}

static void count_call(bool on_image)
{
    if (on_image && image != 0) {
        atomic_fetch_add(getpid() == gettid() ? &made_by_main : &made_elsewhere, 1);
    }
}

int close(int fd)
{
    count_call(is_image(fd));
    return (int)syscall(SYS_close, fd);
}

int fstat(int fd, struct stat *st)
{
    count_call(is_image(fd));
    return (int)syscall(SYS_newfstatat, fd, "", st, AT_EMPTY_PATH);
}

int unlink(const char *path)
{
    count_call(strstr(path, ".img") != NULL);
    return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

/* Only locks ask a server. */
int fcntl(int fd, int command, ...)
{
    va_list args;
    void *arg;

    va_start(args, command);
    arg = va_arg(args, void *);
    va_end(args);
    count_call((command == F_OFD_GETLK || command == F_OFD_SETLK) && is_image(fd));
    return (int)syscall(SYS_fcntl, fd, command, arg);
}

/* --- tests ------------------------------------------------------------------------------------ */

static struct block_node *must_open(const char *options)
{
    struct block_node *node = NULL;
    struct options *opts = NULL;
    ERROR_AUTO(err);

    if (options_parse(options, NULL, &opts, &err) < 0 ||
        block_co_open(opts, BLOCK_OPEN_RDWR, &node, &err) < 0) {
        fail_msg("'%s': %s", options, error_message(&err));
    }
    return node;
}

static void make_image(void)
{
    struct stat st;
    int fd = open(IMAGE, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    assert_int_equal(syscall(SYS_newfstatat, fd, "", &st, AT_EMPTY_PATH), 0);
    image = 0;
    close(fd);
    image = st.st_ino;
    atomic_store(&made_by_main, 0);
    atomic_store(&made_elsewhere, 0);
}

static void assert_made_elsewhere(int at_least)
{
    image = 0;
    assert_int_equal(atomic_load(&made_by_main), 0);
    assert_in_range(atomic_load(&made_elsewhere), at_least, 1000);
}

static void opening_locking_and_closing_ask_elsewhere(void)
{
    struct block_root *root;
    struct block_node *node;
    ERROR_AUTO(err);

    make_image();
    node = must_open("driver=file,filename=" IMAGE);
    assert_int_equal(
        block_co_root_new(node, "test", BLOCK_PERM_WRITE, BLOCK_PERM_CONSISTENT_READ, &root, &err),
        0);
    block_co_root_release(root);
    block_co_unref(node);
    assert_made_elsewhere(5);
    unlink(IMAGE);
}

static void creation_asks_elsewhere(void)
{
    AUTO_OPTIONS struct options *opts = options_new();
    ERROR_AUTO(err);

    make_image();
    assert_int_equal(posix_file_co_create(IMAGE, 1 << 20, opts, &err), 0);
    assert_made_elsewhere(3);
    unlink(IMAGE);
}

/* --- questions whose answer is late ----------------------------------------------------------- */

struct question {
    struct posix_file file;
    uint64_t value;
    int result;
};

/* Longer than queries wait. */
static int ask_slow_server(int fd, uint64_t *ret_value)
{
    usleep(1200000);
    *ret_value = 42;
    return 0;
}

static void co_ask(void *arg)
{
    struct question *q = arg;

    q->result = posix_file_co_ask(&q->file, ask_slow_server, &q->value);
}

/* A coroutine that was left there would keep the reactor from ending. */
static void a_guest_waits_for_the_answer(void)
{
    struct question q = {.file = {.fd = -1}};
    struct reactor *reactor;
    ERROR_AUTO(err);

    assert_int_equal(reactor_create("guest", &reactor, &err), 0);
    loop_set_serving(true);
    loop_co_call_on(reactor, co_ask, &q);
    loop_set_serving(false);
    reactor_destroy(reactor);
    assert_int_equal(q.result, 0);
    assert_int_equal(q.value, 42);
}

static int setup(void **state)
{
    file_register_drivers();
    return co_test_setup();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(opening_locking_and_closing_ask_elsewhere),
        CO_TEST(creation_asks_elsewhere),
        CO_TEST(a_guest_waits_for_the_answer),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls that are waited for with a limit of time. A file system that hangs is played by this
 * program's lstat(), which the removal of a file begins with.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "loop/loop.h"

/* --- the file system */

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_opened = PTHREAD_COND_INITIALIZER;
static bool frozen;       /* guarded by gate */
static atomic_int looked; /* calls that have come back */

int lstat(const char *restrict path, struct stat *restrict st)
{
    int r;

    pthread_mutex_lock(&gate);
    while (frozen) {
        pthread_cond_wait(&gate_opened, &gate);
    }
    pthread_mutex_unlock(&gate);
    r = fstatat(AT_FDCWD, path, st, AT_SYMLINK_NOFOLLOW);
    atomic_fetch_add(&looked, 1);
    return r;
}

static void set_frozen(bool on)
{
    pthread_mutex_lock(&gate);
    frozen = on;
    pthread_cond_broadcast(&gate_opened);
    pthread_mutex_unlock(&gate);
}

/* --- a file in a directory */

static char folder[] = "/var/tmp/tidemark-patience-XXXXXX";
static char path[sizeof(folder) + sizeof("/file")];

static int make_folder(void **state)
{
    if (!mkdtemp(folder)) {
        return -1;
    }
    snprintf(path, sizeof(path), "%s/file", folder);
    return 0;
}

static int remove_folder(void **state)
{
    return rmdir(folder);
}

static void make_file(void)
{
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    close(fd);
}

static void run(co_entry *entry, bool serving)
{
    assert_int_equal(reactor_init_main(NULL), 0);
    loop_set_serving(serving);
    assert_int_equal(reactor_run_until_done(entry, NULL), 0);
    loop_set_serving(false);
    reactor_exit_main();
    assert_int_equal(co_count(), 0);
}

/* --- removing */

static void remove_it(void *arg)
{
    make_file();
    assert_int_equal(loop_co_unlink_soon(path), 0);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(loop_co_unlink_soon(path), -ENOENT);
}

static void test_a_file_is_removed(void **state)
{
    run(remove_it, true);
    run(remove_it, false);
}

static void leave_it(void *arg)
{
    int64_t begin = loop_now_ns();

    make_file();
    set_frozen(true);
    assert_int_equal(loop_co_unlink_soon(path), -ETIMEDOUT);
    assert_true(loop_now_ns() - begin >= LOOP_PATIENCE_NS);
    assert_int_equal(loop_co_unlink_soon(path), -ETIMEDOUT); /* another one, meanwhile */
    /* Another file has the name when the file system answers. */
    assert_int_equal(unlink(path), 0);
    make_file();
    atomic_store(&looked, 0);
    set_frozen(false);
    while (atomic_load(&looked) < 2) {
        loop_co_sleep(NS_PER_MS);
    }
    loop_co_sleep(20 * NS_PER_MS);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(loop_co_unlink_soon(path), 0);
}

static void test_a_new_file_of_the_same_name_stays(void **state)
{
    run(leave_it, true);
}

/* --- answers */

struct question {
    struct loop_answer answer;
    bool ended;
};

static void answer_it(void *arg)
{
    loop_answer_give(&((struct question *)arg)->answer);
}

static void answer_late(void *arg)
{
    struct question *q = arg;

    loop_co_sleep(30 * NS_PER_MS);
    loop_answer_give(&q->answer);
    q->ended = true;
}

static void ask(void *arg)
{
    struct question q = {.ended = false};

    loop_answer_init(&q.answer);
    loop_answer_give(&q.answer);
    assert_true(loop_co_answer_wait(&q.answer, 0));
    loop_answer_init(&q.answer);
    assert_int_equal(reactor_spawn(reactor_main(), answer_it, &q), 0);
    assert_true(loop_co_answer_wait(&q.answer, INT64_MAX));
    loop_answer_init(&q.answer);
    assert_int_equal(reactor_spawn(reactor_main(), answer_late, &q), 0);
    assert_false(loop_co_answer_wait(&q.answer, NS_PER_MS));
    while (!q.ended) {
        loop_co_sleep(NS_PER_MS);
    }
    assert_true(loop_co_answer_wait(&q.answer, 0));
}

static void test_an_answer_comes_in_time_or_not(void **state)
{
    run(ask, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_file_is_removed),
        cmocka_unit_test(test_a_new_file_of_the_same_name_stays),
        cmocka_unit_test(test_an_answer_comes_in_time_or_not),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}

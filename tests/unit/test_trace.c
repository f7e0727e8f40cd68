/* SPDX-License-Identifier: Apache-2.0 */
/* Trace points: patterns, what goes where, and what a process that crashes leaves behind. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/wildcard.h"
#include "trace/events.h"
#include "trace/internal.h"
#include "trace/trace.h"

/* --- patterns --------------------------------------------------------------------------------- */

static void test_a_star_stands_for_any_text(void **state)
{
    assert_true(wildcard_matches("*", ""));
    assert_true(wildcard_matches("*", "abc"));
    assert_true(wildcard_matches("block_*", "block_"));
    assert_true(wildcard_matches("block_*_end", "block_read_end"));
    assert_true(wildcard_matches("*a*b*", "xxaxxaxxbxx"));
    assert_true(wildcard_matches("*ab", "aab"));
    assert_true(wildcard_matches("a**b", "ab"));
    assert_false(wildcard_matches("block_*_end", "block_read_begin"));
    assert_false(wildcard_matches("*a*b*", "bbba"));
    assert_false(wildcard_matches("a*", "ba"));
}

static void test_a_question_mark_stands_for_one_character(void **state)
{
    assert_true(wildcard_matches("a?c", "abc"));
    assert_false(wildcard_matches("a?c", "ac"));
    assert_false(wildcard_matches("abc?", "abc"));
    assert_true(wildcard_matches("*?", "a"));
    assert_false(wildcard_matches("*?", ""));
}

static void test_other_text_matches_itself_only(void **state)
{
    assert_true(wildcard_matches("abc", "abc"));
    assert_true(wildcard_matches("", ""));
    assert_false(wildcard_matches("abc", "ab"));
    assert_false(wildcard_matches("ab", "abc"));
    assert_false(wildcard_matches("", "a"));
    assert_false(trace_is_pattern("abc"));
    assert_true(trace_is_pattern("a*"));
}

/* --- events ----------------------------------------------------------------------------------- */

static unsigned count_enabled(const char *pattern)
{
    const struct trace_event *e = NULL;
    unsigned count = 0;

    while ((e = trace_next_event(pattern, e))) {
        count += trace_event_is_enabled(e);
    }
    return count;
}

static void test_events_are_found_by_name_and_in_order(void **state)
{
    const struct trace_event *e = trace_next_event("block_read_*", NULL);

    assert_string_equal(trace_event_name(e), "block_read_begin");
    e = trace_next_event("block_read_*", e);
    assert_string_equal(trace_event_name(e), "block_read_end");
    assert_null(trace_next_event("block_read_*", e));
    assert_null(trace_next_event("no_such_event", NULL));
}

static void test_patterns_enable_and_disable(void **state)
{
    assert_int_equal(count_enabled("*"), 0);
    assert_true(trace_apply("block_*_begin"));
    assert_true(trace_block_read_begin_is_on());
    assert_false(trace_block_read_end_is_on());
    assert_true(trace_apply("-block_read_begin"));
    assert_false(trace_block_read_begin_is_on());
    assert_true(trace_block_write_begin_is_on());
    assert_true(trace_apply("-*"));
    assert_int_equal(count_enabled("*"), 0);
}

static void test_an_unknown_name_is_reported(void **state)
{
    assert_false(trace_apply("no_such_event"));
    assert_false(trace_apply("-no_such_event"));
    assert_true(trace_apply("no_such_*"));
}

static void test_an_event_always_recorded_is_on_but_not_enabled(void **state)
{
    assert_false(trace_co_stall_is_on());
    trace_crash_init();
    assert_true(trace_co_stall_is_on());
    assert_int_equal(count_enabled("co_stall"), 0);
    trace_apply("co_stall");
    trace_apply("-co_stall");
    assert_true(trace_co_stall_is_on());
}

/* --- lines ------------------------------------------------------------------------------------ */

/* All of a file; it is emptied. */
static char *take_text(int fd)
{
    off_t size = lseek(fd, 0, SEEK_END);
    char *text = calloc(1, (size_t)size + 1);

    assert_non_null(text);
    assert_int_equal(pread(fd, text, (size_t)size, 0), size);
    assert_int_equal(ftruncate(fd, 0), 0);
    return text;
}

static void test_a_trace_that_cannot_be_written_disturbs_nothing(void **state)
{
    assert_int_equal(trace_open_file("/dev/full", NULL), 0);
    trace_apply("block_read_begin");
    errno = EDOM;
    trace_block_read_begin("disk", 4096, 512, 1);
    assert_int_equal(errno, EDOM);
    trace_apply("-block_read_begin");
}

static void test_an_enabled_event_is_a_line_in_the_file(void **state)
{
    AUTO_CLOSE int fd = -1;
    AUTO_FREE char *line = NULL;
    unsigned year, month, day, hour, minute, second, us;
    int end = 0;

    assert_int_equal(trace_open_file("trace.log", NULL), 0);
    fd = open("trace.log", O_RDWR | O_CLOEXEC);
    trace_thread_begin("tester");
    trace_apply("block_read_begin");
    trace_block_read_begin("disk", 4096, 512, 1);
    trace_block_read_end("disk", 4096, 512, -EIO);
    trace_apply("-block_read_begin");
    trace_block_read_begin("disk", 4096, 512, 1);
    line = take_text(fd);
    assert_int_equal(sscanf(line, "%4u-%2u-%2uT%2u:%2u:%2u.%6uZ%n", &year, &month, &day, &hour,
                            &minute, &second, &us, &end),
                     7);
    assert_string_equal(line + end,
                        " tester block_read_begin node=disk offset=4096 length=512 flags=0x1\n");
}

static void test_a_long_line_is_cut_and_ends(void **state)
{
    AUTO_CLOSE int fd = open("trace.log", O_RDWR | O_CLOEXEC);
    char name[2 * TRACE_LINE_MAX];
    AUTO_FREE char *line = NULL;

    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    trace_apply("block_flush_begin");
    trace_block_flush_begin(name);
    trace_apply("-block_flush_begin");
    line = take_text(fd);
    assert_int_equal(strlen(line), TRACE_LINE_MAX - 1);
    assert_string_equal(line + strlen(line) - 2, "n\n");
}

static void test_a_file_that_cannot_be_made_is_an_error(void **state)
{
    ERROR_AUTO(err);

    assert_int_equal(trace_open_file("absent/trace.log", &err), -ENOENT);
    assert_non_null(strstr(error_message(&err), "absent/trace.log"));
}

static void test_a_pipe_that_is_not_read_holds_nothing_up(void **state)
{
    AUTO_CLOSE int fd = -1;

    assert_int_equal(mkfifo("trace.fifo", 0600), 0);
    assert_int_equal(trace_open_file("trace.fifo", NULL), -ENXIO);
    fd = open("trace.fifo", O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    assert_int_equal(trace_open_file("trace.fifo", NULL), 0);
    trace_apply("block_read_begin");
    for (int i = 0; i < 10000; i++) {
        trace_block_read_begin("disk", 4096, 512, 1);
    }
    trace_apply("-block_read_begin");
    assert_int_equal(trace_open_file("/dev/null", NULL), 0);
}

/* --- rings ------------------------------------------------------------------------------------ */

static struct {
    unsigned lines, stalls;
    char first[300], last[300];
} seen;

static void see(const char *line, size_t size)
{
    assert_true(size > 0 && size < sizeof(seen.last));
    assert_int_equal(line[size - 1], '\n');
    memcpy(seen.last, line, size);
    seen.last[size] = '\0';
    if (seen.lines++ == 0) {
        memcpy(seen.first, seen.last, size + 1);
    }
    seen.stalls += strstr(seen.last, " co_stall ") != NULL;
}

static void look(void)
{
    memset(&seen, 0, sizeof(seen));
    trace_ring_each(see);
}

static void test_a_ring_keeps_the_latest_events(void **state)
{
    for (unsigned i = 1; i <= 1000; i++) {
        trace_co_stall("mutex", NULL, 0x10, i);
    }
    look();
    assert_int_equal(seen.lines, 64);
    assert_int_equal(seen.stalls, 64);
    assert_non_null(strstr(seen.first, " ms=937\n"));
    assert_non_null(strstr(seen.last, " ms=1000\n"));
}

static void test_events_that_are_off_are_not_recorded(void **state)
{
    trace_block_read_begin("disk", 0, 512, 0);
    look();
    assert_null(strstr(seen.last, "block_read_begin"));
}

static void test_a_long_line_is_cut_in_a_ring(void **state)
{
    char kind[600];

    memset(kind, 'k', sizeof(kind) - 1);
    kind[sizeof(kind) - 1] = '\0';
    trace_co_stall(kind, NULL, 0, 1);
    look();
    assert_non_null(strstr(seen.last, "kkk\n"));
}

static void *stall_in_thread(void *arg)
{
    trace_thread_begin("other");
    trace_co_stall("mutex", NULL, 0, 77);
    return arg;
}

static void test_rings_of_all_threads_are_merged_by_time(void **state)
{
    pthread_t thread;

    for (unsigned i = 0; i < 300; i++) { /* more threads than rings, one after the other */
        assert_int_equal(pthread_create(&thread, NULL, stall_in_thread, NULL), 0);
        pthread_join(thread, NULL);
    }
    look();
    assert_non_null(strstr(seen.last, " other co_stall "));
    trace_co_stall("mutex", NULL, 0, 78);
    look();
    assert_non_null(strstr(seen.last, " tester co_stall "));
    assert_non_null(strstr(seen.last, " ms=78\n"));
    assert_int_equal(seen.lines, 128);
}

/* --- crashes ---------------------------------------------------------------------------------- */

static void crash_by_abort(void)
{
    abort();
}

static void crash_by_signal(void)
{
    raise(SIGBUS);
}

static void crash_by_pointer(void)
{
    static volatile int *volatile nowhere;

    *nowhere = 1;
}

static int overflow(const volatile char *above);
static int (*volatile next_overflow)(const volatile char *above) = overflow;

static int overflow(const volatile char *above)
{
    volatile char here[4096];

    here[0] = above ? above[0] : 0;
    return next_overflow(here) + here[0];
}

static void *overflow_thread(void *arg)
{
    trace_thread_begin("deep");
    return (void *)(uintptr_t)overflow(arg);
}

static void crash_by_overflow(void)
{
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, overflow_thread, NULL), 0);
    pthread_join(thread, NULL);
}

static void *crash_soon_thread(void *arg)
{
    trace_thread_begin("other");
    usleep(200000);
    crash_by_pointer();
    return arg;
}

/* Standard error takes no more than a page until the test reads it. */
static void crash_by_two_threads(void)
{
    pthread_t thread;

    for (int i = 0; i < 60; i++) {
        trace_co_stall("a wait with a long name, so that a page is full before all are written",
                       NULL, 0, i);
    }
    assert_int_equal(pthread_create(&thread, NULL, crash_soon_thread, NULL), 0);
    crash_by_pointer();
}

/* Run `crash` in a child, and check that `signal` ends it. Returns what it wrote to its log. */
static char *crash_text(void (*crash)(void), int signal)
{
    AUTO_CLOSE int fd = open("crash.log", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    int status;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(fd, STDERR_FILENO);
        trace_crash_init();
        trace_co_stall("semaphore", NULL, 0, 4711);
        crash();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), signal);
    return take_text(fd);
}

static void assert_crash(void (*crash)(void), int signal, const char *name)
{
    AUTO_FREE char *text = crash_text(crash, signal);

    assert_non_null(strstr(text, name));
    assert_non_null(strstr(text, " ends the process. Latest events, oldest first:\n"));
    assert_non_null(strstr(text, " main co_stall for=semaphore object=(nil) caller=0 ms=4711\n"));
}

static void test_abort_prints_the_rings(void **state)
{
    assert_crash(crash_by_abort, SIGABRT, "SIGABRT");
}

static void test_other_crashes_print_the_rings(void **state)
{
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_crash(crash_by_signal, SIGBUS, "SIGBUS");
    assert_crash(crash_by_pointer, SIGSEGV, "SIGSEGV");
    assert_crash(crash_by_overflow, SIGSEGV, "SIGSEGV");
#else
    /* A sanitizer reports them instead. */
    (void)crash_by_signal;
    (void)crash_by_pointer;
    (void)crash_by_overflow;
#endif
}

/* The log of the first thread is read after half a second; meanwhile the second crashes. */
static void test_a_second_crash_does_not_cut_the_first_short(void **state)
{
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    AUTO_CLOSE int in = -1;
    char text[64 * 1024];
    size_t size = 0;
    int ends[2], status;
    ssize_t n;
    pid_t pid;

    assert_int_equal(pipe(ends), 0);
    assert_true(fcntl(ends[1], F_SETPIPE_SZ, 4096) > 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(ends[1], STDERR_FILENO);
        trace_crash_init();
        crash_by_two_threads();
        _exit(0);
    }
    close(ends[1]);
    in = ends[0];
    usleep(500000);
    while ((n = read(in, text + size, sizeof(text) - 1 - size)) > 0) {
        size += (size_t)n;
    }
    text[size] = '\0';
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    assert_non_null(strstr(text, " ms=59\n"));
#else
    (void)crash_by_two_threads;
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_star_stands_for_any_text),
        cmocka_unit_test(test_a_question_mark_stands_for_one_character),
        cmocka_unit_test(test_other_text_matches_itself_only),
        cmocka_unit_test(test_events_are_found_by_name_and_in_order),
        cmocka_unit_test(test_patterns_enable_and_disable),
        cmocka_unit_test(test_an_unknown_name_is_reported),
        cmocka_unit_test(test_an_event_always_recorded_is_on_but_not_enabled),
        cmocka_unit_test(test_a_trace_that_cannot_be_written_disturbs_nothing),
        cmocka_unit_test(test_an_enabled_event_is_a_line_in_the_file),
        cmocka_unit_test(test_a_long_line_is_cut_and_ends),
        cmocka_unit_test(test_a_file_that_cannot_be_made_is_an_error),
        cmocka_unit_test(test_a_pipe_that_is_not_read_holds_nothing_up),
        cmocka_unit_test(test_a_ring_keeps_the_latest_events),
        cmocka_unit_test(test_events_that_are_off_are_not_recorded),
        cmocka_unit_test(test_a_long_line_is_cut_in_a_ring),
        cmocka_unit_test(test_rings_of_all_threads_are_merged_by_time),
        cmocka_unit_test(test_abort_prints_the_rings),
        cmocka_unit_test(test_other_crashes_print_the_rings),
        cmocka_unit_test(test_a_second_crash_does_not_cut_the_first_short),
    };

    return cmocka_run_group_tests_name("trace", tests, NULL, NULL);
}

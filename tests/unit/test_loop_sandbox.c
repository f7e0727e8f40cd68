/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where system calls are forbidden, as containers do it. Each case runs in a process of its own,
 * this program with a command's name as argument, for a filter of system calls cannot be removed.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "loop/loop.h"

/* Exit statuses of the process that the filter holds in. */
enum { OK, NO_FILTER, WRONG_ENGINE, WRONG_RESULT, NOT_STARTED };

static int forbid(unsigned number, int errnum)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)errnum),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
        return -1;
    }
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static void set_done(void *arg)
{
    loop_co_sleep(1000);
    *(bool *)arg = true;
}

static int run_without_io_uring(int errnum)
{
    bool done = false;

    unsetenv("TIDEMARK_LOOP");
    if (forbid(SYS_io_uring_setup, errnum) < 0) {
        return NO_FILTER;
    }
    if (reactor_init_main(NULL) < 0 || strcmp(reactor_engine(), "epoll") != 0) {
        return WRONG_ENGINE;
    }
    reactor_run_until_done(set_done, &done);
    reactor_exit_main();
    return done ? OK : WRONG_RESULT;
}

static void write_stably(void *arg)
{
    char path[] = "stable-XXXXXX", again[4] = "";
    struct iovec iov = {.iov_base = (char[]){'a', 'b', 'c'}, .iov_len = 3};
    int fd = mkstemp(path);

    *(bool *)arg = fd >= 0 && loop_co_pwritev(fd, &iov, 1, 5, LOOP_IO_DSYNC) == 3 &&
                   pread(fd, again, 3, 5) == 3 && strcmp(again, "abc") == 0 &&
                   loop_co_pwritev(-1, &iov, 1, 5, LOOP_IO_DSYNC) == -EBADF;
    close(fd);
    unlink(path);
}

static int run_without_pwritev2(int errnum)
{
    bool written = false;

    setenv("TIDEMARK_LOOP", "epoll", 1);
    if (forbid(SYS_pwritev2, errnum) < 0) {
        return NO_FILTER;
    }
    if (reactor_init_main(NULL) < 0) {
        return WRONG_ENGINE;
    }
    reactor_run_until_done(write_stably, &written);
    reactor_exit_main();
    return written ? OK : WRONG_RESULT;
}

/* The exit status of this program with these arguments. */
static int run(const char *command, int errnum)
{
    char argument[16];
    int status = 0;
    pid_t pid;

    snprintf(argument, sizeof(argument), "%d", errnum);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        execl("/proc/self/exe", "test_loop_sandbox", command, argument, NULL);
        _exit(NOT_STARTED);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void test_epoll_is_used_where_io_uring_is_forbidden(void **state)
{
    assert_int_equal(run("io_uring", EPERM), OK);
    assert_int_equal(run("io_uring", ENOSYS), OK);
    assert_int_equal(run("io_uring", ENOMEM), OK);
}

static void test_stable_writes_where_the_flag_is_unknown(void **state)
{
    assert_int_equal(run("pwritev2", ENOSYS), OK);
    assert_int_equal(run("pwritev2", EOPNOTSUPP), OK);
}

int main(int argc, char **argv)
{
    if (argc > 2) {
        int errnum = (int)strtol(argv[2], NULL, 10);

        return strcmp(argv[1], "io_uring") == 0 ? run_without_io_uring(errnum)
                                                : run_without_pwritev2(errnum);
    }

    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_epoll_is_used_where_io_uring_is_forbidden),
        cmocka_unit_test(test_stable_writes_where_the_flag_is_unknown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

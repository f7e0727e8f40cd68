/* SPDX-License-Identifier: Apache-2.0 */
/* Image locks, among ourselves and against QEMU's tools where they are installed. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "block/block.h"
#include "file/image_lock.h"

#define IMAGE "disk.img"
#define READ BLOCK_PERM_CONSISTENT_READ
#define WRITE BLOCK_PERM_WRITE
#define RESIZE BLOCK_PERM_RESIZE
#define ALL BLOCK_PERM_ALL

extern char **environ;

/* Two users of one file. */
struct pair {
    struct image_lock a, b;
};

static int open_image(void)
{
    int fd = open(IMAGE, O_RDWR | O_CREAT | O_CLOEXEC, 0644);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    return fd;
}

static int setup(void **state)
{
    struct pair *p = calloc(1, sizeof(*p));

    p->a.fd = open_image();
    p->b.fd = open_image();
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct pair *p = *state;

    close(p->a.fd);
    close(p->b.fd);
    free(p);
    return unlink(IMAGE);
}

static int set(struct image_lock *l, unsigned perm, unsigned shared)
{
    return image_lock_set(l, perm, shared, IMAGE, NULL);
}

/* --- among ourselves -------------------------------------------------------------------------- */

static void the_messages_say_which_side_is_at_fault(void **state)
{
    struct pair *p = *state;
    ERROR_AUTO(wanted);
    ERROR_AUTO(unshared);

    assert_int_equal(set(&p->a, READ | WRITE, READ), 0);
    assert_int_equal(image_lock_set(&p->b, WRITE, ALL, IMAGE, &wanted), -EAGAIN);
    assert_string_equal(error_message(&wanted), "Failed to get \"write\" lock");
    assert_string_equal(wanted.hint, "Is another process using the image [" IMAGE "]?");
    assert_int_equal(image_lock_set(&p->b, READ, ALL & ~WRITE, IMAGE, &unshared), -EAGAIN);
    assert_string_equal(error_message(&unshared), "Failed to get shared \"write\" lock");
}

static void readers_share(void **state)
{
    struct pair *p = *state;

    assert_int_equal(set(&p->a, READ, READ), 0);
    assert_int_equal(set(&p->b, READ, READ), 0);
}

static void a_refused_change_leaves_the_old_locks(void **state)
{
    struct pair *p = *state;
    struct image_lock c = {.fd = open_image()};

    assert_int_equal(set(&p->a, READ, ALL & ~WRITE), 0);
    assert_int_equal(set(&p->b, READ, ALL & ~RESIZE), 0);
    assert_int_equal(set(&p->b, READ | WRITE, READ), -EAGAIN);
    assert_int_equal(p->b.perm, READ);
    assert_int_equal(p->b.unshared, RESIZE);
    /* Nothing of the attempt stands in the way of a third, and what was held still does. */
    assert_int_equal(set(&c, READ, ALL & ~WRITE), 0);
    assert_int_equal(set(&c, READ | RESIZE, ALL & ~WRITE), -EAGAIN);
    close(c.fd);
}

static void locks_go_as_permissions_are_given_back(void **state)
{
    struct pair *p = *state;

    assert_int_equal(set(&p->a, READ | WRITE | RESIZE, READ), 0);
    assert_int_equal(set(&p->b, READ | WRITE, ALL), -EAGAIN);
    assert_int_equal(set(&p->a, READ, ALL), 0);
    assert_int_equal(set(&p->b, READ | WRITE, ALL), 0);
    assert_int_equal(set(&p->a, READ, READ), -EAGAIN);
    assert_int_equal(set(&p->b, 0, ALL), 0);
    assert_int_equal(set(&p->a, READ, READ), 0);
}

static void closing_the_file_gives_all_back(void **state)
{
    struct pair *p = *state;

    assert_int_equal(set(&p->a, READ | WRITE, READ), 0);
    close(p->a.fd);
    p->a = (struct image_lock){.fd = open_image()};
    assert_int_equal(set(&p->b, READ | WRITE, READ), 0);
}

/* --- against QEMU ----------------------------------------------------------------------------- */

/* Start a tool, its standard input and output in our hands. -ENOENT if it is not installed. */
static int start(char *const argv[], pid_t *ret_pid, int *ret_in, int *ret_out)
{
    posix_spawn_file_actions_t actions;
    int in[2], out[2], r;

    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, out[1], 2);
    r = posix_spawnp(ret_pid, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    *ret_in = in[1];
    *ret_out = out[0];
    return -r;
}

/* Run a tool to its end; its output is left in `output`. Returns its exit status. */
static int run(char *const argv[], char *output, size_t size)
{
    size_t len = 0;
    ssize_t n;
    pid_t pid;
    int in, out, status;

    assert_int_equal(start(argv, &pid, &in, &out), 0);
    close(in);
    while (len + 1 < size && (n = read(out, output + len, size - 1 - len)) > 0) {
        len += (size_t)n;
    }
    output[len] = '\0';
    close(out);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#define RUN(output, ...) run((char *const[]){__VA_ARGS__, NULL}, output, sizeof(output))

static void qemu_is_kept_off_what_we_write(void **state)
{
    struct pair *p = *state;
    char output[4096];

    assert_int_equal(set(&p->a, READ | WRITE, READ), 0);
    assert_int_not_equal(RUN(output, "qemu-io", "-f", "raw", "-c", "write 0 512", IMAGE), 0);
    assert_non_null(strstr(output, "Failed to get \"write\" lock"));
    assert_int_not_equal(RUN(output, "qemu-img", "convert", "-f", "raw", IMAGE, "copy.img"), 0);
    assert_non_null(strstr(output, "Failed to get shared \"write\" lock"));
    assert_int_equal(RUN(output, "qemu-img", "convert", "-U", "-f", "raw", IMAGE, "copy.img"), 0);
    unlink("copy.img");
}

static void qemu_may_read_what_we_read(void **state)
{
    struct pair *p = *state;
    char output[4096];

    assert_int_equal(set(&p->a, READ, READ), 0);
    assert_int_equal(RUN(output, "qemu-img", "convert", "-f", "raw", IMAGE, "copy.img"), 0);
    assert_int_not_equal(RUN(output, "qemu-io", "-f", "raw", "-c", "write 0 512", IMAGE), 0);
    unlink("copy.img");
    assert_int_equal(set(&p->a, 0, ALL), 0);
    assert_int_equal(RUN(output, "qemu-io", "-f", "raw", "-c", "write 0 512", IMAGE), 0);
}

/* qemu-io with the image open, until its input is closed. */
static void hold(char *const argv[], pid_t *ret_pid, int *ret_in, int *ret_out)
{
    char prompt[64] = "";

    assert_int_equal(start(argv, ret_pid, ret_in, ret_out), 0);
    assert_true(read(*ret_out, prompt, sizeof(prompt) - 1) > 0);
    assert_non_null(strstr(prompt, "qemu-io>"));
}

static void let_go(pid_t pid, int in, int out)
{
    char rest[64];

    close(in);
    while (read(out, rest, sizeof(rest)) > 0) {
    }
    close(out);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void we_are_kept_off_what_qemu_writes(void **state)
{
    struct pair *p = *state;
    char *const argv[] = {"qemu-io", "-f", "raw", IMAGE, NULL};
    pid_t pid;
    int in, out;

    hold(argv, &pid, &in, &out);
    assert_int_equal(set(&p->a, READ | WRITE, READ), -EAGAIN);
    assert_int_equal(set(&p->a, READ, READ), -EAGAIN);
    let_go(pid, in, out);
    assert_int_equal(set(&p->a, READ | WRITE, READ), 0);
}

/* QEMU's qcow2 shares no writing, also where it only reads. */
static void we_may_read_but_not_write_what_qemu_reads(void **state)
{
    struct pair *p = *state;
    char *const argv[] = {"qemu-io", "-r", "-f", "qcow2", IMAGE, NULL};
    char output[4096];
    pid_t pid;
    int in, out;

    assert_int_equal(RUN(output, "qemu-img", "create", "-f", "qcow2", IMAGE, "1M"), 0);
    hold(argv, &pid, &in, &out);
    assert_int_equal(set(&p->a, READ, READ), 0);
    assert_int_equal(set(&p->a, READ | WRITE, READ), -EAGAIN);
    let_go(pid, in, out);
    assert_int_equal(set(&p->a, READ | WRITE, READ), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_messages_say_which_side_is_at_fault, setup, teardown),
        cmocka_unit_test_setup_teardown(readers_share, setup, teardown),
        cmocka_unit_test_setup_teardown(a_refused_change_leaves_the_old_locks, setup, teardown),
        cmocka_unit_test_setup_teardown(locks_go_as_permissions_are_given_back, setup, teardown),
        cmocka_unit_test_setup_teardown(closing_the_file_gives_all_back, setup, teardown),
        cmocka_unit_test_setup_teardown(qemu_is_kept_off_what_we_write, setup, teardown),
        cmocka_unit_test_setup_teardown(qemu_may_read_what_we_read, setup, teardown),
        cmocka_unit_test_setup_teardown(we_are_kept_off_what_qemu_writes, setup, teardown),
        cmocka_unit_test_setup_teardown(we_may_read_but_not_write_what_qemu_reads, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Permissions and image locks, drains, edges that move, and the end of nodes. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/checked.h"
#include "block/device.h"
#include "block/driver.h"
#include "co_test.h"
#include "loop/loop.h"
#include "memory_disk.h"

#define READ BLOCK_PERM_CONSISTENT_READ
#define RW (READ | BLOCK_PERM_WRITE)
#define TURNS 200

/* --- a driver that records permissions and may be busy ------------------------------------- */

static struct {
    unsigned perm, shared; /* as last set */
    unsigned refuse;       /* permissions that can't be had */
    bool busy;
    int close_result;
} lock;

static int lock_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    block_node_set_size(node, MiB);
    return 0;
}

static int lock_co_set_perm(struct block_node *node, unsigned perm, unsigned shared,
                            struct error *err)
{
    if (perm & lock.refuse) {
        return error_set(err, EAGAIN, "somebody else has it");
    }
    lock.perm = perm;
    lock.shared = shared;
    return 0;
}

static int lock_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    return 0;
}

static bool lock_drain_busy(struct block_node *node, const struct block_node *drained)
{
    return lock.busy;
}

static int lock_co_inactivate(struct block_node *node, struct error *err)
{
    return lock.close_result ? error_set(err, -lock.close_result, "can't be completed") : 0;
}

static const struct block_driver lock_driver = {
    .name = "lock",
    .co_open = lock_co_open,
    .co_set_perm = lock_co_set_perm,
    .co_pwritev = lock_co_pwritev,
    .drain_busy = lock_drain_busy,
    .co_inactivate = lock_co_inactivate,
};

/* A format over `file` and, if it is given, `backing`. */
static int layer_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    int r = block_co_open_child(node, opts, "file", BLOCK_ROLE_DATA, false, NULL, err);

    r = r < 0 ? r : block_co_open_child(node, opts, "backing", BLOCK_ROLE_BACKING, true, NULL, err);
    block_node_set_size(node, MiB);
    return r;
}

static int layer_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                            unsigned flags)
{
    return block_co_pwritev(node->file, offset, iov, flags);
}

static const struct block_driver layer_driver = {
    .name = "layer",
    .co_open = layer_co_open,
    .co_pwritev = layer_co_pwritev,
};

/* --- helpers ---------------------------------------------------------------------------------- */

static struct block_node *open_node(const char *options, unsigned flags)
{
    struct options *opts = NULL;
    struct block_node *node = NULL;
    ERROR_AUTO(err);

    if (options_parse(options, NULL, &opts, &err) < 0 ||
        block_co_open(opts, flags, &node, &err) < 0) {
        fail_msg("'%s': %s", options, error_message(&err));
    }
    return node;
}

static struct block_node *open_disk(const char *name)
{
    char options[64];

    snprintf(options, sizeof(options), "driver=memory-disk,size=1M,node-name=%s", name);
    return open_node(options, BLOCK_OPEN_RDWR);
}

static int try_root(struct block_node *node, unsigned perm, unsigned shared,
                    struct block_root **ret)
{
    *ret = NULL;
    return block_co_root_new(node, "test", perm, shared, ret, NULL);
}

static struct block_root *root_on(struct block_node *node, unsigned perm, unsigned shared)
{
    struct block_root *root;

    assert_int_equal(try_root(node, perm, shared, &root), 0);
    return root;
}

static int write_by(struct block_root *root)
{
    return block_co_pwrite(block_root_edge(root), 0, "a", 1, 0);
}

static uint64_t flushes_of(struct block_node *node)
{
    return memory_disk_requests(memory_disk_of(node), MEMORY_DISK_FLUSH);
}

static void turns(void)
{
    for (int i = 0; i < TURNS; i++) {
        co_reschedule();
    }
}

/* Something that is done by a coroutine of its own. */
struct task {
    void (*fn)(struct task *t);
    struct block_node *node;
    struct block_root *root;
    struct co_group group;
    bool done;
};

static void task_entry(void *arg)
{
    struct task *t = arg;

    t->fn(t);
    t->done = true;
    co_group_done(&t->group);
}

static void task_start(struct task *t)
{
    co_group_init(&t->group);
    co_group_add(&t->group);
    assert_int_equal(reactor_spawn(reactor_main(), task_entry, t), 0);
}

static void task_wait(struct task *t)
{
    co_group_wait(&t->group);
    co_group_destroy(&t->group);
}

static void do_write(struct task *t)
{
    assert_int_equal(write_by(t->root), 0);
}

static void do_drain(struct task *t)
{
    block_co_drain_begin(t->node);
}

/* --- permissions ------------------------------------------------------------------------------ */

static void what_one_does_the_others_have_to_share(void *arg)
{
    struct block_node *node = open_disk("a");
    struct block_root *writer = root_on(node, RW, READ), *other;

    assert_int_equal(try_root(node, READ, BLOCK_PERM_ALL, &other), 0);
    block_co_root_release(other);
    assert_int_equal(try_root(node, RW, BLOCK_PERM_ALL, &other), -EPERM);
    assert_int_equal(try_root(node, READ, READ, &other), -EPERM);
    assert_int_equal(block_co_root_set_perm(writer, READ, READ, NULL), 0);
    assert_int_equal(try_root(node, READ, READ, &other), 0);
    assert_int_equal(block_co_root_set_perm(writer, RW, READ, NULL), -EPERM);
    assert_int_equal(write_by(writer), -EPERM);
    block_co_root_release(other);
    block_co_root_release(writer);
    block_co_unref(node);
}

static void a_read_only_node_has_no_writer(void *arg)
{
    struct block_node *node = open_node("driver=memory-disk,size=1M,read-only=on", 0);
    struct block_root *root;

    assert_int_equal(try_root(node, RW, BLOCK_PERM_ALL, &root), -EACCES);
    assert_int_equal(try_root(node, READ, BLOCK_PERM_ALL, &root), 0);
    block_co_root_release(root);
    block_co_unref(node);
}

static void nobody_writes_to_a_backing_file_in_use(void *arg)
{
    struct block_node *base = open_disk("base");
    struct block_node *top = open_node("driver=layer,file.driver=memory-disk,file.size=1M,"
                                       "backing=base",
                                       BLOCK_OPEN_RDWR);
    struct block_root *guest = root_on(top, RW, BLOCK_PERM_ALL), *other;

    assert_int_equal(try_root(base, RW, BLOCK_PERM_ALL, &other), -EPERM);
    assert_int_equal(try_root(base, READ, BLOCK_PERM_ALL, &other), 0);
    block_co_root_release(other);
    block_co_root_release(guest);
    block_co_unref(top);
    block_co_unref(base);
}

/* A reader of the overlay that shares writing gets to see what is written to the backing file. */
static void a_backing_file_may_change_under_readers_that_share_it(void *arg)
{
    struct block_node *base = open_disk("base");
    struct block_node *top = open_node("driver=layer,file.driver=memory-disk,file.size=1M,"
                                       "backing=base",
                                       BLOCK_OPEN_RDWR);
    struct block_root *reader = root_on(top, READ, BLOCK_PERM_ALL), *writer;

    assert_int_equal(try_root(base, RW, BLOCK_PERM_ALL, &writer), 0);
    assert_int_equal(block_co_root_set_perm(reader, READ, READ, NULL), -EPERM);
    assert_int_equal(block_co_root_set_perm(reader, RW, BLOCK_PERM_ALL, NULL), -EPERM);
    block_co_root_release(writer);
    block_co_root_release(reader);
    block_co_unref(top);
    block_co_unref(base);
}

static void locks_are_taken_kept_and_given_up(void *arg)
{
    struct block_node *node = open_node("driver=lock", BLOCK_OPEN_RDWR);
    struct block_root *root = root_on(node, RW, READ);

    assert_int_equal(lock.perm, RW);
    assert_int_equal(lock.shared, READ);
    assert_int_equal(block_co_root_set_perm(root, READ, BLOCK_PERM_ALL, NULL), 0);
    assert_int_equal(lock.perm, READ);
    assert_int_equal(lock.shared, BLOCK_PERM_ALL);
    block_co_root_release(root);
    assert_int_equal(lock.perm, 0);
    block_co_unref(node);
}

/* The lock that there was is not given up for one that can't be had. */
static void a_lock_that_can_not_be_had_costs_none(void *arg)
{
    struct block_node *node = open_node("driver=lock", BLOCK_OPEN_RDWR);
    struct block_root *root = root_on(node, RW, READ);

    lock.refuse = BLOCK_PERM_RESIZE;
    assert_int_equal(block_co_root_set_perm(root, READ | BLOCK_PERM_RESIZE, READ, NULL), -EAGAIN);
    assert_int_equal(lock.perm, RW);
    assert_int_equal(lock.shared, READ);
    assert_int_equal(write_by(root), 0);
    lock.refuse = 0;
    block_co_root_release(root);
    block_co_unref(node);
}

/*
 * Of two nodes, the second refuses: the permissions that the first was given meanwhile include all
 * that it had.
 */
static unsigned least_told;

static int meek_co_set_perm(struct block_node *node, unsigned perm, unsigned shared,
                            struct error *err)
{
    least_told &= perm;
    return 0;
}

static const struct block_driver meek_driver = {
    .name = "meek",
    .co_open = lock_co_open,
    .co_set_perm = meek_co_set_perm,
    .co_pwritev = lock_co_pwritev,
};

static void nothing_is_given_up_before_all_is_had(void *arg)
{
    struct block_node *top =
        open_node("driver=layer,file.driver=layer,file.file.driver=lock", BLOCK_OPEN_RDWR);
    struct block_node *meek = open_node("driver=meek,node-name=meek", BLOCK_OPEN_RDWR);
    struct block_root *guest = root_on(meek, RW, READ);

    /* The guest goes from `meek` to a chain whose file refuses. */
    lock.refuse = BLOCK_PERM_WRITE;
    least_told = BLOCK_PERM_ALL;
    assert_int_equal(block_co_root_replace(guest, top, NULL), -EAGAIN);
    assert_int_equal(least_told & RW, RW);
    lock.refuse = 0;
    assert_ptr_equal(block_root_node(guest), meek);
    assert_int_equal(write_by(guest), 0);
    block_co_root_release(guest);
    block_co_unref(meek);
    block_co_unref(top);
}

/* --- drain ------------------------------------------------------------------------------------ */

static void a_drain_waits_for_requests_in_flight(void *arg)
{
    struct block_node *node = open_disk("a");
    struct task write = {.fn = do_write, .root = root_on(node, RW, BLOCK_PERM_ALL)};
    struct task drain = {.fn = do_drain, .node = node};

    memory_disk_hold(memory_disk_of(node), MEMORY_DISK_WRITE, 1);
    task_start(&write);
    turns();
    task_start(&drain);
    turns();
    assert_false(drain.done);
    memory_disk_release(memory_disk_of(node));
    task_wait(&drain);
    assert_true(write.done);
    task_wait(&write);
    block_drain_end(node);
    block_co_root_release(write.root);
    block_co_unref(node);
}

static void requests_wait_for_the_end_of_a_drain(void *arg)
{
    struct block_node *node = open_disk("a");
    struct task write = {.fn = do_write, .root = root_on(node, RW, BLOCK_PERM_ALL)};

    block_co_drain_begin(node);
    task_start(&write);
    turns();
    assert_false(write.done);
    assert_int_equal(memory_disk_requests(memory_disk_of(node), MEMORY_DISK_WRITE), 0);
    block_drain_end(node);
    task_wait(&write);
    block_co_root_release(write.root);
    block_co_unref(node);
}

static void a_drain_concerns_what_is_above_and_nothing_else(void *arg)
{
    struct block_node *a = open_disk("a"), *b = open_disk("b");
    struct task hanging = {.fn = do_write, .root = root_on(b, RW, BLOCK_PERM_ALL)};
    struct block_root *free_one = root_on(b, RW, BLOCK_PERM_ALL);

    memory_disk_hold(memory_disk_of(b), MEMORY_DISK_WRITE, 1);
    task_start(&hanging);
    turns();
    block_co_drain_begin(a); /* does not wait for what hangs on the other disk */
    assert_int_equal(write_by(free_one), 0);
    block_drain_end(a);
    memory_disk_release(memory_disk_of(b));
    task_wait(&hanging);
    block_co_root_release(hanging.root);
    block_co_root_release(free_one);
    block_co_unref(a);
    block_co_unref(b);
}

static void a_drain_waits_for_work_that_no_request_waits_for(void *arg)
{
    struct block_node *node = open_node("driver=lock", BLOCK_OPEN_RDWR);
    struct task drain = {.fn = do_drain, .node = node};

    lock.busy = true;
    task_start(&drain);
    loop_co_sleep(2000000);
    assert_false(drain.done);
    lock.busy = false;
    task_wait(&drain);
    block_drain_end(node);
    block_co_unref(node);
}

/* --- edges that move -------------------------------------------------------------------------- */

static void what_was_written_is_flushed_when_its_writer_moves(void *arg)
{
    struct block_node *a = open_disk("a"), *b = open_disk("b");
    struct block_root *root = root_on(a, RW, BLOCK_PERM_ALL);

    assert_int_equal(write_by(root), 0);
    assert_int_equal(block_co_root_replace(root, b, NULL), 0);
    assert_int_equal(flushes_of(a), 1);
    assert_ptr_equal(block_root_node(root), b);
    block_co_root_release(root);
    block_co_unref(a);
    block_co_unref(b);
}

static void a_flush_that_fails_keeps_the_writer_where_it_is(void *arg)
{
    struct block_node *a = open_disk("a"), *b = open_disk("b");
    struct block_root *root = root_on(a, RW, BLOCK_PERM_ALL);

    assert_int_equal(write_by(root), 0);
    memory_disk_fail(memory_disk_of(a), MEMORY_DISK_FLUSH, EIO);
    assert_int_equal(block_co_root_replace(root, b, NULL), -EIO);
    memory_disk_fail(memory_disk_of(a), 0, 0);
    assert_ptr_equal(block_root_node(root), a);
    assert_int_equal(write_by(root), 0);
    assert_int_equal(memory_disk_requests(memory_disk_of(b), MEMORY_DISK_WRITE), 0);
    block_co_root_release(root);
    block_co_unref(a);
    block_co_unref(b);
}

/* What is printed meanwhile goes to a file. */
static int divert_stderr(const char *path)
{
    int saved = dup(STDERR_FILENO), fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(dup2(fd, STDERR_FILENO) >= 0);
    close(fd);
    return saved;
}

static void going_back_after_a_failed_flush_is_no_failure(void *arg)
{
    struct block_node *a = open_disk("a"), *b = open_disk("b");
    struct block_root *root = root_on(a, RW, BLOCK_PERM_ALL);
    struct stat st;
    int saved;

    assert_int_equal(write_by(root), 0);
    memory_disk_fail(memory_disk_of(a), MEMORY_DISK_FLUSH, EIO);
    saved = divert_stderr("log");
    assert_int_equal(block_co_root_replace(root, b, NULL), -EIO);
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    close(saved);
    assert_int_equal(stat("log", &st), 0);
    assert_int_equal(st.st_size, 0);
    assert_int_equal(flushes_of(a), 1);
    memory_disk_fail(memory_disk_of(a), 0, 0);
    assert_int_equal(block_co_root_replace(root, b, NULL), 0);
    assert_int_equal(flushes_of(a), 2);
    block_co_root_release(root);
    block_co_unref(a);
    block_co_unref(b);
}

static void nothing_moves_to_another_size(void *arg)
{
    struct block_node *a = open_disk("a");
    struct block_node *b = open_node("driver=memory-disk,size=2M", BLOCK_OPEN_RDWR);
    struct block_root *root = root_on(a, RW, BLOCK_PERM_ALL);

    assert_int_equal(block_co_root_replace(root, b, NULL), -EINVAL);
    assert_ptr_equal(block_root_node(root), a);
    block_co_root_release(root);
    block_co_unref(a);
    block_co_unref(b);
}

static void no_circle_is_made(void *arg)
{
    struct block_node *low = open_node("driver=layer,node-name=low,file.driver=memory-disk,"
                                       "file.size=1M",
                                       BLOCK_OPEN_RDWR);
    struct block_node *high = open_node("driver=layer,file=low", BLOCK_OPEN_RDWR);

    assert_int_equal(block_co_edge_move(low->file, high, NULL), -EINVAL);
    block_co_unref(high);
    block_co_unref(low);
}

/* --- the end of a node ------------------------------------------------------------------------ */

static void what_was_written_is_flushed_at_the_end(void *arg)
{
    struct block_node *file = open_disk("file");
    struct block_node *top = open_node("driver=layer,file=file", BLOCK_OPEN_RDWR);
    struct block_root *root = root_on(top, RW, BLOCK_PERM_ALL);

    assert_int_equal(write_by(root), 0);
    block_co_root_release(root);
    assert_int_equal(block_co_close(top, NULL), 0);
    assert_int_equal(flushes_of(file), 1);
    block_co_unref(file);
}

static void a_flush_that_fails_at_the_end_is_told(void *arg)
{
    struct block_node *file = open_disk("file");
    struct block_node *top = open_node("driver=layer,file=file", BLOCK_OPEN_RDWR);
    struct block_root *root = root_on(top, RW, BLOCK_PERM_ALL);
    ERROR_AUTO(err);

    assert_int_equal(write_by(root), 0);
    block_co_root_release(root);
    memory_disk_fail(memory_disk_of(file), MEMORY_DISK_FLUSH, EIO);
    assert_int_equal(block_co_close(top, &err), -EIO);
    assert_true(error_is_set(&err));
    memory_disk_fail(memory_disk_of(file), 0, 0);
    block_co_unref(file);
}

static void what_can_not_be_completed_below_is_told(void *arg)
{
    struct block_node *top = open_node("driver=layer,file.driver=lock", BLOCK_OPEN_RDWR);
    ERROR_AUTO(err);

    lock.close_result = -ENOSPC;
    assert_int_equal(block_co_close(top, &err), -ENOSPC);
    lock.close_result = 0;
}

/* --- devices ---------------------------------------------------------------------------------- */

static void a_device_lends_its_name_to_the_node_it_uses(void *arg)
{
    struct block_node *first = open_disk("first"), *second = open_disk("second"), *taken;
    struct block_root *root = root_on(first, RW, BLOCK_PERM_ALL);
    struct block_device device = {.name = "drive", .root = root};
    struct block_device other = {.name = "drive"}, node_name = {.name = "first"};
    struct options *opts;
    ERROR_AUTO(taken_error);
    ERROR_AUTO(empty_error);

    assert_int_equal(block_device_add(&device, NULL), 0);
    assert_int_equal(block_device_add(&other, NULL), -EEXIST);
    assert_int_equal(block_device_add(&node_name, NULL), -EEXIST);
    assert_ptr_equal(block_node_lookup("drive", NULL), first);
    assert_string_equal(block_node_device_name(first), "drive");
    assert_int_equal(block_co_root_replace(root, second, NULL), 0);
    assert_ptr_equal(block_node_lookup("drive", NULL), second);
    assert_string_equal(block_node_device_name(first), "");

    assert_int_equal(options_parse("driver=memory-disk,size=1M,node-name=drive", NULL, &opts, NULL),
                     0);
    assert_int_equal(block_co_open(opts, BLOCK_OPEN_RDWR, &taken, &taken_error), -EEXIST);
    assert_string_equal(error_message(&taken_error),
                        "node-name=drive is conflicting with a device id");

    device.root = NULL;
    block_co_root_release(root);
    assert_null(block_node_lookup("drive", &empty_error));
    assert_string_equal(error_message(&empty_error), "Device 'drive' has no medium");
    block_device_remove(&device);
    assert_null(block_node_find("drive"));
    block_co_unref(first);
    block_co_unref(second);
}

/* --- running ---------------------------------------------------------------------------------- */

static int setup(void **state)
{
    block_register_driver(&memory_disk_driver);
    block_register_driver(&lock_driver);
    block_register_driver(&meek_driver);
    block_register_driver(&layer_driver);
    return co_test_setup();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(what_one_does_the_others_have_to_share),
        CO_TEST(a_read_only_node_has_no_writer),
        CO_TEST(nobody_writes_to_a_backing_file_in_use),
        CO_TEST(a_backing_file_may_change_under_readers_that_share_it),
        CO_TEST(locks_are_taken_kept_and_given_up),
        CO_TEST(a_lock_that_can_not_be_had_costs_none),
        CO_TEST(nothing_is_given_up_before_all_is_had),
        CO_TEST(a_drain_waits_for_requests_in_flight),
        CO_TEST(requests_wait_for_the_end_of_a_drain),
        CO_TEST(a_drain_concerns_what_is_above_and_nothing_else),
        CO_TEST(a_drain_waits_for_work_that_no_request_waits_for),
        CO_TEST(what_was_written_is_flushed_when_its_writer_moves),
        CO_TEST(a_flush_that_fails_keeps_the_writer_where_it_is),
        CO_TEST(going_back_after_a_failed_flush_is_no_failure),
        CO_TEST(nothing_moves_to_another_size),
        CO_TEST(no_circle_is_made),
        CO_TEST(what_was_written_is_flushed_at_the_end),
        CO_TEST(a_flush_that_fails_at_the_end_is_told),
        CO_TEST(what_can_not_be_completed_below_is_told),
        CO_TEST(a_device_lends_its_name_to_the_node_it_uses),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parts of files, and the guard of what was guessed to be raw. Each test runs in a coroutine of its
 * own.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/driver.h"
#include "co_test.h"
#include "file/file_drivers.h"
#include "file/posix_file.h"
#include "loop/loop.h"

#define RW (BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE)
#define IMAGE "disk.img"

/* --- helpers ---------------------------------------------------------------------------------- */

static void make_file(uint64_t size, int byte)
{
    AUTO_FREE char *data = malloc(size);
    FILE *f = fopen(IMAGE, "w");

    assert_non_null(f);
    memset(data, byte, size);
    assert_int_equal(fwrite(data, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

struct disk {
    struct block_node *node;
    struct block_root *root;
    struct block_edge *edge;
};

static void add_root(struct disk *d)
{
    ERROR_AUTO(err);

    assert_int_equal(
        block_co_root_new(d->node, "test", RW, BLOCK_PERM_CONSISTENT_READ, &d->root, &err), 0);
    d->edge = block_root_edge(d->root);
}

static struct disk attach(const char *options)
{
    struct options *opts = NULL;
    struct disk d = {0};
    ERROR_AUTO(err);

    assert_int_equal(options_parse(options, NULL, &opts, &err), 0);
    assert_int_equal(block_co_open(opts, BLOCK_OPEN_RDWR, &d.node, &err), 0);
    add_root(&d);
    return d;
}

static struct disk attach_guessed(void)
{
    struct disk d = {0};
    ERROR_AUTO(err);

    assert_int_equal(block_co_open_filename(IMAGE, NULL, NULL, BLOCK_OPEN_RDWR | BLOCK_OPEN_PROBE,
                                            &d.node, &err),
                     0);
    assert_string_equal(d.node->driver->name, "raw");
    add_root(&d);
    return d;
}

static void detach(struct disk *d)
{
    block_co_root_release(d->root);
    block_co_unref(d->node);
}

static void assert_file_bytes(uint64_t offset, size_t size, int byte)
{
    AUTO_FREE char *data = malloc(size);
    FILE *f = fopen(IMAGE, "r");

    assert_non_null(f);
    assert_int_equal(fseek(f, (long)offset, SEEK_SET), 0);
    assert_int_equal(fread(data, 1, size, f), size);
    fclose(f);
    for (size_t i = 0; i < size; i++) {
        if (data[i] != (char)byte) {
            fail_msg("byte %zu of the file is %d, not %d", (size_t)offset + i, data[i], byte);
        }
    }
}

/* --- a part of a file ------------------------------------------------------------------------- */

#define PART "driver=raw,offset=64k,size=128k,discard=unmap,file.driver=file,file.filename=" IMAGE

static void a_discard_stays_within_the_part(void *arg)
{
    struct disk d;

    make_file(256 * KiB, 'x');
    d = attach(PART ",file.discard=unmap");
    assert_int_equal(block_co_discard(d.edge, 0, 64 * KiB), 0);
    detach(&d);
    assert_file_bytes(0, 64 * KiB, 'x');
    assert_file_bytes(64 * KiB, 64 * KiB, 0);
    assert_file_bytes(128 * KiB, 128 * KiB, 'x');
}

static void zeroes_stay_within_the_part(void *arg)
{
    struct disk d;

    make_file(256 * KiB, 'x');
    d = attach(PART);
    assert_int_equal(block_co_write_zeroes(d.edge, 64 * KiB, 64 * KiB, 0), 0);
    assert_int_equal(block_co_write_zeroes(d.edge, 64 * KiB, 65 * KiB, 0), -EIO);
    detach(&d);
    assert_file_bytes(0, 128 * KiB, 'x');
    assert_file_bytes(128 * KiB, 64 * KiB, 0);
    assert_file_bytes(192 * KiB, 64 * KiB, 'x');
}

/* --- the guard of the first sector ------------------------------------------------------------ */

/* A format that looks at a byte that must be zero, as version fields are. */
static int versioned_probe(const uint8_t *head, size_t size)
{
    return size >= 6 && memcmp(head, "VeRs\0\1", 6) == 0 ? 100 : 0;
}

static const struct block_driver versioned_driver = {
    .name = "versioned",
    .is_format = true,
    .probe = versioned_probe,
};

static void zeroes_can_make_a_header_too(void *arg)
{
    struct disk d;

    make_file(64 * KiB, 'x');
    d = attach_guessed();
    assert_int_equal(block_co_pwrite(d.edge, 0, "VeRsx\1", 6, 0), 0);
    assert_int_equal(block_co_write_zeroes(d.edge, 4, 1, 0), -EPERM);
    detach(&d);
    assert_file_bytes(4, 1, 'x');
}

static void a_discard_leaves_the_first_sector(void *arg)
{
    struct disk d;

    make_file(64 * KiB, 'x');
    d = attach_guessed();
    assert_int_equal(block_co_pwrite(d.edge, 0, "VeRsx\1", 6, 0), 0);
    assert_int_equal(block_co_discard(d.edge, 0, 64 * KiB), 0);
    detach(&d);
    assert_file_bytes(4, 1, 'x');
}

/* --- what the kernel does in part ------------------------------------------------------------- */

static void a_write_that_the_kernel_takes_in_part_fails(void *arg)
{
    struct rlimit old, limit;
    char data[8192] = {0};
    struct disk d;

    make_file(64 * KiB, 'x');
    d = attach("driver=file,filename=" IMAGE);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = (struct rlimit){.rlim_cur = 8192, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_int_equal(block_co_pwrite(d.edge, 4096, data, sizeof(data), 0), -EFBIG);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    detach(&d);
}

struct flush_job {
    struct block_edge *edge;
    struct co_group *group;
    int result;
};

static void flush(void *arg)
{
    struct flush_job *job = arg;

    job->result = block_co_flush(job->edge);
    co_group_done(job->group);
}

/* The one that runs may have passed by what was written since it began. */
static void a_flush_does_not_share_a_sync_that_began_before(void *arg)
{
    struct co_group group;
    struct flush_job job = {.group = &group, .result = 1};
    struct sync_group *sync;
    struct disk d;

    make_file(64 * KiB, 'x');
    d = attach("driver=file,filename=" IMAGE);
    sync = &((struct posix_file *)d.node->opaque)->sync;
    pthread_mutex_lock(&sync->guard);
    sync->running = true; /* somebody's */
    sync->started = 1;
    pthread_mutex_unlock(&sync->guard);
    assert_int_equal(block_co_pwrite(d.edge, 0, "a", 1, 0), 0);
    job.edge = d.edge;
    co_group_init(&group);
    co_group_add(&group);
    assert_int_equal(reactor_spawn(reactor_main(), flush, &job), 0);
    co_reschedule();
    co_reschedule();
    pthread_mutex_lock(&sync->guard);
    sync->running = false;
    sync->done = 1;
    co_queue_wake_all(&sync->waiters);
    pthread_mutex_unlock(&sync->guard);
    co_group_wait(&group);
    co_group_destroy(&group);
    assert_int_equal(job.result, 0);
    assert_int_equal(sync->started, 2);
    detach(&d);
}

/* --- a device that became smaller ------------------------------------------------------------- */

/* A loop device over IMAGE, -1 where we may not make one. It goes when the last user closes it. */
static int make_loop_device(char *path, size_t size)
{
    struct loop_config config = {.info.lo_flags = LO_FLAGS_AUTOCLEAR};
    int control AUTO_CLOSE = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    int image AUTO_CLOSE = open(IMAGE, O_RDWR | O_CLOEXEC);
    int number = control < 0 ? -1 : ioctl(control, LOOP_CTL_GET_FREE), fd;

    snprintf(path, size, "/dev/loop%d", number);
    fd = number < 0 ? -1 : open(path, O_RDWR | O_CLOEXEC);
    config.fd = (uint32_t)image;
    if (fd >= 0 && ioctl(fd, LOOP_CONFIGURE, &config) < 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

static void what_a_device_has_lost_does_not_read_as_zeroes(void *arg)
{
    char path[32], options[64], byte;
    struct disk d;
    int fd;

    make_file(1 * MiB, 'x');
    fd = make_loop_device(path, sizeof(path));
    if (fd < 0) {
        print_message("# no loop device is available\n");
        return;
    }
    snprintf(options, sizeof(options), "driver=host_device,filename=%s", path);
    d = attach(options);
    assert_int_equal(block_co_pread(d.edge, MiB - 1, &byte, 1), 0);
    assert_int_equal(truncate(IMAGE, 512 * KiB), 0);
    assert_int_equal(ioctl(fd, LOOP_SET_CAPACITY, 0), 0);
    assert_int_equal(block_co_pread(d.edge, 512 * KiB - 1, &byte, 1), 0);
    assert_int_equal(block_co_pread(d.edge, 512 * KiB, &byte, 1), -EIO);
    detach(&d);
    close(fd);
}

/* --- running ---------------------------------------------------------------------------------- */

static int setup(void **state)
{
    file_register_drivers();
    block_register_driver(&versioned_driver);
    return co_test_setup();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(a_discard_stays_within_the_part),
        CO_TEST(zeroes_stay_within_the_part),
        CO_TEST(zeroes_can_make_a_header_too),
        CO_TEST(a_discard_leaves_the_first_sector),
        CO_TEST(a_write_that_the_kernel_takes_in_part_fails),
        CO_TEST(what_a_device_has_lost_does_not_read_as_zeroes),
        CO_TEST(a_flush_does_not_share_a_sync_that_began_before),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}

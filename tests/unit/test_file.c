/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The drivers file, null-co and raw, through the graph. Each test runs in a coroutine of its own.
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
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/checked.h"
#include "block/driver.h"
#include "co_test.h"
#include "file/file_drivers.h"
#include "file/posix_file.h"
#include "loop/loop.h"

#define RW (BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE)
#define IMAGE "disk.img"

static struct reactor *other;

/* --- helpers ---------------------------------------------------------------------------------- */

static void make_file(const char *name, uint64_t size, int byte)
{
    FILE *f = fopen(name, "w");

    assert_non_null(f);
    for (uint64_t i = 0; byte && i < size; i++) {
        fputc(byte, f);
    }
    assert_int_equal(fclose(f), 0);
    assert_int_equal(truncate(name, (off_t)size), 0);
}

static int open_node(const char *options, struct block_node **ret, struct error *err)
{
    struct options *opts = NULL;
    int r = options_parse(options, NULL, &opts, err);

    return r < 0 ? r : block_co_open(opts, BLOCK_OPEN_RDWR, ret, err);
}

static struct block_node *must_open(const char *options)
{
    struct block_node *node = NULL;
    ERROR_AUTO(err);

    if (open_node(options, &node, &err) < 0) {
        fail_msg("'%s': %s", options, error_message(&err));
    }
    return node;
}

static void assert_open_fails(const char *options, int errnum, const char *sentence)
{
    struct block_node *node = NULL;
    ERROR_AUTO(err);

    assert_int_equal(open_node(options, &node, &err), -errnum);
    if (!strstr(error_message(&err), sentence)) {
        fail_msg("'%s' is not in '%s'", sentence, error_message(&err));
    }
}

/* A node and the one root on it. */
struct disk {
    struct block_node *node;
    struct block_root *root;
    struct block_edge *edge;
};

static struct disk attach(const char *options, unsigned perm)
{
    struct disk d = {.node = must_open(options)};
    ERROR_AUTO(err);

    if (block_co_root_new(d.node, "test", perm, BLOCK_PERM_CONSISTENT_READ, &d.root, &err) < 0) {
        fail_msg("%s", error_message(&err));
    }
    d.edge = block_root_edge(d.root);
    return d;
}

static void detach(struct disk *d)
{
    block_co_root_release(d->root);
    block_co_unref(d->node);
}

static void assert_bytes(struct block_edge *edge, uint64_t offset, size_t size, int byte)
{
    uint8_t *buf = malloc(size);

    memset(buf, ~byte, size);
    assert_int_equal(block_co_pread(edge, offset, buf, size), 0);
    for (size_t i = 0; i < size; i++) {
        if (buf[i] != (uint8_t)byte) {
            fail_msg("byte %zu is %d, not %d", (size_t)offset + i, buf[i], byte);
        }
    }
    free(buf);
}

static void fill(struct block_edge *edge, uint64_t offset, size_t size, int byte, unsigned flags)
{
    void *buf = malloc(size);

    memset(buf, byte, size);
    assert_int_equal(block_co_pwrite(edge, offset, buf, size, flags), 0);
    free(buf);
}

static uint64_t allocated(struct block_node *node)
{
    uint64_t bytes = 0;

    assert_int_equal(block_co_allocated_size(node, &bytes), 0);
    return bytes;
}

/* --- reading and writing ---------------------------------------------------------------------- */

static void what_is_written_is_read(void *arg)
{
    struct disk d;

    make_file(IMAGE, 1 * MiB, 0);
    d = attach("driver=file,filename=" IMAGE, RW);
    fill(d.edge, 1000, 5000, 7, 0);
    fill(d.edge, 9000, 4096, 8, BLOCK_REQ_FUA);
    assert_bytes(d.edge, 1000, 5000, 7);
    assert_bytes(d.edge, 9000, 4096, 8);
    assert_bytes(d.edge, 0, 1000, 0);
    assert_int_equal(block_co_flush(d.edge), 0);
    detach(&d);
}

static void vectors_longer_than_the_kernel_takes_work(void *arg)
{
    enum { COUNT = 3000, PIECE = 3 };
    struct iovec vec[COUNT];
    uint8_t *buf = malloc(COUNT * PIECE), *again = calloc(1, COUNT * PIECE);
    struct iov iov = {.vec = vec, .count = COUNT, .size = COUNT * PIECE};
    struct disk d;

    make_file(IMAGE, 64 * KiB, 0);
    d = attach("driver=file,filename=" IMAGE, RW);
    for (int i = 0; i < COUNT; i++) {
        memset(buf + i * PIECE, i, PIECE);
        vec[i] = (struct iovec){.iov_base = buf + i * PIECE, .iov_len = PIECE};
    }
    assert_int_equal(block_co_pwritev(d.edge, 100, iov, 0), 0);
    assert_int_equal(block_co_pread(d.edge, 100, again, COUNT * PIECE), 0);
    assert_memory_equal(buf, again, COUNT * PIECE);
    memset(buf, 0, COUNT * PIECE);
    assert_int_equal(block_co_preadv(d.edge, 100, iov, 0), 0);
    assert_memory_equal(buf, again, COUNT * PIECE);
    detach(&d);
    free(buf);
    free(again);
}

static void a_file_that_shrank_reads_as_zeroes(void *arg)
{
    struct disk d;

    make_file(IMAGE, 64 * KiB, 'x');
    d = attach("driver=file,filename=" IMAGE, RW);
    assert_int_equal(truncate(IMAGE, 10000), 0);
    assert_bytes(d.edge, 0, 10000, 'x');
    assert_bytes(d.edge, 10000, 20000, 0);
    detach(&d);
}

static void the_driver_lets_a_file_grow_by_writing(void *arg)
{
    struct disk d;
    struct iovec vec;
    struct stat st;
    char byte = 5;

    make_file(IMAGE, 1024, 'x');
    d = attach("driver=file,filename=" IMAGE, RW);
    assert_int_equal(d.node->driver->co_pwritev(d.node, 5000, iov_from_buf(&vec, &byte, 1), 0), 0);
    assert_int_equal(d.node->driver->co_write_zeroes(d.node, 6000, 2000, BLOCK_REQ_MAY_UNMAP), 0);
    assert_int_equal(stat(IMAGE, &st), 0);
    assert_int_equal(st.st_size, 8000);
    assert_int_equal(block_co_pwrite(d.edge, 1024, &byte, 1, 0), -EIO);
    detach(&d);
}

static void direct_io_takes_unaligned_requests_and_ends(void *arg)
{
    struct block_node *node = NULL;
    struct stat st;
    struct disk d;

    make_file(IMAGE, 100000, 'x');
    if (open_node("driver=file,filename=" IMAGE ",cache.direct=on", &node, NULL) == -EINVAL) {
        print_message("# no O_DIRECT on this file system\n");
        return;
    }
    block_co_unref(node);
    d = attach("driver=file,filename=" IMAGE ",cache.direct=on", RW);
    assert_true(d.node->limits.request_alignment >= 512);
    fill(d.edge, 5000, 3001, 7, 0);
    assert_bytes(d.edge, 4097, 903, 'x');
    assert_bytes(d.edge, 5000, 3001, 7);
    assert_bytes(d.edge, 8001, 91999, 'x');
    fill(d.edge, 99990, 10, 9, BLOCK_REQ_FUA);
    assert_bytes(d.edge, 99990, 10, 9);
    assert_bytes(d.edge, 90000, 9990, 'x');
    detach(&d);
    assert_int_equal(stat(IMAGE, &st), 0);
    assert_int_equal(st.st_size, round_up(100000, 512));
}

/* --- flush ------------------------------------------------------------------------------------ */

static void after_a_failed_flush_all_fail_until_reopened(void *arg)
{
    struct posix_file *f;
    struct disk d;
    int ends[2], fd;

    make_file(IMAGE, 64 * KiB, 0);
    d = attach("driver=file,filename=" IMAGE, RW);
    f = d.node->opaque;
    fill(d.edge, 0, 512, 1, 0);
    assert_int_equal(block_co_flush(d.edge), 0);
    fill(d.edge, 0, 512, 2, 0);
    /* A pipe can't be synced. */
    assert_int_equal(pipe(ends), 0);
    fd = f->fd;
    f->fd = ends[1];
    assert_int_equal(block_co_flush(d.edge), -EINVAL);
    f->fd = fd;
    assert_int_equal(block_co_flush(d.edge), -EINVAL);
    fill(d.edge, 0, 512, 3, 0);
    assert_int_equal(block_co_flush(d.edge), -EINVAL);
    close(ends[0]);
    close(ends[1]);
    detach(&d);
    d = attach("driver=file,filename=" IMAGE, RW);
    fill(d.edge, 0, 512, 4, 0);
    assert_int_equal(block_co_flush(d.edge), 0);
    detach(&d);
}

static void a_failed_stable_write_fails_later_flushes(void *arg)
{
    struct posix_file *f;
    struct disk d;
    int read_only, fd;
    char byte = 1;

    make_file(IMAGE, 64 * KiB, 0);
    d = attach("driver=file,filename=" IMAGE, RW);
    f = d.node->opaque;
    fd = f->fd;
    read_only = open(IMAGE, O_RDONLY | O_CLOEXEC);
    f->fd = read_only;
    assert_int_equal(block_co_pwrite(d.edge, 0, &byte, 1, BLOCK_REQ_FUA), -EBADF);
    f->fd = fd;
    assert_int_equal(block_co_flush(d.edge), -EBADF);
    close(read_only);
    detach(&d);
}

static void a_write_that_finds_no_room_harms_no_flush(void *arg)
{
    struct rlimit old, limit;
    struct disk d;
    char byte = 1;

    make_file(IMAGE, 64 * KiB, 0);
    d = attach("driver=file,filename=" IMAGE, RW);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = (struct rlimit){.rlim_cur = 4096, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_int_equal(block_co_pwrite(d.edge, 8192, &byte, 1, 0), -EFBIG);
    assert_int_equal(block_co_pwrite(d.edge, 8192, &byte, 1, BLOCK_REQ_FUA), -EFBIG);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(block_co_flush(d.edge), 0);
    detach(&d);
}

struct flush_job {
    struct block_edge *edge;
    struct co_group *group;
    int result;
};

static void write_and_flush(void *arg)
{
    struct flush_job *job = arg;
    char byte = 1;

    job->result = block_co_pwrite(job->edge, 0, &byte, 1, 0);
    if (job->result == 0) {
        job->result = block_co_flush(job->edge);
    }
    co_group_done(job->group);
}

static void flushes_that_come_together_share_a_sync(void *arg)
{
    enum { JOBS = 100 };
    struct flush_job jobs[JOBS];
    struct co_group group;
    struct posix_file *f;
    struct disk d;

    make_file(IMAGE, 64 * KiB, 0);
    d = attach("driver=file,filename=" IMAGE, RW);
    f = d.node->opaque;
    co_group_init(&group);
    for (int i = 0; i < JOBS; i++) {
        jobs[i] = (struct flush_job){.edge = d.edge, .group = &group, .result = -1};
        co_group_add(&group);
        assert_int_equal(reactor_spawn(reactor_main(), write_and_flush, &jobs[i]), 0);
    }
    co_group_wait(&group);
    co_group_destroy(&group);
    for (int i = 0; i < JOBS; i++) {
        assert_int_equal(jobs[i].result, 0);
    }
    assert_in_range(f->sync.started, 1, JOBS / 4);
    detach(&d);
}

/* --- zeroes, discard, status ------------------------------------------------------------------ */

static void zeroes_keep_or_give_back_space_as_asked(void *arg)
{
    struct disk d;

    make_file(IMAGE, 1 * MiB, 'x');
    d = attach("driver=file,filename=" IMAGE ",discard=unmap", RW);
    assert_int_equal(block_co_flush(d.edge), 0);
    assert_int_equal(block_co_write_zeroes(d.edge, 0, 512 * KiB, 0), 0);
    assert_bytes(d.edge, 0, 512 * KiB, 0);
    assert_bytes(d.edge, 512 * KiB, 512 * KiB, 'x');
    assert_true(allocated(d.node) >= 1 * MiB);
    assert_int_equal(block_co_write_zeroes(d.edge, 4096, 256 * KiB + 5, BLOCK_REQ_MAY_UNMAP), 0);
    assert_true(allocated(d.node) <= 1 * MiB - 256 * KiB);
    assert_int_equal(block_co_write_zeroes(d.edge, 600 * KiB + 1, 10, 0), 0);
    assert_bytes(d.edge, 600 * KiB + 1, 10, 0);
    assert_bytes(d.edge, 600 * KiB + 11, 100, 'x');
    detach(&d);
}

static void file_systems_that_lack_calls_are_not_asked_twice(void *arg)
{
    struct posix_file *f;
    struct disk d;

    make_file(IMAGE, 64 * KiB, 'x');
    d = attach("driver=file,filename=" IMAGE ",discard=unmap", RW);
    f = d.node->opaque;
    atomic_store(&f->no_zero_range, true);
    assert_int_equal(block_co_write_zeroes(d.edge, 0, 8192, BLOCK_REQ_NO_FALLBACK), 0);
    assert_bytes(d.edge, 0, 8192, 0);
    atomic_store(&f->no_punch_hole, true);
    assert_int_equal(block_co_write_zeroes(d.edge, 8192, 8192, BLOCK_REQ_NO_FALLBACK), -ENOTSUP);
    assert_bytes(d.edge, 8192, 8192, 'x');
    assert_int_equal(block_co_write_zeroes(d.edge, 8192, 8192, 0), 0);
    assert_bytes(d.edge, 8192, 8192, 0);
    assert_int_equal(block_co_discard(d.edge, 16384, 8192), 0);
    assert_bytes(d.edge, 16384, 8192, 'x');
    detach(&d);
}

static void discard_punches_only_where_it_is_wanted(void *arg)
{
    struct disk d;

    make_file(IMAGE, 256 * KiB, 'x');
    d = attach("driver=file,filename=" IMAGE, RW);
    assert_int_equal(block_co_discard(d.edge, 0, 128 * KiB), 0);
    assert_bytes(d.edge, 0, 256 * KiB, 'x');
    detach(&d);
    d = attach("driver=file,filename=" IMAGE ",discard=unmap", RW);
    assert_int_equal(block_co_discard(d.edge, 0, 128 * KiB), 0);
    assert_bytes(d.edge, 0, 128 * KiB, 0);
    assert_bytes(d.edge, 128 * KiB, 128 * KiB, 'x');
    assert_true(allocated(d.node) <= 128 * KiB);
    detach(&d);
}

/* Blocks are the unit of direct reads and writes, and not of holes. */
static void direct_io_punches_holes_of_any_length(void *arg)
{
    const char *options = "driver=file,filename=" IMAGE ",cache.direct=on,discard=unmap";
    struct block_node *node = NULL;
    struct disk d;

    make_file(IMAGE, 64 * KiB, 'x');
    if (open_node(options, &node, NULL) == -EINVAL) {
        print_message("# no O_DIRECT on this file system\n");
        return;
    }
    block_co_unref(node);
    d = attach(options, RW);
    assert_int_equal(block_co_discard(d.edge, 100, 100), 0);
    assert_int_equal(block_co_discard(d.edge, 12000, 9000), 0);
    assert_bytes(d.edge, 100, 100, 0);
    assert_bytes(d.edge, 200, 11800, 'x');
    assert_bytes(d.edge, 12000, 9000, 0);
    assert_bytes(d.edge, 21000, 64 * KiB - 21000, 'x');
    detach(&d);
}

struct punch_job {
    struct block_edge *edge;
    struct co_group *group;
    uint64_t offset;
    int result;
};

static void punch(void *arg)
{
    struct punch_job *job = arg;

    job->result = block_co_discard(job->edge, job->offset, 4096);
    co_group_done(job->group);
}

static void holes_punched_together_are_the_right_ones(void *arg)
{
    enum { JOBS = 300, PIECES = 512 };
    static const unsigned steps[] = {1, 7};
    struct punch_job jobs[JOBS];

    for (size_t s = 0; s < ARRAY_SIZE(steps); s++) {
        bool gone[PIECES] = {false};
        struct co_group group;
        struct disk d;

        make_file(IMAGE, PIECES * 4096, 'x');
        d = attach("driver=file,filename=" IMAGE ",discard=unmap", RW);
        co_group_init(&group);
        for (unsigned i = 0; i < JOBS; i++) {
            unsigned piece = (i * steps[s] * 3) % PIECES;

            gone[piece] = true;
            jobs[i] = (struct punch_job){d.edge, &group, piece * 4096, -1};
            co_group_add(&group);
            assert_int_equal(reactor_spawn(i % 2 ? other : reactor_main(), punch, &jobs[i]), 0);
        }
        co_group_wait(&group);
        co_group_destroy(&group);
        for (unsigned i = 0; i < JOBS; i++) {
            assert_int_equal(jobs[i].result, 0);
        }
        for (unsigned i = 0; i < PIECES; i++) {
            assert_bytes(d.edge, i * 4096, 4096, gone[i] ? 0 : 'x');
        }
        detach(&d);
    }
}

static void assert_status(struct block_edge *edge, uint64_t offset, uint64_t length, bool data,
                          uint64_t expected)
{
    struct block_status st;

    assert_int_equal(block_co_status(edge, offset, length, &st), 0);
    assert_int_equal(!!(st.flags & BLOCK_STATUS_DATA), data);
    assert_int_equal(!!(st.flags & BLOCK_STATUS_ZERO), !data);
    assert_true(st.flags & BLOCK_STATUS_ALLOCATED && st.flags & BLOCK_STATUS_OFFSET);
    assert_int_equal(st.map, offset);
    assert_int_equal(st.length, expected);
}

/*
 * Four readers, each of which goes through a part of the file, do not make each other search again.
 * A search would find what has been punched by somebody else.
 */
static void status_is_remembered_for_several_readers(void *arg)
{
    struct disk d;
    int fd;

    make_file(IMAGE, 160 * MiB, 0);
    d = attach("driver=file,filename=" IMAGE ",discard=unmap", RW);
    for (uint64_t part = 0; part < 4; part++) {
        fill(d.edge, part * 40 * MiB, 64 * KiB, 1, 0);
    }
    for (uint64_t part = 0; part < 4; part++) {
        assert_status(d.edge, part * 40 * MiB, 1 * MiB, true, 64 * KiB);
    }
    fd = open(IMAGE, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)(160 * MiB)), 0);
    assert_int_equal(close(fd), 0);
    for (uint64_t part = 0; part < 4; part++) {
        assert_status(d.edge, part * 40 * MiB, 1 * MiB, true, 64 * KiB);
    }
    assert_int_equal(block_co_discard(d.edge, 0, 64 * KiB), 0);
    for (uint64_t part = 0; part < 4; part++) {
        assert_status(d.edge, part * 40 * MiB, 1 * MiB, false, 1 * MiB);
    }
    detach(&d);
}

static void status_follows_what_is_written_and_punched(void *arg)
{
    struct disk d;

    make_file(IMAGE, 1 * MiB, 0);
    d = attach("driver=file,filename=" IMAGE ",discard=unmap", RW);
    fill(d.edge, 256 * KiB, 64 * KiB, 1, 0);
    fill(d.edge, 512 * KiB, 64 * KiB, 1, 0);
    for (int round = 0; round < 2; round++) {
        assert_status(d.edge, 0, 1 * MiB, false, 256 * KiB);
        assert_status(d.edge, 256 * KiB, 1 * MiB, true, 64 * KiB);
        assert_status(d.edge, 256 * KiB + 100, 200, true, 200);
        assert_status(d.edge, 320 * KiB, 1 * MiB, false, 192 * KiB);
        assert_status(d.edge, 576 * KiB, 1 * MiB, false, 448 * KiB);
    }
    fill(d.edge, 128 * KiB, 64 * KiB, 1, 0);
    assert_status(d.edge, 0, 1 * MiB, false, 128 * KiB);
    assert_status(d.edge, 128 * KiB, 1 * MiB, true, 64 * KiB);
    assert_int_equal(block_co_discard(d.edge, 128 * KiB, 64 * KiB), 0);
    assert_status(d.edge, 128 * KiB, 1 * MiB, false, 128 * KiB);
    detach(&d);
}

static void a_hole_that_others_may_fill_is_looked_at_again(void *arg)
{
    struct disk d;
    int fd;

    make_file(IMAGE, 1 * MiB, 0);
    d = attach("driver=file,filename=" IMAGE ",locking=off", RW);
    assert_status(d.edge, 0, 1 * MiB, false, 1 * MiB);
    fd = open(IMAGE, O_RDWR | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "x", 1, 0), 1);
    close(fd);
    assert_status(d.edge, 0, 4096, true, 4096);
    detach(&d);
}

/* --- size ------------------------------------------------------------------------------------- */

static void a_file_that_ends_within_a_sector_is_a_node_of_whole_ones(void *arg)
{
    struct disk d;
    struct stat st;
    char byte = 5;

    make_file(IMAGE, 1000, 'x');
    d = attach("driver=file,filename=" IMAGE, RW | BLOCK_PERM_RESIZE);
    assert_int_equal(block_node_size(d.node), 1024);
    assert_bytes(d.edge, 0, 1000, 'x');
    assert_bytes(d.edge, 1000, 24, 0);
    assert_status(d.edge, 0, 1024, true, 1000);
    assert_status(d.edge, 1000, 24, false, 24);
    assert_int_equal(block_co_pwrite(d.edge, 1024, &byte, 1, 0), -EIO);
    assert_int_equal(block_co_pwrite(d.edge, 1010, &byte, 1, 0), 0);
    assert_int_equal(stat(IMAGE, &st), 0);
    assert_int_equal(st.st_size, 1011);
    assert_bytes(d.edge, 1000, 10, 0);
    assert_bytes(d.edge, 1010, 1, 5);
    assert_bytes(d.edge, 1011, 13, 0);
    assert_int_equal(block_co_truncate(d.edge, 2049, BLOCK_PREALLOC_OFF, NULL), 0);
    assert_int_equal(block_node_size(d.node), 2560);
    detach(&d);
}

static void files_are_resized_and_preallocated(void *arg)
{
    struct disk d;
    ERROR_AUTO(err);

    make_file(IMAGE, 64 * KiB, 'x');
    d = attach("driver=file,filename=" IMAGE, RW | BLOCK_PERM_RESIZE);
    assert_int_equal(block_co_truncate(d.edge, 128 * KiB, BLOCK_PREALLOC_OFF, NULL), 0);
    assert_int_equal(block_node_size(d.node), 128 * KiB);
    assert_bytes(d.edge, 64 * KiB, 64 * KiB, 0);
    assert_true(allocated(d.node) < 128 * KiB);
    assert_int_equal(block_co_truncate(d.edge, 256 * KiB, BLOCK_PREALLOC_FALLOC, NULL), 0);
    assert_true(allocated(d.node) >= 128 * KiB);
    assert_int_equal(block_co_truncate(d.edge, 300001, BLOCK_PREALLOC_FULL, NULL), 0);
    assert_status(d.edge, 256 * KiB, 300001 - 256 * KiB, true, 300001 - 256 * KiB);
    assert_int_equal(block_co_truncate(d.edge, 400 * KiB, BLOCK_PREALLOC_METADATA, &err), -ENOTSUP);
    assert_int_equal(block_co_truncate(d.edge, 10, BLOCK_PREALLOC_FULL, NULL), -EINVAL);
    assert_int_equal(block_node_size(d.node), round_up(300001, 512));
    assert_int_equal(block_co_truncate(d.edge, 10, BLOCK_PREALLOC_OFF, NULL), 0);
    assert_bytes(d.edge, 0, 10, 'x');
    detach(&d);
}

/* --- opening ---------------------------------------------------------------------------------- */

static void only_regular_files_are_opened(void *arg)
{
    assert_int_equal(mkdir("dir", 0755), 0);
    assert_int_equal(mkfifo("fifo", 0644), 0);
    make_file(IMAGE, 512, 0);
    assert_open_fails("driver=file,filename=dir,read-only=on", EISDIR,
                      "'dir' to be a regular file");
    assert_open_fails("driver=file,filename=fifo", EINVAL, "to be a regular file");
    assert_open_fails("driver=file,filename=fifo,read-only=on", EINVAL, "to be a regular file");
    assert_open_fails("driver=file,filename=/dev/null", EINVAL, "to be a regular file");
    assert_open_fails("driver=host_device,filename=" IMAGE, EINVAL,
                      "to be either a character or block device");
    assert_open_fails("driver=file,filename=absent", ENOENT, "'absent': No such file");
    assert_int_equal(access("absent", F_OK), -1);
    rmdir("dir");
    unlink("fifo");
}

static void wrong_options_are_refused_by_name(void *arg)
{
    make_file(IMAGE, 512, 0);
    assert_open_fails("driver=file", EINVAL, "The 'file' block driver requires a file name");
    assert_open_fails("driver=file,filename=" IMAGE ",bogus=1", EINVAL, "'bogus'");
    assert_open_fails("driver=file,filename=" IMAGE ",locking=maybe", EINVAL, "'locking'");
    assert_open_fails("driver=file,filename=" IMAGE ",aio=fast", EINVAL, "'aio'");
    block_co_unref(must_open("driver=file,filename=" IMAGE
                             ",aio=io_uring,drop-cache=off,x-check-cache-dropped=on,locking=on"));
}

static void a_file_that_cannot_be_written_falls_back_if_allowed(void *arg)
{
    struct block_node *node;
    uid_t user = geteuid();

    make_file(IMAGE, 512, 0);
    assert_int_equal(chmod(IMAGE, 0444), 0);
    assert_int_equal(chmod(".", 0755), 0);
    assert_int_equal(user == 0 ? seteuid(65534) : 0, 0);
    assert_open_fails("driver=file,filename=" IMAGE, EACCES, "Permission denied");
    node = must_open("driver=file,filename=" IMAGE ",auto-read-only=on");
    assert_int_equal(user == 0 ? seteuid(0) : 0, 0);
    assert_true(block_node_is_read_only(node));
    block_co_unref(node);
    unlink(IMAGE);
}

static void one_image_has_one_writer(void *arg)
{
    struct disk writer, reader;
    struct block_node *second;
    struct block_root *root = NULL;
    ERROR_AUTO(err);

    make_file(IMAGE, 64 * KiB, 0);
    writer = attach("driver=file,filename=" IMAGE, RW);
    second = must_open("driver=file,filename=" IMAGE);
    assert_int_equal(block_co_root_new(second, "second", RW, BLOCK_PERM_ALL, &root, &err), -EAGAIN);
    assert_string_equal(error_message(&err), "Failed to get \"write\" lock");
    assert_string_equal(err.hint, "Is another process using the image [" IMAGE "]?");
    /* What was tried left nothing behind. */
    reader = attach("driver=file,filename=" IMAGE ",read-only=on,force-share=on",
                    BLOCK_PERM_CONSISTENT_READ);
    detach(&reader);
    detach(&writer);
    assert_int_equal(block_co_root_new(second, "second", RW, BLOCK_PERM_ALL, &root, NULL), 0);
    block_co_root_release(root);
    block_co_unref(second);
}

/* --- creation --------------------------------------------------------------------------------- */

static int create(const char *format, const char *name, uint64_t size, const char *options,
                  struct error *err)
{
    struct options *opts = NULL;

    assert_int_equal(options_parse(options, NULL, &opts, NULL), 0);
    return block_co_create_image(format, name, size, opts, err);
}

static void images_are_created_and_replaced(void *arg)
{
    struct stat st;

    unlink(IMAGE);
    assert_int_equal(create("raw", "file:" IMAGE, 1 * MiB, "preallocation=falloc", NULL), 0);
    assert_int_equal(stat(IMAGE, &st), 0);
    assert_int_equal(st.st_size, 1 * MiB);
    assert_true(st.st_blocks * 512 >= (blkcnt_t)MiB);
    assert_int_equal(create("file", IMAGE, 12345, "nocow=on", NULL), 0);
    assert_int_equal(stat(IMAGE, &st), 0);
    assert_int_equal(st.st_size, 12800);
    /* The first block has its place. */
    assert_true(st.st_blocks > 0 && st.st_blocks * 512 < 12800);
}

static void creation_that_fails_costs_no_data(void *arg)
{
    struct stat st;
    struct disk d;
    ERROR_AUTO(err);
    ERROR_AUTO(locked);

    make_file(IMAGE, 4096, 'x');
    assert_int_equal(create("raw", IMAGE, 1 * MiB, "bogus=1", &err), -EINVAL);
    assert_non_null(strstr(error_message(&err), "'bogus'"));
    d = attach("driver=file,filename=" IMAGE, RW);
    assert_int_equal(create("raw", IMAGE, 1 * MiB, "", &locked), -EAGAIN);
    assert_string_equal(error_message(&locked), "Failed to get \"write\" lock");
    assert_bytes(d.edge, 0, 4096, 'x');
    detach(&d);
    assert_int_equal(stat(IMAGE, &st), 0);
    assert_int_equal(st.st_size, 4096);
    assert_int_equal(create("raw", "new.img", INT64_MAX, "", NULL), -EFBIG);
    assert_int_equal(access("new.img", F_OK), -1);
    assert_int_equal(create("raw", "null-co://", 1, "", NULL), -ENOTSUP);
}

/* --- block devices ---------------------------------------------------------------------------- */

/* A loop device over IMAGE, -1 where we may not make one. It goes when the last user closes it. */
static int make_loop_device(char *path, size_t size)
{
    struct loop_config config = {.info.lo_flags = LO_FLAGS_AUTOCLEAR};
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), number, fd;

    if (control < 0) {
        return -1;
    }
    number = ioctl(control, LOOP_CTL_GET_FREE);
    close(control);
    snprintf(path, size, "/dev/loop%d", number);
    fd = number < 0 ? -1 : open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    config.fd = (uint32_t)open(IMAGE, O_RDWR | O_CLOEXEC);
    if (ioctl(fd, LOOP_CONFIGURE, &config) < 0) {
        close(fd);
        fd = -1;
    }
    close((int)config.fd);
    return fd;
}

static void use_device(const char *path, const char *more)
{
    char options[128];
    struct disk d;

    snprintf(options, sizeof(options), "driver=host_device,filename=%s,discard=unmap%s", path,
             more);
    d = attach(options, RW | BLOCK_PERM_RESIZE);
    assert_int_equal(block_node_size(d.node), 1 * MiB);
    fill(d.edge, 100, 100 * KiB, 1, 0);
    fill(d.edge, 300 * KiB, 100 * KiB, 2, BLOCK_REQ_FUA);
    assert_bytes(d.edge, 100, 100 * KiB, 1);
    assert_int_equal(block_co_write_zeroes(d.edge, 10 * KiB + 3, 20 * KiB, 0), 0);
    assert_bytes(d.edge, 10 * KiB + 3, 20 * KiB, 0);
    assert_bytes(d.edge, 9 * KiB, KiB, 1);
    assert_int_equal(block_co_write_zeroes(d.edge, 300 * KiB, 50 * KiB, BLOCK_REQ_MAY_UNMAP), 0);
    assert_bytes(d.edge, 300 * KiB, 50 * KiB, 0);
    assert_bytes(d.edge, 350 * KiB, 50 * KiB, 2);
    assert_int_equal(block_co_discard(d.edge, 350 * KiB, 10 * KiB), 0);
    assert_int_equal(block_co_flush(d.edge), 0);
    assert_status(d.edge, 0, 1 * MiB, true, 1 * MiB);
    assert_int_equal(block_co_truncate(d.edge, 2 * MiB, BLOCK_PREALLOC_OFF, NULL), -ENOTSUP);
    detach(&d);
}

static void block_devices_are_used_like_files(void *arg)
{
    char path[32];
    int fd;

    make_file(IMAGE, 1 * MiB, 'x');
    fd = make_loop_device(path, sizeof(path));
    if (fd < 0) {
        print_message("# no loop device is available\n");
        return;
    }
    use_device(path, "");
    use_device(path, ",cache.direct=on");
    assert_int_equal(create("raw", path, 2 * MiB, "", NULL), -ENOSPC);
    assert_int_equal(create("raw", path, 1 * MiB, "", NULL), 0);
    close(fd);
}

/* --- null ------------------------------------------------------------------------------------- */

static void a_null_disk_reads_zeroes_and_takes_time(void *arg)
{
    struct disk d = attach("driver=null-co,latency-ns=20000000,size=1M", RW);
    struct block_status st;
    int64_t begin = loop_now_ns();

    assert_bytes(d.edge, 4096, 4096, 0);
    assert_true(loop_now_ns() - begin >= 20000000);
    assert_int_equal(block_node_size(d.node), 1 * MiB);
    assert_int_equal(block_co_status(d.edge, 0, 1 * MiB, &st), 0);
    assert_true(st.flags & BLOCK_STATUS_DATA);
    detach(&d);
    d = attach("driver=null-aio,read-zeroes=on", RW);
    assert_int_equal(block_node_size(d.node), 1 * GiB);
    assert_int_equal(block_co_status(d.edge, 0, 1 * GiB, &st), 0);
    assert_int_equal(st.length, 1 * GiB);
    assert_true(st.flags & BLOCK_STATUS_ZERO);
    fill(d.edge, 0, 4096, 1, BLOCK_REQ_FUA);
    assert_bytes(d.edge, 0, 4096, 0);
    detach(&d);
}

static void character_devices_have_the_size_that_the_kernel_tells(void *arg)
{
    for (int i = 0; i < 2; i++) {
        struct disk d = attach(i ? "driver=host_cdrom,filename=/dev/null"
                                 : "driver=host_device,filename=/dev/null",
                               RW);

        assert_int_equal(block_node_size(d.node), 0);
        detach(&d);
    }
    make_file(IMAGE, 512, 0);
    assert_open_fails("driver=host_cdrom,filename=" IMAGE, EINVAL, "'host_cdrom' driver requires");
}

/* --- raw -------------------------------------------------------------------------------------- */

static void raw_shows_a_part_of_its_file(void *arg)
{
    struct disk d;

    make_file(IMAGE, 64 * KiB, 'x');
    d = attach("driver=raw,offset=1000,size=2048,file.driver=file,file.filename=" IMAGE, RW);
    assert_int_equal(block_node_size(d.node), 2048);
    fill(d.edge, 0, 2048, 1, 0);
    assert_int_equal(block_co_pwrite(d.edge, 2048, "y", 1, 0), -EIO);
    detach(&d);
    d = attach("driver=raw,file.driver=file,file.filename=" IMAGE, RW);
    assert_int_equal(block_node_size(d.node), 64 * KiB);
    assert_bytes(d.edge, 0, 1000, 'x');
    assert_bytes(d.edge, 1000, 2048, 1);
    assert_bytes(d.edge, 3048, 952, 'x');
    detach(&d);
    assert_open_fails("driver=raw,offset=60k,size=8k,file.driver=file,file.filename=" IMAGE, EINVAL,
                      "has to be smaller or equal to the size of the containing file");
    assert_open_fails("driver=raw,offset=65k,file.driver=file,file.filename=" IMAGE, EINVAL,
                      "cannot be greater than size of the containing file");
    assert_open_fails("driver=raw,size=7E,offset=7E,file.driver=null-co", EINVAL,
                      "cannot be greater than size of the containing file");
    assert_open_fails("driver=raw", EINVAL, "A block device must be specified for \"file\"");
}

static void raw_knows_the_holes_of_its_file(void *arg)
{
    struct block_status st;
    struct disk d;

    make_file(IMAGE, 1 * MiB, 0);
    d = attach("driver=raw,offset=64k,file.driver=file,file.filename=" IMAGE, RW);
    fill(d.edge, 64 * KiB, 64 * KiB, 1, 0);
    assert_int_equal(block_co_status(d.edge, 0, 1 * MiB, &st), 0);
    assert_int_equal(st.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO), BLOCK_STATUS_ZERO);
    assert_int_equal(st.length, 64 * KiB);
    assert_int_equal(block_co_status(d.edge, 64 * KiB, 1 * MiB, &st), 0);
    assert_int_equal(st.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO), BLOCK_STATUS_DATA);
    assert_int_equal(st.length, 64 * KiB);
    assert_int_equal(st.map, 128 * KiB);
    detach(&d);
}

static void raw_resizes_its_file_unless_its_size_is_fixed(void *arg)
{
    struct disk d;

    make_file(IMAGE, 64 * KiB, 'x');
    d = attach("driver=raw,offset=4k,file.driver=file,file.filename=" IMAGE,
               RW | BLOCK_PERM_RESIZE);
    assert_int_equal(block_co_truncate(d.edge, 100 * KiB, BLOCK_PREALLOC_OFF, NULL), 0);
    assert_int_equal(block_node_size(d.node), 100 * KiB);
    assert_int_equal(block_edge_size(d.node->file), 104 * KiB);
    assert_int_equal(block_co_truncate(d.edge, INT64_MAX, BLOCK_PREALLOC_OFF, NULL), -EFBIG);
    detach(&d);
    d = attach("driver=raw,size=4k,file.driver=file,file.filename=" IMAGE, RW | BLOCK_PERM_RESIZE);
    assert_int_equal(block_co_truncate(d.edge, 100 * KiB, BLOCK_PREALLOC_OFF, NULL), -ENOTSUP);
    detach(&d);
}

static int probe_magic(const uint8_t *head, size_t size)
{
    return size >= 4 && memcmp(head, "MaGi", 4) == 0 ? 100 : 0;
}

static const struct block_driver magic_driver = {.name = "magic", .probe = probe_magic};

static struct disk attach_probed(void)
{
    struct disk d;

    d.node = NULL;
    assert_int_equal(block_co_open_filename(IMAGE, NULL, NULL, BLOCK_OPEN_RDWR | BLOCK_OPEN_PROBE,
                                            &d.node, NULL),
                     0);
    assert_int_equal(
        block_co_root_new(d.node, "guest", RW, BLOCK_PERM_CONSISTENT_READ, &d.root, NULL), 0);
    d.edge = block_root_edge(d.root);
    return d;
}

static void a_probed_raw_image_stays_raw(void *arg)
{
    struct disk d;
    char big[4096] = "MaGi and much more";

    make_file(IMAGE, 64 * KiB, 'x');
    d = attach_probed();
    assert_int_equal(block_co_pwrite(d.edge, 0, "MaGi", 4, 0), -EPERM);
    assert_int_equal(block_co_pwrite(d.edge, 0, big, sizeof(big), 0), -EPERM);
    assert_bytes(d.edge, 0, 4096, 'x');
    /* Halves that are harmless each. */
    assert_int_equal(block_co_pwrite(d.edge, 2, "Gi", 2, 0), 0);
    assert_int_equal(block_co_pwrite(d.edge, 0, "Ma", 2, 0), -EPERM);
    assert_int_equal(block_co_pwrite(d.edge, 0, "Mo", 2, 0), 0);
    assert_int_equal(block_co_pwrite(d.edge, 512, "MaGi", 4, 0), 0);
    assert_int_equal(block_co_write_zeroes(d.edge, 0, 64 * KiB, 0), 0);
    assert_bytes(d.edge, 0, 64 * KiB, 0);
    assert_int_equal(block_co_discard(d.edge, 0, 64 * KiB), 0);
    detach(&d);
    d = attach("driver=raw,file.driver=file,file.filename=" IMAGE, RW);
    assert_int_equal(block_co_pwrite(d.edge, 0, "MaGi", 4, 0), 0);
    detach(&d);
}

/* --- running ---------------------------------------------------------------------------------- */

static int setup(void **state)
{
    file_register_drivers();
    block_register_driver(&magic_driver);
    return co_test_setup() || reactor_create("other", &other, NULL);
}

static int teardown(void **state)
{
    reactor_exit_main();
    unlink(IMAGE);
    return block_node_next(NULL) != NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(what_is_written_is_read),
        CO_TEST(vectors_longer_than_the_kernel_takes_work),
        CO_TEST(a_file_that_shrank_reads_as_zeroes),
        CO_TEST(the_driver_lets_a_file_grow_by_writing),
        CO_TEST(a_file_that_ends_within_a_sector_is_a_node_of_whole_ones),
        CO_TEST(direct_io_takes_unaligned_requests_and_ends),
        CO_TEST(after_a_failed_flush_all_fail_until_reopened),
        CO_TEST(a_failed_stable_write_fails_later_flushes),
        CO_TEST(a_write_that_finds_no_room_harms_no_flush),
        CO_TEST(flushes_that_come_together_share_a_sync),
        CO_TEST(zeroes_keep_or_give_back_space_as_asked),
        CO_TEST(file_systems_that_lack_calls_are_not_asked_twice),
        CO_TEST(discard_punches_only_where_it_is_wanted),
        CO_TEST(direct_io_punches_holes_of_any_length),
        CO_TEST(holes_punched_together_are_the_right_ones),
        CO_TEST(status_follows_what_is_written_and_punched),
        CO_TEST(status_is_remembered_for_several_readers),
        CO_TEST(a_hole_that_others_may_fill_is_looked_at_again),
        CO_TEST(files_are_resized_and_preallocated),
        CO_TEST(only_regular_files_are_opened),
        CO_TEST(character_devices_have_the_size_that_the_kernel_tells),
        CO_TEST(wrong_options_are_refused_by_name),
        CO_TEST(a_file_that_cannot_be_written_falls_back_if_allowed),
        CO_TEST(one_image_has_one_writer),
        CO_TEST(images_are_created_and_replaced),
        CO_TEST(creation_that_fails_costs_no_data),
        CO_TEST(block_devices_are_used_like_files),
        CO_TEST(a_null_disk_reads_zeroes_and_takes_time),
        CO_TEST(raw_shows_a_part_of_its_file),
        CO_TEST(raw_knows_the_holes_of_its_file),
        CO_TEST(raw_resizes_its_file_unless_its_size_is_fixed),
        CO_TEST(a_probed_raw_image_stays_raw),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads and overwrites of a file in the page cache, by 1 and by 32 coroutines. TIDEMARK_LOOP,
 * TIDEMARK_READ (nowait, ring) and TIDEMARK_WRITE (auto, inline, ring, pool) choose the way;
 * without them the table is made with all of the ways.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "co/sync.h"
#include "loop/loop.h"

#define FILE_BYTES (64u << 20)

struct job {
    int fd;
    bool write;
    size_t block;
    long left; /* operations not begun yet */
    uint32_t random;
    struct co_group group;
};

static void work(void *arg)
{
    struct job *job = arg;
    char *buf = aligned_alloc(4096, job->block);
    struct iovec iov = {buf, job->block};

    if (!buf) {
        abort();
    }
    memset(buf, 1, job->block);
    while (job->left-- > 0) {
        uint64_t offset;
        ssize_t n;

        job->random = job->random * 1664525 + 1013904223;
        offset = (uint64_t)(job->random >> 8) % (FILE_BYTES / job->block) * job->block;
        n = job->write ? loop_co_pwritev(job->fd, &iov, 1, offset, 0)
                       : loop_co_preadv(job->fd, &iov, 1, offset);
        if (n != (ssize_t)job->block) {
            abort();
        }
        co_reschedule();
    }
    free(buf);
    co_group_done(&job->group);
}

static double cpu_us(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return ((double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec) * 1e6 +
           (double)usage.ru_utime.tv_usec + (double)usage.ru_stime.tv_usec;
}

struct cell {
    bool write;
    size_t block;
    int depth;
    long count;
};

static int file;

static void run_cell(void *arg)
{
    const struct cell *cell = arg;
    struct job job = {.fd = file, .write = cell->write, .block = cell->block, .left = cell->count};
    int64_t begin = loop_now_ns();
    double cpu = cpu_us();

    co_group_init(&job.group);
    for (int i = 0; i < cell->depth; i++) {
        co_group_add(&job.group);
        (void)reactor_spawn(reactor_current(), work, &job);
    }
    co_group_wait(&job.group);
    co_group_destroy(&job.group);
    printf("  %-9s %5zuk depth %2d: %8.2f us %8.2f us cpu\n", cell->write ? "overwrite" : "read",
           cell->block / 1024, cell->depth, (double)(loop_now_ns() - begin) / 1e3 / cell->count,
           (cpu_us() - cpu) / (double)cell->count);
}

static void run_cells(bool write)
{
    static const size_t blocks[] = {4096, 65536, 1048576};
    ERROR_AUTO(err);

    if (reactor_init_main(&err) < 0) {
        fprintf(stderr, "file_io: %s\n", error_message(&err));
        exit(1);
    }
    printf("engine %s, read %s, write %s\n", reactor_engine(),
           getenv("TIDEMARK_READ") ?: "as built", getenv("TIDEMARK_WRITE") ?: "as built");
    for (int b = 0; b < 3; b++) {
        for (int depth = 1; depth <= 32; depth *= 32) {
            struct cell cell = {write, blocks[b], depth,
                                (long)((write ? 1u << 28 : 1u << 30) / blocks[b])};

            reactor_run_until_done(run_cell, &cell);
        }
    }
    reactor_exit_main();
}

static void run_ways(bool write, const char *variable, const char *const ways[], int count)
{
    if (getenv(variable)) {
        run_cells(write);
        return;
    }
    for (int i = 0; i < count; i++) {
        setenv(variable, ways[i], 1);
        run_cells(write);
    }
    unsetenv(variable);
}

int main(void)
{
    static const char *const reads[] = {"nowait", "ring"};
    static const char *const writes[] = {"inline", "ring", "pool", "auto"};
    static char megabyte[1 << 20];
    char name[] = "bench-file_io-XXXXXX";

    file = mkostemp(name, O_CLOEXEC);
    if (file < 0) {
        perror(name);
        return 1;
    }
    unlink(name);
    for (off_t i = 0; i < FILE_BYTES; i += (off_t)sizeof(megabyte)) {
        if (pwrite(file, megabyte, sizeof(megabyte), i) != (ssize_t)sizeof(megabyte)) {
            perror(name);
            return 1;
        }
    }
    run_ways(false, "TIDEMARK_READ", reads, 2);
    run_ways(true, "TIDEMARK_WRITE", writes, 4);
    close(file);
    return 0;
}

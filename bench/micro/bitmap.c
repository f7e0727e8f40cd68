/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What dirty bitmaps cost, in time of the processor: marking one write, walking a 16 TiB disk's
 * extents, and work on whole bitmaps of such a disk: merge, copy, resize, read, write.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/checked.h"
#include "bitmap/bitmap.h"

#define DISK (16 * TiB)
#define GRANULARITY (64 * KiB)
#define WRITE (4 * KiB)
/* What a flat bitmap of the disk takes; the rates of walks are relative to it. */
#define FLAT_BYTES (DISK / GRANULARITY / 8)

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static struct dirty_bitmap *bitmap_new(void)
{
    struct dirty_bitmap *b = dirty_bitmap_new(DISK, GRANULARITY);

    if (!b) {
        fprintf(stderr, "bitmap: out of memory\n");
        exit(1);
    }
    return b;
}

/* Mark `count` writes, `stride` apart, each `rounds` times. */
static void bench_set(const char *name, struct dirty_bitmap *b, uint64_t stride, uint64_t count,
                      unsigned rounds)
{
    double start = now();

    for (unsigned r = 0; r < rounds; r++) {
        for (uint64_t i = 0; i < count; i++) {
            dirty_bitmap_set(b, i * stride, WRITE);
        }
    }
    printf("set %-30s %8.2f ns\n", name, (now() - start) * 1e9 / (double)(count * rounds));
}

static void bench_walk(const char *name, const struct dirty_bitmap *b)
{
    uint64_t extents = 0, dirty = 0;
    uint64_t offset = 0, length;
    double start = now();
    double seconds;

    while (dirty_bitmap_next_dirty(b, offset, DISK, &offset, &length)) {
        offset += length;
        dirty += length;
        extents++;
    }
    seconds = now() - start;
    if (dirty != dirty_bitmap_count(b)) {
        fprintf(stderr, "bitmap: a walk found %" PRIu64 " bytes, not %" PRIu64 "\n", dirty,
                dirty_bitmap_count(b));
        exit(1);
    }
    printf("walk %-29s %8.2f GB/s of bitmap, %9.3f ms, %9" PRIu64 " extents, %6.1f ns each\n", name,
           (double)FLAT_BYTES / seconds * 1e-9, seconds * 1e3, extents,
           extents ? seconds * 1e9 / (double)extents : 0);
}

static void print_whole(const char *what, const char *name, double seconds)
{
    printf("%s %-*s %8.2f GB/s of bitmap, %9.3f ms\n", what, 33 - (int)strlen(what), name,
           (double)FLAT_BYTES / seconds * 1e-9, seconds * 1e3);
}

static void check(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "bitmap: wrong after %s\n", what);
        exit(1);
    }
}

/* Every granule from `first` on, `stride` apart. */
static struct dirty_bitmap *bitmap_of(uint32_t granularity, uint64_t first, uint64_t stride)
{
    struct dirty_bitmap *b = dirty_bitmap_new(DISK, granularity);

    check(b, "out of memory");
    for (uint64_t at = first; at < DISK; at += stride) {
        dirty_bitmap_set(b, at, WRITE);
    }
    return b;
}

static void bench_merge(const char *name, const struct dirty_bitmap *into,
                        const struct dirty_bitmap *from)
{
    struct dirty_bitmap *b = dirty_bitmap_clone(into);
    double start = now();

    check(dirty_bitmap_merge_alone(b, from) == 0, name);
    print_whole("merge", name, now() - start);
    check(dirty_bitmap_count(b) >= dirty_bitmap_count(from), name);
    dirty_bitmap_free(b);
}

static void bench_merges(void)
{
    struct dirty_bitmap *empty = bitmap_new();
    struct dirty_bitmap *fine = dirty_bitmap_new(DISK, 4 * KiB);
    struct dirty_bitmap *even = bitmap_of(GRANULARITY, 0, 2 * GRANULARITY);
    struct dirty_bitmap *odd = bitmap_of(GRANULARITY, GRANULARITY, 2 * GRANULARITY);
    struct dirty_bitmap *sparse = bitmap_of(GRANULARITY, 0, 1000 * GRANULARITY);
    struct dirty_bitmap *coarse = bitmap_of(MiB, 0, 2 * MiB);

    bench_merge("alternating into clean", empty, even);
    bench_merge("alternating into alternating", odd, even);
    bench_merge("alternating into itself", even, even);
    bench_merge("sparse into clean", empty, sparse);
    bench_merge("sparse into alternating", odd, sparse);
    bench_merge("1 MiB alternating into 64 KiB", empty, coarse);
    bench_merge("64 KiB alternating into 1 MiB", coarse, even);
    bench_merge("64 KiB alternating into 4 KiB", fine, even);
    dirty_bitmap_free(fine);
    dirty_bitmap_free(empty);
    dirty_bitmap_free(even);
    dirty_bitmap_free(odd);
    dirty_bitmap_free(sparse);
    dirty_bitmap_free(coarse);
}

/* As an image is read and written: a cluster of 64 KiB at a time. */
static void bench_bytes(const struct dirty_bitmap *b)
{
    const uint64_t step = 64 * KiB, end = div_round_up(DISK / GRANULARITY, 8);
    uint8_t *bytes = malloc(FLAT_BYTES);
    struct dirty_bitmap *copy = bitmap_new();
    double start;

    check(bytes, "out of memory");
    memset(bytes, 0, FLAT_BYTES);
    start = now();
    for (uint64_t at = 0; at < end; at += step) {
        dirty_bitmap_serialize(b, at * 8, bytes + at, step);
    }
    print_whole("write", "alternating", now() - start);
    start = now();
    for (uint64_t at = 0; at < end; at += step) {
        check(dirty_bitmap_deserialize(copy, at * 8, bytes + at, step) == 0, "read");
    }
    print_whole("read", "alternating", now() - start);
    check(dirty_bitmap_count(copy) == dirty_bitmap_count(b), "read");
    dirty_bitmap_free(copy);
    free(bytes);
}

static void bench_whole(void)
{
    struct dirty_bitmap *b = bitmap_of(GRANULARITY, 0, 2 * GRANULARITY), *copy;
    double start = now();

    copy = dirty_bitmap_clone(b);
    print_whole("copy", "alternating", now() - start);
    check(copy, "copy");
    start = now();
    check(dirty_bitmap_resize(copy, DISK + GRANULARITY) == 0, "resize");
    print_whole("resize", "alternating", now() - start);
    bench_bytes(b);
    start = now();
    dirty_bitmap_clear_all(copy);
    print_whole("clear", "alternating", now() - start);
    dirty_bitmap_free(copy);
    dirty_bitmap_free(b);
}

int main(void)
{
    const uint64_t granules = DISK / GRANULARITY;
    struct dirty_bitmap *b = bitmap_new();

    printf("16 TiB, 64 KiB granularity: %" PRIu64 " MiB flat\n", (uint64_t)(FLAT_BYTES / MiB));
    printf("memory when clean: %zu bytes\n", dirty_bitmap_memory(b));
    bench_walk("clean", b);
    bench_set("new, in order", b, GRANULARITY, 16 * MiB, 1);
    bench_set("already set, in order", b, GRANULARITY, 16 * MiB, 2);
    bench_set("already set, same 1024", b, GRANULARITY, 1024, 20000);
    bench_set("already set, 512 leaves", b, 32768 * GRANULARITY, 512, 20000);
    dirty_bitmap_free(b);

    b = bitmap_new();
    bench_set("new, every 1000th granule", b, 1000 * GRANULARITY, granules / 1000, 1);
    bench_walk("sparse, 1 in 1000", b);
    dirty_bitmap_clear_all(b);
    bench_walk("all cleared again", b);
    for (uint64_t i = 0; i < granules; i += 2) {
        dirty_bitmap_set(b, i * GRANULARITY, WRITE);
    }
    bench_walk("alternating", b);
    for (uint64_t i = 1; i < granules; i += 2) {
        dirty_bitmap_set(b, i * GRANULARITY, WRITE);
    }
    bench_walk("dense, in leaves", b);
    printf("memory when full: %zu bytes\n", dirty_bitmap_memory(b));
    dirty_bitmap_free(b);

    b = bitmap_new();
    dirty_bitmap_set(b, 0, DISK);
    bench_walk("set as a whole", b);
    printf("memory set as a whole: %zu bytes\n", dirty_bitmap_memory(b));
    dirty_bitmap_free(b);

    bench_merges();
    bench_whole();
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* What dirty bitmaps cost: marking one write, and walking a 16 TiB disk's extents. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
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

    clock_gettime(CLOCK_MONOTONIC, &ts);
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
    return 0;
}

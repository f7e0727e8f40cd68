/* SPDX-License-Identifier: Apache-2.0 */
/* Pages of the page cache, handed over without a copy. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file/posix_file.h"
#include "loop/loop.h"

/* Longest range that is looked at. Bytes. */
#define PAGES_MAX (4 * MiB)
#define PAGES_MAX_COUNT (PAGES_MAX / 4096 + 1)

/*
 * Whether the kernel tells us which pages are in memory: it does so to those who own a file, or may
 * write it. To others it says that all are.
 */
static int sees_pages(void *arg)
{
    struct stat st;

    return fstat(*(const int *)arg, &st) == 0 && (geteuid() == 0 || geteuid() == st.st_uid);
}

static bool co_sees_residency(struct posix_file *f)
{
    int known = atomic_load_explicit(&f->sees_residency, memory_order_relaxed);

    if (known == 0) {
        known = loop_co_brief(sees_pages, &f->fd) ? 1 : -1;
        atomic_store_explicit(&f->sees_residency, known, memory_order_relaxed);
    }
    return known > 0;
}

/* Whether all pages of the range are in memory, and were read. */
static bool is_resident(int fd, uint64_t offset, uint64_t length)
{
    unsigned char in_memory[PAGES_MAX_COUNT];
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), start = round_down(offset, page);
    size_t size = (size_t)(round_up(offset + length, page) - start), count = size / page;
    void *map;
    bool all;

    if (count > PAGES_MAX_COUNT) {
        return false;
    }
    /* Nothing touches the map, so that it costs no page tables. */
    map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, (off_t)start);
    if (map == MAP_FAILED) {
        return false;
    }
    all = mincore(map, size, in_memory) == 0;
    for (size_t i = 0; all && i < count; i++) {
        all = in_memory[i] & 1;
    }
    munmap(map, size);
    return all;
}

/* How far past the end of a file nobody writes while a hole there is asked for. Bytes. */
#define FAR_AWAY (1 * TiB)

/*
 * Punch a hole where nothing can be, far past the end: writes extend the file meanwhile. The limit
 * of the file system is looked for from above. 0 or -errno.
 */
static int co_punch_far_away(int fd, uint64_t size)
{
    int r = -EFBIG;

    for (unsigned shift = 62; r == -EFBIG && (1ULL << shift) > size + FAR_AWAY; shift--) {
        r = loop_co_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                              (1ULL << shift) - 2 * PAGES_MAX, PAGES_MAX);
    }
    return r;
}

/*
 * Whether a place of the file can get other pages, as a format needs that frees what was handed
 * over.
 */
static bool co_can_detach(struct posix_file *f, uint64_t size)
{
    int known = atomic_load_explicit(&f->detaches, memory_order_relaxed);

    if (known == 0) {
        known = co_punch_far_away(f->fd, size) == 0 ? 1 : -1;
        atomic_store_explicit(&f->detaches, known, memory_order_relaxed);
    }
    return known > 0;
}

int posix_file_co_read_pages(struct block_node *node, uint64_t offset, uint64_t length,
                             struct block_page_sink *sink)
{
    struct posix_file *f = node->opaque;

    /* A discard of a device may leave its pages as they are: they could be written again. */
    if (f->block_size > 1 || (f->is_device && !node->read_only) || !co_sees_residency(f) ||
        (!node->read_only && !co_can_detach(f, block_node_size(node))) ||
        !is_resident(f->fd, offset, length)) {
        return -ENOTSUP;
    }
    return sink->take(sink, f->fd, offset, length);
}

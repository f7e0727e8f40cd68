/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a file has data. SEEK_DATA and SEEK_HOLE can block, so a daemon runs them on the offload
 * pool. Each such job finds several extents, which are kept for the next calls.
 */
#include <errno.h>
#include <unistd.h>

#include "base/checked.h"
#include "file/posix_file.h"
#include "loop/loop.h"

/* How many bytes past the requested range a search may continue. */
#define LOOK_AHEAD (16 * MiB)

/* Arguments and results of seek_blocking(). */
struct seek_call {
    int fd;
    /* find extents from `start` on, until one begins at or after `stop` */
    uint64_t start, stop;
    uint64_t ends[STATUS_CACHE_EXTENTS];
    unsigned count;
    bool first_is_data;
};

void status_cache_init(struct status_cache *c)
{
    pthread_mutex_init(&c->guard, NULL);
}

void status_cache_destroy(struct status_cache *c)
{
    pthread_mutex_destroy(&c->guard);
}

/*
 * The kind and the end of the extent at `offset`; `begins_data`: a search has just found that data
 * begin there. A hole at the end of the file, and everything past the end, is a hole without end
 * (UINT64_MAX). 0, or -errno if the file system does not report extents.
 */
static int seek_extent(int fd, uint64_t offset, bool begins_data, bool *ret_data, uint64_t *ret_end)
{
    off_t data = begins_data ? (off_t)offset : lseek(fd, (off_t)offset, SEEK_DATA);
    off_t hole;

    if (data < 0) {
        *ret_data = false;
        *ret_end = UINT64_MAX;
        return errno == ENXIO ? 0 : -errno;
    }
    if ((uint64_t)data > offset) {
        *ret_data = false;
        *ret_end = (uint64_t)data;
        return 0;
    }
    hole = lseek(fd, (off_t)offset, SEEK_HOLE);
    if (hole < 0 || (uint64_t)hole <= offset) {
        /* The file has changed since the search for data. */
        *ret_data = false;
        *ret_end = UINT64_MAX;
        return hole < 0 && errno != ENXIO ? -errno : 0;
    }
    *ret_data = true;
    *ret_end = (uint64_t)hole;
    return 0;
}

static int seek_blocking(void *arg)
{
    struct seek_call *c = arg;
    uint64_t at = c->start;
    bool after_hole = false;

    c->count = 0;
    while (c->count < STATUS_CACHE_EXTENTS && at < c->stop) {
        bool data;
        uint64_t end;
        int r = seek_extent(c->fd, at, after_hole, &data, &end);

        if (r < 0) {
            return c->count > 0 ? 0 : r;
        }
        if (c->count == 0) {
            c->first_is_data = data;
        } else if (data != (c->first_is_data == (c->count % 2 == 0))) {
            /* Two extents of one kind in a row: the file changes during the search. */
            break;
        }
        c->ends[c->count++] = end;
        at = end;
        after_hole = !data;
    }
    return 0;
}

static bool extent_is_data(bool first_is_data, unsigned index)
{
    return first_is_data == (index % 2 == 0);
}

static void fill_status(struct block_node *node, uint64_t offset, uint64_t length, bool data,
                        struct block_status *ret_status)
{
    *ret_status = (struct block_status){
        .flags = BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_OFFSET |
                 (data ? BLOCK_STATUS_DATA : BLOCK_STATUS_ZERO),
        .length = length,
        .map = offset,
        .file = node,
    };
}

/* Answer from a run; false if that is not possible. */
static bool find_in_run_locked(struct block_node *node, const struct status_run *run,
                               uint64_t offset, uint64_t length, struct block_status *ret_status)
{
    struct posix_file *f = node->opaque;
    unsigned low = 0, high = run->count - 1;
    bool data;

    MUTEX_ASSERT_HELD(&f->status.guard);
    if (run->count == 0 || offset < run->start || offset >= run->ends[run->count - 1] ||
        run->space_generation != atomic_load(&f->space_generation)) {
        return false;
    }
    while (low < high) {
        unsigned middle = (low + high) / 2;

        if (run->ends[middle] > offset) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    data = extent_is_data(run->first_is_data, low);
    if (!data && (!atomic_load(&f->sole_writer) ||
                  run->write_generation != atomic_load(&node->write_generation))) {
        return false;
    }
    fill_status(node, offset, MIN(length, run->ends[low] - offset), data, ret_status);
    return true;
}

static bool find_cached_status(struct block_node *node, uint64_t offset, uint64_t length,
                               struct block_status *ret_status)
{
    struct posix_file *f = node->opaque;
    struct status_cache *c = &f->status;
    bool found = false;

    pthread_mutex_lock(&c->guard);
    for (unsigned i = 0; i < STATUS_CACHE_RUNS && !found; i++) {
        found = find_in_run_locked(node, &c->runs[i], offset, length, ret_status);
    }
    pthread_mutex_unlock(&c->guard);
    return found;
}

/* The run that a search at `offset` goes on with; NULL: there is none. */
static struct status_run *find_run_before_locked(struct status_cache *c, uint64_t offset)
{
    MUTEX_ASSERT_HELD(&c->guard);
    for (unsigned i = 0; i < STATUS_CACHE_RUNS; i++) {
        struct status_run *run = &c->runs[i];

        if (run->count > 0 && offset >= run->start && offset - run->start <= LOOK_AHEAD) {
            return run;
        }
    }
    return NULL;
}

static void cache_extents(struct posix_file *f, const struct seek_call *call,
                          uint64_t write_generation, uint64_t space_generation)
{
    struct status_cache *c = &f->status;
    struct status_run *run;

    pthread_mutex_lock(&c->guard);
    run = find_run_before_locked(c, call->start);
    if (!run) {
        run = &c->runs[c->oldest++ % STATUS_CACHE_RUNS];
    }
    run->start = call->start;
    run->count = call->count;
    run->first_is_data = call->first_is_data;
    for (unsigned i = 0; i < call->count; i++) {
        run->ends[i] = call->ends[i];
    }
    run->write_generation = write_generation;
    run->space_generation = space_generation;
    pthread_mutex_unlock(&c->guard);
}

/*
 * How far to search past the requested range. A caller that asks for one part of the file after the
 * other saves jobs, as long as the cache is still valid at the next call.
 */
static uint64_t look_ahead(struct block_node *node, uint64_t offset)
{
    struct posix_file *f = node->opaque;
    struct status_cache *c = &f->status;
    const struct status_run *run;
    bool follows;

    pthread_mutex_lock(&c->guard);
    run = find_run_before_locked(c, offset);
    follows = run && atomic_load(&f->sole_writer) &&
              run->write_generation == atomic_load(&node->write_generation) &&
              run->space_generation == atomic_load(&f->space_generation);
    pthread_mutex_unlock(&c->guard);
    return follows ? LOOK_AHEAD : 0;
}

int posix_file_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                         struct block_status *ret_status)
{
    struct posix_file *f = node->opaque;
    /* Read before the search, so that a write during the search makes its result stale. */
    uint64_t write_generation = atomic_load(&node->write_generation);
    uint64_t space_generation = atomic_load(&f->space_generation);
    struct seek_call call = {.fd = f->fd, .start = offset, .stop = offset + length};
    int r;

    if (f->is_device) {
        fill_status(node, offset, length, true, ret_status);
        return 0;
    }
    if (find_cached_status(node, offset, length, ret_status)) {
        return 0;
    }
    call.stop += look_ahead(node, offset);
    r = loop_co_brief(seek_blocking, &call);
    if (r < 0) {
        /* "Data" is always correct. */
        fill_status(node, offset, length, true, ret_status);
        return 0;
    }
    fill_status(node, offset, MIN(length, call.ends[0] - offset), call.first_is_data, ret_status);
    cache_extents(f, &call, write_generation, space_generation);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a file has data. SEEK_DATA and SEEK_HOLE can block, so a server runs them on the offload pool; as
 * many extents as one trip finds are kept for the calls that follow.
 */
#include <errno.h>
#include <unistd.h>

#include "base/checked.h"
#include "file/posix_file.h"
#include "loop/loop.h"

/* Bytes of the file behind what is asked for. */
#define LOOK_AHEAD (16 * MiB)

/* In and out of the function that may block. */
struct seek_call {
    int fd;
    uint64_t start, stop; /* extents are looked for from start, until one begins at or after stop */
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
 * The end of the extent at `offset`, with the end of the file as the end of the last hole. Behind it is a hole
 * without end. -ESPIPE etc. when the file system does not tell.
 */
static int seek_extent(int fd, uint64_t offset, bool *ret_data, uint64_t *ret_end)
{
    off_t data = lseek(fd, (off_t)offset, SEEK_DATA);
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
        /* Cut off since the first call. */
        *ret_data = false;
        *ret_end = UINT64_MAX;
        return hole < 0 && errno != ENXIO ? -errno : 0;
    }
    *ret_data = true;
    *ret_end = (uint64_t)hole;
    return 0;
}

static int seek_extents(void *arg)
{
    struct seek_call *c = arg;
    uint64_t at = c->start;

    c->count = 0;
    while (c->count < STATUS_CACHE_EXTENTS && at < c->stop) {
        bool data;
        uint64_t end;
        int r = seek_extent(c->fd, at, &data, &end);

        if (r < 0) {
            return c->count > 0 ? 0 : r;
        }
        if (c->count == 0) {
            c->first_is_data = data;
        } else if (data != (c->first_is_data == (c->count % 2 == 0))) {
            /* Two of a kind in a row: the file changes while we look. */
            break;
        }
        c->ends[c->count++] = end;
        at = end;
    }
    return 0;
}

static bool extent_is_data(bool first_is_data, unsigned index)
{
    return first_is_data == (index % 2 == 0);
}

static void fill_status(struct block_node *node, uint64_t offset, uint64_t length, bool data,
                        struct block_status *ret)
{
    *ret = (struct block_status){
        .flags = BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_OFFSET |
                 (data ? BLOCK_STATUS_DATA : BLOCK_STATUS_ZERO),
        .length = length,
        .map = offset,
        .file = node,
    };
}

static bool look_up(struct block_node *node, uint64_t offset, uint64_t length,
                    struct block_status *ret)
{
    struct posix_file *f = node->opaque;
    struct status_cache *c = &f->status;
    bool found = false;

    pthread_mutex_lock(&c->guard);
    if (c->count > 0 && offset >= c->start && offset < c->ends[c->count - 1] &&
        c->space_generation == atomic_load(&f->space_generation)) {
        unsigned low = 0, high = c->count - 1;

        while (low < high) {
            unsigned middle = (low + high) / 2;

            if (c->ends[middle] > offset) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        if (extent_is_data(c->first_is_data, low)) {
            fill_status(node, offset, MIN(length, c->ends[low] - offset), true, ret);
            found = true;
        } else if (atomic_load(&f->sole_writer) &&
                   c->write_generation == atomic_load(&node->write_generation)) {
            fill_status(node, offset, MIN(length, c->ends[low] - offset), false, ret);
            found = true;
        }
    }
    pthread_mutex_unlock(&c->guard);
    return found;
}

static void remember(struct posix_file *f, const struct seek_call *call, uint64_t write_generation,
                     uint64_t space_generation)
{
    struct status_cache *c = &f->status;

    pthread_mutex_lock(&c->guard);
    c->start = call->start;
    c->count = call->count;
    c->first_is_data = call->first_is_data;
    for (unsigned i = 0; i < call->count; i++) {
        c->ends[i] = call->ends[i];
    }
    c->write_generation = write_generation;
    c->space_generation = space_generation;
    pthread_mutex_unlock(&c->guard);
}

/*
 * How far to look beyond what was asked: who asks for one piece of the file after the other is spared trips, as long as
 * what a trip finds is believed at the next question.
 */
static uint64_t look_ahead(struct block_node *node, uint64_t offset)
{
    struct posix_file *f = node->opaque;
    struct status_cache *c = &f->status;
    bool follows;

    pthread_mutex_lock(&c->guard);
    follows = c->count > 0 && offset >= c->start && offset - c->start <= LOOK_AHEAD &&
              atomic_load(&f->sole_writer) &&
              c->write_generation == atomic_load(&node->write_generation) &&
              c->space_generation == atomic_load(&f->space_generation);
    pthread_mutex_unlock(&c->guard);
    return follows ? LOOK_AHEAD : 0;
}

int posix_file_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                         struct block_status *ret)
{
    struct posix_file *f = node->opaque;
    /* Read before the search: what is written while it runs must make it stale. */
    uint64_t write_generation = atomic_load(&node->write_generation);
    uint64_t space_generation = atomic_load(&f->space_generation);
    struct seek_call call = {.fd = f->fd, .start = offset, .stop = offset + length};
    int r;

    if (f->is_device) {
        fill_status(node, offset, length, true, ret);
        return 0;
    }
    if (look_up(node, offset, length, ret)) {
        return 0;
    }
    call.stop += look_ahead(node, offset);
    r = loop_co_brief(seek_extents, &call);
    if (r < 0) {
        /* Data is always a right answer. */
        fill_status(node, offset, length, true, ret);
        return 0;
    }
    fill_status(node, offset, MIN(length, call.ends[0] - offset), call.first_is_data, ret);
    remember(f, &call, write_generation, space_generation);
    return 0;
}

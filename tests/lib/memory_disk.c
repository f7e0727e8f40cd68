/* SPDX-License-Identifier: Apache-2.0 */
#include "memory_disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "co/co.h"

#define PAGE 4096u
#define SIZE_MAX_BYTES (1 * GiB)

struct memory_disk *memory_disk_of(struct block_node *node)
{
    return node->opaque;
}

static int kind_index(unsigned kind)
{
    return __builtin_ctz(kind);
}

void memory_disk_hold(struct memory_disk *d, unsigned kinds, unsigned count)
{
    pthread_mutex_lock(&d->lock);
    d->hold_kinds = kinds;
    d->hold_count = count;
    pthread_mutex_unlock(&d->lock);
}

void memory_disk_release(struct memory_disk *d)
{
    pthread_mutex_lock(&d->lock);
    d->hold_count = 0;
    d->held_now = 0;
    co_queue_wake_all(&d->held);
    pthread_mutex_unlock(&d->lock);
}

unsigned memory_disk_held(struct memory_disk *d)
{
    unsigned n;

    pthread_mutex_lock(&d->lock);
    n = d->held_now;
    pthread_mutex_unlock(&d->lock);
    return n;
}

void memory_disk_fail(struct memory_disk *d, unsigned kinds, int errnum)
{
    pthread_mutex_lock(&d->lock);
    d->fail_kinds = kinds;
    d->fail_errno = errnum;
    pthread_mutex_unlock(&d->lock);
}

uint64_t memory_disk_requests(struct memory_disk *d, unsigned kind)
{
    uint64_t n;

    pthread_mutex_lock(&d->lock);
    n = d->requests[kind_index(kind)];
    pthread_mutex_unlock(&d->lock);
    return n;
}

static int co_begin(struct memory_disk *d, unsigned kind)
{
    int ret;

    co_reschedule();
    pthread_mutex_lock(&d->lock);
    d->requests[kind_index(kind)]++;
    if ((d->hold_kinds & kind) && d->hold_count > 0) {
        d->hold_count--;
        d->held_now++;
        co_queue_wait_release(&d->held, &d->lock);
        pthread_mutex_lock(&d->lock);
    }
    ret = d->fail_kinds & kind ? -d->fail_errno : 0;
    pthread_mutex_unlock(&d->lock);
    return ret;
}

static int memory_disk_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct memory_disk *d = node->opaque;
    uint64_t cluster_size;
    int ret;

    ret = options_take_size(opts, "size", 0, &d->size, err);
    ret = ret < 0 ? ret : options_take_size(opts, "cluster-size", 0, &cluster_size, err);
    if (ret < 0) {
        return ret;
    }
    if (d->size > SIZE_MAX_BYTES) {
        return error_set(err, EINVAL, "A memory disk has at most 1 GiB");
    }
    d->data = calloc(1, d->size + 1);
    d->written = calloc(1, d->size / PAGE + 1);
    if (!d->data || !d->written) {
        free(d->data);
        free(d->written);
        return error_set(err, ENOMEM, "Out of memory for a memory disk");
    }
    pthread_mutex_init(&d->lock, NULL);
    co_queue_init(&d->held);
    block_node_set_size(node, d->size);
    node->limits.cluster_size = (uint32_t)cluster_size;
    node->discard_unmap = true;
    return 0;
}

static void memory_disk_co_close(struct block_node *node)
{
    struct memory_disk *d = node->opaque;

    pthread_mutex_destroy(&d->lock);
    free(d->data);
    free(d->written);
}

static void mark_written(struct memory_disk *d, uint64_t offset, uint64_t length)
{
    for (uint64_t page = offset / PAGE; page * PAGE < offset + length; page++) {
        __atomic_store_n(&d->written[page], 1, __ATOMIC_RELAXED);
    }
}

static int memory_disk_co_preadv(struct block_node *node, uint64_t offset, struct iov iov,
                                 unsigned flags)
{
    struct memory_disk *d = node->opaque;
    int ret = co_begin(d, MEMORY_DISK_READ);

    if (ret < 0) {
        return ret;
    }
    for (size_t done = 0; done < iov.size; done += MIN(PAGE, iov.size - done)) {
        iov_copy_from_buf(iov, done, d->data + offset + done, MIN(PAGE, iov.size - done));
        if (done % (8 * PAGE) == 0) {
            co_reschedule(); /* so that others can come between two parts */
        }
    }
    return 0;
}

static int memory_disk_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                                  unsigned flags)
{
    struct memory_disk *d = node->opaque;
    int ret = co_begin(d, MEMORY_DISK_WRITE);

    if (ret < 0) {
        return ret;
    }
    if (!range_fits(offset, iov.size, d->size)) {
        return -EFBIG; /* a parent that may resize can write beyond the end */
    }
    for (size_t done = 0; done < iov.size; done += MIN(PAGE, iov.size - done)) {
        iov_copy_to_buf(iov, done, d->data + offset + done, MIN(PAGE, iov.size - done));
        if (done % (8 * PAGE) == 0) {
            co_reschedule();
        }
    }
    mark_written(d, offset, iov.size);
    return 0;
}

static int memory_disk_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                       unsigned flags)
{
    struct memory_disk *d = node->opaque;
    int ret = co_begin(d, MEMORY_DISK_WRITE);

    if (ret < 0) {
        return ret;
    }
    if (!range_fits(offset, length, d->size)) {
        return -EFBIG; /* a parent that may resize can write beyond the end */
    }
    memset(d->data + offset, 0, length);
    mark_written(d, offset, length);
    return 0;
}

static int memory_disk_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct memory_disk *d = node->opaque;
    int ret = co_begin(d, MEMORY_DISK_DISCARD);

    if (ret < 0) {
        return ret;
    }
    memset(d->data + offset, 0, length);
    for (uint64_t page = div_round_up(offset, PAGE); (page + 1) * PAGE <= offset + length; page++) {
        __atomic_store_n(&d->written[page], 0, __ATOMIC_RELAXED);
    }
    return 0;
}

static int memory_disk_co_flush(struct block_node *node)
{
    return co_begin(node->opaque, MEMORY_DISK_FLUSH);
}

static int memory_disk_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                                 struct block_status *ret)
{
    struct memory_disk *d = node->opaque;
    bool written = __atomic_load_n(&d->written[offset / PAGE], __ATOMIC_RELAXED);
    uint64_t end = round_down(offset, PAGE) + PAGE;

    while (end < offset + length &&
           __atomic_load_n(&d->written[end / PAGE], __ATOMIC_RELAXED) == written) {
        end += PAGE;
    }
    ret->length = MIN(end - offset, length);
    ret->flags = written ? BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED
                         : BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED;
    return 0;
}

const struct block_driver memory_disk_driver = {
    .name = "memory-disk",
    .instance_size = sizeof(struct memory_disk),
    .is_protocol = true,
    .co_open = memory_disk_co_open,
    .co_close = memory_disk_co_close,
    .co_preadv = memory_disk_co_preadv,
    .co_pwritev = memory_disk_co_pwritev,
    .co_write_zeroes = memory_disk_co_write_zeroes,
    .co_discard = memory_disk_co_discard,
    .co_flush = memory_disk_co_flush,
    .co_status = memory_disk_co_status,
};

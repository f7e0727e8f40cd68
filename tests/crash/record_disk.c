/* SPDX-License-Identifier: Apache-2.0 */
#include "record_disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "co/co.h"

#define LIMIT (1 * GiB)

struct record_disk {
    uint8_t *data;
    uint64_t size, capacity;
    struct record_log *log;
};

static void *must(void *memory)
{
    if (!memory) {
        abort();
    }
    return memory;
}

/* --- the log --------------------------------------------------------------------------------------- */

uint64_t record_tick(struct record_log *log)
{
    return ++log->clock;
}

void record_log_clear(struct record_log *log)
{
    for (size_t i = 0; i < log->count; i++) {
        free(log->ops[i].data);
    }
    free(log->ops);
    free(log->initial);
    *log = (struct record_log){0};
}

/* Returns the index: the array may move while the request is in flight. */
static size_t log_add(struct record_log *log, const struct record_op *op)
{
    if (log->count == log->capacity) {
        log->capacity = log->capacity ? 2 * log->capacity : 256;
        log->ops = must(realloc(log->ops, log->capacity * sizeof(*log->ops)));
    }
    log->ops[log->count] = *op;
    return log->count++;
}

/* Log a change that has just been made in memory; it is in flight until log_end(). */
static size_t log_change(struct record_disk *d, enum record_kind kind, uint64_t begin,
                         uint64_t offset, uint64_t length)
{
    struct record_op op = {.kind = kind, .begin = begin, .end = UINT64_MAX, .size_after = d->size};

    if (kind == RECORD_TRUNCATE) {
        op.length = length;
        op.metadata = true;
        return log_add(d->log, &op);
    }
    op.offset = round_down(offset, RECORD_SECTOR);
    op.length = round_up(offset + length, RECORD_SECTOR) - op.offset;
    if (kind == RECORD_WRITE || op.offset != offset || op.length != length) {
        op.kind = RECORD_WRITE;
        op.data = must(malloc(op.length));
        memcpy(op.data, d->data + op.offset, op.length);
        op.metadata =
            !buffer_is_zero(op.data, op.length) && !d->log->is_guest_data(op.data, op.length);
    }
    return log_add(d->log, &op);
}

static void log_end(struct record_log *log, size_t index)
{
    log->ops[index].end = record_tick(log);
}

/* --- the file -------------------------------------------------------------------------------------- */

/* Zeroes between the old size and the new one; the buffer has room up to a whole sector. */
static int grow(struct record_disk *d, uint64_t size)
{
    if (size > LIMIT) {
        return -EFBIG;
    }
    if (round_up(size, RECORD_SECTOR) > d->capacity) {
        uint64_t capacity = MAX(2 * d->capacity, round_up(size, MiB));

        d->data = must(realloc(d->data, capacity));
        memset(d->data + d->capacity, 0, capacity - d->capacity);
        d->capacity = capacity;
    }
    d->size = MAX(d->size, size);
    return 0;
}

static void shrink(struct record_disk *d, uint64_t size)
{
    memset(d->data + size, 0, d->size - size);
    d->size = size;
}

void record_disk_load(struct block_node *node, const uint8_t *data, uint64_t size)
{
    struct record_disk *d = node->opaque;

    if (d->size > size) {
        shrink(d, size);
    }
    if (grow(d, size) < 0) {
        abort();
    }
    memcpy(d->data, data, size);
    block_node_set_size(node, size);
}

void record_disk_set_log(struct block_node *node, struct record_log *log)
{
    struct record_disk *d = node->opaque;

    d->log = log;
    if (log) {
        log->initial = must(malloc(d->size + 1));
        memcpy(log->initial, d->data, d->size);
        log->initial_size = d->size;
    }
}

const uint8_t *record_disk_data(struct block_node *node, uint64_t *ret_size)
{
    struct record_disk *d = node->opaque;

    *ret_size = d->size;
    return d->data;
}

static int record_disk_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    return grow(node->opaque, 0);
}

static void record_disk_co_close(struct block_node *node)
{
    struct record_disk *d = node->opaque;

    free(d->data);
}

static int record_disk_co_preadv(struct block_node *node, uint64_t offset, struct iov iov,
                                 unsigned flags)
{
    struct record_disk *d = node->opaque;

    if (d->log) {
        co_reschedule(); /* lets other requests come between, as a real disk would */
    }
    if (!range_fits(offset, iov.size, d->size)) {
        return -EIO;
    }
    iov_copy_from_buf(iov, 0, d->data + offset, iov.size);
    return 0;
}

static int co_change(struct record_disk *d, enum record_kind kind, uint64_t offset,
                     const struct iov *iov, uint64_t length)
{
    uint64_t begin = 0;
    size_t index;
    int ret;

    if (d->log) {
        begin = record_tick(d->log);
        co_reschedule();
    }
    ret = grow(d, offset + length);
    if (ret < 0) {
        return ret;
    }
    if (iov) {
        iov_copy_to_buf(*iov, 0, d->data + offset, length);
    } else {
        memset(d->data + offset, 0, length);
    }
    if (d->log) {
        index = log_change(d, kind, begin, offset, length);
        co_reschedule();
        log_end(d->log, index);
    }
    return 0;
}

static int record_disk_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov,
                                  unsigned flags)
{
    return co_change(node->opaque, RECORD_WRITE, offset, &iov, iov.size);
}

static int record_disk_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                       unsigned flags)
{
    return co_change(node->opaque, RECORD_ZEROES, offset, NULL, length);
}

static int record_disk_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    struct record_disk *d = node->opaque;

    if (offset >= d->size) {
        return 0;
    }
    return co_change(d, RECORD_ZEROES, offset, NULL, MIN(length, d->size - offset));
}

static int record_disk_co_flush(struct block_node *node)
{
    struct record_disk *d = node->opaque;
    struct record_op op = {.kind = RECORD_FLUSH, .end = UINT64_MAX};
    size_t index;

    if (!d->log) {
        return 0;
    }
    op.begin = record_tick(d->log);
    index = log_add(d->log, &op);
    co_reschedule();
    log_end(d->log, index);
    return 0;
}

static int record_disk_co_truncate(struct block_node *node, uint64_t size,
                                   enum block_prealloc prealloc, struct error *err)
{
    struct record_disk *d = node->opaque;
    uint64_t begin = d->log ? record_tick(d->log) : 0;
    int ret;

    if (size < d->size) {
        shrink(d, size);
    } else {
        ret = grow(d, size);
        if (ret < 0) {
            return error_set(err, -ret, "A record disk has at most 1 GiB");
        }
    }
    if (d->log) {
        size_t index = log_change(d, RECORD_TRUNCATE, begin, 0, size);

        log_end(d->log, index);
    }
    block_node_set_size(node, size);
    return 0;
}

const struct block_driver record_disk_driver = {
    .name = "record-disk",
    .instance_size = sizeof(struct record_disk),
    .is_protocol = true,
    .keeps_zero_beyond_eof = true,
    .co_open = record_disk_co_open,
    .co_close = record_disk_co_close,
    .co_truncate = record_disk_co_truncate,
    .co_preadv = record_disk_co_preadv,
    .co_pwritev = record_disk_co_pwritev,
    .co_write_zeroes = record_disk_co_write_zeroes,
    .co_discard = record_disk_co_discard,
    .co_flush = record_disk_co_flush,
};

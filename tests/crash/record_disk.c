/* SPDX-License-Identifier: Apache-2.0 */
#include "record_disk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "co/co.h"

#define LIMIT (1 * GiB)

struct record_disk {
    struct pages pages;
    struct record_log *log; /* NULL: nothing is logged */
    unsigned number;        /* in the log */
    bool data_only;
    uint64_t limit;         /* of its size; 0: LIMIT */
    struct co *compressing; /* the next write of this coroutine is compressed guest data */
};

static void *must(void *memory)
{
    if (!memory) {
        abort();
    }
    return memory;
}

/* --- the log ---------------------------------------------------------------------------------- */

uint64_t record_tick(struct record_log *log)
{
    uint64_t now = ++log->clock;

    if (log->on_tick) {
        log->on_tick(log->on_tick_arg, now);
    }
    return now;
}

void record_log_clear(struct record_log *log)
{
    for (size_t i = 0; i < log->count; i++) {
        free(log->ops[i].data);
    }
    for (size_t i = 0; i < ARRAY_SIZE(log->initial); i++) {
        pages_release(&log->initial[i]);
    }
    free(log->ops);
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
static size_t log_change(struct record_disk *d, struct record_op op, bool is_data)
{
    op.disk = d->number;
    op.end = UINT64_MAX;
    op.size_after = d->pages.size;
    if (op.kind == RECORD_TRUNCATE) {
        op.metadata = !d->data_only;
        return log_add(d->log, &op);
    }
    if (op.kind == RECORD_WRITE || !is_aligned(op.offset | op.length, RECORD_SECTOR)) {
        uint64_t end = round_up(op.offset + op.length, RECORD_SECTOR);

        op.kind = RECORD_WRITE;
        op.offset = round_down(op.offset, RECORD_SECTOR);
        op.length = end - op.offset;
        op.data = must(malloc(op.length));
        pages_read(&d->pages, op.offset, op.data, op.length);
        op.metadata = !is_data && !buffer_is_zero(op.data, op.length) &&
                      !d->log->is_guest_data(op.data, op.length);
    }
    return log_add(d->log, &op);
}

static void log_end(struct record_log *log, size_t index)
{
    log->ops[index].end = record_tick(log);
}

/* --- the file --------------------------------------------------------------------------------- */

static int grow(struct record_disk *d, uint64_t size)
{
    if (size > (d->limit ? d->limit : LIMIT)) {
        return d->limit ? -ENOSPC : -EFBIG;
    }
    if (size > d->pages.size) {
        pages_resize(&d->pages, size);
    }
    return 0;
}

void record_disk_show(struct block_node *node, struct pages *pages)
{
    struct record_disk *d = node->opaque;

    pages_reset(&d->pages, pages);
    block_node_set_size(node, pages->size);
}

void record_disk_set_log(struct block_node *node, struct record_log *log, unsigned disk,
                         bool data_only)
{
    struct record_disk *d = node->opaque;

    d->log = log;
    d->number = disk;
    d->data_only = data_only;
    log->initial[disk] = d->pages;
    d->pages = (struct pages){0};
    pages_reset(&d->pages, &log->initial[disk]);
}

void record_disk_set_limit(struct block_node *node, uint64_t limit)
{
    struct record_disk *d = node->opaque;

    d->limit = limit;
}

void record_disk_end_log(struct block_node *node)
{
    struct record_disk *d = node->opaque;

    d->log = NULL;
}

struct pages *record_disk_pages(struct block_node *node)
{
    struct record_disk *d = node->opaque;

    return &d->pages;
}

static int record_disk_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    node->events = true;
    return 0;
}

static void record_disk_co_close(struct block_node *node)
{
    struct record_disk *d = node->opaque;

    pages_release(&d->pages);
}

/* Compressed data cannot be distinguished from metadata by its contents. */
static void record_disk_co_event(struct block_node *node, enum block_event event)
{
    struct record_disk *d = node->opaque;

    if (event == BLOCK_EVENT_WRITE_COMPRESSED) {
        d->compressing = co_self();
    }
}

static int record_disk_co_preadv(struct block_node *node, uint64_t offset, struct iov iov,
                                 unsigned flags)
{
    struct record_disk *d = node->opaque;

    if (d->log) {
        co_reschedule(); /* lets other requests come between, as a real disk would */
    }
    if (!range_fits(offset, iov.size, d->pages.size)) {
        return -EIO;
    }
    for (int i = 0; i < iov.count; i++) {
        pages_read(&d->pages, offset, iov.vec[i].iov_base, iov.vec[i].iov_len);
        offset += iov.vec[i].iov_len;
    }
    return 0;
}

static void change_pages(struct record_disk *d, const struct iov *iov, uint64_t offset,
                         uint64_t length)
{
    if (!iov) {
        pages_zero(&d->pages, offset, length);
        return;
    }
    for (int i = 0; i < iov->count; i++) {
        pages_write(&d->pages, offset, iov->vec[i].iov_base, iov->vec[i].iov_len);
        offset += iov->vec[i].iov_len;
    }
}

static int co_change(struct record_disk *d, enum record_kind kind, uint64_t offset,
                     const struct iov *iov, uint64_t length)
{
    struct record_op op = {.kind = kind, .offset = offset, .length = length};
    bool compressed = d->compressing == co_self();
    size_t index;
    int ret;

    if (compressed) {
        d->compressing = NULL;
    }
    if (d->log) {
        op.begin = record_tick(d->log);
        co_reschedule();
    }
    ret = grow(d, offset + length);
    if (ret < 0) {
        return ret;
    }
    change_pages(d, iov, offset, length);
    if (d->log) {
        index = log_change(d, op, compressed || d->data_only);
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

    if (offset >= d->pages.size) {
        return 0;
    }
    return co_change(d, RECORD_ZEROES, offset, NULL, MIN(length, d->pages.size - offset));
}

static int record_disk_co_flush(struct block_node *node)
{
    struct record_disk *d = node->opaque;
    struct record_op op = {.kind = RECORD_FLUSH, .disk = d->number, .end = UINT64_MAX};
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
    struct record_op op = {.kind = RECORD_TRUNCATE, .length = size};

    op.begin = d->log ? record_tick(d->log) : 0;
    if (size > LIMIT) {
        return error_set(err, EFBIG, "A record disk has at most 1 GiB");
    }
    pages_resize(&d->pages, size);
    if (d->log) {
        log_end(d->log, log_change(d, op, false));
    }
    block_node_set_size(node, size);
    return 0;
}

static int record_disk_co_extend(struct block_node *node, uint64_t size)
{
    return record_disk_co_truncate(node, MAX(size, block_node_size(node)), BLOCK_PREALLOC_OFF,
                                   NULL);
}

/* "live-base" has the path "/base" for the other disks of its set. */
static char *record_disk_lasting_name(const struct block_node *node)
{
    const char *dash = strchr(block_node_name(node), '-');
    char *path;

    return dash && asprintf(&path, "/%s", dash + 1) >= 0 ? path : NULL;
}

static int record_disk_co_read_other(struct block_node *node, const char *name, unsigned place,
                                     void *buf, size_t *size)
{
    const char *own = block_node_name(node), *dash = strchr(own, '-');
    struct block_node *other;
    char other_name[64];

    if (place > 0 || !dash) {
        return -EINVAL;
    }
    snprintf(other_name, sizeof(other_name), "%.*s-%.32s", (int)(dash - own), own, name + 1);
    other = block_node_find(other_name);
    if (!other) {
        return -ENOENT;
    }
    *size = MIN(*size, record_disk_pages(other)->size);
    pages_read(record_disk_pages(other), 0, buf, *size);
    return 0;
}

const struct block_driver record_disk_driver = {
    .name = "record-disk",
    .instance_size = sizeof(struct record_disk),
    .is_protocol = true,
    .keeps_zero_beyond_eof = true,
    .lasting_name = record_disk_lasting_name,
    .co_read_other = record_disk_co_read_other,
    .co_open = record_disk_co_open,
    .co_close = record_disk_co_close,
    .co_truncate = record_disk_co_truncate,
    .co_extend = record_disk_co_extend,
    .co_preadv = record_disk_co_preadv,
    .co_pwritev = record_disk_co_pwritev,
    .co_write_zeroes = record_disk_co_write_zeroes,
    .co_discard = record_disk_co_discard,
    .co_flush = record_disk_co_flush,
    .co_event = record_disk_co_event,
};

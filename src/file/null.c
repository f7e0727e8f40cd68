/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The drivers null-co and null-aio: no storage, to measure the layers above. Reads return zeroes,
 * so that no memory of the process is disclosed. The option read-zeroes decides only whether block
 * status reports zeroes.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "file/drivers.h"
#include "loop/loop.h"
#include "schema/define.h"

#define NULL_SIZE_DEFAULT (1 * GiB)

OBJECT(null_options, "BlockdevOptionsNull",
       OPT("size", schema_bytes, .dflt = "1 GiB", .unit = "bytes", .max = INT64_MAX),
       OPT("latency-ns", schema_uint64, .dflt = "0", .unit = "nanoseconds", .max = INT64_MAX,
           .help = "how long each request takes"),
       OPT("read-zeroes", schema_bool, .dflt = "false",
           .help = "block status says that the disk reads as zeroes"));

struct null_disk {
    uint64_t latency_ns;
    bool read_zeroes;
};

static int null_parse_filename(const char *filename, struct options *opts, struct error *err)
{
    const char *rest = strchr(filename, ':');

    if (!rest || strcmp(rest, "://") != 0) {
        return error_set(err, EINVAL, "'%s' must end with '://' and have no options in it",
                         filename);
    }
    return 0;
}

static int null_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct null_disk *d = node->opaque;
    uint64_t size;
    int r;

    node->beyond_filename = options_has(opts, "size") || options_has(opts, "read-zeroes");
    if ((r = options_take_size(opts, "size", NULL_SIZE_DEFAULT, &size, err)) < 0 ||
        (r = options_take_uint(opts, "latency-ns", 0, INT64_MAX, &d->latency_ns, err)) < 0 ||
        (r = options_take_bool(opts, "read-zeroes", false, &d->read_zeroes, err)) < 0) {
        return r;
    }
    if (!node->filename && asprintf(&node->filename, "%s://", node->driver->name) < 0) {
        node->filename = NULL;
    }
    block_node_set_size(node, size);
    node->supported_write_flags = BLOCK_REQ_FUA;
    node->supported_zero_flags = BLOCK_REQ_FUA | BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK;
    return 0;
}

/* Wait for the latency that was configured. Returns 0. */
static int co_null_wait(struct block_node *node)
{
    struct null_disk *d = node->opaque;

    if (d->latency_ns) {
        loop_co_sleep((int64_t)d->latency_ns);
    }
    return 0;
}

static int null_co_preadv(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    if (!(flags & BLOCK_REQ_PREFETCH)) {
        iov_fill(iov, 0, 0, iov.size);
    }
    return co_null_wait(node);
}

static int null_co_pwritev(struct block_node *node, uint64_t offset, struct iov iov, unsigned flags)
{
    return co_null_wait(node);
}

static int null_co_write_zeroes(struct block_node *node, uint64_t offset, uint64_t length,
                                unsigned flags)
{
    return co_null_wait(node);
}

static int null_co_discard(struct block_node *node, uint64_t offset, uint64_t length)
{
    return co_null_wait(node);
}

static int null_co_flush(struct block_node *node)
{
    return co_null_wait(node);
}

static int null_co_status(struct block_node *node, uint64_t offset, uint64_t length,
                          struct block_status *ret_status)
{
    const struct null_disk *d = node->opaque;

    *ret_status = (struct block_status){
        .flags = BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_OFFSET |
                 (d->read_zeroes ? BLOCK_STATUS_ZERO : BLOCK_STATUS_DATA),
        .length = length,
        .map = offset,
        .file = node,
    };
    return 0;
}

static int null_co_truncate(struct block_node *node, uint64_t size, enum block_prealloc prealloc,
                            struct error *err)
{
    block_node_set_size(node, size);
    return 0;
}

static int null_co_allocated_size(struct block_node *node, uint64_t *ret_size)
{
    *ret_size = 0;
    return 0;
}

#define NULL_DRIVER(name_)                                                                         \
    {                                                                                              \
        .name = name_, .help = "protocol: no storage; reads return zeroes",                        \
        .instance_size = sizeof(struct null_disk), .is_protocol = true, .options = &null_options,  \
        .schemes = (const char *const[]){name_, NULL}, .parse_filename = null_parse_filename,      \
        .reopen_options = block_no_options, .co_open = null_co_open, .co_preadv = null_co_preadv,  \
        .co_pwritev = null_co_pwritev, .co_write_zeroes = null_co_write_zeroes,                    \
        .co_discard = null_co_discard, .co_flush = null_co_flush, .co_status = null_co_status,     \
        .co_truncate = null_co_truncate, .co_allocated_size = null_co_allocated_size,              \
    }

const struct block_driver null_co_driver = NULL_DRIVER("null-co");
const struct block_driver null_aio_driver = NULL_DRIVER("null-aio");

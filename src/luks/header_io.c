/* SPDX-License-Identifier: Apache-2.0 */
/* A header that is in a file of its own, or at the beginning of the file that has the data. */
#include <errno.h>

#include "base/checked.h"
#include "luks/disk.h"

static int co_read_edge(void *arg, uint64_t offset, void *buf, size_t size)
{
    struct block_edge *edge = arg;

    if (!range_fits(offset, size, block_edge_size(edge))) {
        return -EIO;
    }
    return block_co_pread(edge, offset, buf, size);
}

static int co_write_edge(void *arg, uint64_t offset, const void *buf, size_t size)
{
    return block_co_pwrite(arg, offset, buf, size, 0);
}

static int co_flush_edge(void *arg)
{
    return block_co_flush(arg);
}

struct luks_io luks_io_of_edge(struct block_edge *edge)
{
    return (struct luks_io){
        .co_read = co_read_edge, .co_write = co_write_edge, .co_flush = co_flush_edge, .arg = edge};
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compressed grains: a marker of 12 bytes (the first sector of the grain on the disk, and the
 * length of the data), then a stream of zlib (RFC 1950), padded to whole sectors. Extents without
 * markers have the stream alone.
 */
#include <errno.h>
#include <libdeflate.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "loop/loop.h"
#include "vmdk/image.h"

#define LEVEL 6

struct codec_work {
    const uint8_t *in;
    size_t in_size;
    uint8_t *out;
    size_t out_size;
    size_t done;
};

/* --- reading ---------------------------------------------------------------------------------- */

/* Decompress; what the stream lacks of the grain is zeroes. In the pool. */
static int inflate_grain(void *arg)
{
    struct codec_work *w = arg;
    struct libdeflate_decompressor *d = libdeflate_alloc_decompressor();
    enum libdeflate_result result;
    size_t in_used;

    if (!d) {
        return -ENOMEM;
    }
    result = libdeflate_zlib_decompress_ex(d, w->in, w->in_size, w->out, w->out_size, &in_used,
                                           &w->done);
    libdeflate_free_decompressor(d);
    if (result != LIBDEFLATE_SUCCESS) {
        return -EIO;
    }
    memset(w->out + w->done, 0, w->out_size - w->done);
    return 0;
}

/* The compressed data at `host`: where they begin, and how many bytes there may be. */
static int co_locate_stream(struct vmdk_extent *e, uint64_t host, uint64_t *ret_offset,
                            size_t *ret_size)
{
    uint64_t file = block_edge_size(e->edge);
    uint8_t marker[VMDK_MARKER_SIZE];
    uint32_t length;
    int r;

    if (!e->has_markers) {
        *ret_offset = host;
        *ret_size = MIN(file - host, 2 * e->grain_size);
        return 0;
    }
    if (!range_fits(host, sizeof(marker), file)) {
        return -EIO;
    }
    r = block_co_pread(e->edge, host, marker, sizeof(marker));
    if (r < 0) {
        return r;
    }
    length = load_le32(marker + 8);
    if (length == 0 || length > 2 * e->grain_size ||
        !range_fits(host + sizeof(marker), length, file)) {
        return -EIO;
    }
    *ret_offset = host + sizeof(marker);
    *ret_size = length;
    return 0;
}

static bool copy_inflated(struct vmdk_extent *e, uint64_t host, uint64_t within, struct iov iov)
{
    bool found;

    pthread_mutex_lock(&e->cache_lock);
    found = e->inflated && e->inflated_host == host;
    if (found) {
        iov_copy_from_buf(iov, 0, e->inflated + within, iov.size);
    }
    pthread_mutex_unlock(&e->cache_lock);
    return found;
}

int vmdk_co_read_grain(struct vmdk_extent *e, uint64_t host, uint64_t within, struct iov iov)
{
    AUTO_FREE uint8_t *stream = NULL;
    AUTO_FREE uint8_t *grain = NULL;
    struct codec_work work;
    uint64_t offset;
    size_t size;
    int r;

    if (copy_inflated(e, host, within, iov)) {
        return 0;
    }
    r = co_locate_stream(e, host, &offset, &size);
    if (r < 0) {
        return r;
    }
    stream = malloc(size);
    grain = malloc(e->grain_size);
    if (!stream || !grain) {
        return -ENOMEM;
    }
    work =
        (struct codec_work){.in = stream, .in_size = size, .out = grain, .out_size = e->grain_size};
    r = block_co_pread(e->edge, offset, stream, size);
    UNLESS_FAILED(r, loop_co_offload(inflate_grain, &work));
    if (r < 0) {
        return r;
    }
    iov_copy_from_buf(iov, 0, grain + within, iov.size);
    if (iov.size < e->grain_size) { /* more of it will be wanted */
        pthread_mutex_lock(&e->cache_lock);
        free(e->inflated);
        e->inflated = TAKE_PTR(grain);
        e->inflated_host = host;
        pthread_mutex_unlock(&e->cache_lock);
    }
    return 0;
}

/* --- writing ---------------------------------------------------------------------------------- */

/* In the pool. The output has room for what does not become smaller. */
static int deflate_grain(void *arg)
{
    struct codec_work *w = arg;
    struct libdeflate_compressor *c = libdeflate_alloc_compressor(LEVEL);

    if (!c) {
        return -ENOMEM;
    }
    w->done = libdeflate_zlib_compress(c, w->in, w->in_size, w->out, w->out_size);
    libdeflate_free_compressor(c);
    return w->done == 0 ? -EIO : 0;
}

/* The grain at `grain` of the disk, with what is written, as it is to be: `size` bytes in `out`. */
static int co_assemble_grain(struct block_node *node, uint64_t grain, uint64_t offset,
                             struct iov iov, uint8_t *out, size_t size)
{
    struct iovec vec;
    size_t shown = MIN(size, block_node_size(node) - grain);
    int r = 0;

    memset(out, 0, size);
    if (iov.size < shown) {
        r = blockmap_co_preadv(node, grain, iov_from_buf(&vec, out, shown), 0);
    }
    if (r == 0) {
        iov_copy_to_buf(iov, 0, out + (offset - grain), iov.size);
    }
    return r;
}

/* Append a compressed grain, `used` bytes in `out` with its marker, unless there is one already. */
static int co_append_grain_locked(struct block_node *node, struct vmdk_extent *e, uint64_t grain,
                                  uint8_t *out, size_t used)
{
    uint64_t host = e->free_offset, padded = round_up(used, VMDK_SECTOR);
    uint32_t entry;
    int r = vmdk_co_get_entry(e, grain - e->start, &entry);

    CO_ASSERT_HELD(&((const struct vmdk *)node->opaque)->map.lock);
    if (r < 0) {
        return r;
    }
    if (entry != 0) {
        return -EIO; /* a compressed grain can't be changed */
    }
    if (host / VMDK_SECTOR > UINT32_MAX) {
        return -EFBIG;
    }
    memset(out + used, 0, padded - used);
    r = blockmap_co_make_room_locked(e->edge, &e->room, host + padded, NULL);
    UNLESS_FAILED(r, block_co_pwrite(e->edge, host, out, padded, 0));
    if (r < 0) {
        return r;
    }
    e->free_offset = host + padded;
    if (node->backing) {
        r = block_co_flush(e->edge);
    }
    UNLESS_FAILED(r, vmdk_co_set_entry(e, grain - e->start, (uint32_t)(host / VMDK_SECTOR)));
    return r;
}

static int co_write_grain(struct block_node *node, struct vmdk_extent *e, uint64_t offset,
                          struct iov iov)
{
    struct vmdk *d = node->opaque;
    uint64_t grain = offset - (offset - e->start) % e->grain_size;
    size_t room = VMDK_MARKER_SIZE + 2 * e->grain_size + (size_t)2 * VMDK_SECTOR;
    AUTO_FREE uint8_t *in = malloc(e->grain_size);
    AUTO_FREE uint8_t *out = malloc(room);
    struct codec_work work = {.in = in,
                              .in_size = e->grain_size,
                              .out = out ? out + VMDK_MARKER_SIZE : NULL,
                              .out_size = room - VMDK_MARKER_SIZE - VMDK_SECTOR};
    int r;

    if (!in || !out) {
        return -ENOMEM;
    }
    r = co_assemble_grain(node, grain, offset, iov, in, e->grain_size);
    UNLESS_FAILED(r, loop_co_offload(deflate_grain, &work));
    if (r < 0) {
        return r;
    }
    store_le64(out, (grain - e->start) / VMDK_SECTOR);
    store_le32(out + 8, (uint32_t)work.done);
    co_mutex_lock(&d->map.lock);
    r = co_append_grain_locked(node, e, grain, out, VMDK_MARKER_SIZE + work.done);
    co_mutex_unlock(&d->map.lock);
    return r;
}

int vmdk_co_write_grains(struct block_node *node, struct vmdk_extent *e, uint64_t offset,
                         struct iov iov)
{
    int r = 0;

    for (size_t done = 0, n; done < iov.size && r == 0; done += n) {
        uint64_t at = offset + done;
        IOV_PART_AUTO(part);

        n = MIN(iov.size - done, e->grain_size - (at - e->start) % e->grain_size);
        r = iov_part_set(&part, iov, done, n);
        UNLESS_FAILED(r, co_write_grain(node, e, at, part.iov));
    }
    return r;
}

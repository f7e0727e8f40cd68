/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compressed clusters: deflate without a header in a 4 KiB window (zlib), or one zstd frame. Work on a
 * cluster takes far more than a switch between threads, so it goes to the offload pool.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "base/cleanup.h"
#include "loop/loop.h"
#include "qcow2/state.h"

/* The specification's window for deflate: 2^12 bytes, negative for "no header". */
#define DEFLATE_WINDOW_BITS (-12)
/* Readers must accept any window that a writer may have used. */
#define INFLATE_WINDOW_BITS (-15)
#define ZSTD_LEVEL 1

struct work {
    struct qcow2 *q;
    const void *in;
    size_t in_size;
    void *out;
    size_t out_size; /* room, then what was made */
};

/* --- decompress ---------------------------------------------------------------------------------- */

static int inflate_cluster(struct work *w)
{
    z_stream z = {
        .next_in = (void *)(uintptr_t)w->in,
        .avail_in = (uInt)w->in_size,
        .next_out = w->out,
        .avail_out = (uInt)w->out_size,
    };
    int r;

    if (inflateInit2(&z, INFLATE_WINDOW_BITS) != Z_OK) {
        return -ENOMEM;
    }
    r = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    /* The data is padded to whole sectors, so input may be left; all output must be there. */
    return (r == Z_STREAM_END || r == Z_BUF_ERROR) && z.avail_out == 0 ? 0 : -EIO;
}

static int unzstd_cluster(struct work *w)
{
    ZSTD_DStream *stream = ZSTD_createDStream();
    ZSTD_inBuffer in = {.src = w->in, .size = w->in_size};
    ZSTD_outBuffer out = {.dst = w->out, .size = w->out_size};
    int r = 0;

    if (!stream) {
        return -ENOMEM;
    }
    while (out.pos < out.size && r == 0) {
        size_t in_before = in.pos, out_before = out.pos;
        size_t z = ZSTD_decompressStream(stream, &out, &in);

        if (ZSTD_isError(z) || (in.pos == in_before && out.pos == out_before)) {
            r = -EIO;
        }
    }
    ZSTD_freeDStream(stream);
    return r;
}

static int decompress_work(void *arg)
{
    struct work *w = arg;

    return w->q->compression == COMPRESSION_ZSTD ? unzstd_cluster(w) : inflate_cluster(w);
}

int qcow2_co_decompress(struct qcow2 *q, const void *data, size_t size, void *out)
{
    struct work w = {.q = q, .in = data, .in_size = size, .out = out, .out_size = q->cluster_size};

    return loop_co_offload(decompress_work, &w);
}

int qcow2_co_read_compressed(struct qcow2 *q, uint64_t entry, size_t skip, struct iov iov)
{
    AUTO_FREE uint8_t *cluster = malloc(q->cluster_size);
    AUTO_FREE uint8_t *data = NULL;
    uint64_t offset, size;
    int r;

    qcow2_compressed_range(q, entry, &offset, &size);
    /* What a writer may have stored; more is no compressed cluster. */
    if (size > 2 * q->cluster_size) {
        return qcow2_corrupt(q, "the compressed cluster at %#llx has %llu bytes",
                             (unsigned long long)offset, (unsigned long long)size);
    }
    data = malloc(size);
    if (!cluster || !data) {
        return -ENOMEM;
    }
    r = block_co_pread(q->node->file, offset, data, size);
    r = r < 0 ? r : qcow2_co_decompress(q, data, size, cluster);
    if (r == 0) {
        iov_copy_from_buf(iov, 0, cluster + skip, iov.size);
    }
    return r;
}

/* --- compress -------------------------------------------------------------------------------- */

static int deflate_cluster(struct work *w)
{
    z_stream z = {
        .next_in = (void *)(uintptr_t)w->in,
        .avail_in = (uInt)w->in_size,
        .next_out = w->out,
        .avail_out = (uInt)w->out_size,
    };
    int r;

    if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, DEFLATE_WINDOW_BITS, 9,
                     Z_DEFAULT_STRATEGY) != Z_OK) {
        return -ENOMEM;
    }
    r = deflate(&z, Z_FINISH);
    w->out_size = z.total_out;
    deflateEnd(&z);
    return r == Z_STREAM_END ? 0 : -E2BIG;
}

static int zstd_cluster(struct work *w)
{
    size_t n = ZSTD_compress(w->out, w->out_size, w->in, w->in_size, ZSTD_LEVEL);

    if (ZSTD_isError(n)) {
        return ZSTD_getErrorCode(n) == ZSTD_error_dstSize_tooSmall ? -E2BIG : -EIO;
    }
    w->out_size = n;
    return 0;
}

static int compress_work(void *arg)
{
    struct work *w = arg;

    return w->q->compression == COMPRESSION_ZSTD ? zstd_cluster(w) : deflate_cluster(w);
}

int qcow2_co_compress(struct qcow2 *q, const void *data, void *out, size_t *ret_size)
{
    /* It has to save at least a sector, or it is not worth the work of reading it. */
    struct work w = {.q = q,
                     .in = data,
                     .in_size = q->cluster_size,
                     .out = out,
                     .out_size = q->cluster_size - SECTOR_SIZE};
    int r = q->cluster_size > SECTOR_SIZE ? loop_co_offload(compress_work, &w) : -E2BIG;

    if (r == 0) {
        *ret_size = w.out_size;
    }
    return r;
}

static uint64_t compressed_entry(const struct qcow2 *q, uint64_t offset, size_t size)
{
    unsigned offset_bits = 62 - (q->cluster_bits - 8);
    uint64_t sectors = (offset + size - 1) / SECTOR_SIZE - offset / SECTOR_SIZE;

    return L2_COMPRESSED | sectors << offset_bits | offset;
}

/* Guest range held exclusively, and the cluster holds nothing yet. */
static int co_link_compressed(struct qcow2 *q, uint64_t guest, uint64_t offset, size_t size)
{
    struct cache_entry *slice;
    unsigned index;
    int r;

    co_mutex_lock(&q->lock);
    r = qcow2_co_l2_slice_locked(q, guest, &slice, &index);
    if (r == 0) {
        cache_store_be64(slice, index, compressed_entry(q, offset, size));
        cache_mark_dirty(&q->l2_cache, slice);
        cache_put(slice);
    }
    co_mutex_unlock(&q->lock);
    return r;
}

static int co_store_compressed(struct qcow2 *q, uint64_t guest, const void *data, size_t size)
{
    uint64_t offset;
    int r;

    co_mutex_lock(&q->lock);
    r = qcow2_co_alloc_bytes_locked(q, size, &offset);
    co_mutex_unlock(&q->lock);
    if (r < 0) {
        return r;
    }
    r = block_co_pwrite(q->node->file, offset, data, size, 0);
    r = r < 0 ? r : co_link_compressed(q, guest, offset, size);
    if (r < 0) {
        uint64_t first = qcow2_cluster_index(q, offset);

        co_mutex_lock(&q->lock);
        q->compressed_tail = 0;
        (void)qcow2_co_refcount_add_locked(
            q, first, qcow2_cluster_index(q, offset + size - 1) - first + 1, -1);
        co_mutex_unlock(&q->lock);
        return r;
    }
    return qcow2_co_limit_dirty(q); /* if it fails, the cluster is linked all the same */
}

/* One cluster; at the end of the disk it may be shorter and is filled up with zeroes. */
static int co_write_compressed_cluster(struct qcow2 *q, uint64_t offset, struct iov iov,
                                       uint8_t *in, uint8_t *out)
{
    struct range_entry range;
    struct qcow2_run run;
    size_t size;
    int r;

    iov_copy_to_buf(iov, 0, in, iov.size);
    memset(in + iov.size, 0, q->cluster_size - iov.size);
    r = qcow2_co_compress(q, in, out, &size);
    if (r < 0 && r != -E2BIG) {
        return r;
    }
    if (r == 0) {
        co_range_lock(&q->guest, &range, offset, q->cluster_size, true);
        r = qcow2_co_map(q, offset, q->cluster_size, &run);
        if (r == 0 && (run.type == CLUSTER_UNALLOCATED || run.type == CLUSTER_ZERO)) {
            r = co_store_compressed(q, offset, out, size);
        } else if (r == 0) {
            r = -E2BIG; /* has contents: overwritten as a normal cluster below */
        }
        range_unlock(&q->guest, &range);
    }
    if (r == -E2BIG) {
        r = qcow2_co_pwritev(q->node, offset, iov, 0);
    }
    return r;
}

int qcow2_co_write_compressed(struct qcow2 *q, uint64_t offset, struct iov iov)
{
    uint64_t end = offset + iov.size;
    AUTO_FREE uint8_t *in = NULL;
    AUTO_FREE uint8_t *out = NULL;
    IOV_PART_AUTO(part);
    int r = 0;

    if (!is_aligned(offset, q->cluster_size) ||
        (!is_aligned(end, q->cluster_size) && end != block_node_size(q->node))) {
        return -EINVAL;
    }
    in = malloc(q->cluster_size);
    out = malloc(q->cluster_size);
    if (!in || !out) {
        return -ENOMEM;
    }
    for (size_t done = 0; done < iov.size && r == 0; done += q->cluster_size) {
        r = iov_part_set(&part, iov, done, MIN(q->cluster_size, iov.size - done));
        r = r < 0 ? r : co_write_compressed_cluster(q, offset + done, part.iov, in, out);
    }
    return r;
}

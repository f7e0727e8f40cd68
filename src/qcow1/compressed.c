/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compressed clusters: streams of deflate without a header. QEMU reads those whose window has at
 * most 4 KiB.
 */
#include <errno.h>
#include <libdeflate.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "loop/loop.h"
#include "qcow1/image.h"

enum { WINDOW_BITS = 12, MEMORY_LEVEL = 9 };

struct codec_work {
    const uint8_t *in;
    uint8_t *out;
    size_t in_size, out_size, done;
};

/* In the pool. A cluster is as long as it has to be, or the stream is damaged. */
static int inflate_qcow1_cluster(void *arg)
{
    struct codec_work *w = arg;
    struct libdeflate_decompressor *d = libdeflate_alloc_decompressor();
    enum libdeflate_result result;

    if (!d) {
        return -ENOMEM;
    }
    result = libdeflate_deflate_decompress(d, w->in, w->in_size, w->out, w->out_size, NULL);
    libdeflate_free_decompressor(d);
    return result == LIBDEFLATE_SUCCESS ? 0 : -EIO;
}

static bool copy_inflated_cluster(struct qcow1 *q, uint64_t entry, uint64_t within, struct iov iov)
{
    bool found;

    pthread_mutex_lock(&q->page_lock);
    found = q->inflated && q->inflated_entry == entry;
    if (found) {
        iov_copy_from_buf(iov, 0, q->inflated + within, iov.size);
    }
    pthread_mutex_unlock(&q->page_lock);
    return found;
}

int qcow1_co_read_compressed(struct block_node *node, uint64_t offset, struct iov iov,
                             const struct blockmap_run *run)
{
    struct qcow1 *q = node->opaque;
    uint64_t within = offset % q->cluster_size, place;
    AUTO_FREE uint8_t *cluster = NULL;
    AUTO_FREE uint8_t *stream = NULL;
    struct codec_work work;
    size_t size;
    int r;

    if (copy_inflated_cluster(q, run->host, within, iov)) {
        return 0;
    }
    qcow1_locate(q, run->host, &place, &size);
    stream = malloc(size);
    cluster = malloc(q->cluster_size);
    if (!stream || !cluster) {
        return -ENOMEM;
    }
    work = (struct codec_work){
        .in = stream, .in_size = size, .out = cluster, .out_size = q->cluster_size};
    r = block_co_pread(node->file, place, stream, size);
    UNLESS_FAILED(r, loop_co_offload(inflate_qcow1_cluster, &work));
    if (r < 0) {
        return r;
    }
    iov_copy_from_buf(iov, 0, cluster + within, iov.size);
    if (iov.size < q->cluster_size) { /* more of it will be wanted */
        pthread_mutex_lock(&q->page_lock);
        free(q->inflated);
        q->inflated = TAKE_PTR(cluster);
        q->inflated_entry = run->host;
        pthread_mutex_unlock(&q->page_lock);
    }
    return 0;
}

/* In the pool. `done` is 0 if it does not fit. */
static int deflate_qcow1_cluster(void *arg)
{
    struct codec_work *w = arg;
    z_stream s = {
        .next_in = (uint8_t *)(uintptr_t)w->in,
        .avail_in = (uInt)w->in_size,
        .next_out = w->out,
        .avail_out = (uInt)w->out_size,
    };

    if (deflateInit2(&s, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -WINDOW_BITS, MEMORY_LEVEL,
                     Z_DEFAULT_STRATEGY) != Z_OK) {
        return -ENOMEM;
    }
    w->done = deflate(&s, Z_FINISH) == Z_STREAM_END ? w->out_size - s.avail_out : 0;
    deflateEnd(&s);
    return 0;
}

int qcow1_co_compress(const struct qcow1 *q, const uint8_t *cluster, uint8_t *out, size_t *ret_size)
{
    struct codec_work work = {.in = cluster,
                              .in_size = q->cluster_size,
                              .out = out,
                              .out_size = q->cluster_size - QCOW1_SECTOR};
    int r = work.out_size > 0 ? loop_co_offload(deflate_qcow1_cluster, &work) : 0;

    if (r == 0) {
        *ret_size = work.done;
    }
    return r;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading compressed clusters. Whole clusters are read in batches: those that are contiguous in the
 * file are read together, and they are decompressed in parallel in the offload pool, directly into
 * the request's memory if a cluster is contiguous there. A part of a cluster is read through the
 * cache of decompressed clusters.
 *
 * Memory of a batch: the compressed bytes according to the entries, whose field allows at most
 * twice the clusters' size, and a cluster for each one that is not contiguous in the request.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "loop/loop.h"
#include "qcow2/data/compress.h"
#include "qcow2/data/compression.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/map.h"

#define JOB_BYTES (128 * KiB)
/* At most this much is decompressed at once, since another thread would take longer to answer. */
#define INLINE_BYTES (16 * KiB)

struct piece {
    uint64_t host, size; /* bytes in the file */
    const uint8_t *in;
    uint8_t *out;
    bool bounced; /* `out` is not in the request's memory */
};

struct job {
    const struct qcow2 *q;
    const struct piece *pieces;
    unsigned count;
};

struct batch {
    struct qcow2 *q;
    struct iov iov;
    struct piece pieces[QCOW2_BATCH_CLUSTERS];
    unsigned count;
};

static int decompress_job(void *arg)
{
    const struct job *job = arg;
    int r = 0;

    for (unsigned i = 0; i < job->count && r == 0; i++) {
        const struct piece *p = &job->pieces[i];

        r = codec_decompress(job->q->compression, p->in, p->size, p->out, job->q->cluster_size);
    }
    return r;
}

static int co_decompress_pieces(const struct qcow2 *q, const struct piece *pieces, unsigned count)
{
    unsigned per_job = (unsigned)MAX(JOB_BYTES >> q->cluster_bits, 1), n = 0;
    struct job jobs[LOOP_OFFLOAD_ALL_MAX];

    if (count << q->cluster_bits <= INLINE_BYTES) {
        struct job all = {.q = q, .pieces = pieces, .count = count};

        return decompress_job(&all);
    }
    per_job = MAX(per_job, (unsigned)div_round_up(count, LOOP_OFFLOAD_ALL_MAX));
    for (unsigned at = 0; at < count; at += per_job) {
        jobs[n++] = (struct job){.q = q, .pieces = pieces + at, .count = MIN(per_job, count - at)};
    }
    return loop_co_offload_all(decompress_job, jobs, sizeof(jobs[0]), n);
}

/* --- part of a cluster ------------------------------------------------------------------------ */

/* Read and decompress one cluster. */
static int co_load_cluster(struct qcow2 *q, uint64_t entry, uint8_t *out)
{
    struct piece piece = {.out = out};
    AUTO_FREE uint8_t *data = NULL;
    int r;

    qcow2_compressed_range(q, entry, &piece.host, &piece.size);
    piece.in = data = malloc(piece.size);
    if (!data) {
        return -ENOMEM;
    }
    block_co_event(q->node->file, BLOCK_EVENT_READ_COMPRESSED);
    r = block_co_pread(q->node->file, piece.host, data, piece.size);
    return r < 0 ? r : co_decompress_pieces(q, &piece, 1);
}

static int co_read_part_of_cluster(struct qcow2 *q, uint64_t entry, size_t skip, struct iov iov,
                                   size_t size)
{
    struct cached_cluster *cluster;
    bool load;
    int r = cluster_cache_co_get(&q->caches.decompressed, entry, &cluster, &load);

    if (r < 0) {
        return r;
    }
    if (load) {
        r = co_load_cluster(q, entry, cluster->data);
        cluster_cache_loaded(&q->caches.decompressed, cluster, r);
    }
    if (r == 0) {
        iov_copy_from_buf(iov, 0, cluster->data + skip, size);
    }
    cluster_cache_put(&q->caches.decompressed, cluster);
    return r;
}

/* --- whole clusters --------------------------------------------------------------------------- */

/* Set the pieces: the compressed clusters that the request begins with. */
static int co_find_pieces(struct batch *b, struct qcow2 *q, uint64_t offset, struct iov iov)
{
    unsigned most = (unsigned)MIN(iov.size >> q->cluster_bits, qcow2_batch_clusters(q));

    b->q = q;
    b->iov = iov;
    for (b->count = 0; b->count < most; b->count++) {
        struct piece *p = &b->pieces[b->count];
        struct qcow2_run run;
        int r = qcow2_co_map(q, offset + ((uint64_t)b->count << q->cluster_bits), q->cluster_size,
                             &run);

        if (r < 0) {
            return r;
        }
        if (run.type != CLUSTER_COMPRESSED) {
            break;
        }
        qcow2_compressed_range(q, run.host, &p->host, &p->size);
    }
    return 0;
}

/* Number of pieces from `first` on that are contiguous in the file; *ret_size: their bytes. */
static unsigned adjacent(const struct batch *b, unsigned first, uint64_t *ret_size)
{
    uint64_t begin = b->pieces[first].host, end = begin + b->pieces[first].size;
    unsigned i = first + 1;

    for (; i < b->count; i++) {
        const struct piece *p = &b->pieces[i];

        /* Entries count whole sectors, so adjacent clusters may overlap. */
        if (p->host < b->pieces[i - 1].host || p->host > end) {
            break;
        }
        end = MAX(end, p->host + p->size);
    }
    *ret_size = end - begin;
    return i - first;
}

/* Set the output of each piece. Returns the bytes of memory needed outside the request. */
static size_t place_outputs(struct batch *b)
{
    size_t cluster = b->q->cluster_size, extra = 0;

    for (unsigned i = 0; i < b->count; i++) {
        struct iovec vec;

        b->pieces[i].bounced = iov_slice(b->iov, i * cluster, cluster, &vec, 1) != 1;
        b->pieces[i].out = b->pieces[i].bounced ? NULL : vec.iov_base;
        extra += b->pieces[i].bounced ? cluster : 0;
    }
    return extra;
}

static int co_read_pieces(struct batch *b, uint8_t *memory)
{
    int r = 0;

    for (unsigned i = 0; i < b->count && r == 0;) {
        uint64_t begin = b->pieces[i].host, size;
        unsigned end = i + adjacent(b, i, &size);

        block_co_event(b->q->node->file, BLOCK_EVENT_READ_COMPRESSED);
        r = block_co_pread(b->q->node->file, begin, memory, size);
        for (; i < end; i++) {
            b->pieces[i].in = memory + (b->pieces[i].host - begin);
        }
        memory += size;
    }
    return r;
}

static int co_read_batch(struct batch *b)
{
    size_t cluster = b->q->cluster_size, bounces = place_outputs(b), total = bounces;
    AUTO_FREE uint8_t *memory = NULL;
    uint8_t *bounce;
    uint64_t size;
    int r;

    for (unsigned i = 0; i < b->count; i += adjacent(b, i, &size)) {
        (void)adjacent(b, i, &size);
        total += size;
    }
    bounce = memory = malloc(total);
    if (!memory) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < b->count; i++) {
        if (b->pieces[i].bounced) {
            b->pieces[i].out = bounce;
            bounce += cluster;
        }
    }
    r = co_read_pieces(b, memory + bounces);
    UNLESS_FAILED(r, co_decompress_pieces(b->q, b->pieces, b->count));
    for (unsigned i = 0; i < b->count && r == 0; i++) {
        if (b->pieces[i].bounced) {
            iov_copy_from_buf(b->iov, i * cluster, b->pieces[i].out, cluster);
        }
    }
    return r;
}

int qcow2_co_read_compressed(struct qcow2 *q, uint64_t offset, struct iov iov, size_t *ret_done)
{
    size_t skip = offset & (q->cluster_size - 1);
    struct batch b;
    int r;

    *ret_done = 0;
    if (skip > 0 || iov.size < q->cluster_size) {
        size_t size = MIN(iov.size, q->cluster_size - skip);
        struct qcow2_run run;

        r = qcow2_co_map(q, offset, size, &run);
        if (r < 0 || run.type != CLUSTER_COMPRESSED) {
            return r;
        }
        *ret_done = size;
        return co_read_part_of_cluster(q, run.host, skip, iov, size);
    }
    r = co_find_pieces(&b, q, offset, iov);
    if (r < 0 || b.count == 0) {
        return r;
    }
    *ret_done = (size_t)b.count << q->cluster_bits;
    return co_read_batch(&b);
}

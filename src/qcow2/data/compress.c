/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing compressed clusters, in batches. Each step is done for the whole batch: the clusters are
 * compressed in parallel in the offload pool, get room in the file, are written, with one request
 * where they are contiguous, and are linked. Each job packs its clusters one after the other, as
 * they are placed in the file.
 */
#include "qcow2/data/compress.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "loop/loop.h"
#include "qcow2/data/compression.h"
#include "qcow2/data/data.h"
#include "qcow2/table/alloc.h"
#include "qcow2/table/commit.h"
#include "qcow2/table/map.h"
#include "qcow2/table/refcount.h"

#define JOB_BYTES (256 * KiB)

struct piece {
    const uint8_t *in;
    uint8_t *out;
    size_t size; /* bytes when compressed; 0: is not stored compressed */
    uint64_t host;
};

struct job {
    const struct qcow2 *q;
    struct piece *pieces;
    unsigned count;
    uint8_t *out; /* room for `count` clusters */
};

/* Clusters of one request: guest bytes [offset, offset + iov.size). */
struct batch {
    struct qcow2 *q;
    uint64_t offset;
    struct iov iov;
    struct piece pieces[QCOW2_BATCH_CLUSTERS];
    unsigned count;
};

/* --- compress --------------------------------------------------------------------------------- */

static int compress_job(void *arg)
{
    struct job *job = arg;
    /* Compressing has to save at least a sector. */
    size_t cluster = job->q->cluster_size, room = cluster - SECTOR_SIZE;
    uint8_t *out = job->out;

    for (unsigned i = 0; i < job->count; i++) {
        struct piece *p = &job->pieces[i];
        int r = codec_compress(job->q->compression, p->in, cluster, out, room, &p->size);

        if (r < 0 && r != -E2BIG) {
            return r;
        }
        p->size = r == 0 ? p->size : 0;
        p->out = out;
        out += p->size;
    }
    return 0;
}

static int co_compress_batch(struct batch *b, uint8_t *out)
{
    unsigned per_job = (unsigned)MAX(JOB_BYTES >> b->q->cluster_bits, 1), n = 0;
    struct job jobs[LOOP_OFFLOAD_ALL_MAX];

    per_job = MAX(per_job, (unsigned)div_round_up(b->count, LOOP_OFFLOAD_ALL_MAX));
    for (unsigned at = 0; at < b->count; at += per_job) {
        jobs[n++] = (struct job){
            .q = b->q,
            .pieces = b->pieces + at,
            .count = MIN(per_job, b->count - at),
            .out = out + ((size_t)at << b->q->cluster_bits),
        };
    }
    return loop_co_offload_all(compress_job, jobs, sizeof(jobs[0]), n);
}

/* --- store ------------------------------------------------------------------------------------ */

static uint64_t compressed_entry(const struct qcow2 *q, uint64_t offset, size_t size)
{
    unsigned offset_bits = 62 - (q->cluster_bits - 8);
    uint64_t sectors = (offset + size - 1) / SECTOR_SIZE - offset / SECTOR_SIZE;

    return L2_COMPRESSED | sectors << offset_bits | offset;
}

static uint64_t guest_offset(const struct batch *b, unsigned i)
{
    return b->offset + ((uint64_t)i << b->q->cluster_bits);
}

/* Clusters that have contents are not stored compressed; they are written normally later. */
static int co_exclude_allocated(struct batch *b)
{
    for (unsigned i = 0; i < b->count; i++) {
        struct qcow2_run run;
        int r = qcow2_co_map(b->q, guest_offset(b, i), b->q->cluster_size, &run);

        if (r < 0) {
            return r;
        }
        if (run.type != CLUSTER_UNALLOCATED && run.type != CLUSTER_ZERO) {
            b->pieces[i].size = 0;
        }
    }
    return 0;
}

/* Make the L2 table, so that it precedes its clusters in the file. */
static int co_make_table_locked(struct qcow2 *q, uint64_t guest)
{
    struct cache_entry *slice;
    unsigned index;
    int r = qcow2_co_l2_slice_locked(q, guest, &slice, &index);

    if (r == 0) {
        cache_put(slice);
    }
    return r;
}

/* Allocate room for all pieces. *ret_end: pieces before it have room, also after a failure. */
static int co_alloc_pieces(struct batch *b, unsigned *ret_end)
{
    unsigned i;
    int r = 0;

    co_mutex_lock(&b->q->lock);
    for (i = 0; i < b->count && r == 0; i++) {
        struct piece *p = &b->pieces[i];

        r = p->size > 0 ? co_make_table_locked(b->q, guest_offset(b, i)) : 0;
        if (r == 0 && p->size > 0) {
            r = qcow2_co_alloc_bytes_locked(b->q, p->size, &p->host);
        }
    }
    co_mutex_unlock(&b->q->lock);
    *ret_end = r < 0 ? i - 1 : i;
    return r;
}

/* Free the room of pieces [begin, end), which nothing references. */
static void co_give_back(struct batch *b, unsigned begin, unsigned end)
{
    struct qcow2 *q = b->q;

    co_mutex_lock(&q->lock);
    q->alloc.compressed_tail = 0;
    for (unsigned i = begin; i < end; i++) {
        const struct piece *p = &b->pieces[i];
        uint64_t first = qcow2_cluster_index(q, p->host);

        if (p->size > 0) {
            (void)qcow2_co_refcount_add_locked(
                q, first, qcow2_cluster_index(q, p->host + p->size - 1) - first + 1, -1);
        }
    }
    co_mutex_unlock(&q->lock);
}

/* Write the pieces from *i on that are contiguous in the file; *i becomes the next one. */
static int co_write_adjacent(struct batch *b, unsigned *i)
{
    struct iovec vec[LOOP_OFFLOAD_ALL_MAX];
    uint64_t host = b->pieces[*i].host;
    struct iov iov = {.vec = vec};

    for (; *i < b->count; (*i)++) {
        struct piece *p = &b->pieces[*i];
        struct iovec *last = iov.count ? &vec[iov.count - 1] : NULL;

        if (p->size == 0) {
            continue;
        }
        if (p->host != host + iov.size) {
            break;
        }
        if (last && (uint8_t *)last->iov_base + last->iov_len == p->out) {
            last->iov_len += p->size;
        } else if (iov.count < (int)ARRAY_SIZE(vec)) {
            vec[iov.count++] = (struct iovec){.iov_base = p->out, .iov_len = p->size};
        } else {
            break;
        }
        iov.size += p->size;
    }
    block_co_event(b->q->node->file, BLOCK_EVENT_WRITE_COMPRESSED);
    return block_co_pwritev(b->q->node->file, host, iov, 0);
}

static int co_write_compressed_pieces(struct batch *b)
{
    int r = 0;

    for (unsigned i = 0; i < b->count && r == 0;) {
        if (b->pieces[i].size == 0) {
            i++;
        } else {
            r = co_write_adjacent(b, &i);
        }
    }
    return r;
}

/*
 * Link all pieces. The guest range is held exclusively, and the clusters have no contents yet.
 * *ret_end: pieces before it are linked.
 */
static int co_link_pieces(struct batch *b, unsigned *ret_end)
{
    struct qcow2 *q = b->q;
    unsigned i;
    int r = 0;

    co_mutex_lock(&q->lock);
    for (i = 0; i < b->count; i++) {
        struct piece *p = &b->pieces[i];
        struct cache_entry *slice;
        unsigned index;

        if (p->size == 0) {
            continue;
        }
        r = qcow2_co_l2_slice_locked(q, guest_offset(b, i), &slice, &index);
        if (r < 0) {
            break;
        }
        block_co_event(q->node->file, BLOCK_EVENT_L2_UPDATE_COMPRESSED);
        cluster_cache_drop(&q->caches.decompressed, compressed_entry(q, p->host, p->size));
        qcow2_store_entry(q, slice, index, compressed_entry(q, p->host, p->size), 0);
        cache_mark_dirty(&q->caches.l2, slice);
        cache_put(slice);
    }
    co_mutex_unlock(&q->lock);
    *ret_end = i;
    return r;
}

/* *ret_linked: pieces before it are linked, also after a failure. */
static int co_try_to_store(struct batch *b, unsigned *ret_linked)
{
    unsigned allocated, linked = 0;
    int r = co_alloc_pieces(b, &allocated);

    UNLESS_FAILED(r, co_write_compressed_pieces(b));
    UNLESS_FAILED(r, co_link_pieces(b, &linked));
    if (r < 0) {
        co_give_back(b, linked, allocated);
    }
    *ret_linked = linked;
    return r;
}

static int co_store_batch(struct batch *b)
{
    unsigned linked;
    int r;

    do {
        r = co_try_to_store(b, &linked);
    } while (linked == 0 && qcow2_co_make_room(b->q, r));
    /* If the commit fails, the clusters are linked all the same. */
    return r < 0 ? r : qcow2_co_commit_if_much_dirty(b->q);
}

/* --- a request -------------------------------------------------------------------------------- */

/* Set the input of all pieces: in place if a cluster is contiguous in the request, else a copy. */
static void take_input(struct batch *b, uint8_t *memory)
{
    size_t cluster = b->q->cluster_size;

    for (unsigned i = 0; i < b->count; i++) {
        size_t at = i * cluster, size = MIN(cluster, b->iov.size - at);
        struct iovec vec;

        if (size == cluster && iov_slice(b->iov, at, size, &vec, 1) == 1) {
            b->pieces[i].in = vec.iov_base;
            continue;
        }
        /* The last cluster of the disk may be shorter; it is padded with zeroes. */
        iov_copy_to_buf(b->iov, at, memory, size);
        memset(memory + size, 0, cluster - size);
        b->pieces[i].in = memory;
        memory += cluster;
    }
}

/* Most bytes of `memory` that take_input() may need. */
static size_t input_memory(const struct batch *b)
{
    size_t all = (size_t)b->count << b->q->cluster_bits;

    if (b->iov.count > 1) {
        return all;
    }
    return all == b->iov.size ? 0 : b->q->cluster_size;
}

/* Write the clusters that are not stored compressed. */
static int co_write_plain(struct batch *b)
{
    size_t cluster = b->q->cluster_size;
    IOV_PART_AUTO(part);
    int r = 0;

    for (unsigned i = 0, end; i < b->count && r == 0; i = end) {
        size_t at = i * cluster;

        end = i + 1;
        if (b->pieces[i].size > 0) {
            continue;
        }
        while (end < b->count && b->pieces[end].size == 0) {
            end++;
        }
        r = iov_part_set(&part, b->iov, at, MIN(end * cluster, b->iov.size) - at);
        UNLESS_FAILED(r, qcow2_co_pwritev(b->q->node, b->offset + at, part.iov, 0));
    }
    return r;
}

static int co_write_batch(struct batch *b)
{
    size_t all = (size_t)b->count << b->q->cluster_bits;
    AUTO_FREE uint8_t *memory = malloc(all + input_memory(b));
    struct range_entry range;
    int r;

    if (!memory) {
        return -ENOMEM;
    }
    take_input(b, memory + all);
    r = co_compress_batch(b, memory);
    if (r < 0) {
        return r;
    }
    co_range_lock(&b->q->guest, &range, b->offset, all, true);
    r = co_exclude_allocated(b);
    UNLESS_FAILED(r, co_store_batch(b));
    range_unlock(&b->q->guest, &range);
    return r < 0 ? r : co_write_plain(b);
}

int qcow2_co_write_compressed(struct qcow2 *q, uint64_t offset, struct iov iov)
{
    size_t step = (size_t)qcow2_batch_clusters(q) << q->cluster_bits;
    uint64_t end = offset + iov.size;
    IOV_PART_AUTO(part);
    int r = 0;

    if (q->has_data_file || q->crypt_method != CRYPT_NONE) {
        return -ENOTSUP; /* the data would not be in the data file, or not be encrypted */
    }
    if (!is_aligned(offset, q->cluster_size) ||
        (!is_aligned(end, q->cluster_size) && end != block_node_size(q->node))) {
        return -EINVAL;
    }
    if (q->cluster_size <= SECTOR_SIZE) {
        return qcow2_co_pwritev(q->node, offset, iov, 0);
    }
    for (size_t done = 0; done < iov.size && r == 0; done += step) {
        size_t size = MIN(step, iov.size - done);
        struct batch b = {.q = q, .offset = offset + done};

        b.count = (unsigned)div_round_up(size, q->cluster_size);
        r = iov_part_set(&part, iov, done, size);
        b.iov = part.iov;
        UNLESS_FAILED(r, co_write_batch(&b));
    }
    return qcow2_co_conclude(q, r);
}

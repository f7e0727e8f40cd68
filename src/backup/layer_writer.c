/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/layer_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "backup/file_copy.h"
#include "backup/files.h"
#include "backup/layer_image.h"
#include "backup/stored_node.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/gate.h"
#include "loop/loop.h"

#define DIGEST_BATCH 4096u

static int make_layer_files(struct layer_writer *w, const struct repository_draft *draft,
                            struct error *err)
{
    w->image = files_join(draft->path, REPOSITORY_IMAGE);
    w->sums = files_join(draft->path, REPOSITORY_SUMS);
    if (!w->image || !w->sums) {
        return error_out_of_memory(err);
    }
    w->image_fd = files_create_at(draft->fd, REPOSITORY_IMAGE, w->image, err);
    if (w->image_fd < 0) {
        return w->image_fd;
    }
    w->writeback.fd = w->image_fd;
    w->sums_fd = files_create_at(draft->fd, REPOSITORY_SUMS, w->sums, err);
    if (w->sums_fd < 0) {
        return w->sums_fd;
    }
    w->sums_file = stored_create(w->sums_fd, w->seal, STORED_SUMS);
    return w->sums_file ? 0 : error_out_of_memory(err);
}

static int co_create_layer_image(struct layer_writer *w, const char *parent, struct error *err)
{
    char backing[BACKUP_ID_SIZE + 32];

    snprintf(backing, sizeof(backing), "../%s/%s", parent, REPOSITORY_IMAGE);
    return stored_node_co_create(
        &(struct stored_image){
            .shown = w->image,
            .fd = w->image_fd,
            .seal = w->seal,
            .size = w->disk_size,
            .backing = parent[0] ? backing : NULL,
        },
        &w->node, err);
}

/* The SHA-256 of the whole file proves every cluster of it. */
static int co_copy_base(struct layer_writer *w, const struct layer_base *base, struct error *err)
{
    const struct file_copy copy = {
        .from = base->fd,
        .to = w->image_fd,
        .from_shown = base->shown,
        .to_shown = w->image,
        .size = base->manifest->image_size,
        .sha256 = base->manifest->image_sha256,
        .stop = base->stop,
    };
    const struct stored_image image = {.shown = w->image, .fd = w->image_fd, .seal = w->seal};
    uint64_t written;
    int r = file_copy_co_run(&copy, &written, err);

    w->based = true;
    UNLESS_FAILED(r, layer_image_check(&image, &w->cluster_bits, err));
    UNLESS_FAILED(r, stored_node_co_reopen(&image, &w->node, err));
    if (r == 0 && !w->seal) {
        r = stored_open(w->image_fd, NULL, STORED_IMAGE, w->image, &w->tables_file, err);
        UNLESS_FAILED(r, layer_image_open(w->tables_file, w->image, &w->tables, err));
    }
    return r;
}

int layer_writer_co_open(const struct repository_draft *draft, const char *parent,
                         uint64_t disk_size, const struct layer_base *base,
                         struct layer_writer *ret_writer, struct error *err)
{
    struct layer_writer *w = ret_writer;
    int r;

    *w = LAYER_WRITER_INIT;
    w->seal = draft->seal;
    w->full = !parent[0];
    w->cluster_bits = w->full ? BACKUP_FULL_CLUSTER_BITS : BACKUP_CLUSTER_BITS;
    w->disk_size = disk_size;
    r = make_layer_files(w, draft, err);
    UNLESS_FAILED(r, base ? co_copy_base(w, base, err) : co_create_layer_image(w, parent, err));
    UNLESS_FAILED(r, block_co_root_new(w->node, "backup",
                                       BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                                       BLOCK_PERM_CONSISTENT_READ, &w->root, err));
    return r;
}

/* --- checksums --- */

/* Copy the digests of an extent to the place that comes next in the new file. */
static int copy_digests(struct layer_writer *w, const struct chain_extent *e, uint64_t slot,
                        struct error *err)
{
    uint8_t *batch AUTO_FREE = calloc(DIGEST_BATCH, SUMS_DIGEST_SIZE);

    if (!batch) {
        return error_out_of_memory(err);
    }
    for (uint64_t done = 0; done < e->count;) {
        size_t n = (size_t)MIN(e->count - done, (uint64_t)DIGEST_BATCH);
        int r = e->digest == CHAIN_NO_DIGEST ? 0 : chain_read_digests(e, done, n, batch);

        if (r < 0) {
            return error_set_errno(err, -r, "Could not read '%s'", e->layer->file->sums_path);
        }
        r = sums_write_digests(w->sums_file, slot + done, batch, n);
        if (r < 0) {
            return error_set_errno(err, -r, "Could not write '%s'", w->sums);
        }
        done += n;
    }
    return 0;
}

int layer_writer_take_sums(struct layer_writer *w, struct chain *chain, struct error *err)
{
    struct chain_extent e;

    chain_rewind(chain);
    while (chain_next(chain, UINT32_MAX, &e)) {
        uint64_t slot = w->runs.digests;
        int r;

        if (!e.layer) {
            continue;
        }
        if (sums_runs_add(&w->runs, e.first, e.count, e.kind) < 0) {
            return error_out_of_memory(err);
        }
        r = copy_digests(w, &e, slot, err);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

/* --- contents --- */

/*
 * Compressed clusters that are written over leave gaps, which qcow2 can use again when all of the
 * cluster of the file is free. The file system gets their blocks back before that. Nothing else
 * uses them yet: the cluster, which is written once, is still allocated.
 */
static void give_back_compressed(const struct layer_writer *w, uint64_t offset, uint64_t size)
{
    uint64_t cluster = UINT64_C(1) << w->cluster_bits;

    for (uint64_t at = offset; w->tables_file && at < offset + size; at += cluster) {
        uint64_t begin, count;

        if (layer_image_find_compressed(&w->tables, w->tables_file, at / cluster, &begin, &count) ==
                0 &&
            count > 0) {
            /* Where the file system can't do that, the gap takes space. */
            (void)fallocate(w->image_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)begin,
                            (off_t)count);
        }
    }
}

int layer_writer_co_write(struct layer_writer *w, uint64_t offset, uint8_t *data, uint64_t size,
                          struct error *err)
{
    struct block_edge *edge = block_root_edge(w->root);
    struct iovec vec;
    int r = 0;

    if (w->based) {
        give_back_compressed(w, offset, size);
    }
    if (data) {
        /* Clusters that are allocated would be written over uncompressed. */
        r = w->based ? block_co_discard(edge, offset, size) : 0;
        UNLESS_FAILED(r, block_co_pwritev(edge, offset, iov_from_buf(&vec, data, size),
                                          BLOCK_REQ_COMPRESSED));
    } else if (!w->full) {
        /* Not unmapped: the backing file, which is not open here, would be read there. */
        r = block_co_write_zeroes(edge, offset, size, 0);
    } else if (w->based) {
        r = block_co_write_zeroes(edge, offset, size, BLOCK_REQ_MAY_UNMAP);
    } /* else: a new image without a backing file reads as zeroes */
    if (r < 0) {
        return error_set_errno(err, -r, "Could not write '%s' at offset %" PRIu64, w->image,
                               offset);
    }
    if (!w->based) {
        writeback_co_push_all(&w->writeback);
    }
    return 0;
}

static int co_close_layer_image(struct layer_writer *w, struct error *err)
{
    int r = block_co_inactivate(w->node, err);

    if (r < 0) {
        error_set_errno(err, -r, "Could not write '%s'", w->image);
    }
    block_co_root_release(w->root);
    block_co_unref(w->node);
    w->root = NULL;
    w->node = NULL;
    files_name_in_error(err, w->image_fd, w->image);
    return r;
}

int layer_writer_co_finish(struct layer_writer *w, volatile sig_atomic_t *stop, struct manifest *m,
                           struct error *err)
{
    int r = co_close_layer_image(w, err);

    if (r < 0) {
        return r;
    }
    r = sums_write_finish(w->sums_file, &w->runs, w->disk_size);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not write '%s'", w->sums);
    }
    m->cluster_size = 1u << w->cluster_bits;
    m->stored = 0;
    r = digest_co_complete(w->image_fd, w->image, stop, m->image_sha256, &m->image_size, &m->stored,
                           err);
    UNLESS_FAILED(r, digest_co_complete(w->sums_fd, w->sums, stop, m->sums_sha256, &m->sums_size,
                                        &m->stored, err));
    return r;
}

void layer_writer_co_release(struct layer_writer *w)
{
    block_co_root_release(w->root);
    block_co_unref(w->node);
    stored_free(w->sums_file);
    stored_free(w->tables_file);
    if (w->image_fd >= 0) {
        close(w->image_fd);
    }
    if (w->sums_fd >= 0) {
        close(w->sums_fd);
    }
    sums_runs_clear(&w->runs);
    free(w->image);
    free(w->sums);
    *w = LAYER_WRITER_INIT;
}

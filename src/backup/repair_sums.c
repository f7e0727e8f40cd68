/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/repair_sums.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/chain.h"
#include "backup/digest.h"
#include "backup/files.h"
#include "backup/sums.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "block/gate.h"
#include "loop/loop.h"

#define NEW_SUMS ".tidemark-checksums"
#define CHUNK_CLUSTERS 16u
#define STATUS_CLUSTERS (1u << 20)

struct sums_maker {
    const struct repository *repository;
    const struct repository_entry *entry;
    struct repository_entry *update; /* whose manifest is to describe the new file; NULL: none */
    bool all;                        /* holes are recorded */
    /* The checksum file that is there, of a full backup that is compared with that; else empty. */
    struct sums there;
    struct chain_image image;
    struct sums_runs runs;
    int fd;
    struct stored *file;
    const char *shown;
    uint8_t *buf;
    volatile sig_atomic_t *stop;
};

/* --- what the image holds --- */

static int take_zeroes(struct sums_maker *m, uint64_t first, uint64_t count, struct error *err)
{
    uint8_t none[SUMS_DIGEST_SIZE] = {0};
    uint64_t slot = m->runs.digests;
    int r = sums_runs_add(&m->runs, first, count, SUMS_ZERO);

    for (uint64_t i = 0; r == 0 && i < count; i++) {
        r = sums_write_digests(m->file, slot + i, none, 1);
    }
    return r < 0 ? error_set_errno(err, -r, "Could not write '%s'", m->shown) : 0;
}

/*
 * Clusters that a full image does not have are zeroes. A full backup that was taken records those
 * that were read, and not those of which the disk said that nothing is there: the image does not
 * tell which. A new file has none, or all if the manifest says that the file was so large, and one
 * that is compared those that the other one has.
 */
static int take_hole(struct sums_maker *m, uint64_t first, uint64_t count, struct error *err)
{
    const struct sums_runs *there = &m->there.runs;
    int r = 0;

    if (m->all) {
        return take_zeroes(m, first, count, err);
    }
    for (size_t i = sums_runs_find(there, first); r == 0 && i < there->count; i++) {
        uint64_t begin = MAX(there->list[i].first, first);
        uint64_t end = MIN(there->list[i].first + there->list[i].count, first + count);

        if (begin >= end) {
            break;
        }
        r = there->list[i].kind == SUMS_ZERO ? take_zeroes(m, begin, end - begin, err) : 0;
    }
    return r;
}

/* Digest and record clusters of data that are in m->buf. */
static int co_record_data(struct sums_maker *m, uint64_t first, uint64_t count, const uint8_t *buf,
                          struct error *err)
{
    uint8_t digests[CHUNK_CLUSTERS * SUMS_DIGEST_SIZE];
    uint64_t slot = m->runs.digests;
    int r = sums_co_digest_clusters(buf, count * BACKUP_CLUSTER_SIZE, digests);

    UNLESS_FAILED(r, sums_runs_add(&m->runs, first, count, SUMS_DATA));
    UNLESS_FAILED(r, sums_write_digests(m->file, slot, digests, count));
    return r < 0 ? error_set_errno(err, -r, "Could not write '%s'", m->shown) : 0;
}

/* Whether a cluster is a hole that is in one cluster of the image with data. */
static bool is_hidden_hole(const struct sums_maker *m, const uint8_t *cluster)
{
    return m->image.cluster_bits != BACKUP_CLUSTER_BITS &&
           buffer_is_zero(cluster, BACKUP_CLUSTER_SIZE);
}

/* Read and record up to a chunk of clusters that the image has. */
static int co_take_sums_chunk(struct sums_maker *m, uint64_t first, uint64_t count,
                              struct error *err)
{
    uint64_t offset = first * BACKUP_CLUSTER_SIZE;
    uint64_t size = MIN(count * BACKUP_CLUSTER_SIZE, m->entry->manifest.virtual_size - offset);
    int r = block_co_pread(block_root_edge(m->image.root), offset, m->buf, size);

    if (r < 0) {
        return error_set_errno(err, -r, "Could not read '%s' at offset %" PRIu64, m->image.path,
                               offset);
    }
    memset(m->buf + size, 0, count * BACKUP_CLUSTER_SIZE - size);
    for (uint64_t i = 0, end; r == 0 && i < count; i = end) {
        const uint8_t *buf = m->buf + i * BACKUP_CLUSTER_SIZE;
        bool hole = is_hidden_hole(m, buf);

        for (end = i + 1;
             end < count && is_hidden_hole(m, m->buf + end * BACKUP_CLUSTER_SIZE) == hole; end++) {
        }
        r = hole ? take_hole(m, first + i, end - i, err)
                 : co_record_data(m, first + i, end - i, buf, err);
    }
    return r;
}

static int co_take_sums_data(struct sums_maker *m, uint64_t first, uint64_t count,
                             struct error *err)
{
    int r = 0;

    for (uint64_t done = 0, n; r == 0 && done < count; done += n) {
        n = MIN(count - done, (uint64_t)CHUNK_CLUSTERS);
        r = m->stop && *m->stop ? error_set(err, EINTR, "Stopped")
                                : co_take_sums_chunk(m, first + done, n, err);
    }
    return r;
}

/* The clusters of an image are those of the backup; in a full one, holes are zeroes. */
static int co_take_image(struct sums_maker *m, struct error *err)
{
    const struct manifest *manifest = &m->entry->manifest;
    uint64_t clusters = div_round_up(manifest->virtual_size, BACKUP_CLUSTER_SIZE);
    int r = 0;

    for (uint64_t first = 0, count; r == 0 && first < clusters; first += count) {
        uint64_t offset = first * BACKUP_CLUSTER_SIZE;
        uint64_t most =
            MIN((uint64_t)STATUS_CLUSTERS * BACKUP_CLUSTER_SIZE, manifest->virtual_size - offset);
        struct block_status status;

        r = block_co_status(block_root_edge(m->image.root), offset, most, &status);
        if (r < 0 || status.length == 0) {
            return error_set_errno(err, r < 0 ? -r : EIO, "Could not inspect '%s'", m->image.path);
        }
        count = div_round_up(status.length, BACKUP_CLUSTER_SIZE);
        if (!(status.flags & BLOCK_STATUS_ALLOCATED)) {
            r = manifest_is_full(manifest) ? take_hole(m, first, count, err) : 0;
        } else if (status.flags & BLOCK_STATUS_ZERO) {
            r = take_zeroes(m, first, count, err);
        } else {
            r = co_take_sums_data(m, first, count, err);
        }
    }
    return r;
}

/* --- the file --- */

static int no_such_contents(const struct sums_maker *m, struct error *err)
{
    return error_set(
        err, EBADMSG, "The image of backup %s does not have the contents that its %s", m->entry->id,
        repository_seal(m->repository) ? "checksum file describes" : "manifest describes");
}

static int co_compare_with_manifest(struct sums_maker *m, struct error *err)
{
    int r = digest_co_expect(m->fd, m->shown, m->entry->manifest.sums_size,
                             m->entry->manifest.sums_sha256, m->stop, NULL);

    return r == -EBADMSG ? no_such_contents(m, err) : r;
}

struct sums_comparison {
    struct stored *files[2];
};

/* 0: they are equal; -EBADMSG. Blocks. */
static int compare_contents(void *arg)
{
    struct sums_comparison *c = arg;
    uint64_t size = stored_size(c->files[0]), n;
    uint8_t buf[2][STORED_PIECE];

    if (size != stored_size(c->files[1])) {
        return -EBADMSG;
    }
    for (uint64_t offset = 0; offset < size; offset += n) {
        int r = 0;

        n = MIN(size - offset, (uint64_t)STORED_PIECE);
        for (int i = 0; r == 0 && i < 2; i++) {
            r = stored_read(c->files[i], buf[i], n, offset);
        }
        if (r < 0 || memcmp(buf[0], buf[1], n) != 0) {
            return r < 0 ? r : -EBADMSG;
        }
    }
    return 0;
}

/* With the file that is there, decrypted. */
static int co_compare_with_file(struct sums_maker *m, struct error *err)
{
    int fd AUTO_CLOSE = repository_open_file(m->repository, m->entry->id, REPOSITORY_SUMS, err);
    struct sums_comparison c = {{m->file}};
    int r = fd < 0 ? fd
                   : stored_open(fd, repository_seal(m->repository), STORED_SUMS, m->shown,
                                 &c.files[1], err);

    if (r < 0) {
        return r;
    }
    r = loop_co_offload(compare_contents, &c);
    stored_free(c.files[1]);
    return r == -EBADMSG ? no_such_contents(m, err)
           : r < 0       ? error_set_errno(err, -r, "Could not compare '%s'", m->shown)
                         : 0;
}

/* Whether the new file is right. */
static int co_judge_new_sums(struct sums_maker *m, struct error *err)
{
    int r = sums_write_finish(m->file, &m->runs, m->entry->manifest.virtual_size);

    if (r < 0) {
        return error_set_errno(err, -r, "Could not write '%s'", m->shown);
    }
    r = files_sync(m->fd, m->shown, err);
    if (r < 0) {
        return r;
    }
    if (m->update) {
        struct manifest *manifest = &m->update->manifest;

        return digest_co_file(m->fd, m->shown, m->stop, manifest->sums_sha256, &manifest->sums_size,
                              err);
    }
    return repository_seal(m->repository) ? co_compare_with_file(m, err)
                                          : co_compare_with_manifest(m, err);
}

static int open_sums_there(struct sums_maker *m, struct error *err)
{
    int fd = repository_open_file(m->repository, m->entry->id, REPOSITORY_SUMS, err);

    return fd < 0 ? fd
                  : sums_open(fd, repository_seal(m->repository), m->shown,
                              m->entry->manifest.virtual_size, &m->there, err);
}

static int co_make_sums_in(const struct repository *r, struct sums_maker *m, int dir, bool replace,
                           struct error *err)
{
    int status = chain_co_open_image(r, m->entry, &m->image, err);

    if (status == 0) {
        files_remove_at(dir, NEW_SUMS);
        m->buf = malloc((size_t)CHUNK_CLUSTERS * BACKUP_CLUSTER_SIZE);
        m->fd = m->buf ? files_create_at(dir, NEW_SUMS, m->shown, err) : error_out_of_memory(err);
        m->file = m->fd < 0 ? NULL : stored_create(m->fd, repository_seal(r), STORED_SUMS);
        status = m->fd < 0 ? m->fd : m->file ? 0 : error_out_of_memory(err);
    }
    if (status == 0 && !replace && manifest_is_full(&m->entry->manifest)) {
        status = open_sums_there(m, err);
    }
    UNLESS_FAILED(status, co_take_image(m, err));
    UNLESS_FAILED(status, co_judge_new_sums(m, err));
    if (status == 0 && replace && renameat(dir, NEW_SUMS, dir, REPOSITORY_SUMS) < 0) {
        status = error_set_errno(err, errno, "Could not replace '%s'", m->shown);
    }
    UNLESS_FAILED(status, files_sync(dir, m->shown, err));
    if (status < 0 || !replace) {
        unlinkat(dir, NEW_SUMS, 0);
    }
    return status;
}

/* Whether the checksum file has a digest for each cluster of the disk. */
static bool has_all(const struct manifest *m)
{
    uint64_t clusters = div_round_up(m->virtual_size, BACKUP_CLUSTER_SIZE);

    return m->sums_size >= SUMS_HEADER_SIZE + clusters * SUMS_DIGEST_SIZE;
}

static int co_make_sums(const struct repository *repository, const struct repository_entry *e,
                        struct repository_entry *update, bool replace, volatile sig_atomic_t *stop,
                        struct error *err)
{
    char *shown AUTO_FREE = repository_file(repository, e->id, REPOSITORY_SUMS);
    struct sums_maker m = {.repository = repository,
                           .entry = e,
                           .update = update,
                           .all = replace && !update && has_all(&e->manifest),
                           .there.fd = -1,
                           .fd = -1,
                           .shown = shown,
                           .stop = stop};
    int dir AUTO_CLOSE = repository_open_backup(repository, e->id, err);
    int r = dir;

    if (dir >= 0) {
        r = shown ? co_make_sums_in(repository, &m, dir, replace, err) : error_out_of_memory(err);
    }
    stored_free(m.file);
    if (m.fd >= 0) {
        close(m.fd);
    }
    chain_co_close_image(&m.image);
    if (m.there.fd >= 0) {
        sums_close(&m.there);
    }
    sums_runs_clear(&m.runs);
    free(m.buf);
    return r;
}

static int co_check_whole_image(const struct repository *repository,
                                const struct repository_entry *e, volatile sig_atomic_t *stop,
                                struct error *err)
{
    char *shown AUTO_FREE = repository_file(repository, e->id, REPOSITORY_IMAGE);
    int fd AUTO_CLOSE = repository_open_file(repository, e->id, REPOSITORY_IMAGE, err);

    if (fd < 0 || !shown) {
        return fd < 0 ? fd : error_out_of_memory(err);
    }
    return digest_co_expect(fd, shown, e->manifest.image_size, e->manifest.image_sha256, stop, err);
}

int repair_co_make_sums(const struct repository *repository, struct repository_entry *e,
                        volatile sig_atomic_t *stop, struct error *err)
{
    ERROR_AUTO(same);
    int r = repository_seal(repository) ? -EBADMSG
                                        : co_make_sums(repository, e, NULL, true, stop, &same);

    if (r != -EBADMSG) {
        error_move(err, &same);
        return r;
    }
    r = co_check_whole_image(repository, e, stop, err);
    UNLESS_FAILED(r, co_make_sums(repository, e, e, true, stop, err));
    /* A kill before this leaves a file that the manifest does not describe, as before. */
    UNLESS_FAILED(r, repository_rewrite_manifest(repository, &e->manifest, err));
    return r;
}

int repair_co_prove_sums(const struct repository *repository, const struct repository_entry *e,
                         volatile sig_atomic_t *stop, struct error *err)
{
    return co_make_sums(repository, e, NULL, false, stop, err);
}

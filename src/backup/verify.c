/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verification of each backup: the manifest with its own checksum, the parent, both files against
 * the manifest, the qcow2 structure, the backing link that other programs follow, every cluster
 * against its checksum, and that the image holds those clusters and no others.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/backup.h"
#include "backup/chain.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "block/control.h"
#include "co/sync.h"
#include "loop/loop.h"

#define STATUS_BYTES (1ULL << 40)

struct verify {
    const struct verify_options *options;
    const struct repository *repository;
    bool *damaged;  /* by index of the entry */
    uint64_t bytes; /* of the backup that is verified */
};

/* --- the image as a whole: read while its clusters are, so that the disk reads it once --- */

struct image_hash {
    const struct repository *repository;
    const struct repository_entry *entry;
    volatile sig_atomic_t *stop;
    int status;
    struct error err;
    struct co_group group;
};

static void co_hash_image(void *arg)
{
    struct image_hash *h = arg;
    const struct manifest *m = &h->entry->manifest;
    char *shown AUTO_FREE = repository_file(h->repository, m->id, REPOSITORY_IMAGE);
    int fd AUTO_CLOSE = -1;

    if (!shown) {
        h->status = error_out_of_memory(&h->err);
    } else {
        fd = repository_open_file(h->repository, m->id, REPOSITORY_IMAGE, &h->err);
        h->status =
            fd < 0 ? fd
                   : digest_co_expect(fd, shown, m->image_size, m->image_sha256, h->stop, &h->err);
    }
    co_group_done(&h->group);
}

static int co_check_qcow2(struct chain_layer *layer, struct error *err)
{
    struct block_check_result result;
    int r = block_co_check(layer->node, 0, &result, err);

    if (r < 0) {
        return r;
    }
    if (result.corruptions || result.check_errors) {
        return error_set(err, EBADMSG, "'%s' is no sound qcow2 image: %" PRIu64 " corruptions",
                         layer->image, result.corruptions + result.check_errors);
    }
    return 0;
}

/* Check the backing file name, which qemu-img will follow. */
static int co_check_backing_link(struct chain_layer *layer, struct error *err)
{
    const struct manifest *m = &layer->entry->manifest;
    struct block_info info;
    char expected[BACKUP_ID_SIZE + 32] = "";
    const char *found;
    int r = block_co_get_info(layer->node, &info);

    if (r < 0) {
        return error_set_errno(err, -r, "Could not inspect '%s'", layer->image);
    }
    if (!manifest_is_full(m)) {
        snprintf(expected, sizeof(expected), "../%s/%s", m->parent, REPOSITORY_IMAGE);
    }
    found = info.backing_filename ? info.backing_filename : "";
    if (strcmp(found, expected) != 0) {
        return error_set(err, EBADMSG, "The backing file of '%s' is '%s', it should be '%s'",
                         layer->image, found, expected);
    }
    return 0;
}

/* Check that [offset, end) is of one kind: zeroes in the image itself, or nothing of its own. */
static int co_check_status(struct chain_layer *layer, uint64_t offset, uint64_t end, bool own,
                           struct error *err)
{
    bool full = manifest_is_full(&layer->entry->manifest);

    while (offset < end) {
        struct block_status status;
        int r = block_co_status(block_root_edge(layer->root), offset,
                                MIN(end - offset, STATUS_BYTES), &status);
        bool allocated = r == 0 && (status.flags & BLOCK_STATUS_ALLOCATED);
        bool zero = r == 0 && (status.flags & BLOCK_STATUS_ZERO);

        if (r < 0 || status.length == 0) {
            return error_set_errno(err, r < 0 ? -r : EIO, "Could not inspect '%s'", layer->image);
        }
        /* A full backup has no backing file, so it does not matter how zeroes are stored. */
        if (full ? allocated && !zero : own ? !(allocated && zero) : allocated) {
            return error_set(err, EBADMSG, "'%s' is damaged: at offset %" PRIu64 " it should %s",
                             layer->image, offset,
                             own || full ? "read as zeroes" : "leave it to its backing file");
        }
        offset += status.length;
    }
    return 0;
}

/* Check that zeroes are zeroes, and that the image has nothing outside its clusters. */
static int co_check_rest(struct chain *chain, struct error *err)
{
    struct chain_layer *layer = &chain->layers[0];
    struct chain_extent e;

    chain->position = 0;
    layer->run = 0;
    while (chain_next(chain, UINT32_MAX, &e)) {
        uint64_t offset = e.first * BACKUP_CLUSTER_SIZE;
        uint64_t end = MIN((e.first + e.count) * BACKUP_CLUSTER_SIZE, chain->disk_size);
        int r = 0;

        if (!e.layer || e.kind == SUMS_ZERO) {
            r = co_check_status(layer, offset, end, e.layer != NULL, err);
        }
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static int co_verify_contents(struct verify *v, const struct repository_entry *e, struct error *err)
{
    struct progress progress;
    struct chain chain;
    struct chain_reader reader = {.chain = &chain, .progress = &progress, .stop = v->options->stop};
    int r = chain_co_open(v->repository, &e, 1, &chain, err);

    UNLESS_FAILED(r, co_check_qcow2(&chain.layers[0], err));
    UNLESS_FAILED(r, co_check_backing_link(&chain.layers[0], err));
    UNLESS_FAILED(r, co_check_rest(&chain, err));
    if (r == 0) {
        v->bytes = chain_data_bytes(&chain);
        progress_begin(&progress, stderr, v->options->progress, "verify", v->bytes);
        r = chain_co_read(&reader, err);
        progress_end(&progress, r == 0);
    }
    chain_co_close(&chain);
    return r;
}

/* Compare the files first: that gives the shorter answer. */
static int co_verify_files(struct verify *v, const struct repository_entry *e, struct error *err)
{
    struct image_hash hash = {.repository = v->repository, .entry = e, .stop = v->options->stop};
    ERROR_AUTO(contents_err);
    int r;

    co_group_init(&hash.group);
    co_group_add(&hash.group);
    r = co_spawn(reactor_home(reactor_main()), co_hash_image, &hash);
    if (r < 0) {
        co_group_done(&hash.group);
        hash.status = error_set_errno(&hash.err, -r, "Could not start reading");
    } else {
        r = co_verify_contents(v, e, &contents_err);
    }
    co_group_wait(&hash.group);
    co_group_destroy(&hash.group);
    if (hash.status < 0) {
        error_move(err, &hash.err);
        r = hash.status;
    } else if (r < 0) {
        error_move(err, &contents_err);
    }
    error_clear(&hash.err);
    return r;
}

/* Verify one backup. 0: sound. */
static int co_verify_one(struct verify *v, const struct repository_entry *e, struct error *err)
{
    const struct repository_entry **chain AUTO_FREE = NULL;
    size_t count;
    int r = repository_chain(v->repository, e, &chain, &count, err);

    if (r < 0) {
        return r;
    }
    if (count > 1 && v->damaged[chain[count - 2] - v->repository->entries]) {
        return error_set(err, EBADMSG, "Backup %s, which it builds on, is damaged",
                         chain[count - 2]->id);
    }
    return co_verify_files(v, e, err);
}

/* Whether to verify the backup: with --at only that one and those it builds on. */
static int select_entries(const struct repository *r, const char *at, bool *selected,
                          struct error *err)
{
    const struct repository_entry *e;

    memset(selected, !at, r->count);
    if (!at) {
        return 0;
    }
    e = repository_find(r, at, err);
    if (!e) {
        return -ENOENT;
    }
    /* A broken link ends the list here, and is found again when the backup above it is checked. */
    for (size_t n = 0; e && n <= r->count; n++) {
        selected[e - r->entries] = true;
        e = e->problem || manifest_is_full(&e->manifest) ? NULL
                                                         : repository_get(r, e->manifest.parent);
    }
    return 0;
}

static void report_description(const struct verify_options *options, const struct repository *r)
{
    if (r->problem) {
        options->report(
            &(struct verify_report){.id = REPOSITORY_DESCRIPTION, .problem = r->problem},
            options->arg);
    }
}

int verify_co_run(const struct verify_options *options, struct verify_result *ret_result,
                  struct error *err)
{
    REPOSITORY_AUTO(repository);
    bool *selected AUTO_FREE = NULL;
    bool *damaged AUTO_FREE = NULL;
    struct verify v = {.options = options, .repository = &repository};
    size_t count = 0;
    int r = repository_open(options->dir, &repository, err);

    if (r < 0) {
        return r;
    }
    if (repository.count == 0) {
        return error_set(err, ENOENT, "There is no backup in '%s'", repository.path);
    }
    selected = calloc(repository.count, sizeof(*selected));
    v.damaged = damaged = calloc(repository.count, sizeof(*damaged));
    if (!selected || !damaged) {
        return error_out_of_memory(err);
    }
    r = select_entries(&repository, options->at, selected, err);
    if (r == 0) {
        report_description(options, &repository);
    }
    for (size_t i = 0; r == 0 && i < repository.count; i++) {
        ERROR_AUTO(problem);

        if (!selected[i]) {
            continue;
        }
        v.bytes = 0;
        damaged[i] = co_verify_one(&v, &repository.entries[i], &problem) < 0;
        if (options->stop && *options->stop) {
            return error_set(err, EINTR, "Verifying was stopped");
        }
        count += damaged[i];
        options->report(
            &(struct verify_report){.id = repository.entries[i].id,
                                    .bytes = v.bytes,
                                    .problem = damaged[i] ? error_message(&problem) : NULL},
            options->arg);
    }
    if (r == 0) {
        *ret_result = (struct verify_result){.damaged = count, .description = repository.problem};
    }
    return r;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/merge.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/files.h"
#include "backup/layer_writer.h"
#include "base/checked.h"
#include "base/cleanup.h"

static int co_write_merged(void *arg, uint64_t offset, uint8_t *data, uint64_t size,
                           struct error *err)
{
    return layer_writer_co_write(arg, offset, data, size, err);
}

/* The manifest of the last backup, with another parent. */
static int describe_merged(const struct merge_config *config, struct manifest *ret_manifest,
                           struct error *err)
{
    const struct manifest *first = &config->entries[0]->manifest;
    const struct manifest *last = &config->entries[config->count - 1]->manifest;

    if (manifest_copy(last, ret_manifest) < 0) {
        return error_out_of_memory(err);
    }
    memcpy(ret_manifest->parent, first->parent, sizeof(first->parent));
    if (manifest_is_full(first) && !ret_manifest->reason &&
        asprintf(&ret_manifest->reason, "merged with backup %s and those between", first->id) < 0) {
        ret_manifest->reason = NULL;
        return error_out_of_memory(err);
    }
    return 0;
}

/* Of the oldest image, when the rest was merged into it: whole clusters are written. */
static uint64_t patched_bytes(struct chain *chain)
{
    const struct manifest *base = &chain->layers[0].entry->manifest;

    return base->patched +
           chain_data_bytes_above(chain, 1, base->cluster_size / BACKUP_CLUSTER_SIZE);
}

/* Merge what the layers hold; of what the writer has a copy of, only what lies above. */
static int co_merge_contents(const struct merge_config *config, struct chain *chain,
                             struct layer_writer *w, struct manifest *m, struct error *err)
{
    struct progress progress;
    struct chain_reader reader = {
        .chain = chain,
        .co_sink = co_write_merged,
        .arg = w,
        .own_only = true,
        .skip = w->based ? 1 : 0,
        .group = w->cluster_bits == BACKUP_CLUSTER_BITS ? 0 : BACKUP_FULL_CLUSTER_PARTS,
        .progress = &progress,
        .stop = config->stop,
    };
    uint64_t data = chain_data_bytes(chain);
    uint64_t read = chain_data_bytes_above(chain, reader.skip, 1);
    int r = layer_writer_take_sums(w, chain, err);

    if (r < 0) {
        return r;
    }
    m->changed = w->full ? data : w->runs.digests * BACKUP_CLUSTER_SIZE;
    m->changed = MIN(m->changed, m->virtual_size);
    m->patched = w->based ? patched_bytes(chain) : 0;
    progress_begin(&progress, stderr, config->progress, "merge", read);
    r = chain_co_read(&reader, err);
    UNLESS_FAILED(r, layer_writer_co_finish(w, config->stop, m, err));
    progress_end(&progress, r == 0);
    return r;
}

/* --- by a copy of the oldest image --- */

/*
 * Compressed clusters that are written over leave gaps that are too small to be used, until all
 * around them is free as well. So an image is written again from its clusters when a part of it has
 * been patched, and when the disk was resized.
 */
#define PATCHED_PART 4

static bool is_worth_patching(const struct merge_config *config, struct chain *chain)
{
    const struct sums_runs *runs = &chain->layers[0].file->runs;
    uint64_t base = 0;

    for (size_t i = 0; i < chain->count; i++) {
        if (chain->layers[i].entry->manifest.virtual_size != chain->disk_size) {
            return false;
        }
    }
    for (size_t i = 0; i < runs->count; i++) {
        base += runs->list[i].kind == SUMS_DATA
                    ? (uint64_t)runs->list[i].count * BACKUP_CLUSTER_SIZE
                    : 0;
    }
    /* A copied file keeps its key. */
    return chain->count > 1 && repository_seal(config->from) == repository_seal(config->to) &&
           patched_bytes(chain) <= base / PATCHED_PART;
}

/* -EBADMSG: the oldest image is damaged, somewhere. */
static int co_open_patched(const struct merge_config *config, struct chain *chain,
                           const struct repository_draft *draft, const struct manifest *m,
                           struct layer_writer *w, struct error *err)
{
    const struct repository_entry *e = chain->layers[0].entry;
    int fd AUTO_CLOSE = repository_open_file(config->from, e->id, REPOSITORY_IMAGE, err);
    const struct layer_base base = {.fd = fd,
                                    .shown = chain->layers[0].file->image,
                                    .manifest = &e->manifest,
                                    .stop = config->stop};

    return fd < 0 ? fd : layer_writer_co_open(draft, m->parent, m->virtual_size, &base, w, err);
}

/* Open the files to write to; with a copy of the oldest image, if that saves work. */
static int co_open_merged(const struct merge_config *config, struct chain *chain,
                          const struct repository_draft *draft, const struct manifest *m,
                          struct layer_writer *w, struct error *err)
{
    ERROR_AUTO(why);
    int r;

    if (is_worth_patching(config, chain)) {
        r = co_open_patched(config, chain, draft, m, w, &why);
        if (r < 0 && r != -EBADMSG) {
            error_move(err, &why);
        }
        if (r != -EBADMSG) {
            return r;
        }
        /* Perhaps what is damaged is not needed. */
        layer_writer_co_release(w);
        files_remove_at(draft->fd, REPOSITORY_IMAGE);
        files_remove_at(draft->fd, REPOSITORY_SUMS);
    }
    return layer_writer_co_open(draft, m->parent, m->virtual_size, NULL, w, err);
}

int merge_co_run(const struct merge_config *config, struct repository_draft *ret_draft,
                 struct manifest *ret_manifest, struct error *err)
{
    struct layer_writer w = LAYER_WRITER_INIT;
    struct chain chain = CHAIN_INIT;
    int r;

    *ret_draft = REPOSITORY_DRAFT_INIT;
    *ret_manifest = (struct manifest){0};
    r = describe_merged(config, ret_manifest, err);
    UNLESS_FAILED(
        r, chain_co_open(config->from, config->entries, config->count, config->stop, &chain, err));
    UNLESS_FAILED(r, repository_begin(config->to, ret_manifest->id, ret_draft, err));
    UNLESS_FAILED(r, co_open_merged(config, &chain, ret_draft, ret_manifest, &w, err));
    UNLESS_FAILED(r, co_merge_contents(config, &chain, &w, ret_manifest, err));
    layer_writer_co_release(&w);
    chain_close(&chain);
    return r;
}

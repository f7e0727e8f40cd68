/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/backup.h"
#include "backup/chain.h"
#include "backup/condition.h"
#include "backup/giving_up.h"
#include "backup/restore_internal.h"
#include "backup/target.h"
#include "backup/writeback.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "base/log.h"
#include "block/gate.h"
#include "loop/loop.h"

struct restore {
    const struct restore_options *options;
    struct chain chain;
    struct target target;
    int claim; /* restore_claim_target() */
    struct block_node *node;
    struct block_root *root;
    uint64_t written;
    struct writeback writeback;
    struct progress progress;
};

/* Up to `end` of the disk about all is written. */
static void co_write_back(struct restore *restore, uint64_t end)
{
    restore->writeback.fd = restore->target.fd;
    if (strcmp(restore->options->format, "raw") == 0) {
        writeback_co_push(&restore->writeback, end);
    } else {
        writeback_co_push_all(&restore->writeback);
    }
}

static int co_sink(void *arg, uint64_t offset, uint8_t *data, uint64_t size, struct error *err)
{
    struct restore *restore = arg;
    struct block_edge *edge = block_root_edge(restore->root);
    int r = 0;

    if (data) {
        struct iovec vec;

        r = block_co_pwritev(edge, offset, iov_from_buf(&vec, data, size), 0);
        restore->written += size;
    } else if (restore->target.kind != TARGET_FILE) {
        /* A new file reads as zeroes, so zeroes need not be written. */
        r = block_co_write_zeroes(edge, offset, size, BLOCK_REQ_MAY_UNMAP);
    }
    if (r < 0) {
        return error_set_errno(err, -r, "Could not write '%s' at offset %" PRIu64,
                               restore->target.name, offset);
    }
    if (data && restore->target.kind != TARGET_NBD) {
        co_write_back(restore, offset + size);
    }
    return 0;
}

/* Bytes of tables that requests at work at a time may need: clusters have 64 KiB. */
#define QCOW2_TABLE_CACHE (4 * MiB)

static int co_open_target_node(struct restore *r, struct error *err)
{
    const char *name = r->target.kind == TARGET_NBD ? r->target.name : r->target.open_name;
    struct options *opts = options_new();

    if (!opts) {
        return error_out_of_memory(err);
    }
    /* Zeroes give space back, on thin volumes as well. */
    options_set_str(opts, "discard", "unmap");
    if (strcmp(r->options->format, "qcow2") == 0) {
        /* It is written in ascending order: tables of the whole disk need not be kept. */
        options_set_uint(opts, "l2-cache-size", QCOW2_TABLE_CACHE);
    }
    return block_co_open_filename(name, r->options->format, opts, BLOCK_OPEN_RDWR, &r->node, err);
}

static int co_open_restore_target(struct restore *restore, struct error *err)
{
    const char *name = restore->target.name;
    int r = 0;

    if (restore->target.kind == TARGET_FILE) {
        struct options *opts = options_new();

        r = opts ? block_co_create_image(restore->options->format, restore->target.open_name,
                                         restore->chain.disk_size, opts, err)
                 : error_out_of_memory(err);
    }
    UNLESS_FAILED(r, co_open_target_node(restore, err));
    if (r == 0 && block_node_size(restore->node) < restore->chain.disk_size) {
        r = error_set(err, ENOSPC, "'%s' has %" PRIu64 " bytes, the disk needs %" PRIu64, name,
                      block_node_size(restore->node), restore->chain.disk_size);
    }
    UNLESS_FAILED(r, block_co_root_new(restore->node, "restore", BLOCK_PERM_WRITE,
                                       BLOCK_PERM_CONSISTENT_READ, &restore->root, err));
    files_name_in_error(err, restore->target.fd, name);
    return r;
}

static void co_give_up_target(void *arg)
{
    const struct restore *r = arg;

    nbd_client_give_up_attempts();
    if (r->root) {
        block_co_give_up(r->node);
    }
}

static int co_restore_to_target(struct restore *restore, struct error *err)
{
    struct giving_up giving_up;
    struct chain_reader reader = {.chain = &restore->chain,
                                  .co_sink = co_sink,
                                  .arg = restore,
                                  .progress = &restore->progress,
                                  .stop = restore->options->stop};
    int r;

    giving_up_begin(&giving_up, reader.stop, co_give_up_target, restore);
    r = co_open_restore_target(restore, err);
    if (r == 0) {
        progress_begin(&restore->progress, stderr, restore->options->progress, "restore",
                       chain_data_bytes(&restore->chain));
        r = chain_co_read(&reader, err);
        if (r == 0) {
            r = block_co_flush(block_root_edge(restore->root));
            if (r < 0) {
                error_set_errno(err, -r, "Could not write '%s'", restore->target.name);
            }
            UNLESS_FAILED(r, block_co_inactivate(restore->node, err));
        }
        progress_end(&restore->progress, r == 0);
    }
    r = giving_up_co_end(&giving_up, r, "The restore was stopped", err);
    block_co_root_release(restore->root);
    block_co_unref(restore->node);
    return r < 0 ? r : target_finish(&restore->target, err);
}

/* Refuse a target inside the repository. */
static int check_apart(const struct repository *repository, const struct target *t,
                       struct error *err)
{
    char self[FILES_SELF_SIZE];
    char *dir AUTO_FREE = NULL;
    size_t size = strlen(repository->path);

    if (t->kind != TARGET_FILE) {
        return 0;
    }
    files_self_path(t->dir, self);
    dir = realpath(self, NULL);
    if (dir && strncmp(dir, repository->path, size) == 0 && (dir[size] == '/' || !dir[size])) {
        error_set(err, EINVAL, "'%s' is in the directory of the backups, '%s'", t->name,
                  repository->path);
        error_hint(err, "Restore to another directory.");
        return -EINVAL;
    }
    return 0;
}

/* Prepare the target, so that what can be refused is refused before the chain is read. */
static int co_prepare_target(const struct repository *repository, struct restore *restore,
                             struct error *err)
{
    const struct restore_options *o = restore->options;
    int r = restore_claim_target(o->target, &restore->claim, err);

    UNLESS_FAILED(r, target_open(o->target, o->format, o->force, &restore->target, err));
    UNLESS_FAILED(r, check_apart(repository, &restore->target, err));
    if (r == 0 && o->node) {
        r = restore_co_check_node(o, &restore->target, err);
    }
    return r;
}

static int co_restore(const struct repository *repository, struct restore *restore,
                      const struct repository_entry *const *entries, size_t count,
                      struct error *err)
{
    const struct restore_options *o = restore->options;
    bool stream = strcmp(o->target, "-") == 0;
    int r = stream ? restore_check_stream(o, err) : co_prepare_target(repository, restore, err);

    UNLESS_FAILED(r, chain_co_open(repository, entries, count, o->stop, &restore->chain, err));
    if (stream) {
        UNLESS_FAILED(r, restore_co_stream(o, &restore->chain, &restore->written, err));
        return r;
    }
    UNLESS_FAILED(r, co_restore_to_target(restore, err));
    if (r == 0 && o->node) {
        r = restore_co_add_node(o, &restore->target, err);
    }
    return r;
}

/* It is tried all the same: what was found may have been mended since. */
static void warn_of_found_damage(const struct repository *r, const struct repository_entry *e)
{
    CONDITION_AUTO(condition);
    const char *problem =
        condition_read(r, &condition) == 0 ? condition.problems[e - r->entries] : NULL;

    if (problem) {
        log_warning("Backup %s: %s. The restore ends at what has not the right checksum", e->id,
                    problem);
    }
}

int restore_co_run(const struct restore_options *options, struct restore_result *ret_result,
                   struct error *err)
{
    REPOSITORY_AUTO(repository);
    struct restore restore = {.options = options, .target = TARGET_INIT, .claim = -1};
    const struct repository_entry **entries AUTO_FREE = NULL;
    const struct repository_entry *e = NULL;
    int64_t started_ns = loop_now_ns();
    size_t count = 0;
    int r = repository_open(options->dir, &repository, err);

    if (r == 0) {
        e = repository_find(&repository, options->at, err);
        r = e ? repository_chain(&repository, e, &entries, &count, err) : -ENOENT;
    }
    if (r == 0) {
        warn_of_found_damage(&repository, e);
    }
    UNLESS_FAILED(r, co_restore(&repository, &restore, entries, count, err));
    if (r == 0 && e) {
        *ret_result = (struct restore_result){.virtual_size = restore.chain.disk_size,
                                              .written = restore.written};
        memcpy(ret_result->id, e->id, sizeof(ret_result->id));
        ret_result->duration_ms = (uint64_t)(loop_now_ns() - started_ns) / NS_PER_MS;
    }
    chain_close(&restore.chain);
    target_release(&restore.target);
    if (restore.claim >= 0) {
        close(restore.claim);
    }
    return r;
}

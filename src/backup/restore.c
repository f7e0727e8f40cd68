/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "backup/backup.h"
#include "backup/chain.h"
#include "backup/target.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/gate.h"
#include "loop/loop.h"

struct restore {
    const struct restore_options *options;
    struct chain chain;
    struct target target;
    struct block_node *node;
    struct block_root *root;
    uint64_t written;
    struct progress progress;
};

static int co_sink(void *arg, uint64_t offset, uint8_t *data, uint64_t size, struct error *err)
{
    struct restore *r = arg;
    struct block_edge *edge = block_root_edge(r->root);
    int rc = 0;

    if (data) {
        struct iovec vec;

        rc = block_co_pwritev(edge, offset, iov_from_buf(&vec, data, size), 0);
        r->written += size;
    } else if (r->target.kind != TARGET_FILE) {
        /* A new file reads as zeroes where nothing is. */
        rc = block_co_write_zeroes(edge, offset, size, BLOCK_REQ_MAY_UNMAP);
    }
    return rc < 0 ? error_set_errno(err, -rc, "Could not write '%s' at offset %" PRIu64,
                                    r->target.name, offset)
                  : 0;
}

static int co_open_node(struct restore *r, struct error *err)
{
    const char *name = r->target.kind == TARGET_NBD ? r->target.name : r->target.open_name;
    struct options *opts = options_new();

    if (!opts) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    /* So that zeroes give space back, on thin volumes too. */
    options_set_str(opts, "discard", "unmap");
    return block_co_open_filename(name, r->options->format, opts, BLOCK_OPEN_RDWR, &r->node, err);
}

static int co_open_target(struct restore *r, struct error *err)
{
    const char *name = r->target.name;
    int rc = 0;

    if (r->target.kind == TARGET_FILE) {
        struct options *opts = options_new();

        rc = opts ? block_co_create_image(r->options->format, r->target.open_name,
                                          r->chain.disk_size, opts, err)
                  : error_set(err, ENOMEM, "Out of memory");
    }
    rc = rc < 0 ? rc : co_open_node(r, err);
    if (rc == 0 && block_node_size(r->node) < r->chain.disk_size) {
        rc = error_set(err, ENOSPC, "'%s' has %" PRIu64 " bytes, the disk needs %" PRIu64, name,
                       block_node_size(r->node), r->chain.disk_size);
    }
    rc = rc < 0 ? rc
                : block_co_root_new(r->node, "restore", BLOCK_PERM_WRITE,
                                    BLOCK_PERM_CONSISTENT_READ, &r->root, err);
    files_name_in_error(err, r->target.fd, name);
    return rc;
}

static int co_restore(struct restore *r, struct error *err)
{
    struct chain_reader reader = {.chain = &r->chain,
                                  .co_sink = co_sink,
                                  .arg = r,
                                  .progress = &r->progress,
                                  .stop = r->options->stop};
    int rc = co_open_target(r, err);

    if (rc == 0) {
        progress_begin(&r->progress, stderr, r->options->progress, "restore",
                       chain_data_bytes(&r->chain));
        rc = chain_co_read(&reader, err);
        if (rc == 0) {
            rc = block_co_flush(block_root_edge(r->root));
            rc = rc < 0 ? error_set_errno(err, -rc, "Could not write '%s'", r->target.name)
                        : block_co_inactivate(r->node, err);
        }
        progress_end(&r->progress, rc == 0);
    }
    block_co_root_release(r->root);
    block_co_unref(r->node);
    return rc < 0 ? rc : target_finish(&r->target, err);
}

/* A restore must not cost what it restores from. */
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

int restore_co_run(const struct restore_options *options, struct restore_result *ret,
                   struct error *err)
{
    REPOSITORY_AUTO(repository);
    struct restore r = {.options = options, .target = TARGET_INIT};
    const struct repository_entry **entries AUTO_FREE = NULL;
    const struct repository_entry *e = NULL;
    int64_t started_ns = loop_now_ns();
    size_t count = 0;
    int rc = repository_open(options->dir, &repository, err);

    if (rc == 0) {
        e = repository_find(&repository, options->at, err);
        rc = e ? repository_chain(&repository, e, &entries, &count, err) : -ENOENT;
    }
    rc =
        rc < 0 ? rc : target_open(options->target, options->format, options->force, &r.target, err);
    rc = rc < 0 ? rc : check_apart(&repository, &r.target, err);
    rc = rc < 0 ? rc : chain_co_open(&repository, entries, count, &r.chain, err);
    rc = rc < 0 ? rc : co_restore(&r, err);
    if (rc == 0 && e) {
        *ret = (struct restore_result){.virtual_size = r.chain.disk_size, .written = r.written};
        memcpy(ret->id, e->id, sizeof(ret->id));
        ret->duration_ms = (uint64_t)(loop_now_ns() - started_ns) / NS_PER_MS;
    }
    chain_co_close(&r.chain);
    target_release(&r.target);
    return rc;
}

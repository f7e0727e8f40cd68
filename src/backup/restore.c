/* SPDX-License-Identifier: Apache-2.0 */
/* A new file is made beside its final name and renamed when it is complete and stable; a block device is written in
 * place. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/backup.h"
#include "backup/chain.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "block/gate.h"
#include "loop/loop.h"

#define NS_PER_MS 1000000

struct restore {
    const struct restore_options *options;
    struct chain chain;
    char *path; /* what is written: beside the target, or a device */
    bool device;
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
    } else if (r->device) {
        rc = block_co_write_zeroes(edge, offset, size, BLOCK_REQ_MAY_UNMAP);
    }
    return rc < 0 ? error_set_errno(err, -rc, "Could not write '%s' at offset %" PRIu64, r->path,
                                    offset)
                  : 0;
}

/* What is to be written, and whether it may be. */
static int choose_path(struct restore *r, struct error *err)
{
    const char *target = r->options->target;
    struct stat st;

    if (stat(target, &st) == 0) {
        r->device = S_ISBLK(st.st_mode);
        if (r->device && strcmp(r->options->format, "raw") != 0) {
            return error_set(err, EINVAL, "'%s' is a block device, and can be restored as raw only",
                             target);
        }
        if (!r->device && !S_ISREG(st.st_mode)) {
            return error_set(err, EINVAL, "'%s' is neither a file nor a block device", target);
        }
        if (!r->options->force) {
            error_set(err, EEXIST, "'%s' exists already", target);
            error_hint(err, "Name a new file, or give --force to overwrite it.");
            return -EEXIST;
        }
    } else if (errno != ENOENT) {
        return error_set_errno(err, errno, "Could not inspect '%s'", target);
    }
    if (r->device) {
        r->path = strdup(target);
    } else if (asprintf(&r->path, "%s.tidemark-tmp", target) < 0) {
        r->path = NULL;
    }
    return r->path ? 0 : error_set(err, ENOMEM, "Out of memory");
}

static int co_open_target(struct restore *r, struct error *err)
{
    struct options *opts = options_new();
    int rc = 0;

    if (!opts) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    if (r->device) {
        options_free(opts);
    } else {
        rc = block_co_create_image(r->options->format, r->path, r->chain.disk_size, opts, err);
    }
    rc = rc < 0 ? rc
                : block_co_open_filename(r->path, r->options->format, NULL, BLOCK_OPEN_RDWR,
                                         &r->node, err);
    if (rc < 0) {
        return rc;
    }
    if (block_node_size(r->node) < r->chain.disk_size) {
        return error_set(err, ENOSPC, "'%s' has %" PRIu64 " bytes, the disk needs %" PRIu64,
                         r->path, block_node_size(r->node), r->chain.disk_size);
    }
    return block_co_root_new(r->node, "restore", BLOCK_PERM_WRITE, BLOCK_PERM_CONSISTENT_READ,
                             &r->root, err);
}

static int finish_target(struct restore *r, struct error *err)
{
    char *copy AUTO_FREE = strdup(r->options->target);
    int fd AUTO_CLOSE = -1;

    if (r->device) {
        return 0;
    }
    if (!copy) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    if (rename(r->path, r->options->target) < 0) {
        return error_set_errno(err, errno, "Could not rename '%s' to '%s'", r->path,
                               r->options->target);
    }
    fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0) {
        return error_set_errno(err, errno, "Could not make '%s' stable", r->options->target);
    }
    return 0;
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
        progress_begin(&r->progress, "restore", chain_data_bytes(&r->chain), r->options->progress);
        rc = chain_co_read(&reader, err);
        if (rc == 0) {
            rc = block_co_flush(block_root_edge(r->root));
            rc = rc < 0 ? error_set_errno(err, -rc, "Could not write '%s'", r->path)
                        : block_co_inactivate(r->node, err);
        }
        progress_end(&r->progress, rc == 0);
    }
    block_co_root_release(r->root);
    block_co_unref(r->node);
    rc = rc < 0 ? rc : finish_target(r, err);
    if (rc < 0 && !r->device) {
        unlink(r->path);
    }
    return rc;
}

int restore_co_run(const struct restore_options *options, struct restore_result *ret,
                   struct error *err)
{
    REPOSITORY_AUTO(repository);
    struct restore r = {.options = options};
    const struct repository_entry **entries AUTO_FREE = NULL;
    const struct repository_entry *e = NULL;
    int64_t started_ns = loop_now_ns();
    size_t count = 0;
    int rc = repository_open(options->dir, &repository, err);

    if (rc == 0) {
        e = repository_find(&repository, options->at, err);
        rc = e ? repository_chain(&repository, e, &entries, &count, err) : -ENOENT;
    }
    rc = rc < 0 ? rc : choose_path(&r, err);
    if (rc == 0) {
        rc = chain_co_open(&repository, entries, count, &r.chain, err);
        rc = rc < 0 ? rc : co_restore(&r, err);
    }
    if (rc == 0 && e) {
        *ret = (struct restore_result){.virtual_size = r.chain.disk_size, .written = r.written};
        memcpy(ret->id, e->id, sizeof(ret->id));
        ret->duration_ms = (uint64_t)(loop_now_ns() - started_ns) / NS_PER_MS;
    }
    chain_co_close(&r.chain);
    free(r.path);
    return rc;
}

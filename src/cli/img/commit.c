/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chain is cut above the base, which is opened again for writing; what the part above it stores is
 * copied. The image is emptied only when the base has it all on stable storage, so after a crash at any time it reads as before.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/pacer.h"
#include "block/control.h"
#include "cli/img/chain.h"
#include "cli/img/img.h"
#include "loop/loop.h"

static const struct cli_usage usage = {
    .command = "commit",
    .synopsis = "FILENAME",
    .about = "Writes what an image stores into its backing file, and empties the image: it reads "
             "the same as before.\n"
             "The backing file grows if it is smaller. With -b into a backing file farther down; "
             "the images between\n"
             "are not valid any more then, and the image is not emptied. Persistent bitmaps of the "
             "images above the\n"
             "backing file are merged into those of the same names there, made if need be.",
    .examples = "  commit -f qcow2 overlay.qcow2\n"
                "  commit -p -d -f qcow2 overlay.qcow2\n"
                "  commit -f qcow2 -b base.qcow2 overlay.qcow2",
};

#define BUFFER_SIZE ((size_t)(2 * MiB))
#define STEP (1ULL << 30)

struct commit {
    const char *base_name, *cache, *rate_text;
    bool drop, progress_wanted, quiet, bitmaps_wanted, no_bitmaps;

    struct cli_disk image; /* the part of the chain above the base */
    struct cli_disk base;
    uint64_t
        hides_from; /* from here on what is stored nowhere above reads as zeroes: an image between ends */
    struct pacer pacer;
    uint8_t *buffer;
    struct progress progress;
    struct chain_bitmaps bitmaps; /* of the images above the base */
};

/* --- the chain ------------------------------------------------------------------------------- */

static bool same_path(const char *a, const char *b)
{
    AUTO_FREE char *real_a = realpath(a, NULL);
    AUTO_FREE char *real_b = realpath(b, NULL);

    return real_a && real_b && strcmp(real_a, real_b) == 0;
}

/* A relative name is one beside the image above, as the header of that image has it; never one of the working directory. */
static bool is_named(const struct block_node *node, const struct block_node *above,
                     const char *name)
{
    const char *filename = block_node_filename(node);
    AUTO_FREE char *path = NULL;

    if (!filename) {
        return false;
    }
    path = block_resolve_relative(block_node_filename(above), name);
    return path && (strcmp(filename, path) == 0 || same_path(filename, path));
}

/* The image whose backing file is the base. Sets hides_from. NULL (told) if there is none. */
static struct block_node *find_above(struct commit *c)
{
    struct block_node *above = block_node_skip_filters(c->image.node);
    struct block_node *base = block_node_backing(above);

    if (!base) {
        cli_fail("Image does not have a backing file");
        return NULL;
    }
    c->hides_from = UINT64_MAX;
    while (base && c->base_name && !is_named(base, above, c->base_name)) {
        c->hides_from = MIN(c->hides_from, block_node_size(base));
        above = block_node_skip_filters(base);
        base = block_node_backing(above);
    }
    if (!base) {
        cli_fail("Did not find '%s' in the backing chain of '%s'", c->base_name, c->image.name);
        return NULL;
    }
    return above;
}

/* What opens the base once more, to be written. */
static int writable_options(const struct block_node *base, struct options **ret, struct error *err)
{
    int rc = options_from_json(block_node_options(base), ret, err);

    if (rc < 0) {
        return rc;
    }
    options_drop(*ret, "auto-read-only");
    options_drop(*ret, "read-only");
    options_set_bool(*ret, "read-only", false);
    return 0;
}

/* The bitmaps of the images from the top to `above`, to be merged into those of the base. */
static int co_collect_bitmaps(struct commit *c, struct block_node *above, struct error *err)
{
    uint64_t top_size = cli_disk_size(&c->image);
    uint64_t base_size = cli_disk_size(&c->base);
    struct block_node *node = block_node_skip_filters(c->image.node);
    int rc = 0;

    for (int depth = 1; rc == 0; depth++) {
        rc = chain_bitmaps_co_collect(&c->bitmaps, node, depth, MAX(top_size, base_size), err);
        if (node == above) {
            break;
        }
        node = block_node_skip_filters(block_node_backing(node));
    }
    if (rc == 0 && base_size > top_size) {
        /* The disk gets what the base has there. */
        chain_bitmaps_mark_all(&c->bitmaps, top_size, base_size - top_size);
    }
    return rc < 0 ? rc
                  : img_co_check_chain_bitmaps(&c->bitmaps, block_node_skip_filters(c->base.node),
                                               err);
}

static int co_open_base_node(struct commit *c, struct options *opts /* consumed */,
                             struct error *err)
{
    int rc = block_co_open(opts, BLOCK_OPEN_RDWR | BLOCK_OPEN_RESIZE_FILE, &c->base.node, err);

    if (rc == 0) {
        rc = block_co_root_new(c->base.node, cli_program(),
                               BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE,
                               BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED,
                               &c->base.root, err);
    }
    if (rc < 0) {
        error_prepend(err, "Could not open the backing file for writing: ");
        return rc;
    }
    c->base.edge = block_root_edge(c->base.root);
    c->base.name = block_node_display_name(c->base.node);
    return 0;
}

/* Cut the chain, and open the base again. Returns 0 or 1 (told). */
static int co_open_base(struct commit *c)
{
    struct block_node *above = find_above(c);
    struct options *opts = NULL;
    ERROR_AUTO(err);

    if (!above) {
        return 1;
    }
    if (writable_options(block_node_backing(above), &opts, &err) < 0) {
        return cli_report(&err);
    }
    if (block_co_set_backing_node(above, NULL, &err) < 0 || co_open_base_node(c, opts, &err) < 0 ||
        (img_wants_chain_bitmaps(c->bitmaps_wanted, c->no_bitmaps) &&
         co_collect_bitmaps(c, above, &err) < 0)) {
        return cli_report(&err);
    }
    if (cli_disk_size(&c->base) < cli_disk_size(&c->image) &&
        block_co_truncate(c->base.edge, cli_disk_size(&c->image), BLOCK_PREALLOC_OFF, &err) < 0) {
        return cli_report(&err);
    }
    return 0;
}

/* --- copying --------------------------------------------------------------------------------- */

static void co_pace(struct commit *c, uint64_t bytes)
{
    int64_t wait_ns = pacer_take(&c->pacer, bytes, loop_now_ns());

    if (wait_ns > 0) {
        loop_co_sleep(wait_ns);
    }
}

static int co_copy(struct commit *c, uint64_t offset, size_t length)
{
    int rc = block_co_pread(c->image.edge, offset, c->buffer, length);

    return rc < 0 ? rc : block_co_pwrite(c->base.edge, offset, c->buffer, length, 0);
}

/* One step from `offset` on; *length becomes how far it went. */
static int co_step(struct commit *c, uint64_t offset, uint64_t *length)
{
    struct block_status status;
    int depth;
    int rc = block_co_status_above(c->image.edge, NULL, offset, *length, &status, &depth);

    if (rc < 0) {
        return rc;
    }
    *length = MIN(*length, status.length);
    if (depth == 0 && offset < c->hides_from) {
        *length = MIN(*length, c->hides_from - offset);
        return 0;
    }
    if (depth > 0 && !(status.flags & BLOCK_STATUS_ZERO)) {
        *length = MIN(*length, BUFFER_SIZE);
    }
    chain_bitmaps_mark(&c->bitmaps, offset, *length, MAX(depth, 1));
    if (depth == 0 || (status.flags & BLOCK_STATUS_ZERO)) {
        return block_co_write_zeroes(c->base.edge, offset, *length, BLOCK_REQ_MAY_UNMAP);
    }
    co_pace(c, *length);
    return co_copy(c, offset, (size_t)*length);
}

static int co_copy_all(struct commit *c)
{
    uint64_t size = cli_disk_size(&c->image);

    c->buffer = aligned_alloc(4096, BUFFER_SIZE);
    if (!c->buffer) {
        return cli_fail("Out of memory");
    }
    img_progress_begin(&c->progress, c->progress_wanted && !c->quiet, size);
    for (uint64_t at = 0; at < size;) {
        uint64_t length = MIN(size - at, STEP);
        int rc = co_step(c, at, &length);

        if (rc < 0) {
            progress_end(&c->progress, false);
            return cli_is_compat() ? cli_fail("Block job failed: %s", strerror(-rc))
                                   : cli_fail("Could not commit '%s' at byte %" PRIu64 ": %s",
                                              c->image.name, at, strerror(-rc));
        }
        at += length;
        progress_add(&c->progress, length);
    }
    progress_end(&c->progress, true);
    return 0;
}

/* The base has it all on stable storage when this returns 0. */
static int co_finish_base(struct commit *c, struct error *err)
{
    int rc = chain_bitmaps_co_store(&c->bitmaps, block_node_skip_filters(c->base.node), err);

    if (rc < 0) {
        return rc;
    }
    rc = block_co_flush(c->base.edge);
    if (rc < 0) {
        return error_set_errno(err, -rc, "Could not flush '%s'", c->base.name);
    }
    return cli_co_finish_disk(&c->base, err);
}

static int co_empty(struct commit *c, struct error *err)
{
    struct block_node *node = block_node_skip_filters(c->image.node);
    ERROR_AUTO(cause);
    int rc;

    rc = block_co_make_empty(node, &cause);
    if (rc == -ENOTSUP) {
        error_prepend(&cause, "Could not empty %s: ", c->image.name);
        error_move(err, &cause);
        return rc;
    }
    return rc < 0 ? error_set_errno(err, -rc, "Failed to empty %s", c->image.name) : 0;
}

static int co_commit(struct commit *c, const struct cli_image *image)
{
    ERROR_AUTO(err);

    if (cli_co_open_disk(image, c->drop ? 0 : BLOCK_OPEN_RDWR, &c->image, &err) < 0) {
        return cli_report(&err);
    }
    if (co_open_base(c) || co_copy_all(c)) {
        return 1;
    }
    if (co_finish_base(c, &err) < 0 || (!c->drop && co_empty(c, &err) < 0) ||
        cli_co_finish_disk(&c->image, &err) < 0) {
        return cli_report(&err);
    }
    if (!c->quiet) {
        printf("Image committed.\n");
    }
    return 0;
}

/* The base first: it was opened after the image. */
static void commit_release(struct commit *c)
{
    cli_co_close_disk(&c->base);
    cli_co_close_disk(&c->image);
    chain_bitmaps_clear(&c->bitmaps);
    free(c->buffer);
}

int img_commit_main(int argc, char **argv)
{
    __attribute__((cleanup(commit_release))) struct commit c = {0};
    struct cli_image image = {.cache = "writeback"};
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        IMG_ARG_FORMAT(image.format),
        {"cache", 't', CLI_VALUE, &image.cache, "CACHE", "cache mode (default writeback)"},
        {"base", 'b', CLI_VALUE, &c.base_name, "FILE",
         "backing file to write to (default: that of the image); implies -d"},
        {"rate-limit", 'r', CLI_VALUE, &c.rate_text, "RATE", "at most so many bytes per second"},
        {"drop", 'd', CLI_FLAG, &c.drop, NULL,
         "don't empty the image: for one that is deleted afterwards"},
        {"bitmaps", 0, CLI_FLAG, &c.bitmaps_wanted, NULL,
         "merge the bitmaps of the image into those of the backing file (default)"},
        {"no-bitmaps", 0, CLI_FLAG, &c.no_bitmaps, NULL,
         "leave them where they are (default as qemu-img)"},
        {"progress", 'p', CLI_FLAG, &c.progress_wanted, NULL, "show progress"},
        IMG_ARG_QUIET(c.quiet),
        IMG_ARG_IMAGE_OPTS(image.image_opts),
        IMG_ARG_OBJECT(objects),
        IMG_ARG_END,
    };
    IMG_PARSE(first, args, &usage);

    if (first != argc - 1) {
        return cli_usage_fail(&usage, "Expecting one image file name");
    }
    if (cli_check_cache_mode(image.cache, "cache") < 0 || cli_add_objects(&objects)) {
        return 1;
    }
    if (c.rate_text && cli_parse_size(c.rate_text, "rate limit", 0, INT64_MAX, &c.pacer.rate) < 0) {
        return 1;
    }
    if (c.base_name) {
        c.drop = true;
    }
    image.name = argv[first];
    return co_commit(&c, &image);
}

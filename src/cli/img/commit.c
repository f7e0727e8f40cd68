/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The chain is cut above the base, which is opened again for writing, and what the images above it
 * store is copied. The image is emptied only when the base has all data on stable storage; so after
 * a crash at any time the disk reads as before.
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
#include "block/node.h"
#include "cli/img/chain.h"
#include "cli/img/command_line.h"
#include "cli/img/img.h"
#include "loop/loop.h"

static const struct cli_usage usage = {
    .command = "commit",
    .synopsis = "FILENAME",
    .about = "Writes what an image stores into its backing file, and empties the image; the disk "
             "reads the same\n"
             "as before. The backing file grows if it is smaller. With -b into a backing file "
             "farther down: then\n"
             "the images between are not valid any more, and the image is not emptied. Persistent "
             "bitmaps of\n"
             "the images above the backing file are merged into bitmaps of the same names there, "
             "which are added\n"
             "if they do not exist.",
    .examples = "@-f qcow2 overlay.qcow2\n"
                "@-p -d -f qcow2 overlay.qcow2\n"
                "@-f qcow2 -b base.qcow2 overlay.qcow2",
};

struct commit {
    const char *base_name; /* NULL: the backing file of the image */
    const char *rate_text;
    bool drop, progress_wanted, quiet, bitmaps_wanted, no_bitmaps;

    struct cli_disk image; /* the part of the chain above the base */
    struct cli_disk base;
    uint64_t zero_from; /* beyond it, what no image above stores is zero: an image between ends */
    struct pacer pacer;
    uint8_t *buffer; /* owned */
    struct progress progress;
    struct chain_bitmaps bitmaps; /* of the images above the base */
};

/* --- the chain -------------------------------------------------------------------------------- */

static bool same_path(const char *a, const char *b)
{
    AUTO_FREE char *real_a = realpath(a, NULL);
    AUTO_FREE char *real_b = realpath(b, NULL);

    return real_a && real_b && strcmp(real_a, real_b) == 0;
}

/*
 * Whether `name` means the node. A relative name starts at the folder of the image above, as in the
 * header of that image; never at the working directory.
 */
static bool names_node(const struct block_node *node, const struct block_node *above,
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

/* Find the image whose backing file is the base, and set zero_from. */
static int find_above(struct commit *c, struct block_node **ret_above, struct error *err)
{
    struct block_node *above = block_node_skip_filters(c->image.node);
    struct block_node *base = block_node_backing(above);

    if (!base && !c->base_name) {
        return error_set(err, EINVAL, "Image does not have a backing file");
    }
    c->zero_from = UINT64_MAX;
    while (base && c->base_name && !names_node(base, above, c->base_name)) {
        c->zero_from = MIN(c->zero_from, block_node_size(base));
        above = block_node_skip_filters(base);
        base = block_node_backing(above);
    }
    if (!base) {
        return error_set(err, ENOENT, "Did not find '%s' in the backing chain of '%s'",
                         c->base_name, c->image.name);
    }
    *ret_above = above;
    return 0;
}

static int writable(struct json_object *found, struct options **ret_options, struct error *err)
{
    int r = options_from_json(found, ret_options, err);

    if (r < 0) {
        return r;
    }
    options_drop(*ret_options, "auto-read-only");
    options_drop(*ret_options, "read-only");
    options_set_bool(*ret_options, "read-only", false);
    return 0;
}

/*
 * The options that open the base again, for writing. The caller frees them. The file of an image
 * whose format was probed is named in its options, as a node that goes with the chain; so the
 * options of that node take the place of the name.
 */
static int writable_options(struct block_node *base, struct options **ret_options,
                            struct error *err)
{
    struct json_object *name = json_object_object_get(block_node_options(base), "file");
    struct block_node *file = block_node_child(base, "file");
    struct options *opts, *file_opts = NULL;
    int r = writable(block_node_options(base), &opts, err);

    if (r == 0 && file && json_object_is_type(name, json_type_string)) {
        r = writable(block_node_options(file), &file_opts, err);
        if (r < 0) {
            options_free(opts);
            return r;
        }
        options_drop(opts, "file");
        options_set_child(opts, "file", file_opts);
    }
    if (r == 0) {
        *ret_options = opts;
    }
    return r;
}

/*
 * Collect the bitmaps of the images from the top to `above`, to be merged into those of the base.
 */
static int co_collect_offline_bitmaps(struct commit *c, struct block_node *above, struct error *err)
{
    uint64_t top_size = cli_disk_size(&c->image);
    uint64_t base_size = cli_disk_size(&c->base);
    struct block_node *node = block_node_skip_filters(c->image.node);
    int r = 0;

    for (int depth = 1; r == 0; depth++) {
        r = chain_bitmaps_co_collect(&c->bitmaps, node, depth, MAX(top_size, base_size), err);
        if (node == above) {
            break;
        }
        node = block_node_skip_filters(block_node_backing(node));
    }
    if (r == 0 && base_size > top_size) {
        /* The disk shows what the base has there. */
        chain_bitmaps_mark_all(&c->bitmaps, top_size, base_size - top_size);
    }
    return r < 0 ? r
                 : img_co_check_chain_bitmaps(&c->bitmaps, block_node_skip_filters(c->base.node),
                                              err);
}

static int co_open_base_node(struct commit *c, struct options *opts /* consumed */,
                             struct error *err)
{
    int r = block_co_open(opts, BLOCK_OPEN_RDWR | BLOCK_OPEN_RESIZE_FILE, &c->base.node, err);

    UNLESS_FAILED(
        r, block_co_root_new(c->base.node, cli_program(),
                             BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE,
                             BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED, &c->base.root,
                             err));
    if (r < 0) {
        error_prepend(err, "Could not open the backing file for writing: ");
        return r;
    }
    c->base.edge = block_root_edge(c->base.root);
    c->base.name = block_node_display_name(c->base.node);
    return 0;
}

/* Cut the chain, and open the base again. */
static int co_open_base(struct commit *c, struct error *err)
{
    struct block_node *above = NULL;
    struct options *opts = NULL;
    bool probed;
    int r = find_above(c, &above, err);

    UNLESS_FAILED(r, writable_options(block_node_backing(above), &opts, err));
    if (r < 0) {
        return r;
    }
    probed = block_node_settings(block_node_backing(above)).probed;
    r = block_co_set_backing_node(above, NULL, err);
    if (r < 0) {
        options_free(opts);
        return r;
    }
    r = co_open_base_node(c, opts, err);
    if (r == 0 && probed) {
        block_node_set_probed(c->base.node);
    }
    if (img_wants_chain_bitmaps(c->bitmaps_wanted, c->no_bitmaps)) {
        UNLESS_FAILED(r, co_collect_offline_bitmaps(c, above, err));
    }
    if (r < 0) {
        return r;
    }
    if (cli_disk_size(&c->base) < cli_disk_size(&c->image)) {
        r = block_co_truncate(c->base.edge, cli_disk_size(&c->image), BLOCK_PREALLOC_OFF, err);
    }
    return r;
}

/* --- copying ---------------------------------------------------------------------------------- */

static void co_keep_commit_rate(struct commit *c, uint64_t bytes)
{
    int64_t wait_ns = pacer_take(&c->pacer, bytes, loop_now_ns());

    if (wait_ns > 0) {
        loop_co_sleep(wait_ns);
    }
}

static int co_commit_data(struct commit *c, uint64_t offset, size_t length)
{
    int r = block_co_pread(c->image.edge, offset, c->buffer, length);

    return r < 0 ? r : block_co_pwrite(c->base.edge, offset, c->buffer, length, 0);
}

/*
 * Commit one step from `offset` on, of at most *length bytes; *length becomes the length that was
 * done.
 */
static int co_commit_step(struct commit *c, uint64_t offset, uint64_t *length)
{
    struct block_status status;
    int depth;
    int r = block_co_status_above(c->image.edge, NULL, offset, *length, &status, &depth);

    if (r < 0) {
        return r;
    }
    *length = MIN(*length, status.length);
    if (depth == 0 && offset < c->zero_from) {
        *length = MIN(*length, c->zero_from - offset);
        return 0;
    }
    if (depth > 0 && !(status.flags & BLOCK_STATUS_ZERO)) {
        *length = MIN(*length, CLI_BUFFER_SIZE);
    }
    chain_bitmaps_mark(&c->bitmaps, offset, *length, MAX(depth, 1));
    if (depth == 0 || (status.flags & BLOCK_STATUS_ZERO)) {
        return block_co_write_zeroes(c->base.edge, offset, *length, BLOCK_REQ_MAY_UNMAP);
    }
    co_keep_commit_rate(c, *length);
    return co_commit_data(c, offset, (size_t)*length);
}

static int co_commit_layers(struct commit *c, struct error *err)
{
    uint64_t size = cli_disk_size(&c->image);

    c->buffer = aligned_alloc(CLI_BUFFER_ALIGNMENT, CLI_BUFFER_SIZE);
    if (!c->buffer) {
        return error_out_of_memory(err);
    }
    img_progress_begin(&c->progress, c->progress_wanted && !c->quiet, size);
    for (uint64_t at = 0; at < size;) {
        uint64_t length = MIN(size - at, CLI_STATUS_STEP);
        int r = co_commit_step(c, at, &length);

        if (r < 0) {
            progress_end(&c->progress, false);
            return cli_is_compat()
                       ? error_set_errno(err, -r, "Block job failed")
                       : error_set_errno(err, -r, "Could not commit '%s' at byte %" PRIu64,
                                         c->image.name, at);
        }
        at += length;
        progress_add(&c->progress, length);
    }
    progress_end(&c->progress, true);
    return 0;
}

/* Complete the base. On success it has all data on stable storage. */
static int co_finish_base(struct commit *c, struct error *err)
{
    int r = chain_bitmaps_co_store(&c->bitmaps, block_node_skip_filters(c->base.node), err);

    if (r < 0) {
        return r;
    }
    r = block_co_flush(c->base.edge);
    if (r < 0) {
        return error_set_errno(err, -r, "Could not flush '%s'", c->base.name);
    }
    return cli_co_finish_disk(&c->base, err);
}

static int co_empty_image(struct commit *c, struct error *err)
{
    struct block_node *node = block_node_skip_filters(c->image.node);
    ERROR_AUTO(cause);
    int r;

    r = block_co_make_empty(node, &cause);
    if (r == -ENOTSUP) {
        return 0; /* a format that can't keeps what the backing file has now, too */
    }
    return r < 0 ? error_set_errno(err, -r, "Failed to empty %s", c->image.name) : 0;
}

static int co_commit_image(struct commit *c, const struct cli_image *image, struct error *err)
{
    int r = cli_co_open_disk(image, c->drop ? 0 : BLOCK_OPEN_RDWR, &c->image, err);

    UNLESS_FAILED(r, co_open_base(c, err));
    UNLESS_FAILED(r, co_commit_layers(c, err));
    UNLESS_FAILED(r, co_finish_base(c, err));
    if (!c->drop) {
        UNLESS_FAILED(r, co_empty_image(c, err));
    }
    UNLESS_FAILED(r, cli_co_finish_disk(&c->image, err));
    if (r == 0 && !c->quiet) {
        printf("Image committed.\n");
    }
    return r;
}

/* The base first, as it was opened after the image. */
static void co_commit_release(struct commit *c)
{
    cli_co_close_disk(&c->base);
    cli_co_close_disk(&c->image);
    chain_bitmaps_clear(&c->bitmaps);
    free(c->buffer);
}

int img_co_commit(int argc, char **argv, struct error *err)
{
    __attribute__((cleanup(co_commit_release))) struct commit c = {0};
    struct cli_image image = {.cache = "writeback"};
    int r;
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        CLI_ARG_FORMAT(image.format),
        {"cache", 't', CLI_VALUE, &image.cache, "CACHE", "cache mode (default writeback)"},
        {"base", 'b', CLI_VALUE, &c.base_name, "FILE",
         "backing file to write to (default: that of the image); implies -d"},
        {"rate-limit", 'r', CLI_VALUE, &c.rate_text, "RATE", "at most RATE bytes per second"},
        {"drop", 'd', CLI_FLAG, &c.drop, NULL,
         "do not empty the image: if it is deleted afterwards"},
        {"bitmaps", 0, CLI_FLAG, &c.bitmaps_wanted, NULL,
         "merge the bitmaps of the image into those of the backing file\n"
         "(default)"},
        {"no-bitmaps", 0, CLI_FLAG, &c.no_bitmaps, NULL,
         "leave the bitmaps where they are (default as qemu-img)"},
        CLI_ARG_PROGRESS(c.progress_wanted),
        CLI_ARG_QUIET(c.quiet),
        CLI_ARG_IMAGE_OPTS(image.image_opts),
        CLI_ARG_OBJECT(objects),
        CLI_ARG_END,
    };

    r = img_parse(args, &usage, argc, argv, &image, err);
    UNLESS_FAILED(r, img_prepare(&image, "cache", &objects, err));
    UNLESS_FAILED(r, img_check_chain_bitmaps(c.bitmaps_wanted, c.no_bitmaps, err));
    UNLESS_FAILED(r, cli_take_size(c.rate_text, "rate limit", 0, INT64_MAX, &c.pacer.rate, err));
    if (r < 0) {
        return r;
    }
    if (c.base_name) {
        c.drop = true;
    }
    return co_commit_image(&c, &image, err);
}

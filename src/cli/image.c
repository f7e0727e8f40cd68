/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/image.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/snapshot.h"

/* Open --image-opts without a driver: the format is guessed, as for a json: filename. */
static int co_open_guessing(struct options *opts /* consumed */, unsigned flags,
                            struct block_node **ret_node, struct error *err)
{
    AUTO_FREE char *filename = NULL;
    struct json_object *json = options_to_json(opts);

    options_free(opts);
    if (asprintf(&filename, "json:%s",
                 json_object_to_json_string_ext(json, JSON_C_TO_STRING_NOSLASHESCAPE)) < 0) {
        filename = NULL;
    }
    json_object_put(json);
    if (!filename) {
        return error_out_of_memory(err);
    }
    return block_co_open_filename(filename, NULL, NULL, flags, ret_node, err);
}

/* Options of the file say better how its I/O is done; they are checked when it is opened. */
static bool may_use_native_aio(const struct options *opts)
{
    struct json_object *json = options_to_json(opts), *file, *cache, *direct = NULL;
    bool file_says = json_object_object_get_ex(json, "file", &file) &&
                     json_object_is_type(file, json_type_object) &&
                     (json_object_object_get_ex(file, "aio", NULL) ||
                      json_object_object_get_ex(file, "cache", NULL));
    const char *text;
    bool is_direct;

    if (json_object_object_get_ex(json, "cache", &cache)) {
        json_object_object_get_ex(cache, "direct", &direct);
    }
    text = direct ? json_object_get_string(direct) : "off";
    is_direct = strcmp(text, "on") == 0 || strcmp(text, "true") == 0 || strcmp(text, "yes") == 0 ||
                strcmp(text, "y") == 0;
    json_object_put(json);
    return is_direct || file_says;
}

static int co_open_image_node(const struct cli_image *image, unsigned flags,
                              struct block_node **ret_node, struct error *err)
{
    struct options *opts = NULL;
    int r;

    if (image->force_share) {
        flags |= BLOCK_OPEN_FORCE_SHARE;
    }
    if (cli_is_compat()) {
        /* QEMU's tools guess the format for writing, too; a guessed raw image stays guarded. */
        flags |= BLOCK_OPEN_PROBE;
    }
    r = cli_image_options(image, flags, &opts, err);
    if (r < 0) {
        return r;
    }
    if (image->native_aio && !may_use_native_aio(opts)) {
        options_free(opts);
        return error_set(err, EINVAL,
                         "aio=native was specified, but it requires cache.direct=on, which was not "
                         "specified.");
    }
    if (!cli_image_is_options(image)) {
        return block_co_open_filename(image->name, image->format, opts, flags, ret_node, err);
    }
    if (options_has(opts, "driver")) {
        return block_co_open(opts, flags, ret_node, err);
    }
    return co_open_guessing(opts, flags, ret_node, err);
}

static void warn_about_probed_raw(const struct cli_image *image, const struct block_node *node)
{
    struct block_node_settings settings = block_node_settings(node);

    if (!settings.probed || settings.read_only || strcmp(block_node_format(node), "raw") != 0) {
        return;
    }
    fflush(stdout);
    fprintf(stderr,
            "WARNING: Image format was not specified for '%s' and probing guessed raw.\n"
            "         Automatically detecting the format is dangerous for raw images, write "
            "operations on block 0 will be restricted.\n"
            "         Specify the 'raw' format explicitly to remove the restrictions.\n",
            image->name);
}

int cli_co_open_disk(const struct cli_image *image, unsigned flags, struct cli_disk *ret_disk,
                     struct error *err)
{
    int r;

    if (image->image_opts && image->format) {
        return error_set(err, EINVAL, "--image-opts and --format are mutually exclusive");
    }
    r = cli_check_force_share(image, "--force-share/-U", err);
    if (r < 0) {
        return r;
    }
    r = cli_co_open_disk_plainly(image, flags, ret_disk, err);
    if (r < 0 && !image->snapshot) {
        /* Where the name is the file's, qemu-img says it twice. */
        if (cli_is_compat()) {
            error_prepend(err, "Could not open '%s': ", image->name);
        } else {
            error_prepend_once(err, "Could not open '%s': ", image->name);
        }
    }
    return r;
}

/* Open the node, and put on it what the user wants there. */
static int co_open_top_node(const struct cli_image *image, unsigned flags,
                            struct block_node **ret_node, struct error *err)
{
    struct block_node *node = NULL;
    int r =
        co_open_image_node(image, image->overlay ? flags & ~BLOCK_OPEN_RDWR : flags, &node, err);

    if (image->overlay) {
        UNLESS_FAILED(r, cli_co_add_overlay(&node, !(flags & BLOCK_OPEN_RDWR), err));
    }
    if (image->copy_on_read) {
        UNLESS_FAILED(r, cli_co_add_copy_on_read(&node, err));
    }
    if (image->snapshot) {
        UNLESS_FAILED(r, cli_co_show_snapshot(node, image->snapshot, err));
    }
    if (r < 0) {
        block_co_unref(node);
        return r;
    }
    *ret_node = node;
    return 0;
}

/* Become a user of the disk's node. */
static int co_add_root(const struct cli_image *image, unsigned flags, struct cli_disk *disk,
                       struct error *err)
{
    unsigned perm = BLOCK_PERM_CONSISTENT_READ;
    unsigned shared = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED;
    int r;

    /* Formats with metadata still let nobody write below them. */
    if (!(flags & BLOCK_OPEN_RDWR) && !image->alone) {
        shared = BLOCK_PERM_ALL;
    }
    if (flags & BLOCK_OPEN_RDWR) {
        perm |= BLOCK_PERM_WRITE;
    }
    if (flags & BLOCK_OPEN_RESIZE_FILE) {
        perm |= BLOCK_PERM_RESIZE;
    }
    if (image->force_share) {
        shared = BLOCK_PERM_ALL;
    }
    r = block_co_root_new(disk->node, cli_program(), perm, shared, &disk->root, err);
    if (r == 0) {
        disk->edge = block_root_edge(disk->root);
    }
    return r;
}

int cli_co_open_disk_plainly(const struct cli_image *image, unsigned flags,
                             struct cli_disk *ret_disk, struct error *err)
{
    struct cli_disk disk = {.name = image->name,
                            .writethrough = cli_cache_is_writethrough(image->cache)};
    int r = co_open_top_node(image, flags, &disk.node, err);

    if (r < 0) {
        return r;
    }
    warn_about_probed_raw(image, disk.node);
    if (!(flags & BLOCK_OPEN_NO_IO)) {
        r = co_add_root(image, flags, &disk, err);
        if (r < 0) {
            block_co_unref(disk.node);
            return r;
        }
    }
    *ret_disk = disk;
    return 0;
}

/* Only formats write back by themselves when they are closed; files do not. */
static int co_flush_disk(struct cli_disk *disk, struct error *err)
{
    int r = 0;

    if (!disk->node || block_node_is_read_only(disk->node)) {
        return 0;
    }
    if (!disk->root) {
        /* An export wrote to the node, and is gone. */
        r = block_co_root_new(disk->node, cli_program(), BLOCK_PERM_WRITE, BLOCK_PERM_ALL,
                              &disk->root, err);
    }
    if (r < 0) {
        return r;
    }
    r = block_co_flush(block_root_edge(disk->root));
    return r < 0 ? error_set_errno(err, -r, "Could not flush '%s'", disk->name) : 0;
}

int cli_co_finish_disk(struct cli_disk *disk, struct error *err)
{
    ERROR_AUTO(flush_error);
    int flushed = co_flush_disk(disk, &flush_error);
    int r = disk->node ? block_co_inactivate(disk->node, err) : 0;
    int closed;

    /* An error of a format says more than one of the flush. */
    if (r == 0 && flushed < 0) {
        r = error_set(err, -flushed, "%s", error_message(&flush_error));
    }
    block_co_root_release(disk->root);
    closed = block_co_close(disk->node, err);
    *disk = (struct cli_disk){0};
    return error_first(r, closed);
}

void cli_co_close_disk(struct cli_disk *disk)
{
    block_co_root_release(disk->root);
    block_co_unref(disk->node);
    *disk = (struct cli_disk){0};
}

/*
 * Choose the depth of an extent. An area that no layer has stored, or that lies beyond the end of
 * the next layer below, reads as zeroes; its depth is that of the first layer that has no backing
 * file there.
 */
static void place_extent(const struct cli_disk *disk, struct cli_extent *e, int depth)
{
    struct block_node *node = disk->node;

    for (e->depth = 0; depth == 0 || e->depth < depth - 1; e->depth++) {
        struct block_node *below = block_node_backing(node);

        if (!below || e->start >= block_node_size(below)) {
            e->flags = BLOCK_STATUS_ZERO;
            return;
        }
        e->length = MIN(e->length, block_node_size(below) - e->start);
        node = below;
    }
}

int cli_co_extent(const struct cli_disk *disk, uint64_t offset, uint64_t length,
                  struct cli_extent *ret_extent)
{
    struct block_status status;
    int depth;
    int r = block_co_status_above(disk->edge, NULL, offset, length, &status, &depth);

    if (r < 0) {
        return r;
    }
    if (status.length == 0) {
        return -EIO;
    }
    *ret_extent = (struct cli_extent){
        .start = offset,
        .length = status.length,
        .flags = status.flags & ~(BLOCK_STATUS_EOF | BLOCK_STATUS_RECURSE),
        .map = status.map,
        .file = status.file,
    };
    place_extent(disk, ret_extent, depth);
    return 0;
}

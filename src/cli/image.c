/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/image.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/control.h"
#include "cli/args.h"
#include "cli/cli.h"

/* --image-opts without a driver: the format is to be guessed, as of a json: filename. */
static int co_open_guessing(struct options *opts /* consumed */, unsigned flags,
                            struct block_node **ret, struct error *err)
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
        return error_set(err, ENOMEM, "Out of memory");
    }
    return block_co_open_filename(filename, NULL, NULL, flags, ret, err);
}

static int co_open_node(const struct cli_image *image, unsigned flags, struct block_node **ret,
                        struct error *err)
{
    struct options *opts = NULL;
    int rc;

    if (image->native_aio && !cli_image_is_options(image) && !cli_cache_is_direct(image->cache)) {
        return error_set(err, EINVAL,
                         "aio=native was specified, but it requires cache.direct=on, which was not "
                         "specified.");
    }
    if (image->force_share) {
        flags |= BLOCK_OPEN_FORCE_SHARE;
    }
    if (cli_is_compat()) {
        /* QEMU's tools guess for writing, too; a guessed raw image stays guarded. */
        flags |= BLOCK_OPEN_PROBE;
    }
    rc = cli_image_options(image, flags, &opts, err);
    if (rc < 0) {
        return rc;
    }
    if (!cli_image_is_options(image)) {
        return block_co_open_filename(image->name, image->format, opts, flags, ret, err);
    }
    if (options_has(opts, "driver")) {
        return block_co_open(opts, flags, ret, err);
    }
    return co_open_guessing(opts, flags, ret, err);
}

static void warn_of_probed_raw(const struct cli_image *image, const struct block_node *node)
{
    struct block_node_settings settings = {0};

    if (node) {
        settings = block_node_settings(node);
    }
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

int cli_co_open_disk(const struct cli_image *image, unsigned flags, struct cli_disk *ret,
                     struct error *err)
{
    int rc;

    if (image->image_opts && image->format) {
        return error_set(err, EINVAL, "--image-opts and --format are mutually exclusive");
    }
    rc = cli_co_open_disk_plainly(image, flags, ret, err);
    if (rc < 0 && !image->snapshot) {
        error_prepend(err, "Could not open '%s': ", image->name);
    }
    return rc;
}

int cli_co_open_disk_plainly(const struct cli_image *image, unsigned flags, struct cli_disk *ret,
                             struct error *err)
{
    struct cli_disk disk = {.name = image->name,
                            .writethrough = cli_cache_is_writethrough(image->cache)};
    unsigned perm = BLOCK_PERM_CONSISTENT_READ;
    unsigned shared = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED;
    int rc =
        co_open_node(image, image->overlay ? flags & ~BLOCK_OPEN_RDWR : flags, &disk.node, err);

    if (rc == 0 && image->overlay) {
        rc = cli_co_add_overlay(&disk.node, err);
    }
    if (rc == 0 && image->copy_on_read) {
        rc = cli_co_add_copy_on_read(&disk.node, err);
    }
    if (rc == 0 && image->snapshot) {
        rc = cli_co_show_snapshot(disk.node, image->snapshot, err);
    }
    if (rc < 0) {
        block_co_unref(disk.node);
        return rc;
    }
    warn_of_probed_raw(image, disk.node);
    if (!(flags & BLOCK_OPEN_NO_IO)) {
        if (flags & BLOCK_OPEN_RDWR) {
            perm |= BLOCK_PERM_WRITE;
        }
        if (flags & BLOCK_OPEN_RESIZE_FILE) {
            perm |= BLOCK_PERM_RESIZE;
        }
        if (image->force_share) {
            shared = BLOCK_PERM_ALL;
        }
        rc = block_co_root_new(disk.node, cli_program(), perm, shared, &disk.root, err);
        if (rc < 0) {
            block_co_unref(disk.node);
            return rc;
        }
        disk.edge = block_root_edge(disk.root);
    }
    *ret = disk;
    return 0;
}

/* No driver but a format writes anything back by itself when it is closed. */
static int co_flush_disk(struct cli_disk *disk, struct error *err)
{
    int rc = 0;

    if (!disk->node || block_node_is_read_only(disk->node)) {
        return 0;
    }
    if (!disk->root) {
        /* An export wrote, and is gone. */
        rc = block_co_root_new(disk->node, cli_program(), BLOCK_PERM_WRITE, BLOCK_PERM_ALL,
                               &disk->root, err);
    }
    if (rc < 0) {
        return rc;
    }
    rc = block_co_flush(block_root_edge(disk->root));
    return rc < 0 ? error_set_errno(err, -rc, "Could not flush '%s'", disk->name) : 0;
}

int cli_co_finish_disk(struct cli_disk *disk, struct error *err)
{
    ERROR_AUTO(of_flush);
    int flushed = co_flush_disk(disk, &of_flush);
    int rc = disk->node ? block_co_inactivate(disk->node, err) : 0;
    int closed;

    /* What a format has to say of it says more. */
    if (rc == 0 && flushed < 0) {
        rc = error_set(err, -flushed, "%s", error_message(&of_flush));
    }
    block_co_root_release(disk->root);
    closed = block_co_close(disk->node, err);
    *disk = (struct cli_disk){0};
    return rc < 0 ? rc : closed;
}

void cli_co_close_disk(struct cli_disk *disk)
{
    block_co_root_release(disk->root);
    block_co_unref(disk->node);
    *disk = (struct cli_disk){0};
}

int cli_parse_output(const char *text, bool *ret_json)
{
    if (text && strcmp(text, "json") != 0 && strcmp(text, "human") != 0) {
        cli_fail("--output expects 'human' or 'json' not '%s'", text);
        return -EINVAL;
    }
    *ret_json = text && strcmp(text, "json") == 0;
    return 0;
}

/*
 * An area that no layer has stored, or that lies beyond the end of the layer that would be asked next, reads as
 * zeroes. `map` reports it at the depth of the layer above: the first without a backing file, or whose
 * backing file ends before it.
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
                  struct cli_extent *ret)
{
    struct block_status status;
    int depth;
    int rc = block_co_status_above(disk->edge, NULL, offset, length, &status, &depth);

    if (rc < 0) {
        return rc;
    }
    if (status.length == 0) {
        return -EIO;
    }
    *ret = (struct cli_extent){
        .start = offset,
        .length = status.length,
        .flags = status.flags & ~(BLOCK_STATUS_EOF | BLOCK_STATUS_RECURSE),
        .map = status.map,
        .file = status.file,
    };
    place_extent(disk, ret, depth);
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/control.h"
#include "cli/img/chain.h"
#include "cli/img/command_line.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "rebase",
    .synopsis = "FILENAME",
    .about = "Gives an image another backing file. The disk reads the same as before: where the "
             "new backing\n"
             "file differs from the old one, the old contents are copied into the image first. "
             "With -u only\n"
             "the name is changed, as after renaming the backing file. -b '' removes the backing "
             "file.",
    .examples = "@-f qcow2 -b new-base.qcow2 -F qcow2 overlay.qcow2\n"
                "@-f qcow2 -u -b renamed.qcow2 -F qcow2 overlay.qcow2\n"
                "@-f qcow2 -b '' overlay.qcow2",
};

struct rebase {
    const char *backing, *backing_format; /* backing NULL: none */
    const char *source_cache;
    bool unsafe, progress_wanted, quiet, compressed, bitmaps_wanted, no_bitmaps, force_share;

    struct cli_disk image;
    struct block_root *old_root; /* of the old backing file; NULL if there is none */
    struct cli_disk new_base;    /* not open if there will be none */
    uint8_t *old_data, *new_data;
    uint64_t unit; /* data is copied in aligned pieces of this size */
    struct progress progress;
    struct error *err;            /* of the command */
    struct chain_bitmaps bitmaps; /* of images that leave the chain */
};

/* Read from a backing file. Beyond its end, or if there is none (NULL), there are zeroes. */
static int co_read_base(struct block_edge *edge, uint64_t offset, uint8_t *buffer, size_t length)
{
    uint64_t size = edge ? block_edge_size(edge) : 0;
    size_t there = offset < size ? (size_t)MIN(length, size - offset) : 0;

    memset(buffer + there, 0, length - there);
    return there ? block_co_pread(edge, offset, buffer, there) : 0;
}

/*
 * Whether [offset, offset + *length) of a backing file is known to be zero. Shortens *length to
 * where the answer holds.
 */
static int co_base_is_zero(struct block_edge *edge, uint64_t offset, uint64_t *length,
                           bool *ret_zero)
{
    uint64_t size = edge ? block_edge_size(edge) : 0;
    struct block_status status;
    int depth, r;

    if (offset >= size) {
        *ret_zero = true;
        return 0;
    }
    *length = MIN(*length, size - offset);
    r = block_co_status_above(edge, NULL, offset, *length, &status, &depth);
    if (r < 0) {
        return r;
    }
    *length = MIN(*length, status.length);
    *ret_zero = depth == 0 || (status.flags & BLOCK_STATUS_ZERO);
    return 0;
}

static struct block_edge *old_edge_of(const struct rebase *b)
{
    return b->old_root ? block_root_edge(b->old_root) : NULL;
}

/*
 * Bytes of the next request of a run of `length` bytes that begins at `offset`, and its flags: only
 * whole clusters are compressed, and the image may have other subclusters of the first and the
 * last.
 */
static size_t write_length(const struct rebase *b, uint64_t offset, size_t length, unsigned *flags)
{
    uint64_t head = round_up(offset, b->unit) - offset, end = offset + length;
    bool to_end = end == cli_disk_size(&b->image);

    if (!b->compressed) {
        return length;
    }
    if (head > 0) {
        return MIN(head, length);
    }
    if (length < b->unit && !to_end) {
        return length;
    }
    *flags |= BLOCK_REQ_COMPRESSED;
    return to_end ? length : round_down(length, b->unit);
}

static int co_write_run(struct rebase *b, uint64_t offset, const uint8_t *data, size_t length)
{
    bool zero = buffer_is_zero(data, length);
    size_t done = 0;
    /* The disk reads as before, so no bitmap records the write. */
    int r = zero ? block_co_write_zeroes(b->image.edge, offset, length, BLOCK_REQ_UNCHANGED) : 0;

    while (!zero && done < length && r == 0) {
        unsigned flags = BLOCK_REQ_UNCHANGED;
        size_t part = write_length(b, offset + done, length - done, &flags);

        r = block_co_pwrite(b->image.edge, offset + done, data + done, part, flags);
        done += part;
    }
    if (r < 0) {
        error_set_errno(b->err, -r, "Error while writing to COW image '%s' at byte %" PRIu64,
                        b->image.name, offset);
    }
    return r;
}

static bool is_same(const struct rebase *b, size_t at, size_t length)
{
    return memcmp(b->old_data + at, b->new_data + at, length) == 0;
}

/* Bytes up to the end of the unit of the image that `offset` is in, at most `length`. */
static size_t piece_length(const struct rebase *b, uint64_t offset, size_t length)
{
    return MIN((size_t)(b->unit - offset % b->unit), length);
}

/*
 * Copy the pieces of a buffer that differ between the two backing files, neighbours in one request.
 */
static int co_copy_differences(struct rebase *b, uint64_t offset, size_t length)
{
    int r = 0;

    for (size_t at = 0; at < length && r == 0;) {
        size_t begin = at;

        while (at < length && !is_same(b, at, piece_length(b, offset + at, length - at))) {
            at += piece_length(b, offset + at, length - at);
        }
        if (at > begin) {
            r = co_write_run(b, offset + begin, b->old_data + begin, at - begin);
        } else {
            at += piece_length(b, offset + at, length - at);
        }
    }
    return r;
}

static int co_compare_and_copy(struct rebase *b, uint64_t offset, size_t length)
{
    int r = co_read_base(old_edge_of(b), offset, b->old_data, length);

    if (r < 0) {
        return error_set_errno(
            b->err, -r, "error while reading from old backing file at byte %" PRIu64, offset);
    }
    r = co_read_base(b->new_base.edge, offset, b->new_data, length);
    if (r < 0) {
        return error_set_errno(b->err, -r,
                               "error while reading from new backing file '%s' at byte %" PRIu64,
                               b->new_base.name, offset);
    }
    return co_copy_differences(b, offset, length);
}

static int metadata_failed(const struct rebase *b, int result)
{
    return error_set_errno(b->err, -result, "error while reading image metadata");
}

/*
 * Rebase one step from `offset` on, of at most *length bytes; *length becomes the length that was
 * done.
 */
static int co_rebase_step(struct rebase *b, uint64_t offset, uint64_t *length)
{
    struct block_status status;
    uint64_t zero_length;
    bool old_zero = false, new_zero = false;
    int r = block_co_status(b->image.edge, offset, *length, &status);

    if (r < 0) {
        return metadata_failed(b, r);
    }
    *length = MIN(*length, status.length);
    if (status.flags & BLOCK_STATUS_ALLOCATED) {
        return 0;
    }
    zero_length = *length;
    r = co_base_is_zero(old_edge_of(b), offset, &zero_length, &old_zero);
    if (r == 0 && old_zero) {
        r = co_base_is_zero(b->new_base.edge, offset, &zero_length, &new_zero);
    }
    if (r < 0) {
        return metadata_failed(b, r);
    }
    if (old_zero && new_zero && (is_aligned(zero_length, b->unit) || zero_length == *length)) {
        *length = zero_length;
        return 0;
    }
    *length = MIN(*length, CLI_BUFFER_SIZE);
    return co_compare_and_copy(b, offset, (size_t)*length);
}

static int co_rebase_all(struct rebase *b)
{
    uint64_t size = cli_disk_size(&b->image);
    const struct block_limits *limits = block_node_limits(b->image.node);
    uint64_t unit = limits->cluster_size;

    if (unit && !b->compressed && limits->zeroes_alignment) {
        unit = MIN(unit, limits->zeroes_alignment); /* a subcluster */
    }
    b->unit = unit ? MIN(unit, CLI_BUFFER_SIZE) : 4096;
    b->old_data = aligned_alloc(CLI_BUFFER_ALIGNMENT, CLI_BUFFER_SIZE);
    b->new_data = aligned_alloc(CLI_BUFFER_ALIGNMENT, CLI_BUFFER_SIZE);
    if (!b->old_data || !b->new_data) {
        return error_out_of_memory(b->err);
    }
    img_progress_begin(&b->progress, b->progress_wanted && !b->quiet, size);
    for (uint64_t at = 0; at < size;) {
        uint64_t length = MIN(size - at, CLI_STATUS_STEP);
        int r = co_rebase_step(b, at, &length);

        if (r < 0) {
            progress_end(&b->progress, false);
            return r;
        }
        at += length;
        progress_add(&b->progress, length);
    }
    progress_end(&b->progress, true);
    return 0;
}

/*
 * Attach the new backing file. Without an old one, areas that the image does not store read as
 * zeroes, and must be zeroed in it now; that is a no-op as long as there is no backing file.
 */
static int co_attach_new_base(struct rebase *b)
{
    return block_co_set_backing_node(b->image.node, b->new_base.node, b->err);
}

/* Open the backing files that the safe mode compares. */
static int co_open_bases(struct rebase *b)
{
    struct block_node *old = block_node_backing(b->image.node);
    AUTO_FREE char *path = NULL;
    struct cli_image base = {
        .format = b->backing_format, .cache = b->source_cache, .force_share = b->force_share};
    int r = 0;

    if (old) {
        r = block_co_root_new(old, cli_program(), BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL,
                              &b->old_root, b->err);
    }
    if (r < 0 || !b->backing) {
        return r;
    }
    path = block_resolve_relative(block_node_filename(b->image.node), b->backing);
    base.name = path;
    if (!path) {
        return error_out_of_memory(b->err);
    }
    r = cli_co_open_disk_plainly(&base, 0, &b->new_base, b->err);
    if (r < 0) {
        error_prepend(b->err, "Could not open new backing file '%s': ", b->backing);
        return r;
    }
    b->new_base.name = b->backing;
    return old ? 0 : co_attach_new_base(b);
}

/* --- bitmaps ---------------------------------------------------------------------------------- */

static bool same_file(const struct block_node *a, const struct block_node *b)
{
    const char *name_a = block_node_filename(a);
    const char *name_b = block_node_filename(b);
    AUTO_FREE char *real_a = name_a ? realpath(name_a, NULL) : NULL;
    AUTO_FREE char *real_b = name_b ? realpath(name_b, NULL) : NULL;

    if (real_a && real_b) {
        return strcmp(real_a, real_b) == 0;
    }
    return name_a && name_b && strcmp(name_a, name_b) == 0;
}

static bool is_in_new_chain(const struct rebase *b, const struct block_node *node)
{
    struct block_node *n = b->new_base.node;

    for (; n; n = block_node_backing(block_node_skip_filters(n))) {
        if (same_file(block_node_skip_filters(n), node)) {
            return true;
        }
    }
    return false;
}

/* Mark in the bitmaps of images below what the images above them store. */
static int co_mark_stored(struct rebase *b)
{
    uint64_t size = cli_disk_size(&b->image);
    struct block_status status;
    int depth;

    for (uint64_t at = 0; at < size && b->bitmaps.count; at += status.length) {
        int r = block_co_status_above(b->image.edge, NULL, at, size - at, &status, &depth);

        if (r < 0 || status.length == 0) {
            return metadata_failed(b, r < 0 ? r : -EIO);
        }
        if (depth > 0) {
            chain_bitmaps_mark(&b->bitmaps, at, status.length, depth);
        }
    }
    return 0;
}

/*
 * Collect the bitmaps of images that will not be below the image any more, to be merged into its
 * own.
 */
static int co_collect_rebase_bitmaps(struct rebase *b)
{
    struct block_node *image = block_node_skip_filters(b->image.node);
    struct block_node *node = block_node_backing(image);
    int r = 0;

    for (int depth = 2; node && b->old_root; depth++) {
        node = block_node_skip_filters(node);
        if (!is_in_new_chain(b, node)) {
            r = chain_bitmaps_co_collect(&b->bitmaps, node, depth, cli_disk_size(&b->image),
                                         b->err);
        }
        if (r < 0) {
            return r;
        }
        node = block_node_backing(node);
    }
    r = img_co_check_chain_bitmaps(&b->bitmaps, image, b->err);
    return r < 0 ? r : co_mark_stored(b);
}

/* Record the new backing file. */
static int co_record_rebase(struct rebase *b)
{
    struct block_node *node = b->image.node;
    int r;

    if (b->backing && !b->backing_format) {
        return error_set(b->err, EINVAL,
                         "Could not change the backing file to '%s': backing format must be "
                         "specified",
                         b->backing);
    }
    r = block_co_change_backing(node, b->backing, b->backing_format, b->err);
    if (r < 0) {
        error_prepend(b->err, "Could not change the backing file to '%s': ", b->backing ?: "");
    }
    return r;
}

/* Copy into the image what would otherwise change with the backing file. */
static int co_copy_from_bases(struct rebase *b)
{
    int r;

    if (b->compressed && !block_node_limits(b->image.node)->cluster_size) {
        return error_set(b->err, ENOTSUP, "Compression not supported for this file format");
    }
    r = co_open_bases(b);
    if (img_wants_chain_bitmaps(b->bitmaps_wanted, b->no_bitmaps)) {
        UNLESS_FAILED(r, co_collect_rebase_bitmaps(b));
    }
    UNLESS_FAILED(r, co_rebase_all(b));
    UNLESS_FAILED(
        r, chain_bitmaps_co_store(&b->bitmaps, block_node_skip_filters(b->image.node), b->err));
    return r;
}

static int co_rebase_image(struct rebase *b, const struct cli_image *image)
{
    unsigned flags = BLOCK_OPEN_RDWR | (b->unsafe ? BLOCK_OPEN_NO_BACKING : 0);
    int r = cli_co_open_disk(image, flags, &b->image, b->err);

    if (r < 0) {
        return r;
    }
    if (b->backing_format && !block_find_driver(b->backing_format)) {
        return error_set(b->err, ENOENT, "Invalid format name: '%s'", b->backing_format);
    }
    if (b->unsafe) {
        img_progress_begin(&b->progress, b->progress_wanted && !b->quiet, 1);
    }
    r = b->unsafe ? 0 : co_copy_from_bases(b);
    UNLESS_FAILED(r, co_record_rebase(b));
    if (b->unsafe) {
        progress_end(&b->progress, r == 0);
    }
    block_co_root_release(b->old_root);
    b->old_root = NULL;
    return r < 0 ? r : cli_co_finish_disk(&b->image, b->err);
}

static void co_rebase_release(struct rebase *b)
{
    block_co_root_release(b->old_root);
    cli_co_close_disk(&b->new_base);
    cli_co_close_disk(&b->image);
    chain_bitmaps_clear(&b->bitmaps);
    free(b->old_data);
    free(b->new_data);
}

/* Nothing is read and copied in that mode. */
static int check_unsafe(const struct rebase *b, struct error *err)
{
    const struct img_useless useless[] = {
        {b->compressed, "--compress (-c)"},
        {b->source_cache, "--backing-cache (-T)"},
        {b->force_share, "--force-share (-U)"},
        {b->bitmaps_wanted, "--bitmaps"},
    };

    return b->unsafe
               ? img_refuse_useless(useless, ARRAY_SIZE(useless), "with --backing-unsafe (-u)", err)
               : 0;
}

int img_co_rebase(int argc, char **argv, struct error *err)
{
    __attribute__((cleanup(co_rebase_release))) struct rebase b = {.err = err};
    struct cli_image image = {.cache = "writeback"};
    int r;
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"backing", 'b', CLI_VALUE, &b.backing, "FILE", "the new backing file; '' for none"},
        {"backing-format", 'B', CLI_VALUE, &b.backing_format, "FMT",
         "format of the new backing file (also -F)"},
        CLI_ARG_ALIAS(NULL, 'F', CLI_VALUE, &b.backing_format),
        {"backing-unsafe", 'u', CLI_FLAG, &b.unsafe, NULL,
         "change only the recorded name; nothing is compared or copied"},
        {"compress", 'c', CLI_FLAG, &b.compressed, NULL, "compress what is copied"},
        {"bitmaps", 0, CLI_FLAG, &b.bitmaps_wanted, NULL,
         "take over the bitmaps of images that leave the chain (default)"},
        {"no-bitmaps", 0, CLI_FLAG, &b.no_bitmaps, NULL,
         "leave the bitmaps where they are (default as qemu-img)"},
        CLI_ARG_PROGRESS(b.progress_wanted),
        CLI_ARG_QUIET(b.quiet),
        CLI_ARG_FORMAT(image.format),
        {"cache", 't', CLI_VALUE, &image.cache, "CACHE", "cache mode of the image"},
        {"backing-cache", 'T', CLI_VALUE, &b.source_cache, "CACHE",
         "cache mode of the backing files"},
        {"force-share", 'U', CLI_FLAG, &b.force_share, NULL,
         "allow a new backing file that is in use"},
        CLI_ARG_IMAGE_OPTS(image.image_opts),
        CLI_ARG_OBJECT(objects),
        CLI_ARG_END,
    };

    r = img_parse(args, &usage, argc, argv, &image, err);
    if (r < 0) {
        return r;
    }
    if (!b.backing && !b.unsafe) {
        return cli_usage_error(err, &usage,
                               "Must specify backing file (-b) or use unsafe mode (-u)");
    }
    r = cli_check_cache_mode(b.source_cache, "source cache", err);
    UNLESS_FAILED(r, img_check_chain_bitmaps(b.bitmaps_wanted, b.no_bitmaps, err));
    UNLESS_FAILED(r, check_unsafe(&b, err));
    UNLESS_FAILED(r, img_prepare(&image, "cache", &objects, err));
    if (r < 0) {
        return r;
    }
    if (b.backing && !*b.backing) {
        b.backing = NULL;
    }
    return co_rebase_image(&b, &image);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/control.h"
#include "cli/img/chain.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "rebase",
    .synopsis = "FILENAME",
    .about = "Gives an image another backing file. What the disk reads as stays the same: where "
             "the new backing\n"
             "file differs from the old one, the old contents are copied into the image first. "
             "With -u only the\n"
             "name is changed, as after renaming the backing file. -b '' removes the backing file.",
    .examples = "  rebase -f qcow2 -b new-base.qcow2 -F qcow2 overlay.qcow2\n"
                "  rebase -f qcow2 -u -b renamed.qcow2 -F qcow2 overlay.qcow2\n"
                "  rebase -f qcow2 -b '' overlay.qcow2",
};

#define BUFFER_SIZE ((size_t)(2 * MiB))
#define STEP (1ULL << 30)

struct rebase {
    const char *backing, *backing_format; /* backing NULL: none */
    const char *cache, *source_cache;
    bool unsafe, progress_wanted, quiet, compressed, bitmaps_wanted, no_bitmaps, force_share;

    struct cli_disk image;
    struct block_root *old_root; /* of the backing file it has; NULL if it has none */
    struct cli_disk new_base;    /* not open if there is to be none */
    uint8_t *old_data, *new_data;
    uint64_t unit; /* data is copied in aligned pieces of this size */
    struct progress progress;
    struct chain_bitmaps bitmaps; /* of images that leave the chain */
};

/* Read from one of the backing files; beyond its end, or without one, there are zeroes. */
static int co_read_base(struct block_edge *edge, uint64_t offset, uint8_t *buffer, size_t length)
{
    uint64_t size = edge ? block_edge_size(edge) : 0;
    size_t there = offset < size ? (size_t)MIN(length, size - offset) : 0;

    memset(buffer + there, 0, length - there);
    return there ? block_co_pread(edge, offset, buffer, there) : 0;
}

/* Whether [offset, offset + *length) of a backing file is known to be zero; *length is cut to where that holds. */
static int co_base_is_zero(struct block_edge *edge, uint64_t offset, uint64_t *length, bool *ret)
{
    uint64_t size = edge ? block_edge_size(edge) : 0;
    struct block_status status;
    int depth, rc;

    if (offset >= size) {
        *ret = true;
        return 0;
    }
    *length = MIN(*length, size - offset);
    rc = block_co_status_above(edge, NULL, offset, *length, &status, &depth);
    if (rc < 0) {
        return rc;
    }
    *length = MIN(*length, status.length);
    *ret = depth == 0 || (status.flags & BLOCK_STATUS_ZERO);
    return 0;
}

static struct block_edge *old_edge(const struct rebase *r)
{
    return r->old_root ? block_root_edge(r->old_root) : NULL;
}

static int co_write_run(struct rebase *r, uint64_t offset, const uint8_t *data, size_t length)
{
    /* The disk reads as before: no bitmap has anything to record. */
    unsigned flags = BLOCK_REQ_UNCHANGED;
    int rc;

    if (buffer_is_zero(data, length)) {
        rc = block_co_write_zeroes(r->image.edge, offset, length, flags);
    } else {
        rc = block_co_pwrite(r->image.edge, offset, data, length,
                             flags | (r->compressed ? BLOCK_REQ_COMPRESSED : 0));
    }
    if (rc < 0) {
        cli_fail("Error while writing to COW image '%s' at byte %" PRIu64 ": %s", r->image.name,
                 offset, strerror(-rc));
    }
    return rc;
}

static bool is_same(const struct rebase *r, size_t at, size_t length)
{
    return memcmp(r->old_data + at, r->new_data + at, length) == 0;
}

/* Copy the pieces of a buffer in which the two backing files differ, neighbours in one request. */
static int co_copy_differences(struct rebase *r, uint64_t offset, size_t length)
{
    int rc = 0;

    for (size_t at = 0; at < length && rc == 0;) {
        size_t begin = at;

        while (at < length && !is_same(r, at, MIN(r->unit, length - at))) {
            at += MIN(r->unit, length - at);
        }
        if (at > begin) {
            rc = co_write_run(r, offset + begin, r->old_data + begin, at - begin);
        } else {
            at += MIN(r->unit, length - at);
        }
    }
    return rc;
}

static int co_compare_and_copy(struct rebase *r, uint64_t offset, size_t length)
{
    int rc = co_read_base(old_edge(r), offset, r->old_data, length);

    if (rc < 0) {
        cli_fail("error while reading from old backing file at byte %" PRIu64 ": %s", offset,
                 strerror(-rc));
        return rc;
    }
    rc = co_read_base(r->new_base.edge, offset, r->new_data, length);
    if (rc < 0) {
        cli_fail("error while reading from new backing file '%s' at byte %" PRIu64 ": %s",
                 r->new_base.name, offset, strerror(-rc));
        return rc;
    }
    return co_copy_differences(r, offset, length);
}

/* One step from `offset` on; *length (at most the size of the buffers where data is read) becomes how far it went. */
static int co_step(struct rebase *r, uint64_t offset, uint64_t *length)
{
    struct block_status status;
    uint64_t zero_length;
    bool old_zero = false, new_zero = false;
    int rc = block_co_status(r->image.edge, offset, *length, &status);

    if (rc < 0) {
        cli_fail("error while reading image metadata: %s", strerror(-rc));
        return rc;
    }
    *length = MIN(*length, status.length);
    if (status.flags & BLOCK_STATUS_ALLOCATED) {
        return 0;
    }
    zero_length = *length;
    rc = co_base_is_zero(old_edge(r), offset, &zero_length, &old_zero);
    if (rc == 0 && old_zero) {
        rc = co_base_is_zero(r->new_base.edge, offset, &zero_length, &new_zero);
    }
    if (rc < 0) {
        cli_fail("error while reading image metadata: %s", strerror(-rc));
        return rc;
    }
    if (old_zero && new_zero && (is_aligned(zero_length, r->unit) || zero_length == *length)) {
        *length = zero_length;
        return 0;
    }
    *length = MIN(*length, BUFFER_SIZE);
    return co_compare_and_copy(r, offset, (size_t)*length);
}

static int co_copy_all(struct rebase *r)
{
    uint64_t size = cli_disk_size(&r->image);
    const struct block_limits *limits = block_node_limits(r->image.node);
    uint64_t unit = limits->cluster_size;

    if (unit && !r->compressed && limits->zeroes_alignment) {
        unit = MIN(unit, limits->zeroes_alignment); /* a subcluster */
    }
    r->unit = unit ? MIN(unit, BUFFER_SIZE) : 4096;
    r->old_data = aligned_alloc(4096, BUFFER_SIZE);
    r->new_data = aligned_alloc(4096, BUFFER_SIZE);
    if (!r->old_data || !r->new_data) {
        return cli_fail("Out of memory");
    }
    img_progress_begin(&r->progress, r->progress_wanted && !r->quiet, size);
    for (uint64_t at = 0; at < size;) {
        uint64_t length = MIN(size - at, STEP);

        if (co_step(r, at, &length) < 0) {
            progress_end(&r->progress, false);
            return 1;
        }
        at += length;
        progress_add(&r->progress, length);
    }
    progress_end(&r->progress, true);
    return 0;
}

/* Open what the safe mode compares. Returns 0 or 1 (told). */
static int co_open_bases(struct rebase *r)
{
    struct block_node *old = block_node_backing(r->image.node);
    AUTO_FREE char *path = NULL;
    struct cli_image base = {
        .format = r->backing_format, .cache = r->source_cache, .force_share = r->force_share};
    ERROR_AUTO(err);
    int rc = 0;

    if (old && block_co_root_new(old, cli_program(), BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL,
                                 &r->old_root, &err) < 0) {
        return cli_report(&err);
    }
    if (!r->backing) {
        return 0;
    }
    path = block_resolve_relative(block_node_filename(r->image.node), r->backing);
    base.name = path;
    if (!path) {
        return cli_fail("Out of memory");
    }
    if (cli_co_open_disk_plainly(&base, 0, &r->new_base, &err) < 0) {
        error_prepend(&err, "Could not open new backing file '%s': ", r->backing);
        return cli_report(&err);
    }
    r->new_base.name = r->backing;
    if (!old) {
        /* What reads as zeroes for want of a backing file must be zeroed now, and needs one to be more than a no-op. */
        rc = block_co_set_backing_node(r->image.node, r->new_base.node, &err);
    }
    return rc < 0 ? cli_report(&err) : 0;
}

/* --- bitmaps ------------------------------------------------------------------------------------ */

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

static bool is_in_new_chain(const struct rebase *r, const struct block_node *node)
{
    struct block_node *n = r->new_base.node;

    for (; n; n = block_node_backing(block_node_skip_filters(n))) {
        if (same_file(block_node_skip_filters(n), node)) {
            return true;
        }
    }
    return false;
}

/* What the images store, for the bitmaps of those below. Returns 0 or 1 (told). */
static int co_mark_stored(struct rebase *r)
{
    uint64_t size = cli_disk_size(&r->image);
    struct block_status status;
    int depth;

    for (uint64_t at = 0; at < size && r->bitmaps.count; at += status.length) {
        int rc = block_co_status_above(r->image.edge, NULL, at, size - at, &status, &depth);

        if (rc < 0 || status.length == 0) {
            return cli_fail("error while reading image metadata: %s", strerror(rc ? -rc : EIO));
        }
        if (depth > 0) {
            chain_bitmaps_mark(&r->bitmaps, at, status.length, depth);
        }
    }
    return 0;
}

/* The bitmaps of the images that are not below the image any more, to be merged into its own. Returns 0 or 1 (told). */
static int co_collect_bitmaps(struct rebase *r)
{
    struct block_node *image = block_node_skip_filters(r->image.node);
    struct block_node *node = block_node_backing(image);
    ERROR_AUTO(err);

    for (int depth = 2; node && r->old_root; depth++) {
        node = block_node_skip_filters(node);
        if (!is_in_new_chain(r, node) &&
            chain_bitmaps_co_collect(&r->bitmaps, node, depth, cli_disk_size(&r->image), &err) <
                0) {
            return cli_report(&err);
        }
        node = block_node_backing(node);
    }
    return img_co_check_chain_bitmaps(&r->bitmaps, image, &err) < 0 ? cli_report(&err)
                                                                    : co_mark_stored(r);
}

static int co_store_bitmaps(struct rebase *r)
{
    ERROR_AUTO(err);

    return chain_bitmaps_co_store(&r->bitmaps, block_node_skip_filters(r->image.node), &err) < 0
               ? cli_report(&err)
               : 0;
}

/* Record the new backing file. Returns 0 or 1 (told). */
static int co_change(struct rebase *r)
{
    struct block_node *node = r->image.node;
    ERROR_AUTO(err);
    int rc;

    if (r->backing && !r->backing_format) {
        return cli_fail("Could not change the backing file to '%s': backing format must be "
                        "specified",
                        r->backing);
    }
    rc = block_co_change_backing(node, r->backing, r->backing_format, &err);
    if (rc < 0) {
        error_prepend(&err, "Could not change the backing file to '%s': ", r->backing ?: "");
        return cli_report(&err);
    }
    return 0;
}

static int co_rebase(struct rebase *r, const struct cli_image *image)
{
    unsigned flags = BLOCK_OPEN_RDWR | (r->unsafe ? BLOCK_OPEN_NO_BACKING : 0);
    ERROR_AUTO(err);
    int status = 0;

    if (cli_co_open_disk(image, flags, &r->image, &err) < 0) {
        return cli_report(&err);
    }
    if (r->backing_format && !block_find_driver(r->backing_format)) {
        return cli_fail("Invalid format name: '%s'", r->backing_format);
    }
    if (!r->unsafe) {
        if (r->compressed && !block_node_limits(r->image.node)->cluster_size) {
            return cli_fail("Compression not supported for this file format");
        }
        status =
            co_open_bases(r) ||
            (img_wants_chain_bitmaps(r->bitmaps_wanted, r->no_bitmaps) && co_collect_bitmaps(r)) ||
            co_copy_all(r) || co_store_bitmaps(r);
    }
    if (status == 0) {
        status = co_change(r);
    }
    block_co_root_release(r->old_root);
    r->old_root = NULL;
    if (status == 0 && cli_co_finish_disk(&r->image, &err) < 0) {
        status = cli_report(&err);
    }
    return status;
}

static void rebase_release(struct rebase *r)
{
    block_co_root_release(r->old_root);
    cli_co_close_disk(&r->new_base);
    cli_co_close_disk(&r->image);
    chain_bitmaps_clear(&r->bitmaps);
    free(r->old_data);
    free(r->new_data);
}

int img_rebase_main(int argc, char **argv)
{
    __attribute__((cleanup(rebase_release))) struct rebase r = {0};
    struct cli_image image = {.cache = "writeback"};
    bool has_backing;
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"backing", 'b', CLI_VALUE, &r.backing, "FILE", "the new backing file; '' for none"},
        {"backing-format", 'B', CLI_VALUE, &r.backing_format, "FMT",
         "format of the new backing file (also -F)"},
        IMG_ARG_ALSO(NULL, 'F', CLI_VALUE, &r.backing_format),
        {"backing-unsafe", 'u', CLI_FLAG, &r.unsafe, NULL,
         "change the name only, nothing is compared or copied"},
        {"compress", 'c', CLI_FLAG, &r.compressed, NULL, "compress what is copied"},
        {"bitmaps", 0, CLI_FLAG, &r.bitmaps_wanted, NULL,
         "take over the bitmaps of images that leave the chain (default)"},
        {"no-bitmaps", 0, CLI_FLAG, &r.no_bitmaps, NULL,
         "leave them where they are (default as qemu-img)"},
        {"progress", 'p', CLI_FLAG, &r.progress_wanted, NULL, "show progress"},
        IMG_ARG_QUIET(r.quiet),
        IMG_ARG_FORMAT(image.format),
        {"cache", 't', CLI_VALUE, &image.cache, "CACHE", "cache mode of the image"},
        {"backing-cache", 'T', CLI_VALUE, &r.source_cache, "CACHE",
         "cache mode of the backing files"},
        {"force-share", 'U', CLI_FLAG, &r.force_share, NULL,
         "with -b: also a new backing file that is in use"},
        IMG_ARG_IMAGE_OPTS(image.image_opts),
        IMG_ARG_OBJECT(objects),
        IMG_ARG_END,
    };
    IMG_PARSE(first, args, &usage);

    has_backing = r.backing != NULL;
    if (first != argc - 1) {
        return cli_usage_fail(&usage, "Expecting one image file name");
    }
    if (!has_backing && !r.unsafe) {
        return cli_usage_fail(&usage, "Must specify backing file (-b) or use unsafe mode (-u)");
    }
    if (cli_check_cache_mode(image.cache, "cache") < 0 ||
        cli_check_cache_mode(r.source_cache, "source cache") < 0 || cli_add_objects(&objects)) {
        return 1;
    }
    if (has_backing && !*r.backing) {
        r.backing = NULL;
    }
    image.name = argv[first];
    return co_rebase(&r, &image);
}

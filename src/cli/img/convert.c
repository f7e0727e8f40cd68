/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/bitmaps.h"
#include "block/control.h"
#include "cli/img/copy.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "convert",
    .synopsis = "SOURCE [SOURCE...] TARGET",
    .about = "Copies a disk into a new image, in another format if wanted. Areas that read as "
             "zeroes take no\n"
             "space in the target. Several sources are joined one after the other.",
    .examples = "  convert -p -O qcow2 disk.raw disk.qcow2\n"
                "  convert -c -O qcow2 disk.qcow2 small.qcow2\n"
                "  convert -n -O raw disk.qcow2 /dev/vg/volume\n"
                "  convert -O raw nbd://server/export disk.raw",
};

#define WORKERS_DEFAULT 8
#define WORKERS_MAX 16
#define SPARSE_DEFAULT 4096
#define SPARSE_MAX (16 * MiB)

struct request {
    const char *source_format, *source_cache;
    const char *target_format, *target_cache;
    const char *backing, *backing_format;
    const char *sparse_text, *workers_text, *rate_text, *snapshot;
    bool no_create, progress, quiet, compressed, salvage, target_is_zero, offload, out_of_order;
    bool image_opts, target_image_opts, force_share, bitmaps, skip_broken_bitmaps;
    struct cli_items options, objects;
};

static void request_clear(struct request *r)
{
    cli_items_clear(&r->options);
    cli_items_clear(&r->objects);
}

static void close_sources(struct convert *c)
{
    for (size_t i = 0; i < c->source_count; i++) {
        cli_co_close_disk(&c->source[i].disk);
    }
    free(c->source);
    c->source = NULL;
    c->source_count = 0;
}

static int parse_numbers(const struct request *r, struct convert *c)
{
    uint64_t workers = WORKERS_DEFAULT;

    c->min_sparse = SPARSE_DEFAULT;
    if (r->sparse_text) {
        if (cli_parse_size(r->sparse_text, "buffer size for sparse output", 0, SPARSE_MAX,
                           &c->min_sparse) < 0) {
            return 1;
        }
        if (c->min_sparse % 512) {
            return cli_fail("Invalid buffer size for sparse output specified. Valid sizes are "
                            "multiples of 512 up to %llu. Select 0 to disable sparse detection "
                            "(fully allocates output).",
                            SPARSE_MAX);
        }
    }
    if (r->workers_text &&
        cli_parse_number(r->workers_text, "number of coroutines", 1, WORKERS_MAX, &workers) < 0) {
        return 1;
    }
    if (r->rate_text &&
        cli_parse_size(r->rate_text, "rate limit", 0, INT64_MAX, &c->pacer.rate) < 0) {
        return 1;
    }
    /* A medium that fails is read in order, and so is told what is lost. */
    c->workers = r->salvage ? 1 : (unsigned)workers;
    return 0;
}

static bool options_name_backing(const struct cli_items *options)
{
    for (size_t i = 0; i < options->count; i++) {
        if (strstr(options->item[i].value, "backing_file=")) {
            return true;
        }
    }
    return false;
}

/* Combinations that contradict each other. */
static int check_request(const struct request *r, int sources)
{
    if (sources < 1) {
        return cli_fail("Must specify image file name");
    }
    if (r->offload && r->compressed) {
        return cli_fail("Cannot enable copy offloading when -c is used");
    }
    if (r->offload && r->sparse_text) {
        return cli_fail("Cannot enable copy offloading when -S is used");
    }
    if (r->offload && r->salvage) {
        return cli_fail("Cannot use copy offloading in salvaging mode");
    }
    if (r->target_image_opts && !r->no_create) {
        return cli_fail("--target-image-opts requires use of -n flag");
    }
    if (r->no_create && r->options.count) {
        return cli_fail("-o has no effect when skipping image creation");
    }
    if (r->target_is_zero && !r->no_create) {
        return cli_fail("--target-is-zero requires use of -n flag");
    }
    if (r->snapshot && sources > 1) {
        return cli_fail("No support for concatenating multiple snapshot");
    }
    if (r->target_is_zero && r->backing) {
        return cli_fail(
            "Cannot use --target-is-zero when the destination image has a backing file");
    }
    if (r->backing_format && !r->backing && !options_name_backing(&r->options)) {
        return cli_fail("Backing format cannot be used without backing file");
    }
    if (r->skip_broken_bitmaps && !r->bitmaps) {
        return cli_fail("Use of --skip-broken-bitmaps requires --bitmaps");
    }
    return cli_check_snapshot(r->snapshot) < 0;
}

static int co_open_sources(const struct request *r, struct convert *c, int count, char **names)
{
    c->source = calloc((size_t)count, sizeof(*c->source));
    if (!c->source) {
        return cli_fail("Out of memory");
    }
    for (int i = 0; i < count; i++) {
        struct cli_image image = {
            .name = names[i],
            .format = r->source_format,
            .cache = r->source_cache,
            .image_opts = r->image_opts,
            .force_share = r->force_share,
            .snapshot = r->snapshot,
        };
        ERROR_AUTO(err);

        if (cli_co_open_disk(&image, 0, &c->source[i].disk, &err) < 0) {
            return cli_report(&err);
        }
        c->source_count++;
        c->source[i].start = c->total;
        c->source[i].size = cli_disk_size(&c->source[i].disk);
        if (add_overflows(c->total, c->source[i].size, &c->total) || c->total > INT64_MAX) {
            return cli_fail("The sources together are larger than an image can be");
        }
    }
    return 0;
}

/* Inconsistent bitmaps are found before anything is written. The latest is told of first, as by qemu-img. */
static int check_bitmaps(const struct request *r, struct convert *c)
{
    struct block_bitmap *b = NULL;
    const struct block_driver *driver = block_find_driver(r->target_format);

    if (c->source_count > 1) {
        return cli_fail("Copying bitmaps only possible with single source");
    }
    if (driver && !(block_driver_traits(driver) & BLOCK_DRIVER_STORES_BITMAPS)) {
        return cli_fail("Format driver '%s' does not support bitmaps", r->target_format);
    }
    while ((b = block_bitmap_previous(c->source[0].disk.node, b))) {
        if (b->persistent && b->inconsistent && !r->skip_broken_bitmaps) {
            ERROR_AUTO(err);

            error_set(&err, EINVAL, "Cannot copy inconsistent bitmap '%s'", b->name);
            error_hint(&err, "Try --skip-broken-bitmaps, or use '%s bitmap --remove' to delete it",
                       cli_program());
            return cli_report(&err);
        }
    }
    return 0;
}

/* What the target can't take is found before anything is written. Returns 0 or 1 (told). */
static int check_target_bitmaps(struct convert *c)
{
    struct block_node *node = c->target.node;
    struct block_bitmap *b = NULL;

    assert(node); /* the target is open */
    if (!block_node_stores_bitmaps(node)) {
        return cli_fail("Format driver '%s' does not support bitmaps", block_node_format(node));
    }
    while ((b = block_bitmap_next(c->source[0].disk.node, b))) {
        ERROR_AUTO(err);

        if (!b->persistent || b->inconsistent) {
            continue;
        }
        if (block_bitmap_find(node, b->name)) {
            error_set(&err, EEXIST, "Bitmap already exists: %s", b->name);
        } else if (cli_disk_size(&c->target) != round_up(c->total, 512)) {
            error_set(&err, EINVAL,
                      "The bitmap covers %" PRIu64 " bytes, and the target is of another size: "
                      "%" PRIu64,
                      c->total, cli_disk_size(&c->target));
        } else {
            block_co_can_store_bitmap(node, b->name, b->granularity, &err);
        }
        if (error_is_set(&err)) {
            error_prepend(&err, "Failed to create bitmap %s: ", b->name);
            return cli_report(&err);
        }
    }
    return 0;
}

static int co_copy_bitmap(struct block_bitmap *from, struct block_node *to, struct error *err)
{
    struct block_bitmap *copy;
    int rc = block_co_bitmap_fetch(from, err);

    if (rc == 0) {
        rc = block_co_bitmap_add(to, from->name, from->granularity, true, true, &copy, err);
    }
    if (rc == 0) {
        rc = block_co_bitmap_add_bits(copy, from->bits, err);
    }
    if (rc == 0 && from->enabled) {
        rc = block_co_bitmap_set_enabled(copy, true, err);
    }
    return rc;
}

static int co_copy_bitmaps(struct convert *c)
{
    struct block_bitmap *b = NULL;

    while ((b = block_bitmap_previous(c->source[0].disk.node, b))) {
        if (b->persistent && b->inconsistent) {
            cli_warn("Skipping inconsistent bitmap '%s'", b->name);
        }
    }
    while ((b = block_bitmap_next(c->source[0].disk.node, b))) {
        ERROR_AUTO(err);

        if (!b->persistent || b->inconsistent) {
            continue;
        }
        if (co_copy_bitmap(b, c->target.node, &err) < 0) {
            error_prepend(&err, "Failed to populate bitmap %s: ", b->name);
            return cli_report(&err);
        }
    }
    return 0;
}

/* The format of a backing file is never guessed. Returns 0 or 1 (told). */
static int check_backing_format(const struct request *r)
{
    AUTO_FREE char *by_option = NULL;

    if (!(r->backing || options_name_backing(&r->options)) || r->backing_format || r->no_create) {
        return 0;
    }
    if (cli_creation_option(&r->options, "backing_fmt", &by_option) < 0) {
        return 1;
    }
    return by_option ? 0 : cli_fail("Use of backing file requires explicit backing format");
}

static bool is_encrypted(const struct cli_disk *disk)
{
    struct block_info info;

    return block_co_get_info(disk->node, &info) == 0 && info.encrypted;
}

/* What a target that is encrypted has to be opened with, once it was made. 0 or -ENOMEM */
static int key_options(const struct request *r, char **ret)
{
    AUTO_FREE char *id = NULL;
    int rc = r->no_create ? 0 : cli_creation_option(&r->options, "encrypt.key-secret", &id);

    *ret = NULL;
    return rc < 0 || (id && asprintf(ret, "encrypt.key-secret=%s", id) < 0) ? -ENOMEM : 0;
}

/* Compressed clusters would leave unused what was preallocated. */
static bool compresses_preallocated(const struct request *r)
{
    AUTO_FREE char *mode = NULL;

    return r->compressed && !r->no_create &&
           cli_creation_option(&r->options, "preallocation", &mode) == 0 && mode &&
           strcmp(mode, "off") != 0;
}

/* A format knows what was never written; a raw device has what it had. */
static bool is_zero_when_new(const struct block_node *node)
{
    if (strcmp(block_node_format(node), "raw") == 0) {
        node = block_node_child(node, "file");
    }
    return block_node_traits(node) & (BLOCK_DRIVER_FORMAT | BLOCK_DRIVER_ZERO_BEYOND_EOF);
}

static int co_open_target(const struct request *r, struct convert *c, const char *name)
{
    AUTO_FREE char *key = NULL;
    struct cli_image image = {
        .name = name,
        .format = r->target_image_opts ? NULL : r->target_format,
        .cache = r->target_cache,
        .image_opts = r->target_image_opts,
    };
    bool has_backing = r->backing || options_name_backing(&r->options), is_zero;
    struct block_node *backing;
    ERROR_AUTO(err);

    if (compresses_preallocated(r)) {
        return cli_fail("Compression and preallocation not supported at the same time");
    }
    if (r->compressed && strcmp(r->target_format, "raw") == 0 && !r->target_image_opts) {
        return cli_fail("Compression not supported for this file format");
    }
    if (key_options(r, &key) < 0) {
        return cli_fail("Out of memory");
    }
    if (key && r->compressed) {
        return cli_fail("Compression and encryption not supported at the same time");
    }
    image.extra_options = key;
    if (!r->no_create) {
        struct cli_new_image new_image = {
            .filename = name,
            .format = r->target_format,
            .backing_file = r->backing,
            .backing_format = r->backing_format,
            .option_texts = &r->options,
            .has_size = true,
            .size = round_up(c->total, 512),
            .converts = true,
        };

        if (cli_co_create(&new_image)) {
            return 1;
        }
    }
    if (cli_co_open_disk(&image, BLOCK_OPEN_RDWR, &c->target, &err) < 0) {
        return cli_report(&err);
    }
    if (r->compressed && is_encrypted(&c->target)) {
        return cli_fail("Compression and encryption not supported at the same time");
    }
    if (cli_disk_size(&c->target) < c->total) {
        return cli_fail("output file is smaller than input file");
    }
    backing = block_node_backing(c->target.node);
    c->share_backing = has_backing && backing;
    c->target_backing_size = backing ? block_node_size(backing) : 0;
    is_zero = r->no_create ? r->target_is_zero && !backing : is_zero_when_new(c->target.node);
    c->zero_from = is_zero ? c->target_backing_size : UINT64_MAX;
    return 0;
}

static int co_convert(const struct request *r, int count, char **names)
{
    struct convert c = {
        .compressed = r->compressed,
        .offload = r->offload,
        .out_of_order = r->out_of_order,
        .salvage = r->salvage,
        .quiet = r->quiet,
        .show_progress = r->progress && !r->quiet,
    };
    const char *target = names[count - 1];
    ERROR_AUTO(err);
    int status = parse_numbers(r, &c);

    if (status == 0 && count > 2 && (r->backing || options_name_backing(&r->options))) {
        status = cli_fail("Having a backing file for the target makes no sense when concatenating "
                          "multiple input images");
    }
    if (status == 0) {
        status = check_backing_format(r) || co_open_sources(r, &c, count - 1, names);
    }
    if (status == 0 && r->bitmaps) {
        status = check_bitmaps(r, &c);
    }
    if (status == 0) {
        status = co_open_target(r, &c, target);
    }
    if (status == 0 && r->bitmaps) {
        status = check_target_bitmaps(&c);
    }
    if (status == 0) {
        status = convert_co_run(&c);
    }
    if (status == 0 && r->bitmaps) {
        status = co_copy_bitmaps(&c);
    }
    if (status == 0 && cli_co_finish_disk(&c.target, &err) < 0) {
        error_prepend(&err, "Could not complete '%s': ", target);
        status = cli_report(&err);
    }
    cli_co_close_disk(&c.target);
    close_sources(&c);
    return status;
}

int img_convert_main(int argc, char **argv)
{
    __attribute__((cleanup(request_clear))) struct request r = {.target_cache = "unsafe",
                                                                .source_cache = "writeback"};
    const struct cli_arg args[] = {
        {"format", 'f', CLI_VALUE, &r.source_format, "FMT",
         "format of the sources; guessed if not given"},
        IMG_ARG_ALSO("source-format", 0, CLI_VALUE, &r.source_format),
        {"target-format", 'O', CLI_VALUE, &r.target_format, "FMT",
         "format of the target (default raw)"},
        {"target-format-options", 'o', CLI_REPEAT, &r.options, "OPTIONS",
         "creation options NAME=VALUE,...; 'help' lists them"},
        IMG_ARG_ALSO("target-options", 0, CLI_REPEAT, &r.options),
        {"no-create", 'n', CLI_FLAG, &r.no_create, NULL, "write to a target that is there already"},
        {"target-is-zero", 0, CLI_FLAG, &r.target_is_zero, NULL,
         "with -n: the target reads as zeroes"},
        {"compress", 'c', CLI_FLAG, &r.compressed, NULL, "compress"},
        {"backing", 'b', CLI_VALUE, &r.backing, "FILE",
         "backing file of the target; what it has is not copied (also -B)"},
        IMG_ARG_ALSO(NULL, 'B', CLI_VALUE, &r.backing),
        {"backing-format", 'F', CLI_VALUE, &r.backing_format, "FMT", "format of the backing file"},
        IMG_ARG_QUIET(r.quiet),
        {"progress", 'p', CLI_FLAG, &r.progress, NULL, "show progress"},
        {"parallel", 'm', CLI_VALUE, &r.workers_text, "N",
         "requests in flight, 1 to 16 (default 8)"},
        {"oob-writes", 'W', CLI_FLAG, &r.out_of_order, NULL,
         "write in any order: faster, for targets that are preallocated"},
        {"copy-range-offloading", 'C', CLI_FLAG, &r.offload, NULL,
         "let the system copy where it can; zeroes in the data stay"},
        {"rate-limit", 'r', CLI_VALUE, &r.rate_text, "RATE", "at most so many bytes per second"},
        {"sparse-size", 'S', CLI_VALUE, &r.sparse_text, "SIZE",
         "shortest run of zeroes left out (default 4k); 0: none"},
        {"target-cache", 't', CLI_VALUE, &r.target_cache, "CACHE",
         "cache mode of the target (default unsafe)"},
        {"source-cache", 'T', CLI_VALUE, &r.source_cache, "CACHE",
         "cache mode of the sources (default writeback)"},
        {"snapshot", 'l', CLI_VALUE, &r.snapshot, "SNAPSHOT", "read an internal snapshot"},
        IMG_ARG_ALSO("source-snapshot", 0, CLI_VALUE, &r.snapshot),
        {"salvage", 0, CLI_FLAG, &r.salvage, NULL,
         "go on after read errors; what can't be read becomes zeroes"},
        {"bitmaps", 0, CLI_FLAG, &r.bitmaps, NULL, "copy the persistent bitmaps, too"},
        {"skip-broken-bitmaps", 0, CLI_FLAG, &r.skip_broken_bitmaps, NULL,
         "with --bitmaps: not those that are inconsistent"},
        IMG_ARG_SHARE(r.force_share),
        IMG_ARG_IMAGE_OPTS(r.image_opts),
        {"target-image-opts", 0, CLI_FLAG, &r.target_image_opts, NULL,
         "with -n: TARGET is options"},
        IMG_ARG_OBJECT(r.objects),
        IMG_ARG_END,
    };
    IMG_PARSE(first, args, &usage);

    if (r.target_image_opts && r.target_format) {
        return cli_fail("--target-image-opts and -O are mutually exclusive");
    }
    r.target_format = r.target_format ?: "raw";
    if (cli_wants_option_help(&r.options)) {
        return cli_print_option_help(r.target_format, first < argc ? argv[argc - 1] : NULL);
    }
    if (check_request(&r, argc - first - 1) || cli_add_objects(&r.objects) ||
        cli_check_cache_mode(r.target_cache, "cache") < 0 ||
        cli_check_cache_mode(r.source_cache, "source cache") < 0) {
        return 1;
    }
    return co_convert(&r, argc - first, argv + first);
}

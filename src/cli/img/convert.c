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
#include "cli/create.h"
#include "cli/creation_options.h"
#include "cli/img/command_line.h"
#include "cli/img/image_copy.h"
#include "cli/img/img.h"
#include "cli/snapshot.h"

static const struct cli_usage usage = {
    .command = "convert",
    .synopsis = "SOURCE [SOURCE...] TARGET",
    .about = "Copies a disk into a new image, in another format if wanted. Areas that read as "
             "zeroes take no\n"
             "space in the target. Several sources are joined in the order given.",
    .examples = "@-p -O qcow2 disk.raw disk.qcow2\n"
                "@-c -O qcow2 disk.qcow2 small.qcow2\n"
                "@-O vmdk -o subformat=streamOptimized disk.qcow2 upload.vmdk\n"
                "@-n -O raw disk.qcow2 /dev/vg/volume\n"
                "@-O raw nbd://server/export disk.raw",
};

#define WORKERS_DEFAULT 8
#define WORKERS_MAX 16
#define SPARSE_DEFAULT 4096
#define SPARSE_MAX (16 * MiB)

/* What the command line says. */
struct convert_request {
    const char *source_format, *source_cache;
    const char *target_format, *target_cache;
    const char *backing, *backing_format;
    const char *sparse_text, *workers_text, *rate_text, *snapshot;
    bool no_create, progress, target_is_zero;
    bool image_opts, target_image_opts, force_share, bitmaps, skip_broken_bitmaps;
    struct cli_items options, objects;
    struct image_copy_options copy;
};

struct convert {
    const struct convert_request *request;
    struct image_copy_source *sources; /* owned */
    size_t source_count;
    uint64_t total; /* size of all sources, in bytes */
    struct image_copy_target target;
};

static void convert_request_clear(struct convert_request *q)
{
    cli_items_clear(&q->options);
    cli_items_clear(&q->objects);
}

/* The target first, as it was opened last. */
static void co_convert_release(struct convert *c)
{
    cli_co_close_disk(&c->target.disk);
    for (size_t i = 0; i < c->source_count; i++) {
        cli_co_close_disk(&c->sources[i].disk);
    }
    free(c->sources);
}

/* --- the request ------------------------------------------------------------------------------ */

static bool options_name_backing(const struct cli_items *options)
{
    for (size_t i = 0; i < options->count; i++) {
        if (strstr(options->item[i].value, "backing_file=")) {
            return true;
        }
    }
    return false;
}

static bool request_has_backing(const struct convert_request *q)
{
    return q->backing || options_name_backing(&q->options);
}

static int check_order_options(const struct convert_request *q, struct error *err)
{
    const struct img_useless in_order[] = {
        {q->workers_text != NULL, "--parallel (-m)"},
        {q->copy.out_of_order, "--oob-writes (-W)"},
    };
    int r = q->copy.salvage ? img_refuse_useless(in_order, ARRAY_SIZE(in_order),
                                                 "with --salvage, which reads in order", err)
                            : 0;

    return r < 0 ? r : cli_check_snapshot(q->snapshot, err);
}

/* Refuse options that contradict each other. */
static int check_convert_request(const struct convert_request *q, int sources, struct error *err)
{
    const struct {
        bool found;
        const char *sentence;
    } contradictions[] = {
        {sources < 1, "Must specify image file name"},
        {q->copy.offload && q->copy.compressed, "Cannot enable copy offloading when -c is used"},
        {q->copy.offload && q->sparse_text, "Cannot enable copy offloading when -S is used"},
        {q->copy.offload && q->copy.salvage, "Cannot use copy offloading in salvaging mode"},
        {q->target_image_opts && !q->no_create, "--target-image-opts requires use of -n flag"},
        {q->no_create && q->options.count, "-o has no effect when skipping image creation"},
        {q->target_is_zero && !q->no_create, "--target-is-zero requires use of -n flag"},
        {q->snapshot && sources > 1, "No support for concatenating multiple snapshot"},
        {q->target_is_zero && q->backing,
         "Cannot use --target-is-zero when the destination image has a backing file"},
        {q->backing_format && !request_has_backing(q),
         "Backing format cannot be used without backing file"},
        {q->skip_broken_bitmaps && !q->bitmaps, "Use of --skip-broken-bitmaps requires --bitmaps"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(contradictions); i++) {
        if (contradictions[i].found) {
            return error_set(err, EINVAL, "%s", contradictions[i].sentence);
        }
    }
    return check_order_options(q, err);
}

static int parse_convert_texts(struct convert_request *q, struct error *err)
{
    uint64_t workers = WORKERS_DEFAULT;
    int r;

    q->copy.min_sparse = SPARSE_DEFAULT;
    r = cli_take_size(q->sparse_text, "buffer size for sparse output", 0, SPARSE_MAX,
                      &q->copy.min_sparse, err);
    if (r == 0 && q->copy.min_sparse % 512) {
        r = error_set(err, EINVAL,
                      "Invalid buffer size for sparse output specified. Valid sizes are multiples "
                      "of 512 up to %llu. Select 0 to disable sparse detection (fully allocates "
                      "output).",
                      SPARSE_MAX);
    }
    UNLESS_FAILED(
        r, cli_take_number(q->workers_text, "number of coroutines", 1, WORKERS_MAX, &workers, err));
    UNLESS_FAILED(r, cli_take_size(q->rate_text, "rate limit", 0, INT64_MAX, &q->copy.rate, err));
    /* A failing medium is read in order, so that warnings about it come in order. */
    q->copy.workers = q->copy.salvage ? 1 : (unsigned)workers;
    return r;
}

/* The format of a backing file is never guessed. */
static int check_backing_format(const struct convert_request *q, struct error *err)
{
    AUTO_FREE char *by_option = NULL;
    int r;

    if (!request_has_backing(q) || q->backing_format || q->no_create) {
        return 0;
    }
    r = cli_creation_option(&q->options, "backing_fmt", &by_option, err);
    if (r < 0 || by_option) {
        return r;
    }
    return error_set(err, EINVAL, "Use of backing file requires explicit backing format");
}

/* --- sources ---------------------------------------------------------------------------------- */

static int co_open_sources(struct convert *c, int count, char **names, struct error *err)
{
    const struct convert_request *q = c->request;

    c->sources = calloc((size_t)count, sizeof(*c->sources));
    if (!c->sources) {
        return error_out_of_memory(err);
    }
    for (int i = 0; i < count; i++) {
        struct image_copy_source *source = &c->sources[i];
        const struct cli_image image = {
            .name = names[i],
            .format = q->source_format,
            .cache = q->source_cache,
            .image_opts = q->image_opts,
            .force_share = q->force_share,
            .snapshot = q->snapshot,
            .alone = true,
        };
        int r = cli_co_open_disk(&image, 0, &source->disk, err);

        if (r < 0) {
            return r;
        }
        c->source_count++;
        source->start = c->total;
        source->size = cli_disk_size(&source->disk);
        if (add_overflows(c->total, source->size, &c->total) || c->total > INT64_MAX) {
            return error_set(err, EFBIG, "The sources together are larger than an image can be");
        }
    }
    return 0;
}

/* --- bitmaps ---------------------------------------------------------------------------------- */

static bool is_copied(const struct block_bitmap *b)
{
    return block_bitmap_persistent(b) && !block_bitmap_inconsistent(b);
}

/*
 * Refuse inconsistent bitmaps before anything is written. The latest one is reported, as by
 * qemu-img.
 */
static int check_source_bitmaps(const struct convert *c, struct error *err)
{
    const struct convert_request *q = c->request;
    const struct block_driver *driver = block_find_driver(q->target_format);
    struct block_bitmap *b = NULL;

    if (c->source_count > 1) {
        return error_set(err, EINVAL, "Copying bitmaps only possible with single source");
    }
    if (driver && !(block_driver_traits(driver) & BLOCK_DRIVER_STORES_BITMAPS)) {
        return error_set(err, ENOTSUP, "Format driver '%s' does not support bitmaps",
                         q->target_format);
    }
    if (!block_node_stores_bitmaps(c->sources[0].disk.node)) {
        return error_set(err, ENOTSUP, "Source lacks bitmap support");
    }
    while ((b = block_bitmap_previous(c->sources[0].disk.node, b))) {
        if (block_bitmap_persistent(b) && block_bitmap_inconsistent(b) && !q->skip_broken_bitmaps) {
            error_set(err, EINVAL, "Cannot copy inconsistent bitmap '%s'", block_bitmap_name(b));
            error_hint(err, "Try --skip-broken-bitmaps, or use '%s bitmap --remove' to delete it",
                       cli_program());
            return -EINVAL;
        }
    }
    return 0;
}

/* Whether the target can take a bitmap. */
static int co_check_target_bitmap(const struct convert *c, const struct block_bitmap *b,
                                  struct error *err)
{
    const struct cli_disk *target = &c->target.disk;
    struct block_node *node = target->node;

    if (block_bitmap_find(node, block_bitmap_name(b))) {
        return error_set(err, EEXIST, "Bitmap already exists: %s", block_bitmap_name(b));
    }
    if (cli_disk_size(target) != round_up(c->total, 512)) {
        return error_set(err, EINVAL,
                         "The bitmap covers %" PRIu64 " bytes, and the target is of another size: "
                         "%" PRIu64,
                         c->total, cli_disk_size(target));
    }
    return block_co_can_store_bitmap(node, block_bitmap_name(b), block_bitmap_granularity(b), err);
}

/* Refuse bitmaps that the target cannot take, before data is copied. */
static int co_check_target_bitmaps(const struct convert *c, struct error *err)
{
    struct block_node *node = c->target.disk.node;
    struct block_bitmap *b = NULL;

    assert(node); /* the target is open */
    if (!block_node_stores_bitmaps(node)) {
        return error_set(err, ENOTSUP, "Format driver '%s' does not support bitmaps",
                         block_node_format(node));
    }
    while ((b = block_bitmap_next(c->sources[0].disk.node, b))) {
        int r = is_copied(b) ? co_check_target_bitmap(c, b, err) : 0;

        if (r < 0) {
            error_prepend(err, "Failed to create bitmap %s: ", block_bitmap_name(b));
            return r;
        }
    }
    return 0;
}

static int co_copy_bitmap(struct block_bitmap *from, struct block_node *to, struct error *err)
{
    struct block_bitmap_state state;
    struct block_bitmap *copy;
    int r = block_co_bitmap_fetch(from, err);

    UNLESS_FAILED(r, block_co_bitmap_add(to, block_bitmap_name(from),
                                         block_bitmap_granularity(from), true, true, &copy, err));
    if (r == 0) {
        block_bitmap_get_state(from, &state);
        block_bitmap_inherit_excess(copy, &state, block_bitmap_granularity(from));
        r = block_co_bitmap_add_bits(copy, block_bitmap_bits(from), err);
    }
    if (block_bitmap_enabled(from)) {
        UNLESS_FAILED(r, block_co_bitmap_set_enabled(copy, true, err));
    }
    return r;
}

static int co_copy_bitmaps(const struct convert *c, struct error *err)
{
    struct block_node *source = c->sources[0].disk.node;
    struct block_bitmap_commits commits;
    struct block_bitmap *b = NULL;
    int r = 0;

    while ((b = block_bitmap_previous(source, b))) {
        if (block_bitmap_persistent(b) && block_bitmap_inconsistent(b)) {
            cli_warn("Skipping inconsistent bitmap '%s'", block_bitmap_name(b));
        }
    }
    block_bitmap_commits_begin(&commits);
    /* The newest first: the directory of the target will have the order of the source's. */
    while (r == 0 && (b = block_bitmap_previous(source, b))) {
        r = is_copied(b) ? co_copy_bitmap(b, c->target.disk.node, err) : 0;
        if (r < 0) {
            error_prepend(err, "Failed to populate bitmap %s: ", block_bitmap_name(b));
        }
    }
    return block_co_bitmap_commits_finish(&commits, r, err);
}

/* --- the target ------------------------------------------------------------------------------- */

static bool co_is_encrypted(const struct cli_disk *disk)
{
    struct block_info info;

    return block_co_get_info(disk->node, &info) == 0 && info.encrypted;
}

/*
 * The options for opening a new target that is encrypted; NULL if it needs none. The caller frees
 * them. A target in several files may open those that were just made.
 */
static int new_target_options(const struct convert_request *q, char **ret_text, struct error *err)
{
    AUTO_FREE char *id = NULL;
    const char *name = strcmp(q->target_format, "luks") == 0 ? "key-secret" : "encrypt.key-secret";
    int r = q->no_create ? 0 : cli_creation_option(&q->options, name, &id, err);

    *ret_text = NULL;
    if (r < 0) {
        return r;
    }
    if (!q->no_create && strcmp(q->target_format, "vmdk") == 0) {
        *ret_text = strdup("x-other-files=directory");
        return *ret_text ? 0 : error_out_of_memory(err);
    }
    return id && asprintf(ret_text, "%s=%s", name, id) < 0 ? error_out_of_memory(err) : 0;
}

/* Compressed clusters would not use what was preallocated. */
static bool compresses_preallocated(const struct convert_request *q)
{
    AUTO_FREE char *mode = NULL;

    return q->copy.compressed && !q->no_create &&
           cli_creation_option(&q->options, "preallocation", &mode, NULL) == 0 && mode &&
           strcmp(mode, "off") != 0;
}

static int check_compression(const struct convert_request *q, bool encrypted, struct error *err)
{
    const struct block_driver *driver = block_find_driver(q->target_format);

    if (compresses_preallocated(q)) {
        return error_set(err, EINVAL,
                         "Compression and preallocation not supported at the same time");
    }
    if (q->copy.compressed && !q->target_image_opts && driver &&
        !(block_driver_traits(driver) & BLOCK_DRIVER_COMPRESSES)) {
        return error_set(err, ENOTSUP, "Compression not supported for this file format");
    }
    if (q->copy.compressed && encrypted) {
        return error_set(err, EINVAL, "Compression and encryption not supported at the same time");
    }
    return 0;
}

/* A format knows what was never written; a raw device keeps its old contents. */
static bool is_zero_when_new(const struct block_node *node)
{
    if (strcmp(block_node_format(node), "raw") == 0) {
        node = block_node_child(node, "file");
    }
    if (block_node_traits(node) & BLOCK_DRIVER_NOISE_WHEN_NEW) {
        return false;
    }
    return block_node_traits(node) & (BLOCK_DRIVER_FORMAT | BLOCK_DRIVER_ZERO_BEYOND_EOF);
}

static int co_create_target(const struct convert *c, const char *name, struct error *err)
{
    const struct convert_request *q = c->request;
    const struct cli_new_image image = {
        .filename = name,
        .format = q->target_format,
        .backing_file = q->backing,
        .backing_format = q->backing_format,
        .option_texts = &q->options,
        .has_size = true,
        .size = round_up(c->total, 512),
        .converts = true,
    };

    return q->no_create ? 0 : cli_co_create(&image, err);
}

/* Find out what need not be written. */
static void co_plan_target(struct convert *c)
{
    const struct convert_request *q = c->request;
    struct image_copy_target *t = &c->target;
    struct block_node *backing = block_node_backing(t->disk.node);
    struct block_info info;
    bool is_zero;

    t->whole_clusters = block_co_get_info(t->disk.node, &info) == 0 && info.writes_whole_clusters;
    t->share_backing = request_has_backing(q) && backing;
    t->backing_size = backing ? block_node_size(backing) : 0;
    is_zero = q->no_create ? q->target_is_zero && !backing : is_zero_when_new(t->disk.node);
    t->zero_from = is_zero ? t->backing_size : UINT64_MAX;
}

static int co_open_convert_target(struct convert *c, const char *name, struct error *err)
{
    const struct convert_request *q = c->request;
    AUTO_FREE char *extra = NULL;
    struct cli_image image = {
        .name = name,
        .format = q->target_image_opts ? NULL : q->target_format,
        .cache = q->target_cache,
        .image_opts = q->target_image_opts,
    };
    int r = new_target_options(q, &extra, err);
    bool encrypted = extra && strstr(extra, "key-secret=");

    UNLESS_FAILED(r, check_compression(q, encrypted, err));
    UNLESS_FAILED(r, co_create_target(c, name, err));
    image.extra_options = extra;
    UNLESS_FAILED(r, cli_co_open_disk(&image, BLOCK_OPEN_RDWR, &c->target.disk, err));
    UNLESS_FAILED(r, check_compression(q, co_is_encrypted(&c->target.disk), err));
    if (r < 0) {
        return r;
    }
    if (cli_disk_size(&c->target.disk) < c->total) {
        return error_set(err, ENOSPC, "output file is smaller than input file");
    }
    co_plan_target(c);
    return 0;
}

/* --- putting it together ---------------------------------------------------------------------- */

static int co_finish_image(struct convert *c, const char *name, struct error *err)
{
    int r = cli_co_finish_disk(&c->target.disk, err);

    if (r < 0) {
        error_prepend(err, "Could not complete '%s': ", name);
    }
    return r;
}

/* Convert the first `count` - 1 of the files named to the last one. */
static int co_convert(const struct convert_request *q, int count, char **names, struct error *err)
{
    __attribute__((cleanup(co_convert_release))) struct convert c = {.request = q};
    const char *target = names[count - 1];
    int r;

    if (count > 2 && request_has_backing(q)) {
        return error_set(err, EINVAL,
                         "Having a backing file for the target makes no sense when concatenating "
                         "multiple input images");
    }
    r = check_backing_format(q, err);
    UNLESS_FAILED(r, co_open_sources(&c, count - 1, names, err));
    if (q->bitmaps) {
        UNLESS_FAILED(r, check_source_bitmaps(&c, err));
    }
    UNLESS_FAILED(r, co_open_convert_target(&c, target, err));
    if (q->bitmaps) {
        UNLESS_FAILED(r, co_check_target_bitmaps(&c, err));
    }
    UNLESS_FAILED(r, image_copy_co_run(&q->copy, c.sources, c.source_count, &c.target, err));
    if (q->bitmaps) {
        UNLESS_FAILED(r, co_copy_bitmaps(&c, err));
    }
    return r < 0 ? r : co_finish_image(&c, target, err);
}

int img_co_convert(int argc, char **argv, struct error *err)
{
    __attribute__((cleanup(convert_request_clear))) struct convert_request q = {
        .target_cache = "unsafe", .source_cache = "writeback"};
    int first, r;
    const struct cli_arg args[] = {
        {"format", 'f', CLI_VALUE, &q.source_format, "FMT",
         "format of the sources; guessed if not given"},
        CLI_ARG_ALIAS("source-format", 0, CLI_VALUE, &q.source_format),
        {"target-format", 'O', CLI_VALUE, &q.target_format, "FMT",
         "format of the target (default raw)"},
        {"target-format-options", 'o', CLI_REPEAT, &q.options, "OPTIONS",
         "creation options NAME=VALUE,...; 'help' lists them"},
        CLI_ARG_ALIAS("target-options", 0, CLI_REPEAT, &q.options),
        {"no-create", 'n', CLI_FLAG, &q.no_create, NULL, "write to an existing target"},
        {"target-is-zero", 0, CLI_FLAG, &q.target_is_zero, NULL,
         "with -n: the target reads as zeroes"},
        {"compress", 'c', CLI_FLAG, &q.copy.compressed, NULL, "compress"},
        {"backing", 'b', CLI_VALUE, &q.backing, "FILE",
         "backing file of the target; its contents are not copied (also -B)"},
        CLI_ARG_ALIAS(NULL, 'B', CLI_VALUE, &q.backing),
        {"backing-format", 'F', CLI_VALUE, &q.backing_format, "FMT", "format of the backing file"},
        CLI_ARG_QUIET(q.copy.quiet),
        CLI_ARG_PROGRESS(q.progress),
        {"parallel", 'm', CLI_VALUE, &q.workers_text, "N",
         "requests in flight, 1 to 16 (default 8)"},
        {"oob-writes", 'W', CLI_FLAG, &q.copy.out_of_order, NULL,
         "write in any order: faster for preallocated targets"},
        {"copy-range-offloading", 'C', CLI_FLAG, &q.copy.offload, NULL,
         "let the system copy where it can; zeroes in the data stay"},
        {"rate-limit", 'r', CLI_VALUE, &q.rate_text, "RATE", "at most RATE bytes per second"},
        {"sparse-size", 'S', CLI_VALUE, &q.sparse_text, "SIZE",
         "shortest run of zeroes left out (default 4k); 0: none"},
        {"target-cache", 't', CLI_VALUE, &q.target_cache, "CACHE",
         "cache mode of the target (default unsafe)"},
        {"source-cache", 'T', CLI_VALUE, &q.source_cache, "CACHE",
         "cache mode of the sources (default writeback)"},
        {"snapshot", 'l', CLI_VALUE, &q.snapshot, "SNAPSHOT", "read an internal snapshot"},
        CLI_ARG_ALIAS("source-snapshot", 0, CLI_VALUE, &q.snapshot),
        {"salvage", 0, CLI_FLAG, &q.copy.salvage, NULL,
         "go on after read errors; unreadable parts become zeroes"},
        {"bitmaps", 0, CLI_FLAG, &q.bitmaps, NULL, "copy the persistent bitmaps, too"},
        {"skip-broken-bitmaps", 0, CLI_FLAG, &q.skip_broken_bitmaps, NULL,
         "with --bitmaps: leave out inconsistent ones"},
        CLI_ARG_FORCE_SHARE(q.force_share),
        CLI_ARG_IMAGE_OPTS(q.image_opts),
        {"target-image-opts", 0, CLI_FLAG, &q.target_image_opts, NULL,
         "with -n: TARGET is options"},
        CLI_ARG_OBJECT(q.objects),
        CLI_ARG_END,
    };

    first = cli_args_parse(args, &usage, argc, argv);
    if (first < 0) {
        return first;
    }
    if (q.target_image_opts && q.target_format) {
        return error_set(err, EINVAL, "--target-image-opts and -O are mutually exclusive");
    }
    q.target_format = q.target_format ?: "raw";
    q.copy.show_progress = q.progress && !q.copy.quiet;
    if (cli_wants_option_help(&q.options)) {
        return cli_print_option_help(q.target_format, first < argc ? argv[argc - 1] : NULL, err);
    }
    r = check_convert_request(&q, argc - first - 1, err);
    UNLESS_FAILED(r, cli_add_objects(&q.objects, err));
    UNLESS_FAILED(r, cli_check_cache_mode(q.target_cache, "cache", err));
    UNLESS_FAILED(r, cli_check_cache_mode(q.source_cache, "source cache", err));
    UNLESS_FAILED(r, parse_convert_texts(&q, err));
    return r < 0 ? r : co_convert(&q, argc - first, argv + first, err);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/bitmaps.h"
#include "cli/creation_options.h"
#include "cli/img/command_line.h"
#include "cli/img/img.h"
#include "cli/json.h"
#include "luks/options.h"
#include "cli/snapshot.h"

static const struct cli_usage usage = {
    .command = "measure",
    .synopsis = "FILENAME | --size N",
    .about = "Prints how large the file of a new image will be: with the data of FILENAME, and "
             "when all of the\n"
             "disk has been written. Makes no image.",
    .examples = "@-O qcow2 disk.raw\n"
                "@-O qcow2 -o cluster_size=1M --size 10T",
};

#define L1_MAX (32 * MiB)

struct measure_request {
    const char *format, *output, *size_text;
    struct cli_items options, objects;
};

/* A new qcow2 image, by its creation options. */
struct geometry {
    uint64_t cluster; /* bytes */
    unsigned refcount_bits;
    unsigned l2_entry_size; /* bytes */
    bool no_bitmaps;        /* version 2 */
    bool all_allocated;     /* preallocated; or with a backing file, whose share is not known */
    bool table_fits;        /* preallocated: created with a refcount table for the whole disk */
    uint64_t luks_clusters;
};

/* The result, in bytes. */
struct measure {
    uint64_t required, fully_allocated;
    bool has_bitmaps;
    uint64_t bitmaps; /* if has_bitmaps */
};

/* Take a number from -o texts, if it is there. */
static int take_creation_number(const struct cli_items *options, const char *name, uint64_t *value,
                                struct error *err)
{
    AUTO_FREE char *text = NULL;
    int r = cli_creation_option(options, name, &text, err);

    if (r == 0 && text && cli_size(text, value) < 0) {
        r = error_set(err, EINVAL, "Parameter '%s' expects a number, not '%s'", name, text);
    }
    return r;
}

static bool equals(const char *text, const char *expected)
{
    return text && strcmp(text, expected) == 0;
}

/* The bytes of a header of LUKS, of a format whose options have that prefix. */
static int measure_luks(const struct cli_items *options, const char *prefix, uint64_t *ret_bytes,
                        struct error *err)
{
    struct options *opts;
    struct luks_format format;
    int r = cli_creation_options(options, &opts, err);

    if (r < 0) {
        return r;
    }
    r = luks_take_format(opts, prefix, &format, err);
    options_free(opts);
    if (r == 0) {
        *ret_bytes = luks_new_header_size(&format.encryption);
        luks_format_release(&format);
    }
    return r;
}

static int parse_geometry(const struct cli_items *options, struct geometry *g, struct error *err)
{
    uint64_t cluster = 64 * KiB, bits = 16;
    AUTO_FREE char *prealloc = NULL;
    AUTO_FREE char *backing = NULL;
    AUTO_FREE char *extended = NULL;
    AUTO_FREE char *compat = NULL;
    AUTO_FREE char *encryption = NULL;
    uint64_t luks = 0;
    bool old;
    int r = take_creation_number(options, "cluster_size", &cluster, err);

    UNLESS_FAILED(r, take_creation_number(options, "refcount_bits", &bits, err));
    UNLESS_FAILED(r, cli_creation_option(options, "preallocation", &prealloc, err));
    UNLESS_FAILED(r, cli_creation_option(options, "backing_file", &backing, err));
    UNLESS_FAILED(r, cli_creation_option(options, "extended_l2", &extended, err));
    UNLESS_FAILED(r, cli_creation_option(options, "compat", &compat, err));
    UNLESS_FAILED(r, cli_creation_option(options, "encrypt.format", &encryption, err));
    if (equals(encryption, "luks")) {
        UNLESS_FAILED(r, measure_luks(options, "encrypt.", &luks, err));
    }
    if (r < 0) {
        return r;
    }
    if (!is_power_of_2(cluster) || cluster < 512 || cluster > 2 * MiB) {
        return error_set(err, EINVAL, "Cluster size must be a power of two between 512 and 2048k");
    }
    if (equals(extended, "on") && cluster < 16 * KiB) {
        return error_set(err, EINVAL,
                         "Extended L2 entries are only supported with cluster sizes of at least "
                         "16384 bytes");
    }
    if (!is_power_of_2(bits) || bits > 64) {
        return error_set(err, EINVAL,
                         "Refcount width must be a power of two and may not exceed 64 bits");
    }
    old = equals(compat, "0.10") || equals(compat, "v2");
    if (old && bits != 16) {
        return error_set(err, EINVAL,
                         "Different refcount widths than 16 bits require compatibility level 1.1 "
                         "or above (use compat=1.1 or greater)");
    }
    *g = (struct geometry){
        .cluster = cluster,
        .refcount_bits = (unsigned)bits,
        .l2_entry_size = equals(extended, "on") ? 16 : 8,
        .no_bitmaps = old,
        .all_allocated = backing || equals(prealloc, "falloc") || equals(prealloc, "full"),
        .table_fits = prealloc && strcmp(prealloc, "off") != 0,
        .luks_clusters = div_round_up(luks, cluster),
    };
    return 0;
}

/*
 * The number of clusters of refcount tables and blocks that count `clusters` and themselves. A
 * table that was made for an empty image is replaced when it is full, by one that is half as long
 * again. The old tables count as well, because nothing else may have used their clusters in the
 * end.
 */
static uint64_t refcount_clusters(const struct geometry *g, uint64_t clusters)
{
    uint64_t per_block = g->cluster * 8 / g->refcount_bits, per_table = g->cluster / 8;
    uint64_t blocks = 1, table = 1, tables = 1, before;

    do {
        before = blocks + tables;
        blocks = div_round_up(clusters + blocks + tables, per_block);
        if (g->table_fits) {
            tables = table = div_round_up(blocks, per_table);
        }
        while (blocks > table * per_table) {
            uint64_t entries = table * per_table + 1;

            table = div_round_up(entries + entries / 2, per_table);
            tables += table;
        }
    } while (blocks + tables != before);
    return blocks + tables;
}

/* Bytes of metadata when everything is allocated; 0 if the format cannot have such a size. */
static uint64_t metadata_size(const struct geometry *g, uint64_t size)
{
    uint64_t entries_per_table = g->cluster / g->l2_entry_size;
    uint64_t data_clusters = size / g->cluster + (size % g->cluster != 0);
    uint64_t tables = div_round_up(data_clusters, entries_per_table);
    uint64_t l1 = round_up(tables, g->cluster / 8) * 8 / g->cluster;
    uint64_t clusters = 1 + g->luks_clusters + tables + l1;

    if (tables > L1_MAX / 8) {
        return 0;
    }
    return (clusters + refcount_clusters(g, clusters + data_clusters)) * g->cluster;
}

/* The number of bytes of clusters in which the disk has data. */
static int co_data_size(const struct cli_disk *disk, uint64_t cluster, uint64_t *ret_bytes,
                        struct error *err)
{
    uint64_t size = cli_disk_size(disk);
    uint64_t sum = 0;

    for (uint64_t at = 0; at < size;) {
        struct cli_extent e;
        uint64_t end;
        int r = cli_co_extent(disk, at, MIN(size - at, CLI_STATUS_STEP), &e);

        if (r < 0) {
            return error_set_errno(err, -r, "Unable to get block status");
        }
        end = at + e.length;
        if ((e.flags & BLOCK_STATUS_DATA) && !(e.flags & BLOCK_STATUS_ZERO)) {
            /* Count all clusters that the extent touches; the next extent begins after them. */
            end = round_up(end, cluster);
            sum += end - round_down(at, cluster);
        }
        at = end;
    }
    *ret_bytes = sum;
    return 0;
}

/* The number of bytes that the bitmaps of the source take in the new image. */
static uint64_t bitmaps_size(const struct cli_disk *disk, const struct geometry *g)
{
    struct block_bitmap *b = NULL;
    uint64_t clusters = 0, directory = 0;

    while ((b = block_bitmap_next(disk->node, b))) {
        uint64_t bytes, data;

        /*
         * Inconsistent ones count: a bitmap in use looks so here, and not to the program that
         * copies it.
         */
        if (!block_bitmap_persistent(b)) {
            continue;
        }
        bytes =
            div_round_up(div_round_up(block_node_size(disk->node), block_bitmap_granularity(b)), 8);
        data = div_round_up(bytes, g->cluster);
        clusters += data + div_round_up(data * 8, g->cluster);
        directory += round_up(24 + strlen(block_bitmap_name(b)), 8);
    }
    return clusters * g->cluster + round_up(directory, g->cluster);
}

static int co_measure_qcow2(const struct measure_request *q, const struct cli_disk *disk,
                            uint64_t size, struct measure *m, struct error *err)
{
    struct geometry g = {.cluster = 64 * KiB, .refcount_bits = 16, .l2_entry_size = 8};
    uint64_t aligned, metadata, data = 0;
    int r = parse_geometry(&q->options, &g, err);

    if (r < 0) {
        return r;
    }
    aligned = size <= INT64_MAX - g.cluster ? round_up(size, g.cluster) : size;
    metadata = metadata_size(&g, aligned);
    if (metadata == 0) {
        return error_set(err, EFBIG,
                         "The image size is too large (try using a larger cluster size)");
    }
    r = disk ? co_data_size(disk, g.cluster, &data, err) : 0;
    if (r < 0) {
        return r;
    }
    m->required = metadata + (g.all_allocated ? aligned : data);
    m->fully_allocated = metadata + aligned;
    if (disk && !g.no_bitmaps && strcmp(block_node_format(disk->node), "qcow2") == 0) {
        m->has_bitmaps = true;
        m->bitmaps = bitmaps_size(disk, &g);
    }
    return 0;
}

static int co_measure(const struct measure_request *q, const struct cli_disk *disk, uint64_t size,
                      struct measure *m, struct error *err)
{
    if (strcmp(q->format, "qcow2") == 0) {
        return co_measure_qcow2(q, disk, size, m, err);
    }
    if (strcmp(q->format, "raw") == 0) {
        m->required = m->fully_allocated = size;
        return 0;
    }
    if (strcmp(q->format, "luks") == 0) {
        uint64_t header;
        int r = measure_luks(&q->options, "", &header, err);

        if (r == 0) {
            m->required = m->fully_allocated = header + size;
        }
        return r;
    }
    if (!block_find_driver(q->format)) {
        return error_set(err, ENOENT, "Unknown file format '%s'", q->format);
    }
    return error_set(err, ENOTSUP, "Block driver '%s' does not support size measurement",
                     q->format);
}

static void print_measure(const struct measure *m, bool json)
{
    if (json) {
        struct json_object *o = json_object_new_object();

        json_object_object_add(o, "required", json_object_new_uint64(m->required));
        json_object_object_add(o, "fully-allocated", json_object_new_uint64(m->fully_allocated));
        if (m->has_bitmaps) {
            json_object_object_add(o, "bitmaps", json_object_new_uint64(m->bitmaps));
        }
        cli_print_json(o);
        json_object_put(o);
        return;
    }
    printf("required size: %" PRIu64 "\nfully allocated size: %" PRIu64 "\n", m->required,
           m->fully_allocated);
    if (m->has_bitmaps) {
        printf("bitmaps size: %" PRIu64 "\n", m->bitmaps);
    }
}

static int co_run_measure_request(const struct measure_request *q, struct cli_image *image,
                                  struct error *err)
{
    struct measure m = {0};
    uint64_t size = 0;
    bool json = false;
    AUTO_FREE char *size_option = NULL;
    CLI_DISK_AUTO(disk);
    int r = cli_creation_option(&q->options, "size", &size_option, err);
    const struct img_useless useless[] = {{size_option != NULL, "-o size"}};

    UNLESS_FAILED(
        r, img_refuse_useless(useless, ARRAY_SIZE(useless),
                              "here: --size says how large an empty disk is, and a file has its "
                              "own size",
                              err));
    UNLESS_FAILED(r, cli_add_objects(&q->objects, err));
    UNLESS_FAILED(r, img_parse_output(&usage, q->output, &json, err));
    UNLESS_FAILED(r, cli_take_size(q->size_text, "image size", 0, INT64_MAX, &size, err));
    if (image->name) {
        UNLESS_FAILED(r, cli_co_open_disk(image, 0, &disk, err));
    }
    UNLESS_FAILED(r, cli_check_creation_options(q->format, &q->options, err));
    if (r == 0 && image->name) {
        size = cli_disk_size(&disk);
    }
    UNLESS_FAILED(r, co_measure(q, image->name ? &disk : NULL, round_up(size, 512), &m, err));
    if (r == 0) {
        print_measure(&m, json);
    }
    return r;
}

/* Refuse arguments that are missing, or exclude each other. */
static int check_measure_request(const struct measure_request *q, const struct cli_image *image,
                                 int filenames, struct error *err)
{
    if (filenames > 1) {
        return error_set(err, EINVAL, "At most one filename argument is allowed.");
    }
    if (filenames == 0 && (image->image_opts || image->format || image->snapshot)) {
        return error_set(err, EINVAL, "--image-opts, -f, and -l require a filename argument.");
    }
    if (filenames == 0) {
        const struct img_useless no_file[] = {{image->force_share, "--force-share (-U)"}};
        int r = img_refuse_useless(no_file, ARRAY_SIZE(no_file), "without a filename", err);

        if (r < 0) {
            return r;
        }
    }
    if (filenames == 0 && !q->size_text) {
        return error_set(err, EINVAL, "Either --size N or one filename must be specified.");
    }
    if (filenames == 1 && q->size_text) {
        return error_set(err, EINVAL, "--size N cannot be used together with a filename.");
    }
    return cli_check_snapshot(image->snapshot, err);
}

static void measure_request_clear(struct measure_request *q)
{
    cli_items_clear(&q->options);
    cli_items_clear(&q->objects);
}

int img_co_measure(int argc, char **argv, struct error *err)
{
    __attribute__((cleanup(measure_request_clear))) struct measure_request q = {.format = "raw"};
    struct cli_image image = {0};
    int first, r;
    const struct cli_arg args[] = {
        CLI_ARG_FORMAT(image.format),
        {"target-format", 'O', CLI_VALUE, &q.format, "FMT",
         "format of the new image (default raw)"},
        {"target-format-options", 'o', CLI_REPEAT, &q.options, "OPTIONS",
         "creation options of the new image"},
        CLI_ARG_ALIAS("options", 0, CLI_REPEAT, &q.options),
        {"size", 's', CLI_VALUE, &q.size_text, "N", "size of an empty disk"},
        {"snapshot", 'l', CLI_VALUE, &image.snapshot, "SNAPSHOT", "measure an internal snapshot"},
        CLI_ARG_OUTPUT(q.output),
        CLI_ARG_FORCE_SHARE(image.force_share),
        CLI_ARG_IMAGE_OPTS(image.image_opts),
        CLI_ARG_OBJECT(q.objects),
        CLI_ARG_END,
    };

    first = cli_args_parse(args, &usage, argc, argv);
    if (first < 0) {
        return first;
    }
    image.name = first < argc ? argv[first] : NULL;
    r = check_measure_request(&q, &image, argc - first, err);
    return r < 0 ? r : co_run_measure_request(&q, &image, err);
}

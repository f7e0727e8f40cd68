/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/bitmaps.h"
#include "block/control.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "measure",
    .synopsis = "FILENAME | --size N",
    .about = "Tells how large the file of a new image will be: with the data of FILENAME, and when "
             "all of it has been\n"
             "written. Nothing is made.",
    .examples = "  measure -O qcow2 disk.raw\n"
                "  measure -O qcow2 -o cluster_size=1M --size 10T",
};

#define L1_MAX (32 * MiB)
#define STEP (1ULL << 30)

struct request {
    const char *format, *output, *size_text;
    struct cli_items options, objects;
};

/* A new qcow2 image, by its creation options. Bytes. */
struct geometry {
    uint64_t cluster;
    unsigned refcount_bits;
    unsigned l2_entry_size;
    bool no_bitmaps;    /* version 2 */
    bool all_allocated; /* preallocated, or what is shared with the backing file is not known */
    bool table_fits;    /* made with a refcount table for all of it (preallocated) */
};

struct measure {
    uint64_t required, fully_allocated;
    bool has_bitmaps;
    uint64_t bitmaps;
};

static int take_number(const struct cli_items *options, const char *name, uint64_t *value)
{
    AUTO_FREE char *text = NULL;

    if (cli_creation_option(options, name, &text) < 0) {
        return 1;
    }
    if (text && cli_size(text, value) < 0) {
        return cli_fail("Parameter '%s' expects a number, not '%s'", name, text);
    }
    return 0;
}

static int take_text(const struct cli_items *options, const char *name, char **value)
{
    return cli_creation_option(options, name, value) < 0;
}

static int parse_geometry(const struct cli_items *options, struct geometry *g)
{
    uint64_t cluster = 64 * KiB, bits = 16;
    AUTO_FREE char *prealloc = NULL;
    AUTO_FREE char *backing = NULL;
    AUTO_FREE char *extended = NULL;
    AUTO_FREE char *compat = NULL;

    if (take_number(options, "cluster_size", &cluster) ||
        take_number(options, "refcount_bits", &bits) ||
        take_text(options, "preallocation", &prealloc) ||
        take_text(options, "backing_file", &backing) ||
        take_text(options, "extended_l2", &extended) || take_text(options, "compat", &compat)) {
        return 1;
    }
    if (!is_power_of_2(cluster) || cluster < 512 || cluster > 2 * MiB) {
        return cli_fail("Cluster size must be a power of two between 512 and 2048k");
    }
    if (extended && strcmp(extended, "on") == 0 && cluster < 16 * KiB) {
        return cli_fail("Extended L2 entries are only supported with cluster sizes of at least "
                        "16384 bytes");
    }
    if (!is_power_of_2(bits) || bits > 64) {
        return cli_fail("Refcount width must be a power of two and may not exceed 64 bits");
    }
    *g = (struct geometry){
        .cluster = cluster,
        .refcount_bits = (unsigned)bits,
        .l2_entry_size = extended && strcmp(extended, "on") == 0 ? 16 : 8,
        .no_bitmaps = compat && (strcmp(compat, "0.10") == 0 || strcmp(compat, "v2") == 0),
        .all_allocated = backing || (prealloc && (strcmp(prealloc, "falloc") == 0 ||
                                                  strcmp(prealloc, "full") == 0)),
        .table_fits = prealloc && strcmp(prealloc, "off") != 0,
    };
    return 0;
}

/*
 * Clusters of refcount table and blocks that count `clusters` and themselves. A table that was made for an empty image is replaced when
 * it is full, by one half as long again; the places of the old ones may not be used by anything else before the end.
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

/* Bytes of metadata when everything is allocated; 0 if the format can't have such a size. */
static uint64_t metadata_size(const struct geometry *g, uint64_t size)
{
    uint64_t entries_per_table = g->cluster / g->l2_entry_size;
    uint64_t data_clusters = size / g->cluster + (size % g->cluster != 0);
    uint64_t tables = div_round_up(data_clusters, entries_per_table);
    uint64_t l1 = round_up(tables, g->cluster / 8) * 8 / g->cluster;
    uint64_t clusters = 1 + tables + l1;

    if (tables > L1_MAX / 8) {
        return 0;
    }
    return (clusters + refcount_clusters(g, clusters + data_clusters)) * g->cluster;
}

/* Bytes of clusters in which the disk has data. Returns 0 or 1 (told). */
static int co_data_size(const struct cli_disk *disk, uint64_t cluster, uint64_t *ret)
{
    uint64_t size = cli_disk_size(disk);
    uint64_t sum = 0;

    for (uint64_t at = 0; at < size;) {
        struct cli_extent e;
        uint64_t end;
        int rc = cli_co_extent(disk, at, MIN(size - at, STEP), &e);

        if (rc < 0) {
            return cli_fail("Unable to get block status: %s", strerror(-rc));
        }
        end = at + e.length;
        if ((e.flags & BLOCK_STATUS_DATA) && !(e.flags & BLOCK_STATUS_ZERO)) {
            /* The clusters that the extent touches; the next extent begins behind them. */
            end = round_up(end, cluster);
            sum += end - round_down(at, cluster);
        }
        at = end;
    }
    *ret = sum;
    return 0;
}

/* What the bitmaps of the source take in the new image. */
static uint64_t bitmaps_size(const struct cli_disk *disk, const struct geometry *g)
{
    struct block_bitmap *b = NULL;
    uint64_t clusters = 0, directory = 0;

    while ((b = block_bitmap_next(disk->node, b))) {
        uint64_t bytes, data;

        /* Those that are in use, and so pass for inconsistent here, are none when the disk is copied by who uses it. */
        if (!b->persistent) {
            continue;
        }
        bytes = div_round_up(div_round_up(block_node_size(disk->node), b->granularity), 8);
        data = div_round_up(bytes, g->cluster);
        clusters += data + div_round_up(data * 8, g->cluster);
        directory += round_up(24 + strlen(b->name), 8);
    }
    return clusters * g->cluster + round_up(directory, g->cluster);
}

static int co_measure_qcow2(const struct request *r, const struct cli_disk *disk, uint64_t size,
                            struct measure *m)
{
    struct geometry g = {.cluster = 64 * KiB, .refcount_bits = 16, .l2_entry_size = 8};
    uint64_t aligned, metadata, data = 0;

    if (parse_geometry(&r->options, &g)) {
        return 1;
    }
    aligned = size <= INT64_MAX - g.cluster ? round_up(size, g.cluster) : size;
    metadata = metadata_size(&g, aligned);
    if (metadata == 0) {
        return cli_fail("The image size is too large (try using a larger cluster size)");
    }
    if (disk && co_data_size(disk, g.cluster, &data)) {
        return 1;
    }
    m->required = metadata + (g.all_allocated ? aligned : data);
    m->fully_allocated = metadata + aligned;
    if (disk && !g.no_bitmaps && strcmp(block_node_format(disk->node), "qcow2") == 0) {
        m->has_bitmaps = true;
        m->bitmaps = bitmaps_size(disk, &g);
    }
    return 0;
}

static int co_measure(const struct request *r, const struct cli_disk *disk, uint64_t size,
                      struct measure *m)
{
    if (strcmp(r->format, "qcow2") == 0) {
        return co_measure_qcow2(r, disk, size, m);
    }
    if (strcmp(r->format, "raw") == 0) {
        m->required = m->fully_allocated = size;
        return 0;
    }
    if (!block_find_driver(r->format)) {
        return cli_fail("Unknown file format '%s'", r->format);
    }
    return cli_fail("Block driver '%s' does not support size measurement", r->format);
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

static int co_run_request(const struct request *r, struct cli_image *image)
{
    struct measure m = {0};
    uint64_t size = 0;
    bool json = false;
    AUTO_FREE char *ignored = NULL;
    ERROR_AUTO(err);
    CLI_DISK_AUTO(disk);

    if (take_text(&r->options, "size", &ignored) || cli_add_objects(&r->objects) ||
        cli_parse_output(r->output, &json) < 0 ||
        (r->size_text && cli_parse_size(r->size_text, "image size", 0, INT64_MAX, &size) < 0)) {
        return 1;
    }
    if (image->name) {
        if (cli_co_open_disk(image, 0, &disk, &err) < 0) {
            return cli_report(&err);
        }
        size = cli_disk_size(&disk);
    }
    if (cli_check_creation_options(r->format, &r->options) ||
        co_measure(r, image->name ? &disk : NULL, round_up(size, 512), &m)) {
        return 1;
    }
    print_measure(&m, json);
    return 0;
}

/* What was given together, and may not be. Returns 0 or 1 (told). */
static int check_request(const struct request *r, const struct cli_image *image, int filenames)
{
    if (filenames > 1) {
        return cli_fail("At most one filename argument is allowed.");
    }
    if (filenames == 0 && (image->image_opts || image->format || image->snapshot)) {
        return cli_fail("--image-opts, -f, and -l require a filename argument.");
    }
    if (filenames == 0 && !r->size_text) {
        return cli_fail("Either --size N or one filename must be specified.");
    }
    if (filenames == 1 && r->size_text) {
        return cli_fail("--size N cannot be used together with a filename.");
    }
    return cli_check_snapshot(image->snapshot) < 0;
}

int img_measure_main(int argc, char **argv)
{
    struct cli_image image = {0};
    struct request r = {.format = "raw"};
    int status = 1;
    const struct cli_arg args[] = {
        IMG_ARG_FORMAT(image.format),
        {"target-format", 'O', CLI_VALUE, &r.format, "FMT",
         "format of the new image (default raw)"},
        {"target-format-options", 'o', CLI_REPEAT, &r.options, "OPTIONS",
         "creation options of the new image"},
        IMG_ARG_ALSO("options", 0, CLI_REPEAT, &r.options),
        {"size", 's', CLI_VALUE, &r.size_text, "N", "size of an empty disk"},
        {"snapshot", 'l', CLI_VALUE, &image.snapshot, "SNAPSHOT", "measure an internal snapshot"},
        IMG_ARG_OUTPUT(r.output),
        IMG_ARG_SHARE(image.force_share),
        IMG_ARG_IMAGE_OPTS(image.image_opts),
        IMG_ARG_OBJECT(r.objects),
        IMG_ARG_END,
    };
    int first = cli_args_parse(args, &usage, argc, argv);

    if (first == CLI_ARGS_HELP) {
        status = 0;
    } else if (first >= 0) {
        image.name = first < argc ? argv[first] : NULL;
        status = check_request(&r, &image, argc - first) || co_run_request(&r, &image);
    }
    cli_items_clear(&r.options);
    cli_items_clear(&r.objects);
    return status;
}

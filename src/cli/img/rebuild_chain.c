/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rebuild-chain: a backing chain of new images, from what an NBD server reports of the layers of a
 * disk. Each extent is written to the image of its layer, the base first: where an image has larger
 * clusters than the extents, it is completed from the images below, which have their contents.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/strbuf.h"
#include "cli/create.h"
#include "cli/img/command_line.h"
#include "cli/img/img.h"
#include "cli/img/layers.h"
#include "copy/block_copy.h"
#include "nbd/client.h"
#include "nbd/proto.h"

/* A chain may have this many images. */
#define REBUILD_LAYERS_MAX 4096
/* Extents are completed to this, which leaves what can be read as it is. Bytes. */
#define REBUILD_UNIT 512u

static const struct cli_usage usage = {
    .command = "rebuild-chain",
    .synopsis = "NBD-URI DIRECTORY",
    .about =
        "Makes a backing chain of qcow2 images in DIRECTORY that is like the one that an NBD "
        "server offers:\n"
        "layer-0.qcow2 is the base, the last one is the disk. Zeroes of an image that hide data of "
        "its\n"
        "backing file stay in that image. A server that has 'qemu:allocation-depth' (tidemark nbd "
        "-A,\n"
        "qemu-nbd -A) gives all layers; with 'x-tidemark:merged' alone all backing files become "
        "one; and\n"
        "from any other server one image is made.",
    .examples = "@nbd://host/disk restored\n"
                "@-p 'nbd+unix:///disk?socket=/run/nbd.sock' restored",
};

struct rebuild {
    const char *uri, *directory;
    const struct cli_items *options; /* of each image */
    struct layer_map map;
    unsigned layers; /* images of the chain */
    struct cli_disk source;
    bool quiet;
    struct progress progress;
};

/* The image of a layer; 0 is the base. */
static void put_layer_name(struct strbuf *name, unsigned layer)
{
    strbuf_printf(name, "layer-%u.qcow2", layer);
}

/* Layers are counted from the base, depths from the top. */
static bool is_of_layer(const struct rebuild *b, const struct layer_extent *e, unsigned layer)
{
    return nbd_merged_depth(e->flags) == b->layers - layer;
}

static int count_layers(struct rebuild *b, struct error *err)
{
    uint64_t bytes = 0;

    b->layers = 1;
    for (size_t i = 0; i < b->map.count; i++) {
        unsigned depth = nbd_merged_depth(b->map.list[i].flags);

        b->layers = MAX(b->layers, depth);
        bytes += depth > 0 ? b->map.list[i].length : 0;
    }
    if (b->layers > REBUILD_LAYERS_MAX) {
        return error_set(err, EINVAL, "'%s' has %u layers; a chain has at most %d", b->uri,
                         b->layers, REBUILD_LAYERS_MAX);
    }
    b->progress.total = bytes;
    return 0;
}

static int co_create_layer(struct rebuild *b, unsigned layer, const char *path, struct error *err)
{
    STRBUF_AUTO(backing);
    struct stat st;

    if (lstat(path, &st) == 0) {
        return error_set(err, EEXIST, "'%s' exists already", path);
    }
    if (layer > 0) {
        put_layer_name(&backing, layer - 1);
    }
    if (backing.failed) {
        return error_out_of_memory(err);
    }
    return cli_co_create(
        &(struct cli_new_image){
            .filename = path,
            .format = "qcow2",
            .backing_file = layer > 0 ? strbuf_str(&backing) : NULL,
            .backing_format = layer > 0 ? "qcow2" : NULL,
            .option_texts = b->options,
            .has_size = true,
            .size = b->map.size,
            .quiet = true,
        },
        err);
}

static int co_write_extent(struct rebuild *b, struct block_copy *copy, struct cli_disk *target,
                           const struct layer_extent *e, struct error *err)
{
    uint64_t start = round_down(e->start, REBUILD_UNIT);
    uint64_t end = MIN(round_up(e->start + e->length, REBUILD_UNIT), b->map.size);
    struct block_copy_failure failure = {0};
    int r;

    if (e->flags & NBD_MERGED_ZERO) {
        r = block_co_write_zeroes(target->edge, e->start, e->length, BLOCK_REQ_MAY_UNMAP);
    } else {
        r = block_co_copy(copy, start, end - start, &failure);
    }
    if (r < 0) {
        return error_set_errno(
            err, -r, "Could not %s '%s' at offset %llu", failure.reading ? "read" : "write",
            failure.reading ? b->uri : target->name, (unsigned long long)e->start);
    }
    progress_add(&b->progress, e->length);
    return 0;
}

static int co_fill_layer(struct rebuild *b, unsigned layer, struct cli_disk *target,
                         struct error *err)
{
    struct block_copy_params params = {.cluster_size = REBUILD_UNIT,
                                       .zero_flags = BLOCK_REQ_MAY_UNMAP};
    struct block_copy *copy;
    int r = block_copy_new(b->source.edge, target->edge, &params, &copy, err);

    if (r < 0) {
        return r;
    }
    for (size_t i = 0; r == 0 && i < b->map.count; i++) {
        if (is_of_layer(b, &b->map.list[i], layer)) {
            r = co_write_extent(b, copy, target, &b->map.list[i], err);
        }
    }
    block_copy_free(copy);
    return r;
}

static int co_make_layer(struct rebuild *b, unsigned layer, struct error *err)
{
    STRBUF_AUTO(path);
    CLI_DISK_AUTO(target);
    struct cli_image image = {.format = "qcow2"};
    int r;

    strbuf_printf(&path, "%s/", b->directory);
    put_layer_name(&path, layer);
    if (path.failed) {
        return error_out_of_memory(err);
    }
    image.name = strbuf_str(&path);
    r = co_create_layer(b, layer, image.name, err);
    UNLESS_FAILED(r, cli_co_open_disk(&image, BLOCK_OPEN_RDWR, &target, err));
    UNLESS_FAILED(r, co_fill_layer(b, layer, &target, err));
    UNLESS_FAILED(r, cli_co_finish_disk(&target, err));
    return r;
}

static int co_rebuild_chain(struct rebuild *b, bool show, struct error *err)
{
    struct cli_image image = {.name = b->uri, .format = "raw"};
    int r = layer_map_co_read(&b->map, b->uri, NULL, true, err);

    UNLESS_FAILED(r, count_layers(b, err));
    UNLESS_FAILED(r, cli_co_open_disk(&image, 0, &b->source, err));
    if (r == 0 && mkdir(b->directory, 0777) < 0 && errno != EEXIST) {
        r = error_set_errno(err, errno, "Could not make the directory '%s'", b->directory);
    }
    if (r < 0) {
        return r;
    }
    img_progress_begin(&b->progress, show, b->progress.total);
    for (unsigned layer = 0; r == 0 && layer < b->layers; layer++) {
        r = co_make_layer(b, layer, err);
    }
    progress_end(&b->progress, r == 0);
    for (unsigned layer = 0; r == 0 && !b->quiet && layer < b->layers; layer++) {
        printf("%s/layer-%u.qcow2\n", b->directory, layer);
    }
    return r;
}

int img_co_rebuild_chain(int argc, char **argv, struct error *err)
{
    struct rebuild rebuild = {0};
    bool show = false;
    int first, r;
    CLI_ITEMS_AUTO(options);
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"options", 'o', CLI_REPEAT, &options, "OPTIONS", "options of each image, as in create"},
        CLI_ARG_PROGRESS(show),
        CLI_ARG_QUIET(rebuild.quiet),
        CLI_ARG_OBJECT(objects),
        CLI_ARG_END,
    };

    first = cli_args_parse(args, &usage, argc, argv);
    if (first < 0) {
        return first;
    }
    if (first != argc - 2) {
        return cli_usage_error(err, &usage, "Expecting an NBD address and a directory");
    }
    rebuild.uri = argv[first];
    rebuild.directory = argv[first + 1];
    rebuild.options = &options;
    r = cli_add_objects(&objects, err);
    UNLESS_FAILED(r, co_rebuild_chain(&rebuild, show && !rebuild.quiet, err));
    cli_co_close_disk(&rebuild.source);
    layer_map_clear(&rebuild.map);
    return r;
}

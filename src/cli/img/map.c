/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli/img/command_line.h"
#include "cli/img/img.h"
#include "cli/img/layers.h"
#include "nbd/client.h"
#include "nbd/proto.h"

static const struct cli_usage usage = {
    .command = "map",
    .synopsis = "FILENAME",
    .about = "Lists the areas of the disk: which image of the backing chain stores them (depth 0 "
             "is FILENAME),\n"
             "whether they read as zeroes, and where the bytes are in the file of that image. The "
             "human form\n"
             "lists only areas with data. With --layers it lists what an NBD server reports: which "
             "areas are in\n"
             "the exported image, in a backing file or in none, and which are zero, holes, or "
             "dirty.",
    .examples = "@disk.qcow2\n"
                "@--layers --bitmap=b0 nbd://host/disk\n"
                "@--output=json -s 1G -l 64M disk.qcow2",
};

static int print_map_text(const struct cli_extent *e, struct error *err)
{
    if (!(e->flags & BLOCK_STATUS_DATA) || (e->flags & BLOCK_STATUS_ZERO)) {
        return 0;
    }
    if (!(e->flags & BLOCK_STATUS_OFFSET)) {
        return error_set(err, ENOTSUP, "File contains external, encrypted or compressed clusters.");
    }
    printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", e->start, e->length, e->map,
           block_node_filename(e->file));
    return 0;
}

static void print_map_json(const struct cli_extent *e, bool is_first)
{
    const char *yes_no[] = {"false", "true"};
    /* An NBD server can have areas that are neither; QEMU prints no more about them. */
    bool is_known = e->flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO);

    printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
           ", \"depth\": %d, \"present\": %s, \"zero\": %s, \"data\": %s, \"compressed\": %s",
           is_first ? "" : ",\n", e->start, e->length, e->depth,
           yes_no[is_known && (e->flags & BLOCK_STATUS_ALLOCATED)],
           yes_no[!!(e->flags & BLOCK_STATUS_ZERO)], yes_no[!!(e->flags & BLOCK_STATUS_DATA)],
           yes_no[!!(e->flags & BLOCK_STATUS_COMPRESSED)]);
    if (is_known && (e->flags & BLOCK_STATUS_OFFSET)) {
        printf(", \"offset\": %" PRIu64, e->map);
    }
    printf("}");
}

/* Whether `next` continues `e`, so that both are printed as one entry. */
static bool continues(const struct cli_extent *e, const struct cli_extent *next)
{
    if (e->flags != next->flags || e->depth != next->depth) {
        return false;
    }
    return !(e->flags & BLOCK_STATUS_OFFSET) ||
           (e->file == next->file && e->map + e->length == next->map);
}

static int co_print_map(const struct cli_disk *disk, uint64_t start, uint64_t end, bool json,
                        struct error *err)
{
    struct cli_extent current = {.start = start};
    bool is_first = true;

    if (json) {
        printf("[");
    } else {
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    }
    for (uint64_t at = start; at < end;) {
        struct cli_extent next;
        int r = cli_co_extent(disk, at, MIN(end - at, CLI_STATUS_STEP), &next);

        if (r < 0) {
            return error_set_errno(err, -r, "Failed to read image metadata");
        }
        at += next.length;
        if (current.length && continues(&current, &next)) {
            current.length += next.length;
            continue;
        }
        if (current.length) {
            r = 0;
            if (json) {
                print_map_json(&current, is_first);
            } else {
                r = print_map_text(&current, err);
            }
            if (r < 0) {
                return r;
            }
            is_first = false;
        }
        current = next;
    }
    if (json) {
        /* An empty range gives one entry of length 0, as in QEMU: programs expect a first one. */
        print_map_json(&current, is_first);
        printf("]\n");
        return 0;
    }
    return current.length ? print_map_text(&current, err) : 0;
}

/* --- layers of an NBD server ------------------------------------------------------------------ */

static const char *layer_word(const struct layer_extent *e)
{
    if (e->flags & NBD_MERGED_LOCAL) {
        return "local";
    }
    return e->flags & NBD_MERGED_BACKING ? "backing" : "none";
}

static void print_layers_text(const struct layer_extent *e)
{
    printf("%#-16" PRIx64 "%#-16" PRIx64 "%-10s%s%s%s\n", e->start, e->length, layer_word(e),
           e->flags & NBD_MERGED_ZERO ? "zero" : "data", e->flags & NBD_MERGED_HOLE ? ",hole" : "",
           e->flags & NBD_MERGED_DIRTY ? ",dirty" : "");
}

static void print_layers_json(const struct layer_extent *e, bool is_first, bool with_bitmap)
{
    const char *yes_no[] = {"false", "true"};

    printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
           ", \"layer\": \"%s\", \"zero\": %s, \"hole\": %s",
           is_first ? "" : ",\n", e->start, e->length, layer_word(e),
           yes_no[!!(e->flags & NBD_MERGED_ZERO)], yes_no[!!(e->flags & NBD_MERGED_HOLE)]);
    if (with_bitmap) {
        printf(", \"dirty\": %s", yes_no[!!(e->flags & NBD_MERGED_DIRTY)]);
    }
    printf("}");
}

static int co_print_layers(const char *uri, const char *bitmap, uint64_t start, uint64_t length,
                           bool json, struct error *err)
{
    struct layer_map map CLEANUP(layer_map_clear) = {0};
    int r = layer_map_co_read(&map, uri, bitmap, false, err);
    bool is_first = true;

    if (r < 0) {
        return r;
    }
    if (json) {
        printf("[");
    } else {
        printf("%-16s%-16s%-10s%s\n", "Offset", "Length", "Layer", "Contents");
    }
    for (size_t i = 0; i < map.count; i++) {
        struct layer_extent e = map.list[i];
        uint64_t from = MAX(e.start, start);
        uint64_t to = MIN(e.start + e.length, length < map.size ? start + length : map.size);

        if (from >= to) {
            continue;
        }
        e.start = from;
        e.length = to - from;
        if (json) {
            print_layers_json(&e, is_first, bitmap);
        } else {
            print_layers_text(&e);
        }
        is_first = false;
    }
    printf("%s", json ? "]\n" : "");
    return 0;
}

int img_co_map(int argc, char **argv, struct error *err)
{
    struct cli_image image = {0};
    const char *output = NULL, *start_text = NULL, *length_text = NULL, *bitmap = NULL;
    uint64_t start = 0, length = UINT64_MAX, size;
    bool json, layers = false;
    int r;
    CLI_DISK_AUTO(disk);
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        CLI_ARG_FORMAT(image.format),
        CLI_ARG_OUTPUT(output),
        {"start-offset", 's', CLI_VALUE, &start_text, "OFFSET", "where to begin (default 0)"},
        {"max-length", 'l', CLI_VALUE, &length_text, "LEN", "at most LEN bytes"},
        {"layers", 0, CLI_FLAG, &layers, NULL,
         "what the NBD server at FILENAME reports of the layers of its disk"},
        {"bitmap", 0, CLI_VALUE, &bitmap, "NAME", "with --layers: and of the dirty bitmap NAME"},
        CLI_ARG_FORCE_SHARE(image.force_share),
        CLI_ARG_IMAGE_OPTS(image.image_opts),
        CLI_ARG_OBJECT(objects),
        CLI_ARG_END,
    };

    r = img_parse(args, &usage, argc, argv, &image, err);
    UNLESS_FAILED(r, cli_take_size(start_text, "start offset", 0, INT64_MAX, &start, err));
    UNLESS_FAILED(r, cli_take_size(length_text, "max length", 0, INT64_MAX, &length, err));
    UNLESS_FAILED(r, img_parse_output(&usage, output, &json, err));
    if (r == 0 && bitmap && !layers) {
        r = cli_usage_error(err, &usage, "--bitmap needs --layers");
    }
    if (r == 0 && layers && (image.image_opts || image.format || image.force_share)) {
        r = cli_usage_error(err, &usage, "--layers takes the address of an NBD server only");
    }
    UNLESS_FAILED(r, cli_add_objects(&objects, err));
    if (r == 0 && layers) {
        return co_print_layers(image.name, bitmap, start, length, json, err);
    }
    UNLESS_FAILED(r, cli_co_open_disk(&image, 0, &disk, err));
    if (r < 0) {
        return r;
    }
    size = cli_disk_size(&disk);
    return co_print_map(&disk, start, start < size ? start + MIN(length, size - start) : start,
                        json, err);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "map",
    .synopsis = "FILENAME",
    .about = "Lists the areas of the disk: which image of the backing chain stores them (depth 0 "
             "is FILENAME),\n"
             "whether they read as zeroes, and where the bytes lie in that image's file. The human "
             "form lists\n"
             "areas with data only.",
    .examples = "  map disk.qcow2\n"
                "  map --output=json -s 1G -l 64M disk.qcow2",
};

/* Asked for at once, so that an answer about a huge hole stays quick to compute. */
#define STEP (1ULL << 30)

static int print_human(const struct cli_extent *e)
{
    if (!(e->flags & BLOCK_STATUS_DATA) || (e->flags & BLOCK_STATUS_ZERO)) {
        return 0;
    }
    if (!(e->flags & BLOCK_STATUS_OFFSET)) {
        return cli_fail("File contains external, encrypted or compressed clusters.");
    }
    printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", e->start, e->length, e->map,
           block_node_filename(e->file));
    return 0;
}

static void print_json(const struct cli_extent *e, bool is_first)
{
    const char *yes_no[] = {"false", "true"};
    /* An NBD server can tell of areas that are neither; QEMU says no more of them. */
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

/* Whether `next` continues `e`, so that both are one entry. */
static bool continues(const struct cli_extent *e, const struct cli_extent *next)
{
    if (e->flags != next->flags || e->depth != next->depth) {
        return false;
    }
    return !(e->flags & BLOCK_STATUS_OFFSET) ||
           (e->file == next->file && e->map + e->length == next->map);
}

static int co_map(const struct cli_disk *disk, uint64_t start, uint64_t end, bool json)
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
        int rc = cli_co_extent(disk, at, MIN(end - at, STEP), &next);

        if (rc < 0) {
            return cli_fail("Failed to read image metadata: %s", strerror(-rc));
        }
        at += next.length;
        if (current.length && continues(&current, &next)) {
            current.length += next.length;
            continue;
        }
        if (current.length) {
            if (json) {
                print_json(&current, is_first);
            } else if (print_human(&current)) {
                return 1;
            }
            is_first = false;
        }
        current = next;
    }
    if (json) {
        /* Where there is nothing, an entry of length 0, as in QEMU: others count on a first one. */
        print_json(&current, is_first);
        printf("]\n");
        return 0;
    }
    return current.length ? print_human(&current) : 0;
}

int img_map_main(int argc, char **argv)
{
    struct cli_image image = {0};
    const char *output = NULL, *start_text = NULL, *length_text = NULL;
    uint64_t start = 0, length = UINT64_MAX, size;
    bool json;
    ERROR_AUTO(err);
    CLI_DISK_AUTO(disk);
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        IMG_ARG_FORMAT(image.format),
        IMG_ARG_OUTPUT(output),
        {"start-offset", 's', CLI_VALUE, &start_text, "OFFSET", "begin there"},
        {"max-length", 'l', CLI_VALUE, &length_text, "LEN", "at most so many bytes"},
        IMG_ARG_SHARE(image.force_share),
        IMG_ARG_IMAGE_OPTS(image.image_opts),
        IMG_ARG_OBJECT(objects),
        IMG_ARG_END,
    };
    IMG_PARSE(first, args, &usage);

    if (first != argc - 1) {
        return cli_usage_fail(&usage, "Expecting one image file name");
    }
    if ((start_text && cli_parse_size(start_text, "start offset", 0, INT64_MAX, &start) < 0) ||
        (length_text && cli_parse_size(length_text, "max length", 0, INT64_MAX, &length) < 0) ||
        cli_parse_output(output, &json) < 0 || cli_add_objects(&objects)) {
        return 1;
    }
    image.name = argv[first];
    if (cli_co_open_disk(&image, 0, &disk, &err) < 0) {
        return cli_report(&err);
    }
    size = cli_disk_size(&disk);
    return co_map(&disk, start, start < size ? start + MIN(length, size - start) : start, json);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "block/control.h"
#include "base/checked.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "resize",
    .synopsis = "FILENAME [+|-]SIZE",
    .about = "Changes the size of a disk, to SIZE or by it. What is added reads as zeroes. File "
             "systems and\n"
             "partition tables in it are not changed: shrink them first, grow them afterwards.",
    .examples = "  resize -f qcow2 disk.qcow2 +10G\n"
                "  resize --shrink -f qcow2 disk.qcow2 20G",
};

static const char *const prealloc_names[] = {"off", "metadata", "falloc", "full"};

static int parse_prealloc(const char *text, enum block_prealloc *ret)
{
    for (size_t i = 0; i < ARRAY_SIZE(prealloc_names); i++) {
        if (strcmp(text, prealloc_names[i]) == 0) {
            *ret = (enum block_prealloc)i;
            return 0;
        }
    }
    return cli_fail("Invalid preallocation mode '%s'", text);
}

/* The size that is meant by "SIZE", "+SIZE" or "-SIZE". Returns 0 or 1 (told). */
static int new_size(const char *text, uint64_t current, uint64_t *ret)
{
    bool relative = *text == '+' || *text == '-';
    uint64_t value;

    if (cli_parse_size(text + relative, "image size", 0, INT64_MAX, &value) < 0) {
        return 1;
    }
    if (*text == '-') {
        if (value >= current) {
            return cli_fail("New image size must be positive");
        }
        value = current - value;
    } else if (*text == '+' && (add_overflows(current, value, &value) || value > INT64_MAX)) {
        return cli_fail("New image size is larger than an image can be");
    }
    if (value == 0) {
        return cli_fail("New image size must be positive");
    }
    *ret = value;
    return 0;
}

static int co_resize(struct cli_disk *disk, const char *size_text, enum block_prealloc prealloc,
                     bool shrink, bool quiet)
{
    uint64_t current = cli_disk_size(disk);
    uint64_t size = 0;
    ERROR_AUTO(err);

    if (new_size(size_text, current, &size)) {
        return 1;
    }
    if (size <= current && prealloc != BLOCK_PREALLOC_OFF) {
        return cli_fail("Preallocation can only be used for growing images");
    }
    if (size < current && !shrink) {
        cli_fail("Use the --shrink option to perform a shrink operation.");
        cli_warn("Shrinking an image will delete all data beyond the shrunken image's end. Before "
                 "performing such an operation, make sure there is no important data there.");
        return 1;
    }
    if (block_co_truncate(disk->edge, size, prealloc, &err) < 0 ||
        cli_co_finish_disk(disk, &err) < 0) {
        return cli_report(&err);
    }
    if (!quiet) {
        printf("Image resized.\n");
    }
    return 0;
}

int img_resize_main(int argc, char **argv)
{
    struct cli_image image = {0};
    const char *prealloc_text = "off", *size_text = NULL;
    enum block_prealloc prealloc = BLOCK_PREALLOC_OFF;
    bool shrink = false, quiet = false;
    ERROR_AUTO(err);
    CLI_DISK_AUTO(disk);
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        IMG_ARG_FORMAT(image.format),
        {"preallocation", 0, CLI_VALUE, &prealloc_text, "MODE",
         "of what is added: off, metadata, falloc or full"},
        {"shrink", 0, CLI_FLAG, &shrink, NULL, "allow a smaller size: what lies beyond it is lost"},
        IMG_ARG_QUIET(quiet),
        IMG_ARG_IMAGE_OPTS(image.image_opts),
        IMG_ARG_OBJECT(objects),
        IMG_ARG_END,
    };
    int first;

    /* The last argument is the size: "-1G" is no option. */
    if (argc > 1 && argv[argc - 1][0] == '-' && argv[argc - 1][1] >= '0' &&
        argv[argc - 1][1] <= '9') {
        size_text = argv[--argc];
    }
    first = cli_args_parse(args, &usage, argc, argv);
    if (first < 0) {
        return first == CLI_ARGS_HELP ? 0 : 1;
    }
    if (!size_text && first < argc) {
        size_text = argv[--argc];
    }
    if (!size_text || first != argc - 1) {
        return cli_usage_fail(&usage, "Expecting image file name and size");
    }
    if (parse_prealloc(prealloc_text, &prealloc) || cli_add_objects(&objects)) {
        return 1;
    }
    image.name = argv[first];
    if (cli_co_open_disk(&image, BLOCK_OPEN_RDWR | BLOCK_OPEN_RESIZE_FILE, &disk, &err) < 0) {
        return cli_report(&err);
    }
    return co_resize(&disk, size_text, prealloc, shrink, quiet);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>

#include "base/checked.h"
#include "block/control.h"
#include "cli/img/command_line.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "resize",
    .synopsis = "FILENAME [+|-]SIZE",
    .about = "Changes the size of a disk: to SIZE, or with a sign by SIZE. Added space reads as "
             "zeroes. File\n"
             "systems and partition tables in the disk are not changed: shrink them first, grow "
             "them afterwards.",
    .examples = "@-f qcow2 disk.qcow2 +10G\n"
                "@--shrink -f qcow2 disk.qcow2 20G",
};

/* Whether the text is a size at all: what it is relative to is looked at later. */
static int check_size_text(const char *text, struct error *err)
{
    uint64_t value;

    if (cli_size(text + (*text == '+' || *text == '-'), &value) != -EINVAL) {
        return 0;
    }
    error_set(err, EINVAL, "Parameter 'size' expects a non-negative number below 2^64");
    error_hint(err, "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                    "and exabytes, respectively.");
    return -EINVAL;
}

/* The new size that "SIZE", "+SIZE" or "-SIZE" means. */
static int parse_new_size(const char *text, uint64_t current, uint64_t *ret_size, struct error *err)
{
    bool relative = *text == '+' || *text == '-';
    uint64_t value;
    int r = cli_parse_size(text + relative, "image size", 0, INT64_MAX, &value, err);

    if (r < 0) {
        return r;
    }
    if (*text == '-') {
        if (value >= current) {
            return error_set(err, EINVAL, "New image size must be positive");
        }
        value = current - value;
    } else if (*text == '+' && (add_overflows(current, value, &value) || value > INT64_MAX)) {
        return error_set(err, EINVAL, "New image size is larger than an image can be");
    }
    if (value == 0) {
        return error_set(err, EINVAL, "New image size must be positive");
    }
    *ret_size = value;
    return 0;
}

static int co_resize_image(struct cli_disk *disk, const char *size_text,
                           enum block_prealloc prealloc, bool shrink, struct error *err)
{
    uint64_t current = cli_disk_size(disk);
    uint64_t size = 0;
    int r = parse_new_size(size_text, current, &size, err);

    if (r < 0) {
        return r;
    }
    if (size <= current && prealloc != BLOCK_PREALLOC_OFF) {
        return error_set(err, EINVAL, "Preallocation can only be used for growing images");
    }
    if (size < current && !shrink) {
        error_set(err, EINVAL, "Use the --shrink option to perform a shrink operation.");
        error_hint(err,
                   "%s: warning: Shrinking an image will delete all data beyond the shrunken "
                   "image's end. Before performing such an operation, make sure there is no "
                   "important data there.",
                   cli_program());
        return -EINVAL;
    }
    r = block_co_truncate(disk->edge, size, prealloc, err);
    return r < 0 ? r : cli_co_finish_disk(disk, err);
}

int img_co_resize(int argc, char **argv, struct error *err)
{
    struct cli_image image = {0};
    const char *prealloc_text = "off", *size_text = NULL;
    enum block_prealloc prealloc = BLOCK_PREALLOC_OFF;
    bool shrink = false, quiet = false;
    int first, r;
    CLI_DISK_AUTO(disk);
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        CLI_ARG_FORMAT(image.format),
        {"preallocation", 0, CLI_VALUE, &prealloc_text, "MODE",
         "of added space: off, metadata, falloc or full"},
        {"shrink", 0, CLI_FLAG, &shrink, NULL,
         "allow a smaller size: data beyond the new end is lost"},
        CLI_ARG_QUIET(quiet),
        CLI_ARG_IMAGE_OPTS(image.image_opts),
        CLI_ARG_OBJECT(objects),
        CLI_ARG_END,
    };

    /* The last argument is the size: "-1G" is no option. */
    if (argc > 1 && argv[argc - 1][0] == '-' && argv[argc - 1][1] >= '0' &&
        argv[argc - 1][1] <= '9') {
        size_text = argv[--argc];
    }
    first = cli_args_parse(args, &usage, argc, argv);
    if (first < 0) {
        return first;
    }
    if (!size_text && first < argc) {
        size_text = argv[--argc];
    }
    if (!size_text || first != argc - 1) {
        return cli_usage_error(err, &usage, "Expecting image file name and size");
    }
    image.name = argv[first];
    r = cli_parse_prealloc(prealloc_text, &prealloc, err);
    UNLESS_FAILED(r, check_size_text(size_text, err));
    UNLESS_FAILED(r, cli_add_objects(&objects, err));
    UNLESS_FAILED(r,
                  cli_co_open_disk(&image, BLOCK_OPEN_RDWR | BLOCK_OPEN_RESIZE_FILE, &disk, err));
    UNLESS_FAILED(r, co_resize_image(&disk, size_text, prealloc, shrink, err));
    if (r == 0 && !quiet) {
        printf("Image resized.\n");
    }
    return r;
}

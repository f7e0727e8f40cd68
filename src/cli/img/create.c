/* SPDX-License-Identifier: Apache-2.0 */
#include <stdint.h>

#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "create",
    .synopsis = "FILENAME [SIZE]",
    .about = "Makes a new disk image; a file of that name is overwritten. With -b the new image is "
             "an overlay:\n"
             "it holds what is written to it, and reads the rest from the backing file. SIZE may "
             "then be\n"
             "left out and is that of the backing file.",
    .examples = "  create -f qcow2 disk.qcow2 20G\n"
                "  create -f qcow2 -o cluster_size=128k,lazy_refcounts=on disk.qcow2 1T\n"
                "  create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2\n"
                "  create -f qcow2 -o help",
};

int img_create_main(int argc, char **argv)
{
    struct cli_new_image image = {.format = "raw", .announce = true};
    CLI_ITEMS_AUTO(options);
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"format", 'f', CLI_VALUE, &image.format, "FMT", "format (default raw)"},
        {"options", 'o', CLI_REPEAT, &options, "OPTIONS",
         "creation options NAME=VALUE,...; 'help' lists them"},
        {"backing", 'b', CLI_VALUE, &image.backing_file, "FILE", "backing file"},
        {"backing-format", 'B', CLI_VALUE, &image.backing_format, "FMT",
         "format of the backing file (also -F)"},
        IMG_ARG_ALSO(NULL, 'F', CLI_VALUE, &image.backing_format),
        {"backing-unsafe", 'u', CLI_FLAG, &image.unsafe, NULL,
         "don't look whether the backing file is there"},
        IMG_ARG_QUIET(image.quiet),
        IMG_ARG_OBJECT(objects),
        IMG_ARG_END,
    };
    IMG_PARSE(first, args, &usage);

    if (cli_wants_option_help(&options)) {
        return cli_print_option_help(image.format, first < argc ? argv[first] : NULL);
    }
    if (first >= argc) {
        return cli_usage_fail(&usage, "Expecting image file name");
    }
    image.filename = argv[first++];
    image.option_texts = &options;
    if (first < argc) {
        image.size_text = argv[first++];
        image.has_size = true;
        if (cli_parse_size(image.size_text, "image size", 0, INT64_MAX, &image.size) < 0) {
            return 1;
        }
    }
    if (first < argc) {
        return cli_usage_fail(&usage, "Unexpected argument: %s", argv[first]);
    }
    if (cli_add_objects(&objects)) {
        return 1;
    }
    return cli_co_create(&image);
}

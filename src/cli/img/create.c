/* SPDX-License-Identifier: Apache-2.0 */
#include <stdint.h>

#include "cli/create.h"
#include "cli/creation_options.h"
#include "cli/img/command_line.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "create",
    .synopsis = "FILENAME [SIZE]",
    .about = "Makes a new disk image; an existing file is overwritten. With -b the new image is an "
             "overlay:\n"
             "it stores what is written to it, and reads the rest from the backing file. SIZE may "
             "then be\n"
             "left out; the default is that of the backing file.",
    .examples = "@-f qcow2 disk.qcow2 20G\n"
                "@-f qcow2 -o cluster_size=128k,lazy_refcounts=on disk.qcow2 1T\n"
                "@-f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2\n"
                "@-f qcow2 -o help",
};

int img_co_create(int argc, char **argv, struct error *err)
{
    struct cli_new_image image = {.format = "raw", .announce = true};
    int first, r;
    CLI_ITEMS_AUTO(options);
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"format", 'f', CLI_VALUE, &image.format, "FMT", "format (default raw)"},
        {"options", 'o', CLI_REPEAT, &options, "OPTIONS",
         "creation options NAME=VALUE,...; 'help' lists them"},
        {"backing", 'b', CLI_VALUE, &image.backing_file, "FILE", "backing file"},
        {"backing-format", 'B', CLI_VALUE, &image.backing_format, "FMT",
         "format of the backing file (also -F)"},
        CLI_ARG_ALIAS(NULL, 'F', CLI_VALUE, &image.backing_format),
        {"backing-unsafe", 'u', CLI_FLAG, &image.unsafe, NULL,
         "do not check that the backing file exists"},
        CLI_ARG_QUIET(image.quiet),
        CLI_ARG_OBJECT(objects),
        CLI_ARG_END,
    };

    first = cli_args_parse(args, &usage, argc, argv);
    if (first < 0) {
        return first;
    }
    if (cli_wants_option_help(&options)) {
        return cli_print_option_help(image.format, first < argc ? argv[first] : NULL, err);
    }
    if (first >= argc) {
        return cli_usage_error(err, &usage, "Expecting image file name");
    }
    image.filename = argv[first++];
    image.option_texts = &options;
    if (first < argc) {
        image.size_text = argv[first++];
        image.has_size = true;
        r = cli_parse_size(image.size_text, "image size", 0, INT64_MAX, &image.size, err);
        if (r < 0) {
            return r;
        }
    }
    if (first < argc) {
        return cli_usage_error(err, &usage, "Unexpected argument: %s", argv[first]);
    }
    r = cli_add_objects(&objects, err);
    return r < 0 ? r : cli_co_create(&image, err);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>

#include "block/control.h"
#include "cli/creation_options.h"
#include "cli/img/command_line.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "amend",
    .synopsis = "-o OPTIONS FILENAME",
    .about = "Changes options that an image was made with: for qcow2 the version (compat), the "
             "width of refcounts,\n"
             "lazy refcounts, the recorded backing file and data file, and the size.",
    .examples = "@-f qcow2 -o compat=1.1 old.qcow2\n"
                "@-f qcow2 -o lazy_refcounts=on disk.qcow2",
};

static void show_progress(void *arg, uint64_t done, uint64_t total)
{
    progress_set(arg, done, total);
}

/* Print the options that a format can amend. */
static int print_amend_help(const struct block_driver *driver, struct error *err)
{
    const struct block_option_desc *o = block_driver_amend_options(driver);

    if (!o) {
        return error_set(err, ENOTSUP, "Format driver '%s' does not support option amendment",
                         block_driver_name(driver));
    }
    printf("Amend options for '%s':\n", block_driver_name(driver));
    for (; o->name; o++) {
        cli_print_option_desc(o);
    }
    return 0;
}

static bool changes_recorded(const struct options *opts, const char *key, const char *recorded)
{
    return options_has(opts, key) && !options_is_text(opts, key, recorded ? recorded : "");
}

/* As qemu-img, refuse to record another backing file, which is left to its rebase. */
static int co_refuse_backing(struct block_node *node, const struct options *opts, struct error *err)
{
    struct block_info info;

    if (!cli_is_compat() || block_co_get_info(node, &info) < 0) {
        return 0;
    }
    if (changes_recorded(opts, "backing_file", info.backing_filename) ||
        changes_recorded(opts, "backing_fmt", info.backing_format)) {
        error_set(err, EINVAL, "Cannot amend the backing file");
        error_hint(err, "You can use 'qemu-img rebase' instead.");
        return -EINVAL;
    }
    return 0;
}

static int co_amend_image(struct cli_disk *disk, const struct cli_items *texts, bool force,
                          bool progress_wanted, struct error *err)
{
    struct progress progress;
    struct options *opts;
    int r = cli_creation_options(texts, &opts, err);

    if (r < 0) {
        return r;
    }
    img_progress_begin(&progress, progress_wanted, 1);
    r = co_refuse_backing(disk->node, opts, err);
    UNLESS_FAILED(r, block_co_amend(disk->node, opts, force, show_progress, &progress, err));
    progress_end(&progress, r == 0);
    options_free(opts);
    return r < 0 ? r : cli_co_finish_disk(disk, err);
}

int img_co_amend(int argc, char **argv, struct error *err)
{
    struct cli_image image = {.cache = "writeback"};
    bool progress = false, quiet = false, force = false;
    int first, r;
    CLI_DISK_AUTO(disk);
    CLI_ITEMS_AUTO(options);
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"options", 'o', CLI_REPEAT, &options, "OPTIONS",
         "options NAME=VALUE,...; 'help' lists them"},
        CLI_ARG_PROGRESS(progress),
        CLI_ARG_QUIET(quiet),
        CLI_ARG_FORMAT(image.format),
        {"cache", 't', CLI_VALUE, &image.cache, "CACHE", "cache mode of the image"},
        {"force", 0, CLI_FLAG, &force, NULL, "also what can destroy data: erasing the last key"},
        CLI_ARG_IMAGE_OPTS(image.image_opts),
        CLI_ARG_OBJECT(objects),
        CLI_ARG_END,
    };

    first = cli_args_parse(args, &usage, argc, argv);
    if (first < 0) {
        return first;
    }
    if (options.count == 0) {
        return cli_usage_error(err, &usage, "Must specify options (-o)");
    }
    if (cli_wants_option_help(&options) && image.format) {
        const struct block_driver *driver = block_find_driver(image.format);

        return driver ? print_amend_help(driver, err)
                      : error_set(err, ENOENT, "Unknown file format '%s'", image.format);
    }
    if (first != argc - 1) {
        return error_set(err, EINVAL, "Expecting one image file name");
    }
    image.name = argv[first];
    r = img_prepare(&image, "cache", &objects, err);
    UNLESS_FAILED(r,
                  cli_co_open_disk(&image, BLOCK_OPEN_RDWR | BLOCK_OPEN_RESIZE_FILE, &disk, err));
    if (r < 0) {
        return r;
    }
    if (cli_wants_option_help(&options)) {
        return print_amend_help(block_node_driver(disk.node), err);
    }
    return co_amend_image(&disk, &options, force, progress && !quiet, err);
}

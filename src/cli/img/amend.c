/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>

#include "block/control.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "amend",
    .synopsis = "-o OPTIONS FILENAME",
    .about = "Changes options that an image was made with: for qcow2 its version (compat), the "
             "width of refcounts,\n"
             "lazy refcounts, what is recorded of the backing file and the data file, the size.",
    .examples = "  amend -f qcow2 -o compat=1.1 old.qcow2\n"
                "  amend -f qcow2 -o lazy_refcounts=on disk.qcow2",
};

static void show_progress(void *arg, uint64_t done, uint64_t total)
{
    progress_set(arg, done, total);
}

/* The options that a format can amend. */
static int print_help(const struct block_driver *driver)
{
    const struct block_option_desc *o = block_driver_amend_options(driver);

    if (!o) {
        return cli_fail("Format driver '%s' does not support option amendment",
                        block_driver_name(driver));
    }
    printf("Amend options for '%s':\n", block_driver_name(driver));
    for (; o->name; o++) {
        char left[64];

        snprintf(left, sizeof(left), "%s=<%s>", o->name, o->type);
        printf("  %-22s - %s\n", left, o->help);
    }
    return 0;
}

static bool is_other(const struct options *opts, const char *key, const char *recorded)
{
    return options_has(opts, key) && !options_is_text(opts, key, recorded ? recorded : "");
}

/* qemu-img leaves another one to its rebase. */
static int refuse_backing(struct block_node *node, const struct options *opts, struct error *err)
{
    struct block_info info;

    if (!cli_is_compat() || block_co_get_info(node, &info) < 0) {
        return 0;
    }
    if (is_other(opts, "backing_file", info.backing_filename) ||
        is_other(opts, "backing_fmt", info.backing_format)) {
        error_set(err, EINVAL, "Cannot amend the backing file");
        error_hint(err, "You can use 'qemu-img rebase' instead.");
        return -EINVAL;
    }
    return 0;
}

static int co_amend(struct cli_disk *disk, const struct cli_items *texts, bool progress_wanted)
{
    struct progress progress;
    struct options *opts;
    ERROR_AUTO(err);
    int rc;

    if (cli_creation_options(texts, &opts) < 0) {
        return 1;
    }
    img_progress_begin(&progress, progress_wanted, 1);
    rc = refuse_backing(disk->node, opts, &err);
    UNLESS_FAILED(rc, block_co_amend(disk->node, opts, show_progress, &progress, &err));
    progress_end(&progress, rc == 0);
    options_free(opts);
    if (rc == 0) {
        rc = cli_co_finish_disk(disk, &err);
    }
    return rc < 0 ? cli_report(&err) : 0;
}

int img_amend_main(int argc, char **argv)
{
    struct cli_image image = {.cache = "writeback"};
    bool progress = false, quiet = false, force = false;
    ERROR_AUTO(err);
    CLI_DISK_AUTO(disk);
    CLI_ITEMS_AUTO(options);
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"options", 'o', CLI_REPEAT, &options, "OPTIONS",
         "options NAME=VALUE,...; 'help' lists them"},
        {"progress", 'p', CLI_FLAG, &progress, NULL, "show progress"},
        IMG_ARG_QUIET(quiet),
        IMG_ARG_FORMAT(image.format),
        {"cache", 't', CLI_VALUE, &image.cache, "CACHE", "cache mode of the image"},
        {"force", 0, CLI_FLAG, &force, NULL, "accepted: nothing here needs it"},
        IMG_ARG_IMAGE_OPTS(image.image_opts),
        IMG_ARG_OBJECT(objects),
        IMG_ARG_END,
    };
    IMG_PARSE(first, args, &usage);

    if (options.count == 0) {
        return cli_usage_fail(&usage, "Must specify options (-o)");
    }
    if (cli_wants_option_help(&options) && image.format) {
        const struct block_driver *driver = block_find_driver(image.format);

        return driver ? print_help(driver) : cli_fail("Unknown file format '%s'", image.format);
    }
    if (first != argc - 1) {
        return cli_usage_fail(&usage, "Expecting one image file name");
    }
    if (cli_check_cache_mode(image.cache, "cache") < 0 || cli_add_objects(&objects)) {
        return 1;
    }
    image.name = argv[first];
    if (cli_co_open_disk(&image, BLOCK_OPEN_RDWR | BLOCK_OPEN_RESIZE_FILE, &disk, &err) < 0) {
        return cli_report(&err);
    }
    if (cli_wants_option_help(&options)) {
        return print_help(block_node_driver(disk.node));
    }
    return co_amend(&disk, &options, progress && !quiet);
}

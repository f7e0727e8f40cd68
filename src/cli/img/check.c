/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "block/control.h"
#include "cli/img/command_line.h"
#include "cli/img/img.h"
#include "cli/json.h"

static const struct cli_usage usage = {
    .command = "check",
    .synopsis = "FILENAME",
    .about = "Looks for clusters that are lost (leaks) and for damage (corruptions) in an image's "
             "metadata.\n"
             "The exit status is 0 if there are none or all were repaired, 2 for corruptions, 3 "
             "for leaks\n"
             "only, 1 if the check could not be completed, 63 if the format has nothing to check.",
    .examples = "@disk.qcow2\n"
                "@-f qcow2 -r leaks disk.qcow2",
};

/* Exit statuses, as qemu-img has them. */
enum check_status {
    CHECK_OK = 0,
    CHECK_FAILED = 1,
    CHECK_CORRUPT = 2,
    CHECK_LEAKS = 3,
    CHECK_UNSUPPORTED = 63,
};

/* How the result is printed. */
struct check_form {
    bool json, quiet;
};

static void add_count(struct json_object *o, const char *key, uint64_t value, bool if_zero)
{
    if (value || if_zero) {
        json_object_object_add(o, key, json_object_new_uint64(value));
    }
}

static void print_check_json(const struct cli_disk *disk, const struct block_check_result *c)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "filename", json_object_new_string(disk->name));
    json_object_object_add(o, "format", json_object_new_string(block_node_format(disk->node)));
    add_count(o, "check-errors", c->check_errors, true);
    add_count(o, "image-end-offset", c->image_end_offset, false);
    add_count(o, "corruptions", c->corruptions, false);
    add_count(o, "leaks", c->leaks, false);
    add_count(o, "corruptions-fixed", c->corruptions_fixed, false);
    add_count(o, "leaks-fixed", c->leaks_fixed, false);
    if (c->total_clusters) {
        add_count(o, "total-clusters", c->total_clusters, true);
        add_count(o, "allocated-clusters", c->allocated_clusters, false);
        add_count(o, "fragmented-clusters", c->fragmented_clusters, false);
        add_count(o, "compressed-clusters", c->compressed_clusters, false);
    }
    cli_print_json(o);
    json_object_put(o);
}

static double percent(uint64_t part, uint64_t whole)
{
    return whole ? (double)part * 100 / (double)whole : 0;
}

static void print_check_text(const struct block_check_result *c)
{
    if (c->check_errors == 0 && c->corruptions == 0 && c->leaks == 0) {
        printf("No errors were found on the image.\n");
    }
    if (c->corruptions) {
        printf("\n%" PRIu64 " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may corrupt it.\n",
               c->corruptions);
    }
    if (c->leaks) {
        printf("\n%" PRIu64 " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               c->leaks);
    }
    if (c->check_errors) {
        printf("\n%" PRIu64 " internal errors have occurred during the check.\n", c->check_errors);
    }
    if (c->total_clusters && c->allocated_clusters) {
        printf("%" PRIu64 "/%" PRIu64 " = %0.2f%% allocated, %0.2f%% fragmented, %0.2f%% "
               "compressed clusters\n",
               c->allocated_clusters, c->total_clusters,
               percent(c->allocated_clusters, c->total_clusters),
               percent(c->fragmented_clusters, c->allocated_clusters),
               percent(c->compressed_clusters, c->allocated_clusters));
    }
    if (c->image_end_offset) {
        printf("Image end offset: %" PRIu64 "\n", c->image_end_offset);
    }
}

static void print_repaired(const struct block_check_result *c)
{
    printf("The following inconsistencies were found and repaired:\n\n"
           "    %" PRIu64 " leaked clusters\n"
           "    %" PRIu64 " corruptions\n\n"
           "Double checking the fixed image now...\n",
           c->leaks_fixed, c->corruptions_fixed);
}

static enum check_status status_of(const struct block_check_result *c)
{
    if (c->check_errors) {
        return CHECK_FAILED;
    }
    if (c->corruptions) {
        return CHECK_CORRUPT;
    }
    return c->leaks ? CHECK_LEAKS : CHECK_OK;
}

/* Check, repair, and check again what was repaired. Returns an exit status. */
static enum check_status co_check_image(struct cli_disk *disk, unsigned fix,
                                        const struct check_form *form, struct error *err)
{
    struct block_check_result c;
    int r = block_co_check(disk->node, fix, &c, err);

    if (r == -ENOTSUP) {
        return CHECK_UNSUPPORTED;
    }
    if (r == 0 && (c.corruptions_fixed || c.leaks_fixed)) {
        struct block_check_result again;

        if (!form->json && !form->quiet) {
            print_repaired(&c);
        }
        r = block_co_check(disk->node, 0, &again, err);
        again.corruptions_fixed = c.corruptions_fixed;
        again.leaks_fixed = c.leaks_fixed;
        c = again;
    }
    if (r < 0) {
        error_prepend(err, "Check failed: ");
        return CHECK_FAILED;
    }
    if (!form->quiet) {
        if (form->json) {
            print_check_json(disk, &c);
        } else {
            print_check_text(&c);
        }
    }
    return status_of(&c);
}

static int parse_repair(const char *text, unsigned *ret_fix, struct error *err)
{
    if (!text) {
        *ret_fix = 0;
    } else if (strcmp(text, "leaks") == 0) {
        *ret_fix = BLOCK_CHECK_FIX_LEAKS;
    } else if (strcmp(text, "all") == 0) {
        *ret_fix = BLOCK_CHECK_FIX_LEAKS | BLOCK_CHECK_FIX_ERRORS;
    } else {
        return cli_usage_error(err, &usage, "--repair (-r) expects 'leaks' or 'all' not '%s'",
                               text);
    }
    return 0;
}

int img_co_check(int argc, char **argv, struct error *err)
{
    struct cli_image image = {.cache = "writeback"};
    const char *output = NULL, *repair = NULL;
    struct check_form form = {0};
    unsigned fix = 0, flags = BLOCK_OPEN_CHECK | BLOCK_OPEN_NO_BACKING;
    enum check_status status;
    int r;
    CLI_DISK_AUTO(disk);
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        CLI_ARG_FORMAT(image.format),
        {"repair", 'r', CLI_VALUE, &repair, "WHAT", "repair 'leaks', or 'all'"},
        CLI_ARG_OUTPUT(output),
        CLI_ARG_QUIET(form.quiet),
        {"cache", 'T', CLI_VALUE, &image.cache, "CACHE", "cache mode of the image"},
        CLI_ARG_FORCE_SHARE(image.force_share),
        CLI_ARG_IMAGE_OPTS(image.image_opts),
        CLI_ARG_OBJECT(objects),
        CLI_ARG_END,
    };

    r = img_parse(args, &usage, argc, argv, &image, err);
    UNLESS_FAILED(r, parse_repair(repair, &fix, err));
    UNLESS_FAILED(r, img_parse_output(&usage, output, &form.json, err));
    UNLESS_FAILED(r, img_prepare(&image, "source cache", &objects, err));
    if (fix) {
        flags |= BLOCK_OPEN_RDWR | BLOCK_OPEN_RESIZE_FILE;
    }
    UNLESS_FAILED(r, cli_co_open_disk(&image, flags, &disk, err));
    if (r < 0) {
        return r;
    }
    status = co_check_image(&disk, fix, &form, err);
    if (fix && cli_co_finish_disk(&disk, err) < 0 && status == CHECK_OK) {
        status = CHECK_FAILED;
    }
    return (int)status;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "block/control.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "check",
    .synopsis = "FILENAME",
    .about = "Looks for clusters that are lost (leaks) and for damage (corruptions) in an image's "
             "metadata.\n"
             "The exit status is 0 if there are none or all were repaired, 2 for corruptions, 3 "
             "for leaks\n"
             "only, 1 if the check could not be completed, 63 if the format has nothing to check.",
    .examples = "  check disk.qcow2\n"
                "  check -f qcow2 -r leaks disk.qcow2",
};

enum check_status {
    CHECK_OK = 0,
    CHECK_FAILED = 1,
    CHECK_CORRUPT = 2,
    CHECK_LEAKS = 3,
    CHECK_UNSUPPORTED = 63,
};

static void add_number(struct json_object *o, const char *key, uint64_t value, bool if_zero)
{
    if (value || if_zero) {
        json_object_object_add(o, key, json_object_new_uint64(value));
    }
}

static void print_json(const struct cli_disk *disk, const char *filename,
                       const struct block_check_result *r)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "filename", json_object_new_string(filename));
    json_object_object_add(o, "format", json_object_new_string(block_node_format(disk->node)));
    add_number(o, "check-errors", r->check_errors, true);
    add_number(o, "image-end-offset", r->image_end_offset, false);
    add_number(o, "corruptions", r->corruptions, false);
    add_number(o, "leaks", r->leaks, false);
    add_number(o, "corruptions-fixed", r->corruptions_fixed, false);
    add_number(o, "leaks-fixed", r->leaks_fixed, false);
    if (r->total_clusters) {
        add_number(o, "total-clusters", r->total_clusters, true);
        add_number(o, "allocated-clusters", r->allocated_clusters, false);
        add_number(o, "fragmented-clusters", r->fragmented_clusters, false);
        add_number(o, "compressed-clusters", r->compressed_clusters, false);
    }
    cli_print_json(o);
    json_object_put(o);
}

static double percent(uint64_t part, uint64_t whole)
{
    return whole ? (double)part * 100 / (double)whole : 0;
}

static void print_human(const struct block_check_result *r)
{
    if (r->check_errors == 0 && r->corruptions == 0 && r->leaks == 0) {
        printf("No errors were found on the image.\n");
    }
    if (r->corruptions) {
        printf("\n%" PRIu64 " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may corrupt it.\n",
               r->corruptions);
    }
    if (r->leaks) {
        printf("\n%" PRIu64 " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               r->leaks);
    }
    if (r->check_errors) {
        printf("\n%" PRIu64 " internal errors have occurred during the check.\n", r->check_errors);
    }
    if (r->total_clusters && r->allocated_clusters) {
        printf("%" PRIu64 "/%" PRIu64 " = %0.2f%% allocated, %0.2f%% fragmented, %0.2f%% "
               "compressed clusters\n",
               r->allocated_clusters, r->total_clusters,
               percent(r->allocated_clusters, r->total_clusters),
               percent(r->fragmented_clusters, r->allocated_clusters),
               percent(r->compressed_clusters, r->allocated_clusters));
    }
    if (r->image_end_offset) {
        printf("Image end offset: %" PRIu64 "\n", r->image_end_offset);
    }
}

static void print_repaired(const struct block_check_result *r)
{
    printf("The following inconsistencies were found and repaired:\n\n"
           "    %" PRIu64 " leaked clusters\n"
           "    %" PRIu64 " corruptions\n\n"
           "Double checking the fixed image now...\n",
           r->leaks_fixed, r->corruptions_fixed);
}

static enum check_status status_of(const struct block_check_result *r)
{
    if (r->check_errors) {
        return CHECK_FAILED;
    }
    if (r->corruptions) {
        return CHECK_CORRUPT;
    }
    return r->leaks ? CHECK_LEAKS : CHECK_OK;
}

/* Check, repair and check again what was repaired. */
static enum check_status co_check(struct cli_disk *disk, const char *filename, unsigned fix,
                                  bool json, bool quiet)
{
    struct block_check_result r;
    ERROR_AUTO(err);
    int rc;

    rc = block_co_check(disk->node, fix, &r, &err);
    if (rc == -ENOTSUP) {
        cli_report(&err);
        return CHECK_UNSUPPORTED;
    }
    if (rc == 0 && (r.corruptions_fixed || r.leaks_fixed)) {
        struct block_check_result again;

        if (!json && !quiet) {
            print_repaired(&r);
        }
        rc = block_co_check(disk->node, 0, &again, &err);
        again.corruptions_fixed = r.corruptions_fixed;
        again.leaks_fixed = r.leaks_fixed;
        r = again;
    }
    if (rc < 0) {
        error_prepend(&err, "Check failed: ");
        cli_report(&err);
        return CHECK_FAILED;
    }
    if (!quiet) {
        if (json) {
            print_json(disk, filename, &r);
        } else {
            print_human(&r);
        }
    }
    return status_of(&r);
}

static int parse_repair(const char *text, unsigned *ret)
{
    if (!text) {
        *ret = 0;
    } else if (strcmp(text, "leaks") == 0) {
        *ret = BLOCK_CHECK_FIX_LEAKS;
    } else if (strcmp(text, "all") == 0) {
        *ret = BLOCK_CHECK_FIX_LEAKS | BLOCK_CHECK_FIX_ERRORS;
    } else {
        cli_usage_fail(&usage, "--repair (-r) expects 'leaks' or 'all' not '%s'", text);
        return -EINVAL;
    }
    return 0;
}

int img_check_main(int argc, char **argv)
{
    struct cli_image image = {.cache = "writeback"};
    const char *output = NULL, *repair = NULL;
    bool json, quiet = false;
    unsigned fix, flags = BLOCK_OPEN_CHECK | BLOCK_OPEN_NO_BACKING;
    enum check_status status;
    ERROR_AUTO(err);
    CLI_DISK_AUTO(disk);
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        IMG_ARG_FORMAT(image.format),
        {"repair", 'r', CLI_VALUE, &repair, "WHAT", "repair 'leaks', or 'all'"},
        IMG_ARG_OUTPUT(output),
        IMG_ARG_QUIET(quiet),
        {"cache", 'T', CLI_VALUE, &image.cache, "CACHE", "cache mode of the image"},
        IMG_ARG_SHARE(image.force_share),
        IMG_ARG_IMAGE_OPTS(image.image_opts),
        IMG_ARG_OBJECT(objects),
        IMG_ARG_END,
    };
    IMG_PARSE(first, args, &usage);

    if (first != argc - 1) {
        return cli_usage_fail(&usage, "Expecting one image file name");
    }
    if (parse_repair(repair, &fix) < 0 || cli_parse_output(output, &json) < 0 ||
        cli_check_cache_mode(image.cache, "source cache") < 0 || cli_add_objects(&objects)) {
        return CHECK_FAILED;
    }
    image.name = argv[first];
    if (fix) {
        flags |= BLOCK_OPEN_RDWR | BLOCK_OPEN_RESIZE_FILE;
    }
    if (cli_co_open_disk(&image, flags, &disk, &err) < 0) {
        cli_report(&err);
        return CHECK_FAILED;
    }
    status = co_check(&disk, argv[first], fix, json, quiet);
    if (fix && cli_co_finish_disk(&disk, &err) < 0) {
        cli_report(&err);
        return status == CHECK_OK ? CHECK_FAILED : status;
    }
    return (int)status;
}

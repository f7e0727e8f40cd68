/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/create.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "cli/creation_options.h"
#include "cli/image.h"

/*
 * The order in which qemu-img prints options, and the values it prints for those not given. Options
 * that are not listed come last.
 */
struct shown_option {
    const char *name;
    const char *qcow2_default;
};

static const struct shown_option shown_order[] = {
    {"encryption", NULL},
    {"encrypt.format", NULL},
    {"encrypt.key-secret", NULL},
    {"encrypt.cipher-alg", NULL},
    {"encrypt.cipher-mode", NULL},
    {"encrypt.ivgen-alg", NULL},
    {"encrypt.ivgen-hash-alg", NULL},
    {"encrypt.hash-alg", NULL},
    {"encrypt.iter-time", NULL},
    {"cluster_size", "65536"},
    {"extended_l2", "off"},
    {"preallocation", NULL},
    {"compression_type", "zlib"},
    {"size", NULL},
    {"compat", NULL},
    {"backing_file", NULL},
    {"backing_fmt", NULL},
    {"data_file", NULL},
    {"data_file_raw", NULL},
    {"lazy_refcounts", "off"},
    {"refcount_bits", "16"},
    {"key-secret", NULL},
    {"cipher-alg", NULL},
    {"cipher-mode", NULL},
    {"ivgen-alg", NULL},
    {"ivgen-hash-alg", NULL},
    {"hash-alg", NULL},
    {"iter-time", NULL},
    {"detached-header", NULL},
};

/* --- the Formatting line ---------------------------------------------------------------------- */

static bool is_in_shown_order(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(shown_order); i++) {
        if (strcmp(shown_order[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

/* Print an option as -o takes it: commas doubled. */
static void print_creation_option(const char *name, const char *value)
{
    printf(" %s=", name);
    for (; *value; value++) {
        printf(*value == ',' ? ",," : "%c", *value);
    }
}

static void print_formatting(const struct cli_new_image *image, const struct creation_options *set)
{
    bool is_qcow2 = strcmp(image->format, "qcow2") == 0;

    printf("Formatting '%s', fmt=%s", image->filename, image->format);
    for (size_t i = 0; i < ARRAY_SIZE(shown_order); i++) {
        const char *value = creation_options_get(set, shown_order[i].name);

        if (!value && is_qcow2) {
            value = shown_order[i].qcow2_default;
        }
        if (value) {
            print_creation_option(shown_order[i].name, value);
        }
    }
    for (size_t i = 0; i < set->count; i++) {
        if (!is_in_shown_order(set->entry[i].name)) {
            print_creation_option(set->entry[i].name, set->entry[i].value);
        }
    }
    printf("\n");
    fflush(stdout);
}

void cli_announce_creation(const char *format, const char *filename, uint64_t size,
                           const struct options *opts)
{
    const struct cli_new_image image = {.filename = filename, .format = format};
    struct json_object *json = options_to_json(opts);
    CREATION_OPTIONS_AUTO(set);
    char text[32];
    int r;

    snprintf(text, sizeof(text), "%" PRIu64, size);
    r = creation_options_set(&set, "size", text, NULL);
    json_object_object_foreach(json, key, value)
    {
        UNLESS_FAILED(r, creation_options_set(&set, key, json_object_get_string(value), NULL));
    }
    json_object_put(json);
    print_formatting(&image, &set);
}

/* --- the backing file ------------------------------------------------------------------------- */

/* A size that may not be known yet. */
struct image_size {
    bool known;
    uint64_t bytes;
};

/* Open the backing file as the new image will, and take its size if none was given. */
static int co_look_at_backing(const struct cli_new_image *image, const char *backing,
                              const char *format, struct image_size *size, struct error *err)
{
    AUTO_FREE char *path = block_resolve_relative(image->filename, backing);
    struct cli_image source = {.name = path, .format = format};
    CLI_DISK_AUTO(disk);
    int r;

    if (!path) {
        return error_out_of_memory(err);
    }
    r = cli_co_open_disk_plainly(&source, BLOCK_OPEN_NO_IO, &disk, err);
    if (r < 0) {
        error_hint(err, "Could not open backing image.");
        return r;
    }
    if (!format) {
        error_set(err, EINVAL, "Backing file specified without backing format");
        error_hint(err, "Detected format of %s.", block_driver_name(block_node_driver(disk.node)));
        return -EINVAL;
    }
    if (!size->known) {
        *size = (struct image_size){true, round_up(block_node_size(disk.node), 512)};
    }
    return 0;
}

static int co_check_backing(const struct cli_new_image *image, const struct creation_options *set,
                            struct image_size *size, struct error *err)
{
    const char *backing = creation_options_get(set, "backing_file");
    const char *format = creation_options_get(set, "backing_fmt");

    if (!backing) {
        return format ? error_set(err, EINVAL, "Backing format cannot be used without backing file")
                      : 0;
    }
    if (!*backing) {
        return error_set(err, EINVAL, "Expected backing file name, got empty string");
    }
    if (strcmp(backing, image->filename) == 0) {
        return error_set(err, EINVAL,
                         "Error: Trying to create an image with the same filename as the backing "
                         "file");
    }
    if (image->unsafe) {
        return format ? 0 : error_set(err, EINVAL, "Backing file specified without backing format");
    }
    return co_look_at_backing(image, backing, format, size, err);
}

/* --- putting it together ---------------------------------------------------------------------- */

/* Join the options of -o, -b and -F. */
static int gather_options(const struct cli_new_image *image, struct creation_options *set,
                          struct error *err)
{
    int r = creation_options_parse(set, image->option_texts, err);

    if (image->backing_file) {
        UNLESS_FAILED(r, creation_options_set(set, "backing_file", image->backing_file, err));
    }
    if (image->backing_format) {
        UNLESS_FAILED(r, creation_options_set(set, "backing_fmt", image->backing_format, err));
    }
    return r;
}

/* Take the size from the argument or from -o, of which only one may be given. */
static int choose_size(const struct cli_new_image *image, const struct creation_options *set,
                       struct image_size *ret_size, struct error *err)
{
    const char *by_option = creation_options_get(set, "size");

    *ret_size = (struct image_size){image->has_size, image->size};
    if (by_option) {
        if (image->size_text) {
            return error_set(err, EINVAL, "The image size must be specified only once");
        }
        ret_size->known = true;
        return size_parse(by_option, "size", &ret_size->bytes, err);
    }
    return 0;
}

/* A detached header of LUKS needs no size: the payload is elsewhere. */
static bool is_header_alone(const struct creation_options *set)
{
    const char *value = creation_options_get(set, "detached-header");

    return value && strcmp(value, "on") == 0;
}

/* Check all that can be known before, and complete the options by the size. */
static int co_plan_image(const struct cli_new_image *image, struct creation_options *set,
                         uint64_t *ret_size, struct error *err)
{
    const struct block_driver *driver;
    struct image_size size;
    char number[24];
    int r = cli_find_creatable(image->format, &driver, err);

    UNLESS_FAILED(r, creation_options_check(set, driver, image->filename, err));
    UNLESS_FAILED(r, choose_size(image, set, &size, err));
    UNLESS_FAILED(r, co_check_backing(image, set, &size, err));
    if (r < 0) {
        return r;
    }
    if (!size.known && !is_header_alone(set)) {
        return error_set(err, EINVAL, "Image creation needs a size parameter");
    }
    *ret_size = size.bytes;
    snprintf(number, sizeof(number), "%" PRIu64, size.bytes);
    return creation_options_set(set, "size", number, err);
}

static struct options *to_options(const struct creation_options *set)
{
    struct options *opts = options_new();

    for (size_t i = 0; opts && i < set->count; i++) {
        if (strcmp(set->entry[i].name, "size") != 0) {
            options_set_str(opts, set->entry[i].name, set->entry[i].value);
        }
    }
    return opts;
}

int cli_co_create(const struct cli_new_image *image, struct error *err)
{
    CREATION_OPTIONS_AUTO(set);
    uint64_t size = 0;
    int r = gather_options(image, &set, err);

    if (r < 0) {
        return r;
    }
    r = co_plan_image(image, &set, &size, err);
    if (r < 0) {
        if (!image->converts) {
            error_prepend(err, "%s: ", image->filename);
        }
        return r;
    }
    if (image->announce && !image->quiet) {
        print_formatting(image, &set);
    }
    r = block_co_create_image(image->format, image->filename, size, to_options(&set), err);
    if (r < 0) {
        if (image->converts) {
            error_prepend(err, "error while converting %s: ", image->format);
        }
        error_prepend(err, "%s: ", image->filename);
    }
    return r;
}

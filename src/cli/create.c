/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/create.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "cli/creation_options.h"
#include "cli/image.h"
#include "loop/loop.h"

/*
 * The order in which qemu-img prints options, and the values it prints for those not given. The
 * first row counts that is of any format (NULL) or of this one. Options that are not listed come
 * last.
 */
struct shown_option {
    const char *name;
    const char *format;
    const char *printed_default;
};

static const struct shown_option shown_order[] = {
    {"encryption", NULL, NULL},
    {"encrypt.format", NULL, NULL},
    {"encrypt.key-secret", NULL, NULL},
    {"encrypt.cipher-alg", NULL, NULL},
    {"encrypt.cipher-mode", NULL, NULL},
    {"encrypt.ivgen-alg", NULL, NULL},
    {"encrypt.ivgen-hash-alg", NULL, NULL},
    {"encrypt.hash-alg", NULL, NULL},
    {"encrypt.iter-time", NULL, NULL},
    {"cluster_size", "qcow2", "65536"},
    {"extended_l2", "qcow2", "off"},
    {"preallocation", "qcow2", NULL},
    {"compression_type", "qcow2", "zlib"},
    {"size", NULL, NULL},
    {"compat", NULL, NULL},
    {"adapter_type", NULL, NULL},
    {"backing_file", NULL, NULL},
    {"backing_fmt", NULL, NULL},
    {"cluster_size", "qed", "65536"},
    {"cluster_size", "parallels", "1048576"},
    {"table_size", NULL, NULL},
    {"data_file", NULL, NULL},
    {"data_file_raw", NULL, NULL},
    {"lazy_refcounts", "qcow2", "off"},
    {"refcount_bits", "qcow2", "16"},
    {"compat6", "vmdk", "off"},
    {"hwversion", "vmdk", "undefined"},
    {"toolsversion", NULL, NULL},
    {"log_size", "vhdx", "1048576"},
    {"block_size", "vhdx", "0"},
    {"static", "vdi", "off"},
    {"subformat", NULL, NULL},
    {"block_state_zero", NULL, NULL},
    {"force_size", NULL, NULL},
    {"zeroed_grain", NULL, NULL},
    {"key-secret", NULL, NULL},
    {"cipher-alg", NULL, NULL},
    {"cipher-mode", NULL, NULL},
    {"ivgen-alg", NULL, NULL},
    {"ivgen-hash-alg", NULL, NULL},
    {"hash-alg", NULL, NULL},
    {"iter-time", NULL, NULL},
    {"detached-header", NULL, NULL},
    {"nocow", NULL, NULL},
    {"preallocation", NULL, NULL},
    {"extent_size_hint", NULL, NULL},
};

/* --- the Formatting line ---------------------------------------------------------------------- */

/* The row of an option, NULL if there is none. */
static const struct shown_option *find_shown(const char *name, const char *format)
{
    for (size_t i = 0; i < ARRAY_SIZE(shown_order); i++) {
        const struct shown_option *o = &shown_order[i];

        if (strcmp(o->name, name) == 0 && (!o->format || strcmp(o->format, format) == 0)) {
            return o;
        }
    }
    return NULL;
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
    printf("Formatting '%s', fmt=%s", image->filename, image->format);
    for (size_t i = 0; i < ARRAY_SIZE(shown_order); i++) {
        const struct shown_option *o = &shown_order[i];
        const char *value = creation_options_get(set, o->name);

        if (find_shown(o->name, image->format) != o) {
            continue;
        }
        value = value ? value : o->printed_default;
        if (value) {
            print_creation_option(o->name, value);
        }
    }
    for (size_t i = 0; i < set->count; i++) {
        if (!find_shown(set->entry[i].name, image->format)) {
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

/* Names of files, owned. */
struct file_names {
    char **name;
    size_t count;
    bool failed; /* out of memory */
};

static void free_file_names(struct file_names *names)
{
    for (size_t i = 0; i < names->count; i++) {
        free(names->name[i]);
    }
    free(names->name);
}

static void note_file(struct block_node *node, void *arg)
{
    struct file_names *names = arg;
    const char *filename = block_node_filename(node);
    char **longer;

    if (!filename || !block_node_is_plain_file(node)) {
        return;
    }
    longer = realloc(names->name, (names->count + 1) * sizeof(*longer));
    names->name = longer ? longer : names->name;
    if (!longer || !(longer[names->count] = strdup(filename))) {
        names->failed = true;
        return;
    }
    names->count++;
}

/* stat() of a name that may have the prefix of a protocol; false: there is no such file. */
static bool co_stat_file(const char *name, struct stat *ret_stat)
{
    return loop_co_stat(name + (strncmp(name, "file:", 5) == 0 ? 5 : 0), ret_stat) == 0;
}

/*
 * What is made empties the file `name` (NULL: none). -EINVAL if that is one of the files that it
 * will show, by whatever name.
 */
static int co_refuse_shown_file(const char *name, const struct file_names *shown, struct error *err)
{
    struct stat target, st;

    if (!name || !co_stat_file(name, &target)) {
        return 0;
    }
    for (size_t i = 0; i < shown->count; i++) {
        if (co_stat_file(shown->name[i], &st) && st.st_dev == target.st_dev &&
            st.st_ino == target.st_ino) {
            return error_set(err, EINVAL,
                             "Error: '%s' is a file of the backing image ('%s'), which would be "
                             "lost",
                             name, shown->name[i]);
        }
    }
    return 0;
}

static int co_check_emptied(const struct cli_new_image *image, const struct creation_options *set,
                            const struct file_names *shown, struct error *err)
{
    int r = co_refuse_shown_file(image->filename, shown, err);

    return r < 0 ? r : co_refuse_shown_file(creation_options_get(set, "data_file"), shown, err);
}

/* No file of the chain at `backing` becomes the new image, or its data file. */
static int co_check_own_files(const struct cli_new_image *image, const struct creation_options *set,
                              struct block_node *backing, struct error *err)
{
    __attribute__((cleanup(free_file_names))) struct file_names shown = {0};

    block_node_foreach_below(backing, note_file, &shown);
    if (shown.failed) {
        return error_out_of_memory(err);
    }
    return co_check_emptied(image, set, &shown, err);
}

/* The same of the backing file alone, which is not opened and need not be there. */
static int co_check_backing_name(const struct cli_new_image *image,
                                 const struct creation_options *set, struct error *err)
{
    AUTO_FREE char *path =
        block_resolve_relative(image->filename, creation_options_get(set, "backing_file"));
    struct file_names shown = {.name = &path, .count = 1};

    return path ? co_check_emptied(image, set, &shown, err) : error_out_of_memory(err);
}

/* Open the backing file as the new image will, and take its size if none was given. */
static int co_look_at_backing(const struct cli_new_image *image, const struct creation_options *set,
                              struct image_size *size, struct error *err)
{
    const char *backing = creation_options_get(set, "backing_file");
    const char *format = creation_options_get(set, "backing_fmt");
    AUTO_FREE char *path = block_resolve_relative(image->filename, backing);
    /* Another program may write to the backing file meanwhile, as a guest does. */
    struct cli_image source = {.name = path, .format = format, .force_share = true};
    CLI_DISK_AUTO(disk);
    int r;

    if (!path) {
        return error_out_of_memory(err);
    }
    r = cli_co_open_disk_plainly(&source, BLOCK_OPEN_NO_IO, &disk, err);
    if (r < 0 && image->converts) {
        error_prepend(err, "Could not open '%s': Could not open backing file: ", image->filename);
        return r;
    }
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
    return co_check_own_files(image, set, disk.node, err);
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
        return format ? co_check_backing_name(image, set, err)
                      : error_set(err, EINVAL, "Backing file specified without backing format");
    }
    return co_look_at_backing(image, set, size, err);
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

    UNLESS_FAILED(r, block_check_scheme(image->filename, err));
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
    if (r == -EFBIG && image->announce && strcmp(image->format, "raw") == 0) {
        error_clear(err);
        error_set(err, EFBIG, "The image size is too large for file format 'raw'");
    }
    if (r < 0) {
        if (image->converts) {
            error_prepend(err, "error while converting %s: ", image->format);
        } else if (!image->announce) {
            error_prepend(err, "error while creating output image: ");
        }
        error_prepend(err, "%s: ", image->filename);
    }
    return r;
}

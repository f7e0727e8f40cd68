/* SPDX-License-Identifier: Apache-2.0 */
/* Making new images, for create and convert: creation options, the backing file, the "Formatting" line. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/control.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/image.h"

#define OPTIONS_MAX 64

struct option_value {
    char *name;
    char *value;
};

/* Creation options as given and completed; a later value replaces an earlier one. */
struct option_set {
    struct option_value entry[OPTIONS_MAX];
    size_t count;
};

/*
 * The order in which qemu-img prints options, and the values it prints for those not given. Options that are not
 * listed come last.
 */
struct shown_option {
    const char *name;
    const char *qcow2_default;
};

static const struct shown_option shown_order[] = {
    {"encryption", NULL},
    {"encrypt.format", NULL},
    {"encrypt.key-secret", NULL},
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
};

/* Tell what is wrong, beginning with the name of the image unless it is the target of a conversion. Returns 1. */
__attribute__((format(printf, 2, 3))) static int fail(const struct cli_new_image *image,
                                                      const char *fmt, ...)
{
    ERROR_AUTO(err);
    va_list ap;

    va_start(ap, fmt);
    error_vset(&err, EINVAL, fmt, ap);
    va_end(ap);
    if (!image->converts) {
        error_prepend(&err, "%s: ", image->filename);
    }
    return cli_report(&err);
}

static void option_set_clear(struct option_set *set)
{
    for (size_t i = 0; i < set->count; i++) {
        free(set->entry[i].name);
        free(set->entry[i].value);
    }
    set->count = 0;
}

static const char *get(const struct option_set *set, const char *name)
{
    for (size_t i = 0; i < set->count; i++) {
        if (strcmp(set->entry[i].name, name) == 0) {
            return set->entry[i].value;
        }
    }
    return NULL;
}

static int put(struct option_set *set, const char *name, const char *value)
{
    AUTO_FREE char *name_copy = strdup(name);
    AUTO_FREE char *value_copy = strdup(value);

    if (!name_copy || !value_copy) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < set->count; i++) {
        if (strcmp(set->entry[i].name, name) == 0) {
            free(set->entry[i].value);
            set->entry[i].value = TAKE_PTR(value_copy);
            return 0;
        }
    }
    if (set->count == OPTIONS_MAX) {
        return -E2BIG;
    }
    set->entry[set->count++] =
        (struct option_value){.name = TAKE_PTR(name_copy), .value = TAKE_PTR(value_copy)};
    return 0;
}

/* The next element of a list with ",," for a comma in it, unescaped; NULL at the end. The caller frees it. */
static char *next_element(const char **cursor)
{
    const char *p = *cursor;
    char *element, *out;

    if (!p) {
        return NULL;
    }
    element = out = calloc(strlen(p) + 1, 1);
    if (!element) {
        return NULL;
    }
    while (*p && (*p != ',' || p[1] == ',')) {
        p += *p == ',' ? 1 : 0;
        *out++ = *p++;
    }
    *out = '\0';
    *cursor = *p == ',' ? p + 1 : NULL;
    return element;
}

/* A list may not begin with a comma, which no name has, nor end with a single one. */
static bool is_valid_list(const char *text)
{
    size_t len = strlen(text);
    size_t trailing = 0;

    while (trailing < len && text[len - 1 - trailing] == ',') {
        trailing++;
    }
    return len > 0 && text[0] != ',' && trailing % 2 == 0;
}

static int parse_text(struct option_set *set, const char *text)
{
    const char *cursor = text;

    if (!is_valid_list(text)) {
        cli_fail("Invalid option list: %s", text);
        return -EINVAL;
    }
    while (cursor) {
        AUTO_FREE char *element = next_element(&cursor);
        char *equals = element ? strchr(element, '=') : NULL;
        int rc;

        if (!element) {
            return -ENOMEM;
        }
        if (equals) {
            *equals = '\0';
        }
        rc = put(set, element, equals ? equals + 1 : "on");
        if (rc < 0) {
            cli_fail("Option list: %s", rc == -E2BIG ? "too many options" : "out of memory");
            return rc;
        }
    }
    return 0;
}

bool cli_wants_option_help(const struct cli_items *texts)
{
    for (size_t i = 0; i < texts->count; i++) {
        if (!is_valid_list(texts->item[i].value)) {
            return false; /* an error, which is told where the options are taken */
        }
    }
    for (size_t i = 0; i < texts->count; i++) {
        const char *cursor = texts->item[i].value;

        while (cursor) {
            AUTO_FREE char *element = next_element(&cursor);

            if (!element) {
                return false;
            }
            if (strcmp(element, "help") == 0 || strcmp(element, "?") == 0) {
                return true;
            }
        }
    }
    return false;
}

int cli_creation_options(const struct cli_items *texts, struct options **ret)
{
    __attribute__((cleanup(option_set_clear))) struct option_set set = {.count = 0};

    for (size_t i = 0; i < texts->count; i++) {
        int rc = parse_text(&set, texts->item[i].value);

        if (rc < 0) {
            return rc;
        }
    }
    *ret = options_new();
    for (size_t i = 0; *ret && i < set.count; i++) {
        options_set_str(*ret, set.entry[i].name, set.entry[i].value);
    }
    return *ret ? 0 : -ENOMEM;
}

int cli_creation_option(const struct cli_items *texts, const char *name, char **ret)
{
    __attribute__((cleanup(option_set_clear))) struct option_set set = {.count = 0};
    const char *value;

    *ret = NULL;
    for (size_t i = 0; i < texts->count; i++) {
        int rc = parse_text(&set, texts->item[i].value);

        if (rc < 0) {
            return rc;
        }
    }
    value = get(&set, name);
    if (value) {
        *ret = strdup(value);
        return *ret ? 0 : -ENOMEM;
    }
    return 0;
}

/* --- descriptions ---------------------------------------------------------------------------------- */

struct desc_list {
    const struct block_option_desc *desc[OPTIONS_MAX];
    size_t count;
};

/* In the order of the names. There is room. */
static void add_desc(struct desc_list *list, const struct block_option_desc *desc)
{
    size_t at = list->count++;

    while (at > 0 && strcmp(list->desc[at - 1]->name, desc->name) > 0) {
        list->desc[at] = list->desc[at - 1];
        at--;
    }
    list->desc[at] = desc;
}

static void add_descs(struct desc_list *list, const struct block_option_desc *descs)
{
    for (; descs && descs->name && list->count < OPTIONS_MAX; descs++) {
        bool known = false;

        for (size_t i = 0; i < list->count; i++) {
            known = known || strcmp(list->desc[i]->name, descs->name) == 0;
        }
        if (!known) {
            add_desc(list, descs);
        }
    }
}

static const struct block_driver *protocol_of(const char *filename)
{
    const struct block_driver *driver = block_driver_of_filename(filename);

    return driver ?: block_find_driver("file");
}

static void collect_descs(struct desc_list *list, const struct block_driver *format,
                          const char *filename)
{
    static const struct block_option_desc size = {"size", "size", "Virtual disk size"};
    const struct block_driver *protocol = filename ? protocol_of(filename) : NULL;

    add_descs(list, block_driver_create_options(format));
    if (protocol) {
        add_descs(list, block_driver_create_options(protocol));
    }
    for (size_t i = 0; i < list->count; i++) {
        if (strcmp(list->desc[i]->name, "size") == 0) {
            return;
        }
    }
    if (list->count < OPTIONS_MAX) {
        add_desc(list, &size);
    }
}

static const struct block_option_desc *find_desc(const struct desc_list *list, const char *name)
{
    for (size_t i = 0; i < list->count; i++) {
        if (strcmp(list->desc[i]->name, name) == 0) {
            return list->desc[i];
        }
    }
    return NULL;
}

int cli_check_creation_options(const char *format, const struct cli_items *texts)
{
    __attribute__((cleanup(option_set_clear))) struct option_set set = {.count = 0};
    const struct block_driver *driver = block_find_driver(format);
    struct desc_list list = {.count = 0};

    for (size_t i = 0; i < texts->count; i++) {
        if (parse_text(&set, texts->item[i].value) < 0) {
            return 1;
        }
    }
    if (driver) {
        collect_descs(&list, driver, NULL);
    }
    for (size_t i = 0; driver && i < set.count; i++) {
        if (!find_desc(&list, set.entry[i].name)) {
            cli_fail("Invalid parameter '%s'", set.entry[i].name);
            return cli_fail("Invalid options for file format '%s'", format);
        }
    }
    return 0;
}

/* What is wrong with a format that can't be made; QEMU only reads the first three, too. */
static const char *why_not_creatable(const struct block_driver *driver)
{
    static const char *const read_only[] = {"bochs", "cloop", "dmg"};
    bool foreign = block_driver_traits(driver) & BLOCK_DRIVER_FORMAT;

    for (size_t i = 0; i < ARRAY_SIZE(read_only); i++) {
        foreign = foreign && strcmp(block_driver_name(driver), read_only[i]) != 0;
    }
    return foreign ? "The format '%s' is not supported: choose raw or qcow2"
                   : "Format driver '%s' does not support image creation";
}

static const struct block_driver *find_creatable(const struct cli_new_image *image)
{
    const struct block_driver *driver = block_find_driver(image->format);

    if (!driver) {
        fail(image, "Unknown file format '%s'", image->format);
    } else if (!(block_driver_traits(driver) & BLOCK_DRIVER_CREATES)) {
        fail(image, why_not_creatable(driver), image->format);
        driver = NULL;
    }
    return driver;
}

int cli_print_option_help(const char *format, const char *filename)
{
    const struct block_driver *driver = block_find_driver(format);
    struct desc_list list = {.count = 0};

    if (!driver) {
        return cli_fail("Unknown file format '%s'", format);
    }
    if (!(block_driver_traits(driver) & BLOCK_DRIVER_CREATES)) {
        return cli_fail(why_not_creatable(driver), format);
    }
    collect_descs(&list, driver, filename);
    if (filename) {
        printf("Supported options:\n");
    } else {
        printf("Supported %s options:\n", format);
    }
    for (size_t i = 0; i < list.count; i++) {
        char left[64];

        snprintf(left, sizeof(left), "%s=<%s>", list.desc[i]->name, list.desc[i]->type);
        printf("  %-22s - %s\n", left, list.desc[i]->help);
    }
    if (!filename) {
        printf("\nThe protocol level may support further options.\n"
               "Specify the target filename to include those options.\n");
    }
    return 0;
}

/* --- values ------------------------------------------------------------------------------------------ */

static int bad_size(const struct cli_new_image *image, const char *name, const char *value)
{
    if (value[0] == '-' && value[1] && value[1 + strspn(value + 1, "0123456789")] == '\0') {
        return fail(image, "Value '%s' is out of range for parameter '%s'", value, name);
    }
    fail(image, "Parameter '%s' expects a non-negative number below 2^64", name);
    fprintf(stderr, "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                    "and exabytes, respectively.\n");
    return 1;
}

/* "on" or "off" for any of the words for them; NULL for others. */
static const char *bool_word(const char *value)
{
    static const char *const words[][4] = {{"on", "yes", "true", "y"}, {"off", "no", "false", "n"}};

    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        for (size_t j = 0; j < ARRAY_SIZE(words[i]); j++) {
            if (strcmp(value, words[i][j]) == 0) {
                return words[i][0];
            }
        }
    }
    return NULL;
}

/* In decimal; owned by the caller. NULL: out of memory. */
static char *number_text(uint64_t number)
{
    char *text;

    return asprintf(&text, "%" PRIu64, number) < 0 ? NULL : text;
}

/* Check a value by its type and bring it to the form that is printed. Returns 0 or 1 (told). */
static int normalise(const struct cli_new_image *image, const struct block_option_desc *desc,
                     struct option_value *o)
{
    uint64_t number;
    char *text = NULL;
    char *end;

    if (strcmp(desc->type, "size") == 0) {
        if (cli_size(o->value, &number) < 0) {
            return bad_size(image, o->name, o->value);
        }
        text = number_text(number);
    } else if (strcmp(desc->type, "num") == 0) {
        errno = 0;
        number = strtoull(o->value, &end, 0);
        if (errno || end == o->value || *end) {
            return fail(image, "Parameter '%s' expects a number", o->name);
        }
        text = number_text(number);
    } else if (strncmp(desc->type, "bool", 4) == 0) {
        const char *word = bool_word(o->value);

        if (!word) {
            return fail(image, "Parameter '%s' expects 'on' or 'off'", o->name);
        }
        text = strdup(word);
    } else {
        return 0;
    }
    if (!text) {
        return cli_fail("Out of memory");
    }
    free(o->value);
    o->value = text;
    return 0;
}

static int check_options(struct option_set *set, const struct block_driver *driver,
                         const struct cli_new_image *image)
{
    struct desc_list list = {.count = 0};

    collect_descs(&list, driver, image->filename);
    for (size_t i = 0; i < set->count; i++) {
        const struct block_option_desc *desc = find_desc(&list, set->entry[i].name);

        if (!desc && strcmp(block_driver_name(driver), "qcow2") == 0 &&
            strncmp(set->entry[i].name, "encrypt.", 8) == 0) {
            return fail(image,
                        "Option '%s' is for LUKS, with which images can't be encrypted: encrypt in "
                        "the guest, or below the image (dm-crypt)",
                        set->entry[i].name);
        }
        if (!desc && strcmp(set->entry[i].name, "backing_file") == 0) {
            return fail(image, "Backing file not supported for file format '%s'",
                        block_driver_name(driver));
        }
        if (!desc) {
            return fail(image, "Invalid parameter '%s'", set->entry[i].name);
        }
        if (normalise(image, desc, &set->entry[i])) {
            return 1;
        }
    }
    return 0;
}

/* --- the Formatting line ------------------------------------------------------------------------------ */

static bool is_in_shown_order(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(shown_order); i++) {
        if (strcmp(shown_order[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

/* As it would be given with -o: commas doubled. */
static void print_value(const char *name, const char *value)
{
    printf(" %s=", name);
    for (; *value; value++) {
        printf(*value == ',' ? ",," : "%c", *value);
    }
}

static void announce(const struct cli_new_image *image, const struct option_set *set)
{
    bool is_qcow2 = strcmp(image->format, "qcow2") == 0;

    printf("Formatting '%s', fmt=%s", image->filename, image->format);
    for (size_t i = 0; i < ARRAY_SIZE(shown_order); i++) {
        const char *value = get(set, shown_order[i].name);

        if (!value && is_qcow2) {
            value = shown_order[i].qcow2_default;
        }
        if (value) {
            print_value(shown_order[i].name, value);
        }
    }
    for (size_t i = 0; i < set->count; i++) {
        if (!is_in_shown_order(set->entry[i].name)) {
            print_value(set->entry[i].name, set->entry[i].value);
        }
    }
    printf("\n");
    fflush(stdout);
}

/* --- the backing file -------------------------------------------------------------------------------- */

/* Open it as the new image will, see that it is there, and take its size if none was given. */
static int co_look_at_backing(const struct cli_new_image *image, const char *backing,
                              const char *format, uint64_t *size, bool *has_size)
{
    AUTO_FREE char *path = block_resolve_relative(image->filename, backing);
    struct cli_image source = {.name = path, .format = format};
    ERROR_AUTO(err);
    CLI_DISK_AUTO(disk);

    if (!path) {
        return cli_fail("Out of memory");
    }
    if (cli_co_open_disk_plainly(&source, BLOCK_OPEN_NO_IO, &disk, &err) < 0) {
        fail(image, "%s", error_message(&err));
        fprintf(stderr, "Could not open backing image.\n");
        return 1;
    }
    if (!format) {
        fail(image, "Backing file specified without backing format");
        fprintf(stderr, "Detected format of %s.\n",
                block_driver_name(block_node_driver(disk.node)));
        return 1;
    }
    if (!*has_size) {
        *size = round_up(block_node_size(disk.node), 512);
        *has_size = true;
    }
    return 0;
}

static int co_check_backing(const struct cli_new_image *image, const struct option_set *set,
                            uint64_t *size, bool *has_size)
{
    const char *backing = get(set, "backing_file");
    const char *format = get(set, "backing_fmt");

    if (!backing) {
        return format ? fail(image, "Backing format cannot be used without backing file") : 0;
    }
    if (!*backing) {
        return fail(image, "Expected backing file name, got empty string");
    }
    if (strcmp(backing, image->filename) == 0) {
        return fail(image, "Error: Trying to create an image with the same filename as the "
                           "backing file");
    }
    if (image->unsafe) {
        return format ? 0 : fail(image, "Backing file specified without backing format");
    }
    return co_look_at_backing(image, backing, format, size, has_size);
}

/* --- putting it together --------------------------------------------------------------------------------- */

/* Options of -o, -b and -F in one set. Returns 0 or 1 (told). */
static int gather(const struct cli_new_image *image, struct option_set *set)
{
    for (size_t i = 0; image->option_texts && i < image->option_texts->count; i++) {
        if (parse_text(set, image->option_texts->item[i].value) < 0) {
            return 1;
        }
    }
    if (image->backing_file && put(set, "backing_file", image->backing_file) < 0) {
        return cli_fail("Out of memory");
    }
    if (image->backing_format && put(set, "backing_fmt", image->backing_format) < 0) {
        return cli_fail("Out of memory");
    }
    return 0;
}

/* The size, from the argument or from -o; whichever is given alone. Returns 0 or 1 (told). */
static int choose_size(const struct cli_new_image *image, const struct option_set *set,
                       uint64_t *size, bool *has_size)
{
    const char *by_option = get(set, "size");

    *size = image->size;
    *has_size = image->has_size;
    if (by_option) {
        if (image->size_text) {
            return fail(image, "The image size must be specified only once");
        }
        *has_size = true;
        return cli_size(by_option, size) < 0;
    }
    return 0;
}

static struct options *to_options(const struct option_set *set)
{
    struct options *opts = options_new();

    for (size_t i = 0; opts && i < set->count; i++) {
        if (strcmp(set->entry[i].name, "size") != 0) {
            options_set_str(opts, set->entry[i].name, set->entry[i].value);
        }
    }
    return opts;
}

int cli_co_create(const struct cli_new_image *image)
{
    const struct block_driver *driver = find_creatable(image);
    __attribute__((cleanup(option_set_clear))) struct option_set set = {.count = 0};
    ERROR_AUTO(err);
    char number[24];
    uint64_t size;
    bool has_size;

    if (!driver || gather(image, &set) || check_options(&set, driver, image) ||
        choose_size(image, &set, &size, &has_size) ||
        co_check_backing(image, &set, &size, &has_size)) {
        return 1;
    }
    if (!has_size) {
        return fail(image, "Image creation needs a size parameter");
    }
    snprintf(number, sizeof(number), "%" PRIu64, size);
    if (put(&set, "size", number) < 0) {
        return cli_fail("Out of memory");
    }
    if (image->announce && !image->quiet) {
        announce(image, &set);
    }
    if (block_co_create_image(image->format, image->filename, size, to_options(&set), &err) < 0) {
        if (image->converts) {
            error_prepend(&err, "error while converting %s: ", image->format);
        }
        error_prepend(&err, "%s: ", image->filename);
        return cli_report(&err);
    }
    return 0;
}

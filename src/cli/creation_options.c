/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/creation_options.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli/cli.h"

void creation_options_clear(struct creation_options *o)
{
    for (size_t i = 0; i < o->count; i++) {
        free(o->entry[i].name);
        free(o->entry[i].value);
    }
    o->count = 0;
}

static struct creation_option *find_creation_option(struct creation_options *o, const char *name)
{
    for (size_t i = 0; i < o->count; i++) {
        if (strcmp(o->entry[i].name, name) == 0) {
            return &o->entry[i];
        }
    }
    return NULL;
}

const char *creation_options_get(const struct creation_options *o, const char *name)
{
    for (size_t i = 0; i < o->count; i++) {
        if (strcmp(o->entry[i].name, name) == 0) {
            return o->entry[i].value;
        }
    }
    return NULL;
}

int creation_options_set(struct creation_options *o, const char *name, const char *value,
                         struct error *err)
{
    AUTO_FREE char *name_copy = strdup(name);
    AUTO_FREE char *value_copy = strdup(value);
    struct creation_option *known = find_creation_option(o, name);

    if (!name_copy || !value_copy) {
        return error_out_of_memory(err);
    }
    if (known) {
        free(known->value);
        known->value = TAKE_PTR(value_copy);
        return 0;
    }
    if (o->count == CREATION_OPTIONS_MAX) {
        return error_set(err, E2BIG, "Option list: too many options");
    }
    o->entry[o->count++] =
        (struct creation_option){.name = TAKE_PTR(name_copy), .value = TAKE_PTR(value_copy)};
    return 0;
}

/* --- parsing ---------------------------------------------------------------------------------- */

/*
 * The next element of a list, with ",," as a comma. The caller frees it. NULL at the end, or out of
 * memory.
 */
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

/* A list must not begin with a comma, since no name does, nor end with a single one. */
static bool is_valid_list(const char *text)
{
    size_t len = strlen(text);
    size_t trailing = 0;

    while (trailing < len && text[len - 1 - trailing] == ',') {
        trailing++;
    }
    return len > 0 && text[0] != ',' && trailing % 2 == 0;
}

static int parse_list(struct creation_options *o, const char *text, struct error *err)
{
    const char *cursor = text;

    if (!is_valid_list(text)) {
        return error_set(err, EINVAL, "Invalid option list: %s", text);
    }
    while (cursor) {
        AUTO_FREE char *element = next_element(&cursor);
        char *equals = element ? strchr(element, '=') : NULL;
        bool negated;
        int r;

        if (!element) {
            return error_out_of_memory(err);
        }
        if (equals) {
            *equals = '\0';
        }
        negated = !equals && strncmp(element, "no", 2) == 0;
        r = creation_options_set(o, element + (negated ? 2 : 0),
                                 equals    ? equals + 1
                                 : negated ? "off"
                                           : "on",
                                 err);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

int creation_options_parse(struct creation_options *o, const struct cli_items *texts,
                           struct error *err)
{
    for (size_t i = 0; texts && i < texts->count; i++) {
        int r = parse_list(o, texts->item[i].value, err);

        if (r < 0) {
            return r;
        }
    }
    return 0;
}

bool cli_wants_option_help(const struct cli_items *texts)
{
    for (size_t i = 0; i < texts->count; i++) {
        if (!is_valid_list(texts->item[i].value)) {
            return false;
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

int cli_creation_options(const struct cli_items *texts, struct options **ret_options,
                         struct error *err)
{
    CREATION_OPTIONS_AUTO(parsed);
    int r = creation_options_parse(&parsed, texts, err);
    struct options *opts;

    if (r < 0) {
        return r;
    }
    opts = options_new();
    if (!opts) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i < parsed.count; i++) {
        options_set_str(opts, parsed.entry[i].name, parsed.entry[i].value);
    }
    *ret_options = opts;
    return 0;
}

int cli_creation_option(const struct cli_items *texts, const char *name, char **ret_value,
                        struct error *err)
{
    CREATION_OPTIONS_AUTO(parsed);
    int r = creation_options_parse(&parsed, texts, err);
    const char *value;

    *ret_value = NULL;
    if (r < 0) {
        return r;
    }
    value = creation_options_get(&parsed, name);
    if (value) {
        *ret_value = strdup(value);
        return *ret_value ? 0 : error_out_of_memory(err);
    }
    return 0;
}

/* --- descriptions ----------------------------------------------------------------------------- */

struct desc_list {
    const struct block_option_desc *desc[CREATION_OPTIONS_MAX];
    size_t count;
};

/* Insert in the order of names. There is room. */
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
    for (; descs && descs->name && list->count < CREATION_OPTIONS_MAX; descs++) {
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

    /* raw has what its file has, so nothing of its own without one. */
    if (filename || strcmp(block_driver_name(format), "raw") != 0) {
        add_descs(list, block_driver_create_options(format));
    }
    if (protocol) {
        add_descs(list, block_driver_create_options(protocol));
    }
    for (size_t i = 0; i < list->count; i++) {
        if (strcmp(list->desc[i]->name, "size") == 0) {
            return;
        }
    }
    if (list->count < CREATION_OPTIONS_MAX) {
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

int cli_check_creation_options(const char *format, const struct cli_items *texts, struct error *err)
{
    CREATION_OPTIONS_AUTO(parsed);
    const struct block_driver *driver = block_find_driver(format);
    struct desc_list list = {.count = 0};
    int r = creation_options_parse(&parsed, texts, err);

    if (r < 0 || !driver) {
        return r;
    }
    collect_descs(&list, driver, ""); /* those of a file, too */
    for (size_t i = 0; i < parsed.count; i++) {
        if (!find_desc(&list, parsed.entry[i].name)) {
            error_set(err, EINVAL, "Invalid parameter '%s'", parsed.entry[i].name);
            error_hint(err, "%s: Invalid options for file format '%s'", cli_program(), format);
            return -EINVAL;
        }
    }
    return 0;
}

/*
 * The sentence about a format that cannot be created, for one '%s'. QEMU, too, only reads those
 * listed.
 */
static const char *why_not_creatable(const struct block_driver *driver)
{
    static const char *const read_only[] = {"bochs", "cloop", "dmg"};
    bool foreign = block_driver_traits(driver) & BLOCK_DRIVER_FORMAT;

    for (size_t i = 0; i < ARRAY_SIZE(read_only); i++) {
        foreign = foreign && strcmp(block_driver_name(driver), read_only[i]) != 0;
    }
    return foreign ? "The format '%s' is not supported: choose one that 'img --help' lists"
                   : "Format driver '%s' does not support image creation";
}

int cli_find_creatable(const char *format, const struct block_driver **ret_driver,
                       struct error *err)
{
    const struct block_driver *driver = block_find_driver(format);

    if (!driver) {
        return error_set(err, ENOENT, "Unknown file format '%s'", format);
    }
    if (!(block_driver_traits(driver) & BLOCK_DRIVER_CREATES)) {
        return error_set(err, ENOTSUP, why_not_creatable(driver), format);
    }
    *ret_driver = driver;
    return 0;
}

int cli_print_option_help(const char *format, const char *filename, struct error *err)
{
    const struct block_driver *driver;
    struct desc_list list = {.count = 0};
    int r = cli_find_creatable(format, &driver, err);

    if (r < 0) {
        return r;
    }
    collect_descs(&list, driver, filename);
    if (filename) {
        printf("Supported options:\n");
    } else {
        printf("Supported %s options:\n", format);
    }
    for (size_t i = 0; i < list.count; i++) {
        cli_print_option_desc(list.desc[i]);
    }
    if (!filename) {
        printf("\nThe protocol level may support further options.\n"
               "Specify the target filename to include those options.\n");
    }
    return 0;
}

void cli_print_option_desc(const struct block_option_desc *desc)
{
    char left[64];

    snprintf(left, sizeof(left), "%s=<%s>", desc->name, desc->type);
    printf("  %-22s - %s\n", left, desc->help);
}

/* --- values ----------------------------------------------------------------------------------- */

static int bad_size(const char *name, const char *value, struct error *err)
{
    if (value[0] == '-' && value[1] && value[1 + strspn(value + 1, "0123456789")] == '\0') {
        return error_set(err, EINVAL, "Value '%s' is out of range for parameter '%s'", value, name);
    }
    error_set(err, EINVAL, "Parameter '%s' expects a non-negative number below 2^64", name);
    error_hint(err, "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                    "and exabytes, respectively.");
    return -EINVAL;
}

/* "on" or "off" for any word that means it; NULL for other words. */
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

/* `number` in decimal. The caller frees it. NULL: out of memory. */
static char *number_text(uint64_t number)
{
    char *text;

    return asprintf(&text, "%" PRIu64, number) < 0 ? NULL : text;
}

/* Check a value by its type, and bring it into the form in which it is printed. */
static int normalise_value(const struct block_option_desc *desc, struct creation_option *o,
                           struct error *err)
{
    uint64_t number;
    char *text = NULL;
    char *end;

    if (strcmp(desc->type, "size") == 0) {
        if (cli_size(o->value, &number) < 0) {
            return bad_size(o->name, o->value, err);
        }
        text = number_text(number);
    } else if (strcmp(desc->type, "num") == 0) {
        errno = 0;
        number = strtoull(o->value, &end, 0);
        if (errno || end == o->value || *end) {
            return error_set(err, EINVAL, "Parameter '%s' expects a number", o->name);
        }
        text = number_text(number);
    } else if (strncmp(desc->type, "bool", 4) == 0) {
        const char *word = bool_word(o->value);

        if (!word) {
            return error_set(err, EINVAL, "Parameter '%s' expects 'on' or 'off'", o->name);
        }
        text = strdup(word);
    } else {
        return 0;
    }
    if (!text) {
        return error_out_of_memory(err);
    }
    free(o->value);
    o->value = text;
    return 0;
}

static int unknown_option(const struct block_driver *driver, const char *name, struct error *err)
{
    if (strcmp(name, "backing_file") == 0) {
        return error_set(err, EINVAL, "Backing file not supported for file format '%s'",
                         block_driver_name(driver));
    }
    return error_set(err, EINVAL, "Invalid parameter '%s'", name);
}

int creation_options_check(struct creation_options *o, const struct block_driver *driver,
                           const char *filename, struct error *err)
{
    struct desc_list list = {.count = 0};

    collect_descs(&list, driver, filename);
    for (size_t i = 0; i < o->count; i++) {
        const struct block_option_desc *desc = find_desc(&list, o->entry[i].name);
        int r = desc ? normalise_value(desc, &o->entry[i], err)
                     : unknown_option(driver, o->entry[i].name, err);

        if (r < 0) {
            return r;
        }
    }
    return 0;
}

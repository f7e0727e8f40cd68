/* SPDX-License-Identifier: Apache-2.0 */
/* Opening by filename: schemes, json:, plain paths, and the rules for guessing a format. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "block/internal.h"
#include "loop/loop.h"

int block_check_scheme(const char *filename, struct error *err)
{
    size_t length = strcspn(filename, ":/");

    return filename[length] == ':' && !block_driver_of_filename(filename)
               ? error_set(err, EINVAL, "Unknown protocol '%.*s'", (int)length, filename)
               : 0;
}

/* The options of the protocol node that a filename names. */
static int co_protocol_options(const char *filename, struct options **ret_options,
                               struct error *err)
{
    const struct block_driver *driver = block_driver_of_filename(filename);
    AUTO_OPTIONS struct options *opts = options_new();
    AUTO_FREE char *path = NULL;
    struct stat st;
    int r;

    if (!opts) {
        return error_out_of_memory(err);
    }
    if (strncmp(filename, "file:", 5) == 0) {
        driver = NULL;
        filename += 5;
        /* Text before a colon is now part of the path. */
        if (strcspn(filename, ":") < strcspn(filename, "/")) {
            if (asprintf(&path, "./%s", filename) < 0) {
                path = NULL;
                return error_out_of_memory(err);
            }
            filename = path;
        }
    }
    if (driver && driver->parse_filename) {
        options_set_str(opts, "driver", driver->name);
        r = driver->parse_filename(filename, opts, err);
        if (r < 0) {
            return r;
        }
    } else if (block_check_scheme(filename, err) < 0) {
        return -EINVAL;
    } else {
        bool device =
            loop_co_stat(filename, &st) == 0 && (S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode));

        options_set_str(opts, "driver", device ? "host_device" : "file");
        options_set_str(opts, "filename", filename);
    }
    *ret_options = TAKE_PTR(opts);
    return 0;
}

/* Whether a driver, NULL: none, that is no leaf has a place for the filename that it is given. */
static bool takes_name_of_child(const struct block_driver *driver)
{
    return driver && driver->parse_filename && (driver->is_filter || !driver->is_protocol);
}

/*
 * Options of a filter that was given as the format, on a filename of its own scheme or of its
 * child's.
 */
static int filter_options(const struct block_driver *driver, const char *filename,
                          struct options **ret_options, struct error *err)
{
    AUTO_OPTIONS struct options *opts = options_new();
    int r;

    if (!opts) {
        return error_out_of_memory(err);
    }
    options_set_str(opts, "driver", driver->name);
    r = driver->parse_filename(filename, opts, err);
    if (r == 0) {
        *ret_options = TAKE_PTR(opts);
    }
    return r;
}

/*
 * Copy generic options of the top node to the protocol node: probing opens it as it will be used.
 */
static void copy_generic(const struct options *from, struct options *to)
{
    static const char *const keys[] = {"active",      "read-only", "auto-read-only",
                                       "force-share", "cache",     NULL};
    struct json_object *json = options_to_json(from);
    struct options *copy = NULL;

    for (const char *const *key = keys; json && *key; key++) {
        struct json_object *value;

        if (!json_object_object_get_ex(json, *key, &value)) {
            continue;
        }
        if (json_object_is_type(value, json_type_object)) {
            if (options_from_json(value, &copy, NULL) == 0) {
                options_set_child(to, *key, copy);
            }
        } else {
            options_default_str(to, *key, json_object_get_string(value));
        }
    }
    json_object_put(json);
}

/* Open the protocol node alone, and probe the format. */
static int co_guess(struct options *file_opts /* consumed */, unsigned flags,
                    struct block_node **ret_file, const struct block_driver **ret_format,
                    struct error *err)
{
    struct block_node *file;
    int r;

    options_default_str(file_opts, "discard", "unmap");
    r = block_co_open(file_opts, flags, &file, err);
    if (r < 0) {
        return r;
    }
    r = block_co_probe(file, ret_format, err);
    if (r < 0) {
        block_co_unref(file);
        return r;
    }
    *ret_file = file;
    return 0;
}

static bool is_writable_open(const struct options *opts, unsigned flags)
{
    struct options *copy = options_clone(opts);
    bool read_only = !(flags & BLOCK_OPEN_RDWR);

    if (copy) {
        options_take_bool(copy, "read-only", read_only, &read_only, NULL);
        options_free(copy);
    }
    return !read_only;
}

/* An image that is not there, or cannot be read, is reported before the want of a format. */
static int co_refuse_to_guess(const char *filename, struct options *file_opts /* consumed */,
                              unsigned flags, struct error *err)
{
    struct block_node *file;
    int r = block_co_open(file_opts, flags & ~BLOCK_OPEN_RDWR, &file, err);

    if (r < 0) {
        return r;
    }
    block_co_unref(file);
    error_set(err, EINVAL,
              "The format of '%s' was not given, and it is not guessed for an image that is opened "
              "for writing",
              filename);
    error_hint(err, "Name the format, as in -f qcow2 or driver=raw");
    return -EINVAL;
}

static int co_open_probed(const char *filename, struct options *top /* consumed */,
                          struct options *file_opts /* consumed */, unsigned flags,
                          struct block_node **ret_node, struct error *err)
{
    unsigned explicit_use = block_explicit_use(file_opts);
    const struct block_driver *format;
    struct block_node *file;
    int r;

    if (is_writable_open(top, flags) && !(flags & BLOCK_OPEN_PROBE)) {
        options_free(top);
        return co_refuse_to_guess(filename, file_opts, flags, err);
    }
    copy_generic(top, file_opts);
    r = co_guess(file_opts, flags, &file, &format, err);
    if (r < 0) {
        options_free(top);
        return r;
    }
    options_set_str(top, "driver", format->name);
    options_set_str(top, "file", file->name);
    r = block_co_open(top, flags, ret_node, err);
    if (r == 0) {
        block_note_heir(*ret_node, file, BLOCK_ROLE_DATA, explicit_use);
        (*ret_node)->probed = strcmp(format->name, "raw") == 0;
    }
    block_co_unref(file);
    return r;
}

int block_co_open_guessed(const char *what, struct options *opts, unsigned flags,
                          struct block_node **ret_node, struct error *err)
{
    AUTO_OPTIONS struct options *top = opts;
    AUTO_OPTIONS struct options *file_opts = NULL;
    AUTO_FREE char *node_name = NULL;
    int r = options_take_child(top, "file", &file_opts, &node_name, err);

    if (r < 0) {
        return r;
    }
    if (!file_opts) {
        return error_set(err, EINVAL, "Must specify either driver or file");
    }
    return co_open_probed(what, TAKE_PTR(top), TAKE_PTR(file_opts), flags, ret_node, err);
}

static int co_open_json(const char *text, const char *format, struct options *extra /* consumed */,
                        unsigned flags, struct block_node **ret_node, struct error *err)
{
    AUTO_OPTIONS struct options *generic = extra;
    AUTO_OPTIONS struct options *top = NULL;
    int r = options_parse_json(text, &top, err);

    if (r < 0) {
        error_prepend(err, "Could not parse the JSON options: ");
        return r;
    }
    if (generic) {
        copy_generic(generic, top);
    }
    if (format) {
        /* A format that is named next to the filename is the one that counts. */
        options_set_str(top, "driver", format);
    }
    return options_has(top, "driver")
               ? block_co_open(TAKE_PTR(top), flags, ret_node, err)
               : block_co_open_guessed("json:", TAKE_PTR(top), flags, ret_node, err);
}

static bool is_format(struct json_object *node)
{
    struct json_object *name;
    const struct block_driver *driver;

    if (!json_object_object_get_ex(node, "driver", &name)) {
        return false;
    }
    driver = block_find_driver(json_object_get_string(name));
    return driver && driver->is_format;
}

/*
 * Add the members of `more` to `base`; a format named for a child becomes a node between the two.
 */
static void join_json(struct json_object *base, struct json_object *more)
{
    json_object_object_foreach(more, key, value)
    {
        struct json_object *old = json_object_object_get(base, key);
        bool both = json_object_is_type(old, json_type_object) &&
                    json_object_is_type(value, json_type_object);

        if (both && is_format(value) && !is_format(old) &&
            !json_object_object_get_ex(value, "file", NULL)) {
            json_object_object_add(value, "file", json_object_get(old));
            both = false;
        }
        if (both) {
            join_json(old, value);
        } else {
            json_object_object_add(base, key, json_object_get(value));
        }
    }
}

/* Add options that were given with a filename to the options that the filename stands for. */
static int join_options(struct options **opts, const struct options *more, struct error *err)
{
    struct json_object *base = options_to_json(*opts);
    struct json_object *extra = options_to_json(more);
    int r;

    join_json(base, extra);
    options_free(*opts);
    *opts = NULL;
    r = options_from_json(base, opts, err);
    json_object_put(base);
    json_object_put(extra);
    return r;
}

/*
 * Likewise for options below `file`. If they name a format, it becomes a node between the image and
 * its file.
 */
static int join_file_options(struct options *top, struct options **file_opts, struct error *err)
{
    AUTO_OPTIONS struct options *below = NULL;
    AUTO_FREE char *node_name = NULL;
    struct json_object *base, *more;
    int r = options_take_child(top, "file", &below, &node_name, err);

    if (r < 0 || !below) {
        return r;
    }
    base = json_object_new_object();
    more = json_object_new_object();
    json_object_object_add(base, "file", options_to_json(*file_opts));
    json_object_object_add(more, "file", options_to_json(below));
    join_json(base, more);
    options_free(*file_opts);
    *file_opts = NULL;
    r = options_from_json(json_object_object_get(base, "file"), file_opts, err);
    json_object_put(base);
    json_object_put(more);
    return r;
}

/* Options of the child of a filter that takes no filename: those below `file`, and the filename. */
static int co_filter_file_options(const char *filename, struct options *top,
                                  struct options **ret_options, struct error *err)
{
    AUTO_OPTIONS struct options *below = NULL;
    AUTO_OPTIONS struct options *opts = NULL;
    AUTO_FREE char *node_name = NULL;
    AUTO_FREE char *name = NULL;
    const struct block_driver *driver;
    int r = options_take_child(top, "file", &below, &node_name, err);

    if (r == 0 && below) {
        r = options_take_str(below, "driver", &name, err);
    }
    if (r < 0) {
        return r;
    }
    driver = name ? block_find_driver(name) : NULL;
    if (takes_name_of_child(driver)) {
        r = filter_options(driver, filename, &opts, err);
    } else {
        r = co_protocol_options(filename, &opts, err);
        if (r == 0 && driver && driver->is_format) {
            struct options *format = options_new();

            options_set_str(format, "driver", name);
            options_set_child(format, "file", TAKE_PTR(opts));
            opts = format;
        }
    }
    r = r == 0 && below ? join_options(&opts, below, err) : r;
    if (r == 0) {
        *ret_options = TAKE_PTR(opts);
    }
    return r;
}

/*
 * Options that a filename stands for. Options below `file` may name a filter that takes the
 * filename.
 */
static int co_named_file_options(const char *filename, const struct options *top,
                                 struct options **ret_options, struct error *err)
{
    AUTO_OPTIONS struct options *copy = options_clone(top);
    AUTO_OPTIONS struct options *below = NULL;
    AUTO_FREE char *node_name = NULL;
    AUTO_FREE char *name = NULL;
    const struct block_driver *driver;
    int r = options_take_child(copy, "file", &below, &node_name, err);

    r = r == 0 && below ? options_take_str(below, "driver", &name, err) : r;
    if (r < 0) {
        return r;
    }
    driver = name ? block_find_driver(name) : NULL;
    return takes_name_of_child(driver) ? filter_options(driver, filename, ret_options, err)
                                       : co_protocol_options(filename, ret_options, err);
}

int block_co_open_filename(const char *filename, const char *format, struct options *extra,
                           unsigned flags, struct block_node **ret_node, struct error *err)
{
    AUTO_OPTIONS struct options *top = extra ? extra : options_new();
    AUTO_OPTIONS struct options *file_opts = NULL;
    const struct block_driver *driver = format ? block_find_driver(format) : NULL;
    int r;

    if (!top) {
        return error_out_of_memory(err);
    }
    if (format && (!driver || driver->is_internal)) {
        return error_set(err, EINVAL, "Unknown driver '%s'", format);
    }
    if (strncmp(filename, "json:", 5) == 0) {
        return co_open_json(filename + 5, format, TAKE_PTR(top), flags, ret_node, err);
    }
    if (driver && driver->is_filter && !driver->parse_filename) {
        r = co_filter_file_options(filename, top, &file_opts, err);
    } else if (takes_name_of_child(driver)) {
        r = filter_options(driver, filename, &file_opts, err);
    } else {
        r = co_named_file_options(filename, top, &file_opts, err);
    }
    if (r == 0 && !driver) {
        r = join_file_options(top, &file_opts, err);
    }
    if (r < 0) {
        return r;
    }
    if (!driver) {
        return co_open_probed(filename, TAKE_PTR(top), TAKE_PTR(file_opts), flags, ret_node, err);
    }
    if (driver->is_format || !driver->is_protocol) {
        r = join_file_options(top, &file_opts, err);
        if (r < 0) {
            return r;
        }
        options_set_str(top, "driver", format);
        options_set_child(top, "file", TAKE_PTR(file_opts));
        return block_co_open(TAKE_PTR(top), flags, ret_node, err);
    }
    r = join_options(&file_opts, top, err);
    return r < 0 ? r : block_co_open(TAKE_PTR(file_opts), flags, ret_node, err);
}

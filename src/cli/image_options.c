/* SPDX-License-Identifier: Apache-2.0 */
/* The options of a node from what a command line says of an image. */
#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/control.h"
#include "cli/cli.h"
#include "cli/image.h"

#define JSON_PREFIX "json:"
#define DEPTH_MAX 32

struct cache_mode {
    const char *name;
    bool direct, no_flush, writethrough;
};

static const struct cache_mode cache_modes[] = {
    {"none", true, false, false},         {"off", true, false, false},
    {"writeback", false, false, false},   {"unsafe", false, true, false},
    {"writethrough", false, false, true}, {"directsync", true, false, true},
};

static const struct cache_mode *find_cache_mode(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(cache_modes); i++) {
        if (strcmp(cache_modes[i].name, name) == 0) {
            return &cache_modes[i];
        }
    }
    return NULL;
}

int cli_check_cache_mode(const char *mode, const char *what)
{
    if (mode && !find_cache_mode(mode)) {
        cli_fail("Invalid %s option: %s", what, mode);
        return -EINVAL;
    }
    return 0;
}

bool cli_cache_is_writethrough(const char *mode)
{
    const struct cache_mode *found = mode ? find_cache_mode(mode) : NULL;

    return found && found->writethrough;
}

bool cli_cache_is_direct(const char *mode)
{
    const struct cache_mode *found = mode ? find_cache_mode(mode) : NULL;

    return found && found->direct;
}

int cli_check_aio_mode(const char *mode)
{
    if (mode && strcmp(mode, "threads") != 0 && strcmp(mode, "native") != 0 &&
        strcmp(mode, "io_uring") != 0) {
        cli_fail("Invalid aio option: %s", mode);
        return -EINVAL;
    }
    return 0;
}

/* Members of one object replace or join those of another. */
static int merge_options(struct options **opts, const char *more_text, struct error *err)
{
    AUTO_OPTIONS struct options *more = NULL;
    struct json_object *all, *extra;
    int rc = options_parse(more_text, NULL, &more, err);

    if (rc < 0) {
        return rc;
    }
    all = options_to_json(*opts);
    extra = options_to_json(more);
    json_object_object_foreach(extra, key, value)
    {
        json_object_object_add(all, key, json_object_get(value));
    }
    options_free(*opts);
    *opts = NULL;
    rc = options_from_json(all, opts, err);
    json_object_put(extra);
    json_object_put(all);
    return rc;
}

bool cli_image_is_options(const struct cli_image *image)
{
    return image->image_opts || strncmp(image->name, JSON_PREFIX, strlen(JSON_PREFIX)) == 0;
}

/* The options of the protocol that a filename names, added to `node`, in which it stood alone. */
static int add_protocol(struct json_object *node, const char *filename, struct error *err)
{
    const struct block_driver *driver = block_driver_of_filename(filename);
    AUTO_OPTIONS struct options *opts = NULL;
    struct json_object *found;
    int rc;

    if (!driver || !block_driver_parses_filename(driver)) {
        json_object_object_add(node, "driver", json_object_new_string("file"));
        return 0;
    }
    opts = options_new();
    rc = opts ? block_driver_parse_filename(driver, filename, opts, err) : -ENOMEM;
    if (rc < 0) {
        return rc;
    }
    json_object_object_del(node, "filename");
    json_object_object_add(node, "driver", json_object_new_string(block_driver_name(driver)));
    found = options_to_json(opts);
    json_object_object_foreach(found, key, value)
    {
        json_object_object_add(node, key, json_object_get(value));
    }
    json_object_put(found);
    return 0;
}

/* Children that have a filename and no driver get the driver of that name's protocol, as in QEMU's tools. */
static int name_drivers_below(struct json_object *node, int depth, struct error *err)
{
    if (depth > DEPTH_MAX) {
        return error_set(err, EINVAL, "The options nest more than %d levels deep", DEPTH_MAX);
    }
    json_object_object_foreach(node, key, child)
    {
        struct json_object *filename;
        int rc;

        (void)key;
        if (!json_object_is_type(child, json_type_object)) {
            continue;
        }
        rc = name_drivers_below(child, depth + 1, err);
        if (rc == 0 && json_object_object_get_ex(child, "filename", &filename) &&
            !json_object_object_get_ex(child, "driver", NULL)) {
            rc = add_protocol(child, json_object_get_string(filename), err);
        }
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

static int name_drivers(struct options **opts, struct error *err)
{
    struct json_object *json = options_to_json(*opts);
    int rc = name_drivers_below(json, 0, err);

    if (rc == 0) {
        options_free(*opts);
        *opts = NULL;
        rc = options_from_json(json, opts, err);
    }
    json_object_put(json);
    return rc;
}

int cli_image_options(const struct cli_image *image, unsigned flags, struct options **ret,
                      struct error *err)
{
    AUTO_OPTIONS struct options *opts = NULL;
    const struct cache_mode *mode = image->cache ? find_cache_mode(image->cache) : NULL;
    int rc = 0;

    if (cli_image_is_options(image)) {
        const char *text = image->image_opts ? image->name : image->name + strlen(JSON_PREFIX);

        rc = options_parse(text, NULL, &opts, err);
    } else {
        opts = options_new();
    }
    if (rc == 0 && opts && image->extra_options) {
        rc = merge_options(&opts, image->extra_options, err);
    }
    if (rc == 0 && opts) {
        rc = name_drivers(&opts, err);
    }
    if (rc == 0 && opts && image->format && cli_image_is_options(image)) {
        options_default_str(opts, "driver", image->format);
    }
    if (rc < 0) {
        return rc;
    }
    if (!opts) {
        return error_set(err, ENOMEM, "Out of memory");
    }
    options_default_bool(opts, "read-only", !(flags & BLOCK_OPEN_RDWR));
    if (mode && (mode->direct || mode->no_flush) && !options_has(opts, "cache")) {
        struct options *cache = options_new();

        if (cache) {
            options_set_bool(cache, "direct", mode->direct);
            options_set_bool(cache, "no-flush", mode->no_flush);
            options_set_child(opts, "cache", cache);
        }
    }
    /* What was asked for may be needed by another option also where nothing is written. */
    if ((flags & BLOCK_OPEN_RDWR) || image->discard) {
        options_default_str(opts, "discard", image->discard ?: "unmap");
    }
    if (image->force_share) {
        options_default_bool(opts, "force-share", true);
    }
    *ret = TAKE_PTR(opts);
    return 0;
}

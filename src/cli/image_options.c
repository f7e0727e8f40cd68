/* SPDX-License-Identifier: Apache-2.0 */
/* The options of a node, from what a command line says about an image. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "base/cleanup.h"
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

int cli_check_cache_mode(const char *mode, const char *what, struct error *err)
{
    return mode && !find_cache_mode(mode)
               ? error_set(err, EINVAL, "Invalid %s option: %s", what, mode)
               : 0;
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

/* Whether `word` is one of `words`, which end with NULL. */
static bool is_one_of(const char *word, const char *const *words)
{
    while (*words && strcmp(*words, word) != 0) {
        words++;
    }
    return *words;
}

int cli_check_aio_mode(const char *mode, struct error *err)
{
    static const char *const modes[] = {"threads", "native", "io_uring", NULL};

    return mode && !is_one_of(mode, modes) ? error_set(err, EINVAL, "Invalid aio option: %s", mode)
                                           : 0;
}

bool cli_is_discard_mode(const char *mode)
{
    static const char *const modes[] = {"unmap", "on", "ignore", "off", NULL};

    return !mode || is_one_of(mode, modes);
}

int cli_parse_prealloc(const char *text, enum block_prealloc *ret_mode, struct error *err)
{
    static const char *const names[] = {
        [BLOCK_PREALLOC_OFF] = "off",
        [BLOCK_PREALLOC_METADATA] = "metadata",
        [BLOCK_PREALLOC_FALLOC] = "falloc",
        [BLOCK_PREALLOC_FULL] = "full",
    };

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (strcmp(text, names[i]) == 0) {
            *ret_mode = (enum block_prealloc)i;
            return 0;
        }
    }
    return error_set(err, EINVAL, "Invalid preallocation mode '%s'", text);
}

/* Add the options of a text; they replace members of the same name. */
static int merge_options(struct options **opts, const char *more_text, struct error *err)
{
    AUTO_OPTIONS struct options *more = NULL;
    struct json_object *all, *extra;
    int r = options_parse(more_text, NULL, &more, err);

    if (r < 0) {
        return r;
    }
    all = options_to_json(*opts);
    extra = options_to_json(more);
    json_object_object_foreach(extra, key, value)
    {
        json_object_object_add(all, key, json_object_get(value));
    }
    options_free(*opts);
    *opts = NULL;
    r = options_from_json(all, opts, err);
    json_object_put(extra);
    json_object_put(all);
    return r;
}

bool cli_image_is_options(const struct cli_image *image)
{
    return image->image_opts || strncmp(image->name, JSON_PREFIX, strlen(JSON_PREFIX)) == 0;
}

/* A filename among options is a path: a scheme in it is a part of the path. */
static const char *driver_of_path(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && (S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode)) ? "host_device"
                                                                                : "file";
}

/* cli_name_drivers() for one level and those below. */
static int name_drivers_below(struct json_object *node, int depth, struct error *err)
{
    if (depth > DEPTH_MAX) {
        return error_set(err, EINVAL, "The options nest more than %d levels deep", DEPTH_MAX);
    }
    json_object_object_foreach(node, key, child)
    {
        struct json_object *filename;
        int r;

        (void)key;
        if (!json_object_is_type(child, json_type_object)) {
            continue;
        }
        r = name_drivers_below(child, depth + 1, err);
        if (r == 0 && json_object_object_get_ex(child, "filename", &filename) &&
            !json_object_object_get_ex(child, "driver", NULL)) {
            json_object_object_add(
                child, "driver",
                json_object_new_string(driver_of_path(json_object_get_string(filename))));
        }
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

int cli_name_drivers(struct options **opts, struct error *err)
{
    struct json_object *json = options_to_json(*opts);
    int r = name_drivers_below(json, 0, err);

    if (r == 0) {
        options_free(*opts);
        *opts = NULL;
        r = options_from_json(json, opts, err);
    }
    json_object_put(json);
    return r;
}

/* The options that were given as text. */
static int parse_given_options(const struct cli_image *image, struct options **ret_options,
                               struct error *err)
{
    AUTO_OPTIONS struct options *opts = NULL;
    int r;

    if (cli_image_is_options(image)) {
        const char *text = image->image_opts ? image->name : image->name + strlen(JSON_PREFIX);

        r = image->image_opts ? options_parse(text, NULL, &opts, err)
                              : options_parse_json(text, &opts, err);
        if (r < 0 && !image->image_opts) {
            error_prepend(err, "Could not parse the JSON options: ");
        }
        if (r == 0 && image->format && !image->image_opts) {
            /* A format that is named next to the filename is the one that counts. */
            options_set_str(opts, "driver", image->format);
        }
    } else {
        opts = options_new();
        r = opts ? 0 : error_out_of_memory(err);
    }
    if (image->extra_options) {
        UNLESS_FAILED(r, merge_options(&opts, image->extra_options, err));
    }
    UNLESS_FAILED(r, cli_name_drivers(&opts, err));
    if (r < 0) {
        return r;
    }
    if (image->format && cli_image_is_options(image)) {
        options_default_str(opts, "driver", image->format);
    }
    *ret_options = TAKE_PTR(opts);
    return 0;
}

/* Add what a cache mode means; of the options of the cache, those that were given count. */
static int default_cache_options(struct options *opts, const struct cache_mode *mode,
                                 struct error *err)
{
    struct json_object *json = options_to_json(opts), *cache;
    struct options *merged = NULL;
    int r;

    if (!json_object_object_get_ex(json, "cache", &cache)) {
        cache = json_object_new_object();
        json_object_object_add(json, "cache", cache);
    }
    if (!json_object_is_type(cache, json_type_object)) {
        json_object_put(json);
        return 0; /* refused when the image is opened */
    }
    if (!json_object_object_get_ex(cache, "direct", NULL)) {
        json_object_object_add(cache, "direct", json_object_new_boolean(mode->direct));
    }
    if (!json_object_object_get_ex(cache, "no-flush", NULL)) {
        json_object_object_add(cache, "no-flush", json_object_new_boolean(mode->no_flush));
    }
    r = options_from_json(cache, &merged, err);
    if (r == 0) {
        options_drop(opts, "cache");
        options_set_child(opts, "cache", merged);
    }
    json_object_put(json);
    return r;
}

int cli_image_options(const struct cli_image *image, unsigned flags, struct options **ret_options,
                      struct error *err)
{
    AUTO_OPTIONS struct options *opts = NULL;
    const struct cache_mode *mode = image->cache ? find_cache_mode(image->cache) : NULL;
    int r = parse_given_options(image, &opts, err);

    if (r < 0) {
        return r;
    }
    options_default_bool(opts, "read-only", !(flags & BLOCK_OPEN_RDWR));
    if (mode && (mode->direct || mode->no_flush)) {
        r = default_cache_options(opts, mode, err);
        if (r < 0) {
            return r;
        }
    }
    /* A given mode is passed on even if nothing is written: another option may need it. */
    if ((flags & BLOCK_OPEN_RDWR) || image->discard) {
        options_default_str(opts, "discard", image->discard ?: "unmap");
    }
    if (image->force_share) {
        options_default_bool(opts, "force-share", true);
    }
    *ret_options = TAKE_PTR(opts);
    return 0;
}

int cli_check_force_share(const struct cli_image *image, const char *option, struct error *err)
{
    AUTO_OPTIONS struct options *opts = NULL;
    bool shares = true;

    if (!image->force_share || !(image->image_opts || image->extra_options)) {
        return 0;
    }
    /* Errors of other kinds are reported when the image is opened. */
    if (parse_given_options(image, &opts, NULL) < 0 ||
        options_take_bool(opts, "force-share", true, &shares, NULL) < 0 || shares) {
        return 0;
    }
    return error_set(err, EINVAL, "%s conflicts with image options", option);
}

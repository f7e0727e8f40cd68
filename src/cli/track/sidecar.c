/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/track/sidecar.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/files.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "block/bitmaps.h"
#include "block/control.h"
#include "block/control_lock.h"
#include "block/options.h"
#include "cli/image.h"

#define DEFAULT_GRANULARITY (64 * KiB)

static struct json_object *file_options(const char *driver, const char *filename)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "driver", json_object_new_string(driver));
    json_object_object_add(o, "filename", json_object_new_string(filename));
    return o;
}

static const char *disk_driver(const struct track_sidecar *s)
{
    return s->device ? "host_device" : "file";
}

struct json_object *track_sidecar_options(const struct track_sidecar *s, const char *node_name)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "driver", json_object_new_string("qcow2"));
    if (node_name) {
        json_object_object_add(o, "node-name", json_object_new_string(node_name));
    }
    json_object_object_add(o, "file", file_options("file", s->image));
    json_object_object_add(o, "data-file", file_options(disk_driver(s), s->disk));
    return o;
}

/* --- making it -------------------------------------------------------------------------------- */

static int co_open_sidecar_file(const char *driver, const char *filename,
                                struct block_node **ret_node, struct error *err)
{
    struct options *opts = options_new();

    if (!opts) {
        return error_out_of_memory(err);
    }
    options_set_str(opts, "driver", driver);
    options_set_str(opts, "filename", filename);
    return block_co_open(opts, BLOCK_OPEN_RDWR, ret_node, err);
}

static int co_format(const struct track_sidecar *s, const char *image, struct error *err)
{
    struct options *opts = options_new();
    struct block_node *file = NULL, *data = NULL;
    int r = opts ? co_open_sidecar_file("file", image, &file, err) : error_out_of_memory(err);

    UNLESS_FAILED(r, co_open_sidecar_file(disk_driver(s), s->disk, &data, err));
    if (r < 0) {
        options_free(opts);
    } else {
        options_set_str(opts, "cluster_size", "2M");
        options_set_str(opts, "data_file_raw", "on");
        options_set_str(opts, "preallocation", "metadata");
        block_co_control_lock();
        r = block_co_format_node(block_find_driver("qcow2"), file, data, s->size, opts, err);
        block_control_unlock();
    }
    block_co_unref(data);
    block_co_unref(file);
    return r;
}

/* Give the complete file its name, stably. */
static int put_in_place(const char *fresh, const char *image, struct error *err)
{
    AUTO_FREE char *copy = strdup(image);
    AUTO_CLOSE int fd = open(fresh, O_RDONLY | O_CLOEXEC);
    AUTO_CLOSE int dir = copy ? files_open_dir(dirname(copy), err) : -1;
    int r = !copy ? error_out_of_memory(err) : MIN(dir, 0);

    if (r == 0) {
        r = fd < 0 ? error_set_errno(err, errno, "Could not open '%s'", fresh)
                   : files_sync(fd, fresh, err);
    }
    if (r == 0 && rename(fresh, image) < 0) {
        r = error_set_errno(err, errno, "Could not rename '%s' to '%s'", fresh, image);
    }
    return UNLESS_FAILED(r, files_sync(dir, image, err));
}

int track_co_make_sidecar(const struct track_sidecar *s, struct error *err)
{
    AUTO_FREE char *fresh = NULL;
    int fd, r;

    if (s->size % 512 != 0) {
        return error_set(err, EINVAL,
                         "'%s' has %llu bytes, which is no multiple of 512: it can't be tracked",
                         s->disk, (unsigned long long)s->size);
    }
    if (asprintf(&fresh, "%s.new", s->image) < 0) {
        fresh = NULL;
        return error_out_of_memory(err);
    }
    (void)unlink(fresh);
    fd = open(fresh, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        return error_set_errno(err, errno, "Could not make '%s'", fresh);
    }
    close(fd);
    r = co_format(s, fresh, err);
    UNLESS_FAILED(r, put_in_place(fresh, s->image, err));
    if (r < 0) {
        (void)unlink(fresh);
    }
    return r;
}

/* --- bitmaps ---------------------------------------------------------------------------------- */

/* Opens the image over the disk; or, to look at bitmaps only, over nothing. */
static int co_open_sidecar(const struct track_sidecar *s, bool writable, struct cli_disk *ret_disk,
                           struct error *err)
{
    struct json_object *o = track_sidecar_options(s, NULL);
    AUTO_FREE char *name = NULL;
    struct cli_image image = {.image_opts = true};
    int r;

    if (!writable) {
        struct json_object *nothing = json_object_new_object();

        json_object_object_add(nothing, "driver", json_object_new_string("null-co"));
        json_object_object_add(nothing, "size", json_object_new_int64(INT64_MAX / 2 / 512 * 512));
        json_object_object_add(o, "data-file", nothing);
    }
    name = strdup(json_object_to_json_string(o));
    json_object_put(o);
    if (!name) {
        return error_out_of_memory(err);
    }
    image.name = name;
    r = cli_co_open_disk_plainly(&image, writable ? BLOCK_OPEN_RDWR : BLOCK_OPEN_NO_IO, ret_disk,
                                 err);
    ret_disk->name = s->image;
    return r < 0 ? error_prepend_once(err, "Could not open '%s': ", s->image), r : 0;
}

/* Whether it is an image with a raw data file. */
static int co_check_kind(const struct track_sidecar *s, struct block_node *node, struct error *err)
{
    struct json_object *info = block_co_specific_info(node);
    struct json_object *raw =
        json_object_object_get(json_object_object_get(info, "data"), "data-file-raw");
    bool ok = json_object_get_boolean(raw);

    json_object_put(info);
    return ok ? 0
              : error_set(err, EINVAL, "'%s' is no image that tracks a raw disk: name another one",
                          s->image);
}

static int co_set_all(struct block_bitmap *b, uint64_t size, struct error *err)
{
    struct dirty_bitmap *all = dirty_bitmap_new(size, block_bitmap_granularity(b));
    int r;

    if (!all) {
        return error_out_of_memory(err);
    }
    dirty_bitmap_set(all, 0, size);
    r = block_co_bitmap_add_bits(b, all, err);
    dirty_bitmap_free(all);
    return r;
}

static int co_set_all_in_all(const struct track_sidecar *s, struct block_node *node,
                             struct error *err)
{
    struct block_bitmap *b = NULL;
    int r = 0;

    while ((b = block_bitmap_next(node, b)) && r >= 0) {
        if (!block_bitmap_inconsistent(b)) {
            r = co_set_all(b, s->size, err);
        }
    }
    return r;
}

static int co_add_sidecar_bitmap(struct block_node *node, const char *name, uint32_t granularity,
                                 bool disabled, struct error *err)
{
    struct block_bitmap *b;

    return block_bitmap_find(node, name)
               ? 0
               : block_co_bitmap_add(node, name, granularity ? granularity : DEFAULT_GRANULARITY,
                                     true, disabled, &b, err);
}

/* Makes the image again for another size, with bitmaps of the same names, which have everything. */
static int co_make_again(const struct track_sidecar *s, struct error *err)
{
    CLI_DISK_AUTO(old);
    CLI_DISK_AUTO(fresh);
    struct block_bitmap *b = NULL;
    int r = co_open_sidecar(s, false, &old, err);

    UNLESS_FAILED(r, track_co_make_sidecar(s, err));
    UNLESS_FAILED(r, co_open_sidecar(s, true, &fresh, err));
    while (r >= 0 && (b = block_bitmap_next(old.node, b))) {
        r = co_add_sidecar_bitmap(fresh.node, block_bitmap_name(b), block_bitmap_granularity(b),
                                  !block_bitmap_enabled(b), err);
    }
    UNLESS_FAILED(r, co_set_all_in_all(s, fresh.node, err));
    return r < 0 ? r : cli_co_finish_disk(&fresh, err);
}

/* *ret_size: of the disk that the image was made for. */
static int co_check_sidecar(const struct track_sidecar *s, uint64_t *ret_size, struct error *err)
{
    CLI_DISK_AUTO(disk);
    int r = co_open_sidecar(s, false, &disk, err);

    UNLESS_FAILED(r, co_check_kind(s, disk.node, err));
    if (r >= 0) {
        *ret_size = block_node_size(disk.node);
    }
    return r;
}

int track_co_prepare_sidecar(const struct track_sidecar *s, const struct cli_items *bitmaps,
                             uint32_t granularity, bool all_dirty, struct error *err)
{
    CLI_DISK_AUTO(disk);
    uint64_t size = 0;
    int r = co_check_sidecar(s, &size, err);

    if (r >= 0 && size != s->size) {
        r = co_make_again(s, err);
        all_dirty = false;
    }
    UNLESS_FAILED(r, co_open_sidecar(s, true, &disk, err));
    for (size_t i = 0; i < bitmaps->count && r >= 0; i++) {
        r = co_add_sidecar_bitmap(disk.node, bitmaps->item[i].value, granularity, false, err);
    }
    if (all_dirty) {
        UNLESS_FAILED(r, co_set_all_in_all(s, disk.node, err));
    }
    return r < 0 ? r : cli_co_finish_disk(&disk, err);
}

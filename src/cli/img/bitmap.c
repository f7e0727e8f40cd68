/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <json-c/json.h>
#include <stdint.h>
#include <string.h>

#include "block/bitmaps.h"
#include "block/control.h"
#include "cli/img/command_line.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "bitmap",
    .synopsis =
        "(--add | --remove | --clear | --enable | --disable | --merge SOURCE)... FILENAME BITMAP, "
        "or --remove-all FILENAME",
    .about = "Changes the persistent dirty bitmap BITMAP of an image. Several actions are done in "
             "the order\n"
             "given. 'info' lists the bitmaps of an image.",
    .examples = "@-f qcow2 --add -g 64k disk.qcow2 monday\n"
                "@-f qcow2 --add --disable --merge monday disk.qcow2 week\n"
                "@-f qcow2 --merge tuesday -b overlay.qcow2 -F qcow2 base.qcow2 week\n"
                "@-f qcow2 --remove-all disk.qcow2",
};

struct bitmap_request {
    struct cli_items actions;
    const char *source_file, *source_format, *granularity_text;
    uint64_t granularity;
    const char *bitmap; /* NULL: all actions are --remove-all */
};

#define REMOVE_ALL "remove-all"

static bool has_action(const struct bitmap_request *q, const char *name)
{
    for (size_t i = 0; i < q->actions.count; i++) {
        if (strcmp(q->actions.item[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

/* Every action but --remove-all is about one bitmap. */
static bool needs_bitmap(const struct bitmap_request *q)
{
    for (size_t i = 0; i < q->actions.count; i++) {
        if (strcmp(q->actions.item[i].name, REMOVE_ALL) != 0) {
            return true;
        }
    }
    return q->actions.count == 0;
}

static int check_has_action(const struct bitmap_request *q, struct error *err)
{
    return q->actions.count > 0
               ? 0
               : error_set(err, EINVAL,
                           "Need at least one of --add, --remove, %s--clear, --enable, --disable, "
                           "or --merge",
                           cli_is_compat() ? "" : "--remove-all, ");
}

static int check_bitmap_request(const struct bitmap_request *q, struct error *err)
{
    if (q->granularity_text && !has_action(q, "add")) {
        return error_set(err, EINVAL, "granularity only supported with --add");
    }
    if (q->source_format && !q->source_file) {
        return error_set(err, EINVAL, "-F only supported with -b");
    }
    if (q->source_file && !has_action(q, "merge")) {
        return error_set(err, EINVAL, "Merge bitmap source file only supported with --merge");
    }
    return 0;
}

static struct block_bitmap *find_bitmap(struct block_node *node, const char *name,
                                        struct error *err)
{
    struct block_bitmap *b = block_bitmap_find(node, name);

    if (!b) {
        error_set(err, ENOENT, "Dirty bitmap '%s' not found", name);
    }
    return b;
}

static int co_merge(struct block_bitmap *to, struct block_node *source_node, const char *name,
                    struct error *err)
{
    struct block_bitmap *from = find_bitmap(source_node, name, err);

    return from ? block_co_bitmap_merge(to, &from, 1, NULL, err) : -ENOENT;
}

static int co_remove(struct block_node *node, const char *name, struct error *err)
{
    struct block_bitmap *b = block_bitmap_find(node, name);

    return b ? block_co_bitmap_remove(b, err) : block_co_bitmap_remove_unloaded(node, name, err);
}

/*
 * The names of all stored bitmaps, also of damaged ones, as `info` shows them; a new reference.
 * Empty if the format has no bitmaps.
 */
static struct json_object *co_bitmap_names(struct block_node *node)
{
    struct json_object *info, *data, *bitmaps, *names = json_object_new_array();

    info = block_co_specific_info(node);
    if (info && json_object_object_get_ex(info, "data", &data) &&
        json_object_object_get_ex(data, "bitmaps", &bitmaps)) {
        for (size_t i = 0; i < json_object_array_length(bitmaps); i++) {
            struct json_object *name =
                json_object_object_get(json_object_array_get_idx(bitmaps, i), "name");

            json_object_array_add(names, json_object_get(name));
        }
    }
    json_object_put(info);
    return names;
}

static int co_remove_all(struct block_node *node, struct error *err)
{
    struct json_object *names = co_bitmap_names(node);
    int r = 0;

    for (size_t i = 0; i < json_object_array_length(names) && r >= 0; i++) {
        r = co_remove(node, json_object_get_string(json_object_array_get_idx(names, i)), err);
    }
    json_object_put(names);
    return r;
}

static int co_act_on_bitmap(const struct bitmap_request *q, const struct cli_item *action,
                            struct block_node *node, struct block_node *source_node,
                            struct error *err)
{
    struct block_bitmap *b;

    if (strcmp(action->name, "add") == 0) {
        return block_co_bitmap_add(node, q->bitmap, (uint32_t)q->granularity, true, false, &b, err);
    }
    if (strcmp(action->name, REMOVE_ALL) == 0) {
        return co_remove_all(node, err);
    }
    if (strcmp(action->name, "remove") == 0) {
        return co_remove(node, q->bitmap, err);
    }
    b = find_bitmap(node, q->bitmap, err);
    if (!b) {
        return -ENOENT;
    }
    if (strcmp(action->name, "clear") == 0) {
        return block_co_bitmap_clear(b, NULL, err);
    }
    if (strcmp(action->name, "merge") == 0) {
        return co_merge(b, source_node, action->value, err);
    }
    return block_co_bitmap_set_enabled(b, strcmp(action->name, "enable") == 0, err);
}

static int co_act_all(const struct bitmap_request *q, struct cli_disk *disk,
                      struct cli_disk *source, struct error *err)
{
    for (size_t i = 0; i < q->actions.count; i++) {
        const struct cli_item *action = &q->actions.item[i];
        int r = co_act_on_bitmap(q, action, disk->node, source->node ?: disk->node, err);

        if (r < 0) {
            error_prepend(err, "Operation %s on bitmap %s failed: ", action->name, q->bitmap ?: "");
            return r;
        }
    }
    return 0;
}

static int co_run_bitmap_request(const struct bitmap_request *q, const struct cli_image *image,
                                 struct error *err)
{
    struct cli_image source_image = {.name = q->source_file, .format = q->source_format};
    CLI_DISK_AUTO(disk);
    CLI_DISK_AUTO(source);
    int r = cli_co_open_disk(image, BLOCK_OPEN_RDWR | BLOCK_OPEN_NO_BACKING, &disk, err);

    if (q->source_file) {
        UNLESS_FAILED(r, cli_co_open_disk(&source_image, BLOCK_OPEN_NO_IO | BLOCK_OPEN_NO_BACKING,
                                          &source, err));
    }
    UNLESS_FAILED(r, co_act_all(q, &disk, &source, err));
    return r < 0 ? r : cli_co_finish_disk(&disk, err);
}

static void bitmap_request_clear(struct bitmap_request *q)
{
    cli_items_clear(&q->actions);
}

int img_co_bitmap(int argc, char **argv, struct error *err)
{
    __attribute__((cleanup(bitmap_request_clear))) struct bitmap_request q = {0};
    struct cli_image image = {0};
    int first, r;
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"add", 0, CLI_ACTION, &q.actions, NULL, "add the bitmap; it records from then on"},
        {"remove", 0, CLI_ACTION, &q.actions, NULL, "remove the bitmap"},
        {REMOVE_ALL, 0, CLI_ACTION, &q.actions, NULL, "remove all bitmaps of the image"},
        {"clear", 0, CLI_ACTION, &q.actions, NULL, "mark everything clean"},
        {"enable", 0, CLI_ACTION, &q.actions, NULL, "record writes from now on"},
        {"disable", 0, CLI_ACTION, &q.actions, NULL, "stop recording"},
        {"merge", 0, CLI_REPEAT, &q.actions, "SOURCE", "mark dirty what is dirty in SOURCE"},
        {"granularity", 'g', CLI_VALUE, &q.granularity_text, "SIZE",
         "with --add: bytes that one bit stands for"},
        {"source-file", 'b', CLI_VALUE, &q.source_file, "FILE",
         "with --merge: image that has the SOURCE bitmaps"},
        {"source-format", 'F', CLI_VALUE, &q.source_format, "FMT", "format of that image"},
        CLI_ARG_FORMAT(image.format),
        CLI_ARG_IMAGE_OPTS(image.image_opts),
        CLI_ARG_OBJECT(objects),
        CLI_ARG_END,
    };

    first = cli_args_parse(args, &usage, argc, argv);
    if (first < 0) {
        return first;
    }
    r = check_has_action(&q, err);
    if (r < 0) {
        return r;
    }
    if (first != argc - 1 - needs_bitmap(&q)) {
        return error_set(err, EINVAL,
                         needs_bitmap(&q) ? "Expecting filename and bitmap name"
                                          : "Expecting filename");
    }
    image.name = argv[first];
    q.bitmap = argv[first + 1]; /* NULL, at the end of argv, if there is none */
    r = check_bitmap_request(&q, err);
    UNLESS_FAILED(r, cli_add_objects(&objects, err));
    UNLESS_FAILED(
        r, cli_take_size(q.granularity_text, "granularity", 0, 1ULL << 31, &q.granularity, err));
    return r < 0 ? r : co_run_bitmap_request(&q, &image, err);
}

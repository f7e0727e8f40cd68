/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "block/bitmaps.h"
#include "block/control.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "bitmap",
    .synopsis =
        "(--add | --remove | --clear | --enable | --disable | --merge SOURCE)... FILENAME BITMAP, "
        "or --remove-all FILENAME",
    .about = "Changes the persistent dirty bitmap BITMAP of an image. Several actions are done in "
             "the order\n"
             "given. 'info' lists the bitmaps that there are.",
    .examples = "  bitmap -f qcow2 --add -g 64k disk.qcow2 monday\n"
                "  bitmap -f qcow2 --add --disable --merge monday disk.qcow2 week\n"
                "  bitmap -f qcow2 --merge tuesday -b overlay.qcow2 -F qcow2 base.qcow2 week\n"
                "  bitmap -f qcow2 --remove-all disk.qcow2",
};

struct request {
    struct cli_items actions;
    const char *source_file, *source_format, *granularity_text;
    uint64_t granularity;
    const char *bitmap; /* NULL: all actions are --remove-all */
};

#define REMOVE_ALL "remove-all"

static bool has_action(const struct request *r, const char *name)
{
    for (size_t i = 0; i < r->actions.count; i++) {
        if (strcmp(r->actions.item[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

/* All but --remove-all are about one bitmap. */
static bool needs_bitmap(const struct request *r)
{
    for (size_t i = 0; i < r->actions.count; i++) {
        if (strcmp(r->actions.item[i].name, REMOVE_ALL) != 0) {
            return true;
        }
    }
    return r->actions.count == 0;
}

static int check_request(const struct request *r)
{
    if (r->actions.count == 0) {
        return cli_fail("Need at least one of --add, --remove, %s--clear, --enable, --disable, or "
                        "--merge",
                        cli_is_compat() ? "" : "--remove-all, ");
    }
    if (r->granularity_text && !has_action(r, "add")) {
        return cli_fail("granularity only supported with --add");
    }
    if (r->source_format && !r->source_file) {
        return cli_fail("-F only supported with -b");
    }
    if (r->source_file && !has_action(r, "merge")) {
        return cli_fail("Merge bitmap source file only supported with --merge");
    }
    return 0;
}

static struct block_bitmap *find(struct block_node *node, const char *name, struct error *err)
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
    struct block_bitmap *from = find(source_node, name, err);

    return from ? block_co_bitmap_merge(to, &from, 1, NULL, err) : -ENOENT;
}

static int co_remove(struct block_node *node, const char *name, struct error *err)
{
    struct block_bitmap *b = block_bitmap_find(node, name);

    return b ? block_co_bitmap_remove(b, err) : block_co_bitmap_remove_unloaded(node, name, err);
}

/* The names of all that are stored, broken ones too, as `info` has them; a new reference. Empty if the format has none. */
static struct json_object *co_names(struct block_node *node)
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
    struct json_object *names = co_names(node);
    int rc = 0;

    for (size_t i = 0; i < json_object_array_length(names) && rc >= 0; i++) {
        rc = co_remove(node, json_object_get_string(json_object_array_get_idx(names, i)), err);
    }
    json_object_put(names);
    return rc;
}

static int co_do(const struct request *r, const struct cli_item *action, struct block_node *node,
                 struct block_node *source_node, struct error *err)
{
    struct block_bitmap *b;

    if (strcmp(action->name, "add") == 0) {
        return block_co_bitmap_add(node, r->bitmap, (uint32_t)r->granularity, true, false, &b, err);
    }
    if (strcmp(action->name, REMOVE_ALL) == 0) {
        return co_remove_all(node, err);
    }
    if (strcmp(action->name, "remove") == 0) {
        return co_remove(node, r->bitmap, err);
    }
    b = find(node, r->bitmap, err);
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

static int co_do_all(const struct request *r, struct cli_disk *disk, struct cli_disk *source)
{
    ERROR_AUTO(err);

    for (size_t i = 0; i < r->actions.count; i++) {
        const struct cli_item *action = &r->actions.item[i];

        if (co_do(r, action, disk->node, source->node ?: disk->node, &err) < 0) {
            error_prepend(&err, "Operation %s on bitmap %s failed: ", action->name,
                          r->bitmap ?: "");
            return cli_report(&err);
        }
    }
    return 0;
}

static int co_run_request(const struct request *r, const struct cli_image *image)
{
    struct cli_image source_image = {.name = r->source_file, .format = r->source_format};
    CLI_DISK_AUTO(disk);
    CLI_DISK_AUTO(source);
    ERROR_AUTO(err);

    if (cli_co_open_disk(image, BLOCK_OPEN_RDWR, &disk, &err) < 0 ||
        (r->source_file && cli_co_open_disk(&source_image, BLOCK_OPEN_NO_IO | BLOCK_OPEN_NO_BACKING,
                                            &source, &err) < 0)) {
        return cli_report(&err);
    }
    if (co_do_all(r, &disk, &source)) {
        return 1;
    }
    return cli_co_finish_disk(&disk, &err) < 0 ? cli_report(&err) : 0;
}

int img_bitmap_main(int argc, char **argv)
{
    struct cli_image image = {0};
    struct request r = {0};
    int status = 1;
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"add", 0, CLI_ACTION, &r.actions, NULL, "make it; it records from then on"},
        {"remove", 0, CLI_ACTION, &r.actions, NULL, "remove it"},
        {REMOVE_ALL, 0, CLI_ACTION, &r.actions, NULL, "remove all that the image has"},
        {"clear", 0, CLI_ACTION, &r.actions, NULL, "mark everything clean"},
        {"enable", 0, CLI_ACTION, &r.actions, NULL, "record writes from now on"},
        {"disable", 0, CLI_ACTION, &r.actions, NULL, "stop recording"},
        {"merge", 0, CLI_REPEAT, &r.actions, "SOURCE", "mark dirty what is dirty in SOURCE"},
        {"granularity", 'g', CLI_VALUE, &r.granularity_text, "SIZE",
         "with --add: bytes that one bit stands for"},
        {"source-file", 'b', CLI_VALUE, &r.source_file, "FILE",
         "with --merge: image that has the SOURCE bitmaps"},
        {"source-format", 'F', CLI_VALUE, &r.source_format, "FMT", "format of that image"},
        IMG_ARG_FORMAT(image.format),
        IMG_ARG_IMAGE_OPTS(image.image_opts),
        IMG_ARG_OBJECT(objects),
        IMG_ARG_END,
    };
    int first = cli_args_parse(args, &usage, argc, argv);

    if (first == CLI_ARGS_HELP) {
        status = 0;
    } else if (first >= 0 && first == argc - 1 - needs_bitmap(&r)) {
        image.name = argv[first];
        r.bitmap = argv[first + 1]; /* or the NULL at the end */
        if (!check_request(&r) && !cli_add_objects(&objects) &&
            (!r.granularity_text || cli_parse_size(r.granularity_text, "granularity", 0, 1ULL << 31,
                                                   &r.granularity) == 0)) {
            status = co_run_request(&r, &image);
        }
    } else if (first >= 0) {
        cli_fail(needs_bitmap(&r) ? "Expecting filename and bitmap name" : "Expecting filename");
    }
    cli_items_clear(&r.actions);
    return status;
}

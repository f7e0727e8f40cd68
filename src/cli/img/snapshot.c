/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "block/control.h"
#include "cli/img/command_line.h"
#include "cli/img/img.h"
#include "cli/snapshot.h"

static const struct cli_usage usage = {
    .command = "snapshot",
    .synopsis = "FILENAME",
    .about = "Lists, creates, applies or deletes snapshots within an image. Applying a snapshot "
             "makes the disk\n"
             "what it was at that time; later writes are lost.",
    .examples = "@-l disk.qcow2\n"
                "@-f qcow2 -c before-upgrade disk.qcow2\n"
                "@-f qcow2 -a before-upgrade disk.qcow2",
};

static int co_list_snapshots(const struct cli_disk *disk)
{
    struct json_object *array = cli_co_snapshots(disk->node);

    if (array) {
        cli_print_snapshots(array);
    }
    json_object_put(array);
    return 0;
}

/*
 * Delete by name only, because a deletion cannot be undone, and "1" may be the name of one snapshot
 * and the ID of another. Deletes the first if several have the name.
 */
static int co_delete_snapshot(struct block_node *node, const char *name, struct error *err)
{
    AUTO_FREE struct block_snapshot_info *list = NULL;
    size_t count = 0;
    int r;

    r = block_co_snapshot_list(node, &list, &count, err);
    if (r < 0) {
        return r;
    }
    for (size_t i = 0; i < count; i++) {
        if (strcmp(list[i].name, name) == 0) {
            return block_co_snapshot_delete(node, list[i].id, err);
        }
    }
    return error_set(err, ENOENT, "snapshot not found");
}

static int co_change_snapshots(const struct cli_item *action, struct cli_disk *disk,
                               struct error *err)
{
    int r;

    if (strcmp(action->name, "create") == 0) {
        r = block_co_snapshot_create(disk->node, action->value, err);
    } else if (strcmp(action->name, "apply") == 0) {
        r = block_co_snapshot_apply(disk->node, action->value, err);
    } else {
        r = co_delete_snapshot(disk->node, action->value, err);
    }
    if (r < 0) {
        error_prepend(err, "Could not %s snapshot '%s': ", action->name, action->value);
        return r;
    }
    return cli_co_finish_disk(disk, err);
}

int img_co_snapshot(int argc, char **argv, struct error *err)
{
    struct cli_image image = {0};
    bool quiet = false;
    int first, r;
    const struct cli_item *change;
    CLI_DISK_AUTO(disk);
    CLI_ITEMS_AUTO(actions);
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"list", 'l', CLI_ACTION, &actions, NULL, "list (the default)"},
        {"create", 'c', CLI_REPEAT, &actions, "NAME", "create a snapshot of the disk as it is"},
        {"apply", 'a', CLI_REPEAT, &actions, "SNAPSHOT", "go back to a snapshot, by ID or name"},
        {"delete", 'd', CLI_REPEAT, &actions, "NAME", "delete a snapshot, by its name"},
        CLI_ARG_FORMAT(image.format),
        CLI_ARG_QUIET(quiet),
        CLI_ARG_FORCE_SHARE(image.force_share),
        CLI_ARG_IMAGE_OPTS(image.image_opts),
        CLI_ARG_OBJECT(objects),
        CLI_ARG_END,
    };

    first = cli_args_parse(args, &usage, argc, argv);
    if (first < 0) {
        return first;
    }
    if (actions.count > 1) {
        return cli_usage_error(err, &usage, "Cannot mix '-l', '-a', '-c', '-d'");
    }
    if (first != argc - 1) {
        return cli_usage_error(err, &usage, "Expecting one image file name");
    }
    image.name = argv[first];
    change = actions.count > 0 && actions.item[0].value ? &actions.item[0] : NULL;
    r = cli_add_objects(&objects, err);
    UNLESS_FAILED(r, cli_co_open_disk(&image, change ? BLOCK_OPEN_RDWR : 0, &disk, err));
    if (r < 0) {
        return r;
    }
    return change ? co_change_snapshots(change, &disk, err) : co_list_snapshots(&disk);
}
